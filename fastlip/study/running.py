"""One run of a study: train, or go on from the checkpoint; certify; or say why it ended."""

from __future__ import annotations

import csv
import dataclasses
import traceback
from pathlib import Path
from typing import Any

import fastlip
from fastlip._files import read_json, write_json, write_text
from fastlip.certification.certificates import DEFAULT_EPS, Certificate
from fastlip.data import Data
from fastlip.study.failures import FAILURES, reason
from fastlip.training import checkpoint, logs
from fastlip.training.loop import Training
from fastlip.training.recipe import Recipe
from fastlip.training.recipe_files import read_recipe
from fastlip.training.setup import batches_of, model_of, prepare_process

RECIPE, CERTIFICATE, RESULT, FAILURE = "recipe.json", "certificate.json", "result.json", "failure.txt"
FILES = (RECIPE, CERTIFICATE, RESULT, FAILURE, checkpoint.FILE_NAME, logs.FILE_NAME)


def result_of(folder: Path) -> dict[str, Any] | None:
    """The result of a finished run; None for one that is not finished."""
    file = folder / RESULT
    return read_json(file) if file.is_file() else None


def run(recipe: Recipe, data: Data, folder: Path) -> dict[str, Any]:
    """Trains and certifies a network in a folder like that of ``fastlip train``; returns and keeps its result.

    A run that was stopped goes on with the recipe it has. One that fails has the reason as ``reason`` in its
    result, and its traceback in failure.txt.

    Raises:
        Interrupted: a signal arrived; the run is saved.
    """
    try:
        result = _figures(*_certified(recipe, data, folder), folder)
    except FAILURES as error:
        result = {"reason": reason(error), "history": history(folder)}
        write_text(folder / FAILURE, traceback.format_exc())
    write_json(folder / RESULT, result)
    return result


def train(recipe: Recipe, data: Data, folder: Path) -> Training:
    """Trains a network in a folder, from its checkpoint if it has one, to the last epoch."""
    recipe = _claimed(recipe, folder)
    file = folder / checkpoint.FILE_NAME
    state = checkpoint.load(file) if file.exists() else None
    prepare_process(recipe)
    training = Training(model_of(recipe, data), recipe, data, folder, state)
    training.fit(tensorboard=False)
    return training


def clear(folder: Path) -> None:
    """Removes what a run has written."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def history(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's log, one for each epoch."""
    file = folder / logs.FILE_NAME
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(lines)]


def _claimed(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with which this run began, with data where they are now."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / RECIPE
    if file.is_file():
        begun = read_recipe(file)
        return dataclasses.replace(begun, path=recipe.path)
    write_json(file, recipe.to_dict())
    return recipe


def _certified(recipe: Recipe, data: Data, folder: Path) -> tuple[Training, Certificate]:
    training = train(recipe, data, folder)
    recipe = training.recipe
    certificate = fastlip.certify(training.model.eval(), batches_of(recipe, data, data.test), eps=DEFAULT_EPS)
    about = {"data": data.name, "split": "test", "images": certificate.n, "divisor": data.divisor}
    figures = {**about, "method": recipe.method, **certificate.to_dict()}
    write_json(folder / CERTIFICATE, figures)
    return training, certificate


def _figures(training: Training, certificate: Certificate, folder: Path) -> dict[str, Any]:
    recipe, rows = training.recipe, history(folder)
    return {
        "epochs": training.steps / len(training.train_batches),
        "steps": training.steps,
        "lr": recipe.lr,
        "weight_decay": recipe.weight_decay,
        "trained_seconds": sum(row["seconds"] for row in rows),
        "accuracy": certificate.accuracy,
        "cra": list(certificate.cra.values()),
        "joint_cra": list(certificate.joint_cra.values()),
        "lipschitz": certificate.lipschitz,
        "radii": certificate.radii.tolist(),
        "history": rows,
    }
