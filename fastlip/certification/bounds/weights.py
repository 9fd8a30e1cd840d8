"""Finds the tensor that a module multiplies by: by the forward that runs, never by the name of an attribute."""

from __future__ import annotations

from functools import cache, partial
from typing import Any, Literal

from torch import Tensor, nn

from fastlip.inspection.rules import defines_outside, nearest_of
from fastlip.nn.applications import Dense, KernelConvolution, TransposedConvolution

LinearForm = Literal["matrix", "convolution", "transposed"]

# A module of torch.nn: the methods that say what its weight does.
_CONTRACTS = {
    nn.Linear: ("forward",),
    nn.Conv1d: ("forward", "_conv_forward"),
    nn.Conv2d: ("forward", "_conv_forward"),
    nn.Conv3d: ("forward", "_conv_forward"),
    nn.ConvTranspose2d: ("forward",),
}
_FORMS: dict[type, LinearForm] = {
    nn.Linear: "matrix",
    nn.Conv1d: "convolution",
    nn.Conv2d: "convolution",
    nn.Conv3d: "convolution",
    nn.ConvTranspose2d: "transposed",
    Dense: "matrix",
    KernelConvolution: "convolution",
    TransposedConvolution: "transposed",
}
# The same of this package's layers: another package's subclass may define any of them.
_READ = frozenset({"forward", "weight", "_effective"})

_nearest_form = cache(partial(nearest_of, _FORMS))


def runs_as(module: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...], *methods: str) -> bool:
    """Whether the module is of one of the kinds, and these methods of it are those of the kind, not overridden."""
    for kind in kinds if isinstance(kinds, tuple) else (kinds,):
        if not isinstance(module, kind):
            continue
        for name in methods:
            if name in vars(module) or getattr(type(module), name, None) is not getattr(kind, name):
                break
        else:
            return True
    return False


def linear_form(module: nn.Module) -> LinearForm | None:
    """How the module applies a weight W if its forward is y = W x + b, its class's own; None for any other module."""
    found = _nearest_form(type(module), type(getattr(module, "_application", None)))
    if found is None:
        return None
    kind, form = found
    methods = _CONTRACTS.get(kind)
    as_written = not defines_outside(module, _READ) if methods is None else runs_as(module, kind, *methods)
    return form if as_written else None


def linear_weight(module: Any) -> Tensor | None:
    """The matrix or kernel W of a module whose forward is y = W x + b, the class's own; None for any other module.

    Any module may have an attribute ``weight`` that its forward does not use, or not like this.
    """
    return None if linear_form(module) is None else module.weight
