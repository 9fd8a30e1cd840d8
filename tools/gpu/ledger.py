"""Launches, bytes and waits of training steps and evaluations, against the budgets in tools/gpu/budgets.json.

    python tools/gpu/fake_cuda.py ledger [--networks NAME ...] [--layers NAME ...] [--update] [--detail]
                                    [--places]

A network's step is that of a method's ConvNet S, of BRONet S or of LipNeXt S on 256 images of 32 x 32, fused:
gradients cleared, forward, loss, backward, update by SGD with momentum, of matrices on the manifold in their tangent
spaces. Its evaluation is a forward of the same images, frozen. A layer's step is its forward and backward on 256
images, and its bytes are counted in units of its activations.
Exits with 1 if a budget is exceeded; ``--update`` writes what was counted as the new budgets.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import places
import steps
import torch
import watch
from evaluation import evaluation_of

FILE = Path(__file__).with_name("budgets.json")
IMAGES, SIDE = 256, 32
SHAPES = ((64, 32), (128, 16), (256, 8), (512, 4))
SIXTEEN_BITS = ("CayleyConv2d",)  # layers that are counted on images in bfloat16 too
# Bars that no budget may pass: launches of a network's step, and activations moved by a layer.
TARGETS = {"aol": 650, "cayley": 800, "aoc": 900, "sll": 900, "cpl": 1100, "lot": 1500, "bcop": 1500, "soc": 1800}
LAYER_TARGETS = {"CayleyConv2d 64x32": 20.0, "AOLConv2d 64x32": 12.0}


def count_network(method: str, by_place: bool = False) -> watch.Counts:
    """The second step of a network."""
    with watch.gpu() as device:
        step = steps.training_step(steps.network(method, image_size=SIDE), *steps.batch(IMAGES, SIDE))
        return _second(device, step, by_place)


def count_evaluation(method: str, by_place: bool = False) -> watch.Counts:
    """The second evaluation of a frozen network."""
    with watch.gpu() as device:
        run = evaluation_of(steps.network(method, image_size=SIDE), steps.batch(IMAGES, SIDE)[0])
        return _second(device, run, by_place)


def count_layer(
    name: str, channels: int, side: int, by_place: bool = False, dtype: torch.dtype = torch.float32
) -> watch.Counts:
    """Forward and backward of a layer, of channels-last images of a type."""
    make, options = steps.CONVOLUTIONS[name]
    with watch.gpu() as device:
        layer = make(channels, channels, 3, **options).train()
        x = torch.empty(IMAGES, channels, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
        return _second(device, steps.layer_step(layer, x), by_place)


def _second(device: watch.Device, step: Callable[[], Any], by_place: bool) -> watch.Counts:
    with places.remembered() if by_place else contextlib.nullcontext():
        step()
        with device.counting(places.place_of_launch if by_place else None) as counts:
            step()
    return counts


def figures(counts: watch.Counts, unit: int = 0) -> dict[str, Any]:
    """What a budget holds: gigabytes of a network, activations of a layer."""
    size = {"activations": round(counts.bytes / unit, 1)} if unit else {"gigabytes": round(counts.bytes / 1e9, 2)}
    return {"launches": counts.launches, **size, "waits": sum((counts.waits + counts.uploads).values())}


def exceeded(found: dict[str, Any], budget: dict[str, Any] | None) -> list[str]:
    """What of these figures is above its budget, in words."""
    if budget is None:
        return ["there is no budget"]
    return [f"{found[key]} {key}, budget {budget[key]}" for key in found if found[key] > budget[key]]


def above_bars(name: str, found: dict[str, Any]) -> list[str]:
    """What of a network's or a layer's figures is above its bar, in words: also when budgets are written anew."""
    bars = {"launches": TARGETS.get(name, math.inf), "activations": LAYER_TARGETS.get(name, math.inf)}
    return [f"{found[key]} {key}, bar {bar}" for key, bar in bars.items() if found.get(key, 0) > bar]


def all_figures(
    networks: list[str], layers: list[str], detail: bool = False, by_place: bool = False
) -> dict[str, dict[str, Any]]:
    """The figures of these networks and layers, by name."""
    found, detail = {}, detail or by_place
    for method in networks:
        for name, count in ((method, count_network), (f"{method} evaluation", count_evaluation)):
            counts = count(method, by_place)
            found[name] = figures(counts)
            if detail:
                show(name, counts)
    for layer in layers:
        for dtype in (torch.float32, *((torch.bfloat16,) if layer in SIXTEEN_BITS else ())):
            for channels, side in SHAPES:
                counts = count_layer(layer, channels, side, by_place, dtype)
                name = f"{layer} {channels}x{side}{'' if dtype == torch.float32 else ' bf16'}"
                found[name] = figures(counts, IMAGES * channels * side * side * dtype.itemsize)
                if detail:
                    show(name, counts)
    return found


def show(name: str, counts: watch.Counts) -> None:
    print(name)
    for (place, operation), number in counts.by_place.most_common():
        print(f"  {number:5} {operation:40} {place}")
    for operation, number in counts.by_name.most_common() if not counts.by_place else ():
        print(f"  {number:5} {operation:40} {counts.bytes_by_name[operation] / 1e6:10.1f} MB")
    for place, number in (counts.waits + counts.uploads).items():
        print(f"  {number:5} wait: {place}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="ledger", description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="*", default=list(steps.NETWORKS))
    parser.add_argument("--layers", nargs="*", default=list(steps.CONVOLUTIONS))
    parser.add_argument("--update", action="store_true", help="write the budgets")
    parser.add_argument("--detail", action="store_true", help="list every operation")
    parser.add_argument("--places", action="store_true", help="list the lines of the package that launch")
    options = parser.parse_args()
    budgets = json.loads(FILE.read_text()) if FILE.exists() else {}
    found = all_figures(options.networks, options.layers, options.detail, options.places)
    print(f"{'step of':24} launches (target)   size (target)          waits")
    bad = 0
    for name, row in found.items():
        target, size_target = TARGETS.get(name, ""), LAYER_TARGETS.get(name, "")
        size = f"{row['activations']} activations" if "activations" in row else f"{row['gigabytes']} GB"
        problems = [] if options.update else exceeded(row, budgets.get(name))
        problems += above_bars(name, row)
        bad += bool(problems)
        print(f"{name:24} {row['launches']:6} {target!s:>8}   {size:>18} {size_target!s:>5} {row['waits']:6}", end="")
        print(f"  over budget: {'; '.join(problems)}" if problems else "")
    if options.update:
        FILE.write_text(json.dumps({**budgets, **found}, indent=1) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
