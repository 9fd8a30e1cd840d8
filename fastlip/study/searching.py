"""Random search of learning rate and weight decay, on images held out from the training images."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastlip._files import read_json, write_json
from fastlip.data import Data, Images
from fastlip.study import running
from fastlip.study.failures import FAILURES, reason
from fastlip.training.recipe import Recipe
from fastlip.training.run_folder import RunFolder

# A trial trains for at most this fraction of a run's budget, and is judged on this fraction of the training images.
BUDGET_FRACTION = 0.2
_HELD_OUT = 0.2
_LR_DECADES = 1.0  # on either side of the recipe's
_WEIGHT_DECAY = (-6.0, -3.0)  # powers of ten


class Selected:
    """Some images of a set."""

    def __init__(self, images: Images, indices: Tensor):
        self.images = images
        self.indices = indices
        self.labels = images.labels[indices]

    def pixels(self, indices: Tensor) -> Tensor:
        """The images at these of the selected indices."""
        return self.images.pixels(self.indices[indices])


def held_out(data: Data, seed: int) -> Data:
    """The training images, split at random into training and test images; the true test images are not used."""
    n = len(data.train.labels)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    count = max(1, round(_HELD_OUT * n))
    parts = Selected(data.train, order[count:]), Selected(data.train, order[:count])
    return dataclasses.replace(data, train=parts[0], test=parts[1])


def pairs(recipe: Recipe, count: int) -> list[tuple[float, float]]:
    """(learning rate, weight decay) of each trial: the recipe's own, then log-uniform draws by the recipe's seed."""
    draw = random.Random(recipe.seed)
    drawn = [
        (recipe.lr * 10 ** draw.uniform(-_LR_DECADES, _LR_DECADES), 10 ** draw.uniform(*_WEIGHT_DECAY))
        for _ in range(count)
    ]
    return [(recipe.lr, recipe.weight_decay), *drawn]


def search(recipe: Recipe, data: Data, folder: Path, count: int, plain: bool = False) -> list[dict[str, Any]]:
    """Trains count random trials and the recipe's own pair; returns them with the best CRA on held-out images first.

    Between equal CRAs, as all of a plain twin's are, accuracy decides. A finished trial is not repeated, and an
    interrupted one is resumed. A trial that fails has CRA 0.
    """
    part = held_out(data, recipe.seed)
    trials = []
    for index, (lr, weight_decay) in enumerate(pairs(recipe, count)):
        trial = dataclasses.replace(recipe, lr=lr, weight_decay=weight_decay)
        trials.append(_trial(trial, part, folder / f"trial-{index:02}", plain))
    return sorted(trials, key=lambda trial: (-trial["cra"], -trial["accuracy"]))


def _trial(recipe: Recipe, data: Data, folder: Path, plain: bool) -> dict[str, Any]:
    run = RunFolder(folder)
    if run.trial.is_file():
        return read_json(run.trial)
    found: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "epochs": recipe.epochs}
    try:
        last = running.train(recipe, data, folder, plain).progress.history[-1]
        found |= {"accuracy": last["test_accuracy"], "cra": last["test_cra"]}
    except FAILURES as error:
        found |= {"accuracy": 0.0, "cra": 0.0, "reason": reason(error)}
    write_json(run.trial, found)
    run.checkpoint.unlink(missing_ok=True)
    return found
