"""The losses that a recipe can name, and how each is built from the recipe's fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

from torch import nn

from fastlip import losses

if TYPE_CHECKING:
    from fastlip.training.recipe import Recipe

LossName = Literal["offset-ce", "temperature-ce", "hkr"]
Reduction = Literal["mean", "sum", "none"]
_Build = Callable[["Recipe", Reduction, bool], nn.Module]


def _offset_cross_entropy(recipe: Recipe, reduction: Reduction, multi_gpu: bool) -> nn.Module:
    return losses.OffsetCrossEntropy(recipe.offset, recipe.temperature, reduction)


def _temperature_cross_entropy(recipe: Recipe, reduction: Reduction, multi_gpu: bool) -> nn.Module:
    return losses.TemperatureCrossEntropy(1 / recipe.temperature, reduction)


def _hkr(recipe: Recipe, reduction: Reduction, multi_gpu: bool) -> nn.Module:
    return losses.MulticlassHKR(recipe.alpha, recipe.min_margin, multi_gpu, reduction)


LOSSES: Mapping[LossName, _Build] = {
    "offset-ce": _offset_cross_entropy,
    "temperature-ce": _temperature_cross_entropy,
    "hkr": _hkr,
}
# They compare the classes of a whole batch: it cannot be taken in parts, and every process needs some of it.
OF_WHOLE_BATCHES: tuple[LossName, ...] = ("hkr",)


def loss_of(recipe: Recipe, reduction: Reduction = "mean", multi_gpu: bool = False) -> nn.Module:
    """The recipe's loss. multi_gpu: a loss of whole batches compares the images of all processes."""
    return LOSSES[recipe.loss](recipe, reduction, multi_gpu)
