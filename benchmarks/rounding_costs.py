"""What the worst-case bound of rounding costs a certificate: digits networks, and large images with initial weights.

``python benchmarks/rounding_costs.py --out benchmarks/results/rounding_costs.json`` trains a network of each method
by the digits recipe and certifies the test images with either bound of rounding errors: their size e, the certified
robust accuracy at 36/255 and the seconds. Then it certifies networks with initial weights on random images of 32 x 32
pixels, whose e is much larger. It takes a few minutes on one core.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
import torch
from attack_study import environment, train
from torch import Tensor, nn

import fastlip
from fastlip.certification import RoundingModel
from fastlip.certification.rounding import MODELS
from fastlip.data import Data, load
from fastlip.models import METHODS
from fastlip.training.recipe import default_recipe
from fastlip.training.setup import batches_of

TRAINED, INITIAL = ("aol", "cayley", "sll"), ("aol", "bcop", "cayley", "sll")
EPS = 36 / 255
_IMAGES = 16  # random ones


@click.command()
@click.option("--method", "methods", multiple=True, type=click.Choice(METHODS), default=TRAINED)
@click.option("--initial", "untrained", multiple=True, type=click.Choice(METHODS), default=INITIAL)
@click.option("--epochs", default=40, show_default=True, help="Number of epochs of training.")
@click.option("--size", default="XS", show_default=True, help="Size of the networks.")
@click.option("--threads", default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures to this JSON file.")
def main(
    methods: tuple[str, ...], untrained: tuple[str, ...], epochs: int, size: str, threads: int, out: Path | None
) -> None:
    """Trains and certifies; prints the tables of the guide to certificates."""
    data = load("digits")
    trained = [trained_row(method, data, epochs, size, threads) for method in methods]
    initial = [initial_row(method, size) for method in untrained]
    print_tables(trained, initial)
    if out is not None:
        report = {"epochs": epochs, "size": size, **environment(), "digits": trained, "initial": initial}
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def trained_row(method: str, data: Data, epochs: int, size: str, threads: int) -> dict[str, Any]:
    """The figures of a network that was trained on the digits, on their test images."""
    recipe = default_recipe({"method": method, "epochs": epochs, "size": size, "threads": threads})
    model = train(recipe, data)
    return {"method": method, **figures(model, list(batches_of(recipe, data, data.test)))}


def initial_row(method: str, size: str) -> dict[str, Any]:
    """The figures of a network with initial weights, on random images in [0, 1]."""
    torch.manual_seed(0)
    model = fastlip.models.lip_conv_net(method, size).eval()
    images = torch.rand(_IMAGES, 3, 32, 32)
    with torch.no_grad():
        labels = model(images).argmax(1)
    return {"method": method, **figures(model, [(images, labels)])}


def figures(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
    """For each bound of rounding errors: e, the certified robust accuracy and the seconds."""
    return {name: figures_with(name, model, batches) for name in MODELS}


def figures_with(rounding: RoundingModel, model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """The figures with one of them."""
    started = time.perf_counter()
    found = fastlip.certify(model, batches, eps=(EPS,), rounding=rounding)
    seconds = time.perf_counter() - started
    return {"error": found.rounding, "accuracy": found.accuracy, "cra": found.cra[EPS], "seconds": seconds}


def print_tables(trained: list[dict[str, Any]], initial: list[dict[str, Any]]) -> None:
    """Both tables in Markdown."""
    heads = "method", "e, worst case", "e, probabilistic", "certified at 36/255", "probabilistic", "seconds"
    click.echo(f"| {' | '.join(heads)} | probabilistic |")
    click.echo("|---|---|---|---|---|---|---|")
    for row in trained:
        worst, independent = (row[name] for name in MODELS)
        click.echo(
            f"| {row['method']} | {worst['error']:.1e} | {independent['error']:.1e} | {worst['cra']:.1%}"
            f" | {independent['cra']:.1%} | {worst['seconds']:.1f} | {independent['seconds']:.1f} |"
        )
    click.echo("\n| initial weights, 32 x 32 | e, worst case | e, probabilistic |")
    click.echo("|---|---|---|")
    for row in initial:
        worst, independent = (row[name] for name in MODELS)
        click.echo(f"| {row['method']} | {worst['error']:.1e} | {independent['error']:.1e} |")


if __name__ == "__main__":
    main()
