"""Copies of models, those that torch refuses to copy included."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)


def copied(model: _Module) -> _Module:
    """A deep copy of a model."""
    return copy.deepcopy(model, detached_values(model))


def detached_values(model: nn.Module) -> dict[int, Any]:
    """A memo for ``copy.deepcopy`` with a model's attributes that autograd computed, which torch refuses to copy.

    Such are the weights that ``torch.nn.utils.weight_norm`` and ``spectral_norm`` keep, and outputs kept by a module.
    """
    attributes = (value for module in model.modules() for value in vars(module).values())
    return {
        id(value): value.detach().clone() for value in attributes if isinstance(value, Tensor) and not value.is_leaf
    }
