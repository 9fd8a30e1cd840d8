"""What an orthogonal dense layer costs in training: its matrix as the parameter, or a Cayley transform of parameters.

``python benchmarks/bench_manifold.py`` times, alternating in one run, the training step (forward, backward, Adam) of
``CayleyLinear`` in both forms and of ``torch.nn.Linear``, after some steps towards a random orthogonal matrix on
random inputs. Then the layer on the manifold takes 1,000 such steps: the largest orthogonality error just before a
retraction, and the error after one. Ratios are medians of each round's ratio. On the CPU seconds are those that the
process computes, so that other processes disturb them less.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch
from torch import Tensor, nn

from fastlip.benchmarking import keep_pages
from fastlip.nn import CayleyLinear
from fastlip.optim import ManifoldOptimizer, manifold_groups


class Options(NamedTuple):
    """The options of the command."""

    batch: int
    rounds: int
    warmup: int
    steps: int
    lr: float
    threads: int
    device: str


_AGREEMENT = 1e-5  # of the weights of both forms at the start


def twins(width: int) -> dict[str, nn.Module]:
    """The layer in both forms with the same weight, and the unconstrained layer."""
    layers: dict[str, nn.Module] = {}
    for parametrization in ("manifold", "unconstrained"):
        torch.manual_seed(0)
        layers[parametrization] = CayleyLinear(width, width, parametrization=parametrization)
    difference = (layers["manifold"].weight - layers["unconstrained"].weight).abs().max()
    if difference > _AGREEMENT:
        raise RuntimeError(f"weights differ by {difference:.2g}: not timed")
    return {**layers, "plain": nn.Linear(width, width)}


def optimizer_of(layer: nn.Module, lr: float) -> torch.optim.Optimizer:
    """Adam, in the tangent space where the layer is on the manifold."""
    if getattr(layer, "parametrization", "") == "manifold":
        return ManifoldOptimizer(manifold_groups(layer, lr=lr))
    return torch.optim.Adam(layer.parameters(), lr)


class Steps:
    """Training steps of a layer towards a matrix, on random inputs.

    Args:
        layer: the layer.
        lr: learning rate of Adam.
        batch: number of inputs.
        target: the matrix.
    """

    def __init__(self, layer: nn.Module, lr: float, batch: int, target: Tensor):
        self.layer, self.target = layer, target
        self.optimizer = optimizer_of(layer, lr)
        self.shape = batch, len(target)

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Inputs and outputs that are asked for, which a step is not charged for."""
        x = torch.randn(self.shape, device=self.target.device)
        return x, x @ self.target.T

    def take(self, x: Tensor, y: Tensor) -> Tensor:
        """One step; returns the loss."""
        self.optimizer.zero_grad()
        loss = (self.layer(x) - y).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def seconds(self) -> float:
        """Takes a step and returns its seconds."""
        x, y = self.inputs()
        if x.is_cuda:
            torch.cuda.synchronize()
        clock = time.perf_counter if x.is_cuda else time.process_time
        started = clock()
        self.take(x, y)
        if x.is_cuda:
            torch.cuda.synchronize()
        return clock() - started


def row_of(width: int, options: Options) -> dict[str, Any]:
    """Figures of one width."""
    target = nn.init.orthogonal_(torch.empty(width, width)).to(options.device)
    steps = {
        name: Steps(layer.to(options.device), options.lr, options.batch, target)
        for name, layer in twins(width).items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(options.warmup + options.rounds):
        for name, step in steps.items():
            taken = step.seconds()
            if index >= options.warmup:
                seconds[name].append(taken)
    pairs = {
        other: [a / b for a, b in zip(seconds["manifold"], seconds[other], strict=True)]
        for other in ("unconstrained", "plain")
    }
    row: dict[str, Any] = {"width": width}
    row |= {f"{name}_ms": 1e3 * statistics.median(times) for name, times in seconds.items()}
    row |= {f"ratio_to_{name}": statistics.median(ratios) for name, ratios in pairs.items()}
    return row | errors_of(width, options)


def errors_of(width: int, options: Options) -> dict[str, float]:
    """Orthogonality errors of many steps, and the first and last loss."""
    torch.manual_seed(1)
    layer = CayleyLinear(width, width, parametrization="manifold").to(options.device)
    steps = Steps(layer, options.lr, options.batch, nn.init.orthogonal_(torch.empty(width, width)).to(options.device))
    losses, errors = [], [0.0]
    for index in range(options.steps):
        losses.append(steps.take(*steps.inputs()).item())
        if index % 100 == 98:  # just before a retraction
            errors.append(steps.optimizer.orthogonality_error())
    steps.optimizer.retract()
    after = steps.optimizer.orthogonality_error()
    return {"error_before": max(errors), "error_after": after, "first_loss": losses[0], "last_loss": losses[-1]}


@click.command()
@click.option("--width", "widths", multiple=True, type=int, default=(256, 512, 1024))
@click.option("--batch", default=256)
@click.option("--rounds", default=15, help="Steps that are timed.")
@click.option("--warmup", default=30, help="Steps before them.")
@click.option("--steps", default=1000, help="Steps after which the orthogonality error is measured.")
@click.option("--lr", default=1e-3, help="Learning rate of Adam.")
@click.option("--threads", default=1)
@click.option("--device", type=click.Choice(("cpu", "cuda")), default="cpu")
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures to this JSON file.")
def main(widths: tuple[int, ...], out: Path | None, **given: Any) -> None:
    """Times the layers; prints a line for each width."""
    options = Options(**given)
    keep_pages()
    torch.set_num_threads(options.threads)
    rows = []
    for width in widths:
        rows.append(row_of(width, options))
        row = rows[-1]
        click.echo(
            f"width {width}: manifold / Cayley {row['ratio_to_unconstrained']:.2f} ({row['manifold_ms']:.1f} / "
            f"{row['unconstrained_ms']:.1f} ms), / plain {row['ratio_to_plain']:.2f}; orthogonality error "
            f"{row['error_before']:.1e}, after a retraction {row['error_after']:.1e}"
        )
    if out:
        about = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__}
        out.write_text(json.dumps({"options": {**options._asdict(), **about}, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
