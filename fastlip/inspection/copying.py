"""Copies models, also those that torch refuses to copy."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)


def copied(model: _Module) -> _Module:
    """Returns a deep copy of a model."""
    return copy.deepcopy(model, detached_values(model))


def detached_values(model: nn.Module) -> dict[int, Any]:
    """Returns a memo for ``copy.deepcopy``: copies of what autograd computed, which torch refuses to copy.

    Examples are the weights that ``torch.nn.utils.weight_norm`` and ``spectral_norm`` keep, and outputs that a module
    keeps.
    """
    attributes = (value for module in model.modules() for value in vars(module).values())
    return {
        id(value): value.detach().clone() for value in attributes if isinstance(value, Tensor) and not value.is_leaf
    }
