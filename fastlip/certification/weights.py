"""Which tensor a module multiplies by: decided by the forward that runs, never by the name of an attribute."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastlip.nn._conv import KernelConv2d
from fastlip.nn.aoc import AOCConvTranspose2d
from fastlip.nn.base import MatrixLinear

# Class: its methods that say what weight does.
_CONTRACTS = {
    nn.Linear: ("forward",),
    nn.Conv1d: ("forward", "_conv_forward"),
    nn.Conv2d: ("forward", "_conv_forward"),
    nn.ConvTranspose2d: ("forward",),
    MatrixLinear: ("forward", "weight"),
    KernelConv2d: ("forward", "weight", "convolve", "torus_for", "apply_spectrum"),
    AOCConvTranspose2d: ("forward", "weight"),
}


def runs_as(module: nn.Module, kind: type[nn.Module], *methods: str) -> bool:
    """Whether the module is of this kind, and these methods of it are those of the kind: not overridden anywhere."""
    return isinstance(module, kind) and not any(
        name in vars(module) or getattr(type(module), name, None) is not getattr(kind, name) for name in methods
    )


def linear_weight(module: Any) -> Tensor | None:
    """The matrix or kernel W of a module whose forward is y = W x + b, the class's own; None for any other module.

    Any module may have an attribute ``weight`` that its forward does not use, or not like this.
    """
    if any(runs_as(module, kind, *methods) for kind, methods in _CONTRACTS.items()):
        return module.weight
    return None
