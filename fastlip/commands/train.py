"""``fastlip train``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from fastlip.commands.options import EPS, recipe_options
from fastlip.training.recipe import MOVABLE, Recipe, default_recipe

RECIPE = "recipe.json"
CERTIFICATE = "certificate.json"
_OURS = (RECIPE, CERTIFICATE, "checkpoint.pt", "log.csv")


@click.command()
@recipe_options
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/DATA-METHOD-SIZE]")
@click.option("--resume", is_flag=True, help="Continue the run in the run folder from its last checkpoint.")
@click.option("--overwrite", is_flag=True, help="Replace the run in the run folder.")
@click.option("--stop-after", type=click.IntRange(0), default=0, help="Stop after so many epochs; 0: never.")
@click.option("--tensorboard/--no-tensorboard", default=True, help="Write TensorBoard events if it is installed.")
def train(out: Path | None, resume: bool, overwrite: bool, stop_after: int, tensorboard: bool, **options: Any):
    """Trains a 1-Lipschitz network and prints its certificate.

    The run folder receives recipe.json, checkpoint.pt and log.csv (after each epoch) and certificate.json. The
    defaults of epochs, batch size, learning rate and augmentation are those of digits; other data sets and
    methods have their own. Ctrl-C saves the run; `--resume` continues it bit for bit (on a CPU).
    """
    given = {name: value for name, value in options.items() if value is not None}
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    if resume:
        folder = out or _default_folder(default_recipe(given))
        recipe, state = _load(folder, given)
    else:
        recipe, state = default_recipe(given), None
        folder = out or _default_folder(recipe)
        _require_free(folder, overwrite)
    _run(recipe, folder, state, stop_after, tensorboard)


def _run(recipe: Recipe, folder: Path, state: dict[str, Any] | None, stop_after: int, tensorboard: bool) -> None:
    from fastlip.commands.evaluate import report_certificate
    from fastlip.data import load
    from fastlip.training.loop import Training
    from fastlip.training.setup import model_of, prepare_process

    prepare_process(recipe)
    data = load(recipe.data, recipe.path, recipe.image_size)
    click.echo(str(data))
    model = model_of(recipe, data)
    if state is None:
        _claim(folder, recipe)
    training = Training(model, recipe, data, folder, state)
    count = sum(parameter.numel() for parameter in model.parameters())
    network = recipe.method if recipe.model == "lip_conv_net" else recipe.model
    click.echo(f"{network} {recipe.size}: {count / 1e6:.3f} M parameters, run folder {folder}")
    training.fit(stop_after, tensorboard)
    if training.progress.epoch < recipe.epochs:
        click.echo(f"stopped after {training.progress.epoch} of {recipe.epochs} epochs; --resume continues")
        return
    result = report_certificate(model, recipe, data, EPS)
    text = json.dumps(result, indent=2)
    from fastlip.training.checkpoint import write_text

    write_text(folder / CERTIFICATE, text + "\n")


def _load(folder: Path, given: dict[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    from fastlip.training import checkpoint

    state = checkpoint.load(folder / checkpoint.FILE_NAME)
    recipe = Recipe.from_dict(state["recipe"])
    recipe.refuse_changes(given)
    moved = {name: given[name] for name in MOVABLE if name in given}
    return dataclasses.replace(recipe, **moved), state


def _default_folder(recipe: Recipe) -> Path:
    network = recipe.method if recipe.model == "lip_conv_net" else recipe.model
    return Path("runs") / f"{recipe.data}-{network}-{recipe.size}"


def _require_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise click.UsageError(f"{folder}: is not a folder")
    if not overwrite:
        raise click.UsageError(
            f"{folder}: exists; --resume continues it, --overwrite replaces it, --out names another"
        )
    if not (folder / RECIPE).is_file():
        raise click.UsageError(f"{folder}: is not a run folder (no {RECIPE}); --overwrite replaces only runs")


def _claim(folder: Path, recipe: Recipe) -> None:
    """Makes the run folder and removes the files of a run that it replaces, and of reports on it."""
    from fastlip.commands.report import FILES
    from fastlip.training.checkpoint import write_text

    folder.mkdir(parents=True, exist_ok=True)
    reports = (report / name for report in folder.glob("certify-*") for name in FILES)
    for old in (*(folder / name for name in _OURS), *folder.glob("events.out.tfevents.*"), *reports):
        old.unlink(missing_ok=True)
    write_text(folder / RECIPE, json.dumps(recipe.to_dict(), indent=2) + "\n")
