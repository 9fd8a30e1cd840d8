"""Attacks certificates: digits networks of every method, each image at its certified radius and at three times it.

``python benchmarks/attack_study.py`` trains small networks (width 8, two convolutions a block, a few epochs) with
several seeds, certifies all 1797 images and attacks those that are certified. No attack may succeed inside the
radius; most must succeed within three times the radius, or the attack has no teeth. Exits with 1 otherwise.
"""

from __future__ import annotations

import json
import platform
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

import fastlip
from fastlip.certification.attacks import KINDS, BrokenCertificateWarning, attack_certified
from fastlip.data import Data, load
from fastlip.models import METHODS
from fastlip.training.losses import loss_of
from fastlip.training.optimization import optimizer_of, scheduler_of
from fastlip.training.recipe import Recipe
from fastlip.training.recipe_files import default_recipe
from fastlip.training.setup import batches_of, model_of, prepare_process

FACTORS = (1.0, 3.0)


@click.command()
@click.option("--method", "methods", multiple=True, type=click.Choice(METHODS), default=METHODS)
@click.option("--seed", "seeds", multiple=True, type=int, default=(0, 1), help="Of training; one network for each.")
@click.option("--epochs", default=10, help="Of training.")
@click.option("--images", default=0, help="Number of images to attack, from the first; 0: all.")
@click.option("--kind", type=click.Choice(tuple(KINDS)), default="pgd")
@click.option("--steps", default=20, help="Of the attack.")
@click.option("--restarts", default=3, help="Of the attack.")
@click.option("--threads", default=1)
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures to this JSON file.")
def main(
    methods: tuple[str, ...],
    seeds: tuple[int, ...],
    epochs: int,
    threads: int,
    images: int,
    out: Path | None,
    **how: Any,
):
    """Trains, certifies and attacks; prints a line for each network."""
    data = load("digits")
    rows = []
    for method in methods:
        for seed in seeds:
            options = {"method": method, "seed": seed, "epochs": epochs, "threads": threads}
            recipe = default_recipe({**options, "width": 8, "layers_per_block": 2})
            rows.append(study(recipe, data, images, **how))
            print_row(rows[-1])
    report = {**totals(rows), "epochs": epochs, **how, **environment(), "rows": rows}
    click.echo(
        f"{report['attacked']} sample-attacks within the certified radius: {report['broken']} succeed;"
        f" within three times it {report['success_at_3x']:.1%}"
    )
    if out is not None:
        out.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(0 if report["broken"] == 0 and min(row["success_at_3x"] for row in rows) > 0.5 else 1)


def study(recipe: Recipe, data: Data, images: int, **how: Any) -> dict[str, Any]:
    """The figures of one network."""
    started = time.perf_counter()
    model = train(recipe, data)
    trained = time.perf_counter()
    batches = [batches_of(recipe, data, part) for part in (data.train, data.test)]
    loader = [batch for part in batches for batch in part]
    x, y = (torch.cat(parts)[: images or None] for parts in zip(*loader, strict=True))
    loader = list(zip(x.split(256), y.split(256), strict=True))
    mean = batches[0].mean
    certificate = fastlip.certify(model, loader)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BrokenCertificateWarning)  # counted below
        result = attack_certified(
            model, loader, certificate, FACTORS, bounds=(-mean, 1 - mean), seed=recipe.seed, **how
        )
    attacked = result.attacked.sum(0).tolist()
    return {
        "method": recipe.method,
        "seed": recipe.seed,
        "accuracy": certificate.accuracy,
        "cra": certificate.cra[36 / 255],
        "lipschitz": certificate.lipschitz,
        "attacked": attacked[0],
        "broken": len(result.broken),
        "success_at_3x": result.success_rate[1],
        "median_distance_over_radius": (result.distances / certificate.radii)[result.found].median().item(),
        "training_seconds": trained - started,
        "seconds": time.perf_counter() - started,
    }


def train(recipe: Recipe, data: Data) -> nn.Module:
    """A network after the recipe's epochs, in eval mode."""
    prepare_process(recipe)
    model = model_of(recipe, data).train()
    batches, loss = batches_of(recipe, data, data.train, augment=True), loss_of(recipe)
    optimizer = optimizer_of(recipe, model)
    scheduler = scheduler_of(recipe, optimizer, len(batches))
    for epoch in range(round(recipe.epochs)):
        for x, y in batches.epoch(epoch):
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
            scheduler.step()
    return model.eval()


def totals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over networks; the share at three times the radius weighs every sample alike."""
    attacked = sum(row["attacked"] for row in rows)
    at_3x = sum(row["success_at_3x"] * row["attacked"] for row in rows)
    return {
        "attacked": attacked,
        "broken": sum(row["broken"] for row in rows),
        "success_at_3x": at_3x / max(attacked, 1),
    }


def environment() -> dict[str, Any]:
    """What ran where."""
    return {
        "command": " ".join(["python", *sys.argv]),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "fastlip": fastlip.__version__,
    }


def print_row(row: dict[str, Any]) -> None:
    """One line."""
    click.echo(
        f"{row['method']:<7} seed {row['seed']}  accuracy {row['accuracy']:.1%}  CRA(36/255) {row['cra']:.1%}"
        f"  attacked {row['attacked']}  broken {row['broken']}  at 3x {row['success_at_3x']:.1%}"
        f"  median distance/radius {row['median_distance_over_radius']:.2f}  {row['seconds']:.0f} s"
        f" ({row['training_seconds']:.0f} s training)"
    )


if __name__ == "__main__":
    main()
