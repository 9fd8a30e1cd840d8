"""One run of a study: trains it, or continues it from the checkpoint, and certifies it, or says why it failed."""

from __future__ import annotations

import dataclasses
import traceback
from pathlib import Path
from typing import Any

import fastlip
from fastlip._files import read_json, write_json
from fastlip.certification.certificates import DEFAULT_EPS, Certificate
from fastlip.data import Data
from fastlip.study.contenders import PLAIN
from fastlip.study.failures import FAILURES, reason
from fastlip.study.twin import network_of
from fastlip.training.card import describe_certificate
from fastlip.training.loop import Training
from fastlip.training.recipe import Recipe
from fastlip.training.run_folder import RunFolder
from fastlip.training.setup import batches_of, prepare_process


def result_of(folder: Path) -> dict[str, Any] | None:
    """The result of a finished run; None for one that is not finished."""
    file = RunFolder(folder).result
    return read_json(file) if file.is_file() else None


def run(recipe: Recipe, data: Data, folder: Path, plain: bool = False) -> dict[str, Any]:
    """Trains and certifies a network, or its plain twin; returns its result and writes it into the folder.

    The folder is like that of ``fastlip train``. A run that was stopped continues with its own recipe. The result of
    a run that fails has the reason as ``reason``; the traceback is in failure.txt.

    Raises:
        Interrupted: a signal arrived; the run is saved.
    """
    run_folder = RunFolder(folder)
    try:
        result = _figures(*_certified(recipe, data, folder, plain))
    except FAILURES as error:
        result = {"reason": reason(error), "history": run_folder.history()}
        run_folder.write_failure(traceback.format_exc())
    write_json(run_folder.result, result)
    return result


def train(recipe: Recipe, data: Data, folder: Path, plain: bool = False) -> Training:
    """Trains a network, or its plain twin, in a folder, from its checkpoint if it has one, until the last epoch."""
    run_folder = RunFolder(folder)
    recipe = _claimed(recipe, run_folder)
    state = run_folder.load_state() if run_folder.checkpoint.exists() else None
    prepare_process(recipe)
    training = Training(network_of(recipe, data, plain), recipe, data, folder, state)
    training.fit(tensorboard=False, lines=False)
    return training


def _claimed(recipe: Recipe, folder: RunFolder) -> Recipe:
    """The recipe with which this run began, with the present path of the data."""
    folder.path.mkdir(parents=True, exist_ok=True)
    if folder.recipe.is_file():
        return dataclasses.replace(folder.read_recipe(), path=recipe.path)
    folder.write_recipe(recipe)
    return recipe


def _certified(recipe: Recipe, data: Data, folder: Path, plain: bool) -> tuple[Training, Certificate]:
    training = train(recipe, data, folder, plain)
    recipe = training.recipe
    certificate = fastlip.certify(training.result.eval(), batches_of(recipe, data, data.test), eps=DEFAULT_EPS)
    described = describe_certificate(certificate, recipe.method, data, "test")
    training.folder.write_certificate(described | ({"method": PLAIN} if plain else {}))
    return training, certificate


def _figures(training: Training, certificate: Certificate) -> dict[str, Any]:
    recipe, rows = training.recipe, training.folder.history()
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
