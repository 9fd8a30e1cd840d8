"""``fastlip certify`` and ``fastlip audit``."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from torch import nn

import fastlip
from fastlip.commands.options import eps_option, radius_name
from fastlip.data import Data
from fastlip.training.recipe import Recipe

_RUN = click.argument("run", type=click.Path(path_type=Path))
_PATH = click.option("--path", help="Folder of the data set's files, if it has moved.")
_DEVICE = click.option("--device", help="auto, cpu, cuda, ...  [default: the run's]")
_BACKEND = click.option("--backend", help="Kernels: auto, reference, native or triton.  [default: the run's]")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@_RUN
@eps_option
@click.option("--split", type=click.Choice(["test", "train"]), default="test", help="Which images.")
@_PATH
@_DEVICE
@_BACKEND
@_JSON
def certify(run: Path, eps: Sequence[float], split: str, as_json: bool, **moved: str | None):
    """Certifies the network of RUN (a run folder or a checkpoint): accuracy, certified accuracy, audited bound."""
    recipe, data, model = open_run(run, moved)
    result = report_certificate(model, recipe, data, eps, split=split, quiet=as_json)
    if as_json:
        click.echo(json.dumps(result, indent=2))


@click.command()
@_RUN
@_PATH
@_DEVICE
@_BACKEND
@_JSON
def audit(run: Path, as_json: bool, **moved: str | None):
    """Prints an upper bound on the Lipschitz constant of each layer of RUN, and their product."""
    _, data, model = open_run(run, moved)
    result = fastlip.audit(model.eval(), input_shape=data.shape)
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
    else:
        click.echo(str(result))


def open_run(run: Path, moved: dict[str, str | None]) -> tuple[Recipe, Data, nn.Module]:
    """A run's recipe, data and trained model, with what has moved since (path, device, backend)."""
    from fastlip.data import load
    from fastlip.training import checkpoint
    from fastlip.training.loop import load_model
    from fastlip.training.setup import model_of, prepare_process

    state = checkpoint.load(run / checkpoint.FILE_NAME if run.is_dir() else run)
    recipe = Recipe.from_dict(state["recipe"])
    recipe = dataclasses.replace(recipe, **{name: value for name, value in moved.items() if value is not None})
    prepare_process(recipe)
    data = load(recipe.data, recipe.path, recipe.image_size)
    model = model_of(recipe, data)
    load_model(model, state, data)
    return recipe, data, model


def report_certificate(
    model: nn.Module, recipe: Recipe, data: Data, eps: Sequence[float], *, split: str = "test", quiet: bool = False
) -> dict[str, Any]:
    """Certifies the model on a split; prints the figures unless quiet; returns them as plain values."""
    from fastlip.training.setup import batches_of

    images = data.test if split == "test" else data.train
    certificate = fastlip.certify(
        model.eval(), batches_of(recipe, data, images), eps=list(eps), progress=not quiet and sys.stderr.isatty()
    )
    if not quiet:
        click.echo(f"accuracy           {certificate.accuracy:8.2%}   ({len(images.labels)} {split} images)")
        for radius, share in certificate.cra.items():
            click.echo(f"CRA at {radius_name(radius):<11} {share:8.2%}")
        click.echo(f"Lipschitz bound    {certificate.lipschitz:.7f}  (audited; radii are divided by it)")
        click.echo(f"Radii are L2 distances of images with values in [0, 1] (stored value / {data.divisor:g}).")
    summary = {"data": data.name, "split": split, "images": len(images.labels), "divisor": data.divisor}
    return {**summary, "method": recipe.method, **certificate.to_dict()}
