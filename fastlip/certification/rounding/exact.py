"""A network in float64 that computes, with the effective weights of a float32 one, what that one rounds."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastlip.certification.rounding.rules import rule_of
from fastlip.inspection.copying import copied
from fastlip.nn.base import LipschitzLayer
from fastlip.nn.scaling import LipschitzResidual

EXACT = 2.0**-29  # ratio of an error in float64 to one in float32: all are at most multiples of the unit roundoff
_UNCOPIED = RuntimeError, TypeError, NotImplementedError  # raised by copying what others keep in a module
_DOUBLE = {torch.float32: torch.float64, torch.complex64: torch.complex128}


def exact_twin(model: nn.Module, modules: Sequence[nn.Module]) -> nn.Module | None:
    """A copy of a float32 model in float64; None where it might be another function than the model.

    A layer of fastlip is given the effective weights of the original: made from its parameters in float64 they would
    differ. Modules whose forward is neither this package's nor torch's, and parametrized ones, are not copied.

    Args:
        model: in eval mode.
        modules: those into which it was taken apart.
    """
    dtypes = {tensor.dtype for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()}
    if dtypes != {torch.float32}:
        return None
    for module in modules:
        # Softplus jumps at its threshold by no multiple of the unit roundoff.
        if isinstance(module, nn.Softplus) or module._forward_pre_hooks:
            return None
        if rule_of(module) is None:
            return None
        if parametrize.is_parametrized(module):
            return None
    try:
        twin = copied(model).double()
    except _UNCOPIED:
        return None
    for original, layer in zip(model.modules(), twin.modules(), strict=True):
        if isinstance(layer, LipschitzLayer) and isinstance(original, LipschitzLayer):
            layer._supplied = _Raised(original)
        if isinstance(layer, LipschitzResidual) and isinstance(original, LipschitzResidual):
            layer._supplied = original.mixture().detach().double()
    return twin


class _Raised:
    """The effective weights of a layer, for its copy in float64."""

    def __init__(self, original: LipschitzLayer):
        self.original = original

    def __call__(self, layer: LipschitzLayer, context: tuple[Hashable, ...]) -> tuple[Tensor, ...]:
        return tuple([weight.detach().to(_DOUBLE[weight.dtype]) for weight in self.original._effective(*context)])
