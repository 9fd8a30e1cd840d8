"""How time and memory grow with batch, width, image side and depth: every method, and plain convolutions.

``python benchmarks/bench_scaling.py [--method NAME ...] [--axis NAME ...] [--json FILE]`` makes sequences of 3x3
convolutions with MaxMin (residual layers have their activation inside). One size varies at a time, and the others
stay: those of ``FIXED``. Parameters are perturbed by 30 % of their standard deviation. A training step is forward,
backward and SGD. The networks of a method, by its kernels and by its reference, and the plain one take turns in every
round. A ratio is the median of each round's ratio of the process's CPU time, which on one thread is the time that is
worked, whatever else the machine does. Memory is what autograd keeps for the backward pass.
"""

from __future__ import annotations

import itertools
import json
import platform
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from bench_dense import evaluation, repetitions, seconds
from torch import Tensor, nn

import fastlip
from fastlip import nn as lip
from fastlip.benchmarking import MaximumMinimum, keep_pages, perturb
from fastlip.models import METHODS
from fastlip.models.registry import method_of
from fastlip.testing import bytes_kept


class Sizes(NamedTuple):
    """Images of a batch, channels, side of the images, and number of convolutions."""

    batch: int
    width: int
    side: int
    depth: int


FIXED = {
    "batch": Sizes(0, 32, 8, 2),
    "width": Sizes(16, 0, 8, 2),
    "side": Sizes(16, 16, 0, 2),
    "depth": Sizes(16, 32, 8, 0),
}
VALUES = {
    "batch": (1, 4, 16, 64, 256, 1024),
    "width": (16, 32, 64, 128, 256, 512),
    "side": (8, 16, 32, 64),
    "depth": (1, 2, 4, 8),
}
PLAIN = "plain"
FORMS = ("fused", "reference")
# References of these methods factorise matrices for seconds at more channels than this.
WIDEST_REFERENCE = 128


def network(method: str, form: str, sizes: Sizes) -> nn.Module:
    """The perturbed network, with the same random numbers for every form."""
    torch.manual_seed(0)
    channels = sizes.width, sizes.width
    if form == PLAIN:
        pairs = [(nn.Conv2d(*channels, 3, padding=1), MaximumMinimum("adjacent")) for _ in range(sizes.depth)]
        return perturb(nn.Sequential(*itertools.chain(*pairs)))
    own = [(method_of(method).convolution(*channels, 3), lip.MaxMin()) for _ in range(sizes.depth)]
    model = perturb(lip.Chain(*itertools.chain(*own)))
    return model if form == "fused" else fastlip.unfuse(model)


def training_step(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward, backward and SGD with steps that change no time."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    return step


def compare(method: str, axis: str, sizes: Sizes, rounds: int) -> dict[str, Any]:
    """Ratios to the plain network, its milliseconds and its bytes."""
    x = torch.randn(sizes.batch, sizes.width, sizes.side, sizes.side)
    forms = [form for form in (PLAIN, *FORMS) if form != "reference" or sizes.width <= WIDEST_REFERENCE]
    models = {form: network(method, form, sizes) for form in forms}
    row: dict[str, Any] = {"method": method, "axis": axis, **sizes._asdict()}
    for name, step_of in {"training": training_step, "evaluation": evaluation}.items():
        taken = in_turns({form: step_of(model, x) for form, model in models.items()}, rounds)
        row[f"plain {name}, ms"] = round(1e3 * statistics.median(taken[PLAIN]), 4)
        for form in forms[1:]:
            ratios = (own / plain for own, plain in zip(taken[form], taken[PLAIN], strict=True))
            row[f"{form} {name}"] = round(statistics.median(ratios), 3)
    kept = {form: bytes_kept(lambda model=model: model(x).square().mean()) for form, model in models.items()}
    row["plain memory, MB"] = round(kept[PLAIN] / 1e6, 4)
    row |= {f"{form} memory": round(kept[form] / kept[PLAIN], 3) for form in forms[1:]}
    return row


def in_turns(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of CPU time of each step in each round."""
    counts = {form: repetitions(step) for form, step in steps.items()}
    taken: dict[str, list[float]] = {form: [] for form in steps}
    for _ in range(rounds):
        for form, step in steps.items():
            taken[form].append(seconds(step, counts[form]))
    return taken


@click.command()
@click.option("--method", "methods", multiple=True, type=click.Choice(METHODS), help="Once for each.  [default: all]")
@click.option("--axis", "axes", multiple=True, type=click.Choice([*VALUES]), help="Once for each.  [default: all]")
@click.option("--rounds", default=5, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Rows timed again replace its.")
def main(methods: tuple[str, ...], axes: tuple[str, ...], rounds: int, threads: int, path: Path | None) -> None:
    """Times every method at every size; prints a line for each."""
    keep_pages()
    torch.set_num_threads(threads)
    rows = []
    for method in methods or METHODS:
        for axis in axes or VALUES:
            for value in VALUES[axis]:
                row = compare(method, axis, FIXED[axis]._replace(**{axis: value}), rounds)
                rows.append(row)
                told = "   ".join(f"{name} {row[name]:6.2f}" for name in row if name.startswith(FORMS))
                click.echo(f"{method:<7} {axis:<6} {value:<5} {told}")
                if path:
                    about = {"torch": torch.__version__, "threads": threads, "machine": platform.machine()}
                    path.write_text(json.dumps({**about, "rows": merged(path, rows)}, indent=1) + "\n")


def merged(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the file, those timed again replaced."""
    found = json.loads(path.read_text())["rows"] if path.exists() else []
    keyed = {(row["method"], row["axis"], row[row["axis"]]): row for row in (*found, *rows)}
    return [keyed[key] for key in sorted(keyed)]


if __name__ == "__main__":
    main()
