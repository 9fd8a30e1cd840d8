"""Dense networks against the same of ``torch.nn.Linear``: training steps, evaluation, and one input at a time.

``python benchmarks/bench_dense.py [--method NAME ...] [--setting TEXT ...] [--json FILE]`` makes networks of dense
layers with MaxMin after each (sandwich layers have their activation inside). All parameters are perturbed by 30 % of
their standard deviation. A training step is forward, backward and SGD, whose learning rate moves the weights by a
thousandth of their norm. Both networks take turns in every round; a ratio is the median of each round's ratio of the
process's CPU time, which on one thread is the time that is worked, whatever else the machine does.
"""

from __future__ import annotations

import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor, nn

import fastlip
from fastlip import nn as lip
from fastlip.benchmarking import keep_pages, perturb


class Setting(NamedTuple):
    """A network: features of every layer, number of layers, inputs of a batch."""

    width: int
    depth: int
    batch: int

    def __str__(self) -> str:
        return f"{self.width}x{self.depth}, batch {self.batch}"


SETTINGS = (Setting(64, 3, 256), Setting(128, 20, 400), Setting(256, 4, 64), Setting(1024, 3, 256))
METHODS = tuple(name for name in lip.__all__ if name.endswith("Linear") and name != "NormalizedLinear")
PLAIN = "Linear"
CHANGE = 1e-3  # of the weights by one step, relative to their norm
_SECONDS = 0.02  # that one measurement takes at least: short steps are repeated


def network(kind: str, setting: Setting) -> nn.Module:
    """The perturbed network, with the same random numbers for every kind."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(setting.depth):
        layers.append((nn if kind == PLAIN else lip).__dict__[kind](setting.width, setting.width))
        if kind != "SandwichLinear":
            layers.append(lip.MaxMin())
    return perturb(nn.Sequential(*layers))


def training_step(model: nn.Module, x: Tensor, target: Tensor) -> Callable[[], None]:
    """Forward, backward and SGD."""
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    (model(x) - target).square().mean().backward()
    norm, slope = (_norm(tensors) for tensors in (weights, [weight.grad for weight in weights]))
    optimizer = torch.optim.SGD(model.parameters(), lr=CHANGE * norm / slope)

    def step() -> None:
        optimizer.zero_grad()
        (model(x) - target).square().mean().backward()
        optimizer.step()

    return step


def evaluation(model: nn.Module, x: Tensor, frozen: bool = False) -> Callable[[], None]:
    """A forward pass in eval mode without gradients; ``frozen``: without a look at the parameters."""
    model = copy.deepcopy(model).eval()
    if frozen:
        fastlip.freeze(model)

    def step() -> None:
        with torch.no_grad():
            model(x)

    return step


def _norm(tensors: list[Any]) -> float:
    return torch.stack([tensor.norm() for tensor in tensors]).norm().item()


def compare(method: str, setting: Setting, rounds: int) -> dict[str, Any]:
    """The ratios and the milliseconds of both networks."""
    x, target = torch.randn(2, setting.batch, setting.width)
    models = {kind: network(kind, setting) for kind in (PLAIN, method)}
    kinds = {
        "training": lambda model: training_step(model, x, target),
        "evaluation": lambda model: evaluation(model, x),
        "evaluation, batch 1": lambda model: evaluation(model, x[:1]),
        "evaluation, batch 1, frozen": lambda model: evaluation(model, x[:1], frozen=True),
    }
    row: dict[str, Any] = {"method": method, **setting._asdict()}
    for name, step_of in kinds.items():
        row[name] = ratio({kind: step_of(model) for kind, model in models.items()}, rounds)
    return row


def ratio(steps: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """The median of each round's ratio of the second step to the first, and both medians in milliseconds."""
    counts = [repetitions(step) for step in steps.values()]
    turns = list(zip(steps.values(), counts, strict=True))
    taken = [[seconds(step, count) for step, count in turns] for _ in range(rounds)]
    middle = statistics.median(other / plain for plain, other in taken)
    plain, other = (1e3 * statistics.median(times) for times in zip(*taken, strict=True))
    return {"ratio": round(middle, 3), "plain ms": round(plain, 4), "ms": round(other, 4)}


def repetitions(step: Callable[[], None]) -> int:
    """How often a short step is repeated for one measurement."""
    for _ in range(3):
        step()
    return max(1, round(_SECONDS / max(seconds(step, 1), 1e-6)))


def seconds(step: Callable[[], None], count: int) -> float:
    """CPU time of one step."""
    begun = time.process_time()
    for _ in range(count):
        step()
    return (time.process_time() - begun) / count


@click.command()
@click.option("--method", "methods", multiple=True, type=click.Choice(METHODS), help="Once for each.  [default: all]")
@click.option("--setting", "texts", multiple=True, help="Settings whose name contains it.  [default: all]")
@click.option("--rounds", default=15, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Rows timed again replace its.")
def main(methods: tuple[str, ...], texts: tuple[str, ...], rounds: int, threads: int, path: Path | None) -> None:
    """Times every method at every setting; prints a line for each."""
    keep_pages()
    torch.set_num_threads(threads)
    rows = []
    for setting in SETTINGS:
        if not any(text in str(setting) for text in texts or ("",)):
            continue
        for method in methods or METHODS:
            row = compare(method, setting, rounds)
            rows.append(row)
            found = {name: value["ratio"] for name, value in row.items() if isinstance(value, dict)}
            told = "   ".join(f"{name} {value:6.2f}" for name, value in found.items())
            click.echo(f"{setting!s:<20} {method:<16} {told}")
            if path:
                about = {"torch": torch.__version__, "threads": threads, "machine": platform.machine()}
                path.write_text(json.dumps({**about, "change": CHANGE, "rows": merged(path, rows)}, indent=1) + "\n")


def merged(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the file, those timed again replaced."""
    found = json.loads(path.read_text())["rows"] if path.exists() else []
    keyed = {(row["width"], row["depth"], row["batch"], row["method"]): row for row in (*found, *rows)}
    return [keyed[key] for key in sorted(keyed)]


if __name__ == "__main__":
    main()
