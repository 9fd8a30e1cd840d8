"""The loss of a recipe, built by the class that has the recipe's name for it, and the ramp of its radius."""

from __future__ import annotations

from dataclasses import fields

from fastlip.losses import RECIPE_LOSSES, RadiusRamp
from fastlip.losses.base import Loss, Reduction
from fastlip.training.recipe import Recipe

_TABLE = "loss."


def loss_of(recipe: Recipe, reduction: Reduction = "mean", multi_gpu: bool = False) -> Loss:
    """Returns the recipe's loss. multi_gpu: a loss of whole batches compares the images of all processes."""
    keys = {item.metadata["key"]: item.name for item in fields(recipe)}
    table = {key.removeprefix(_TABLE): getattr(recipe, name) for key, name in keys.items() if key.startswith(_TABLE)}
    return RECIPE_LOSSES[recipe.loss].from_recipe(table, reduction, multi_gpu)


def ramp_of(recipe: Recipe, loss: Loss, steps: int) -> RadiusRamp | None:
    """Returns the ramp of the loss's radius over the run's steps; None for a loss without a radius."""
    if not hasattr(loss, "radius"):
        return None
    return RadiusRamp(loss, steps, recipe.radius_start, recipe.radius, recipe.ramp)
