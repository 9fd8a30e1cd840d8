"""A network in float64 that computes, with the effective weights of a float32 one, what that one rounds."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastlip.certification.graphs import Branch
from fastlip.certification.rounding.rules import has_rule
from fastlip.nn.base import LipschitzLayer

EXACT = 2.0**-29  # an error in float64 to that in float32: all are multiples of the unit roundoff, or of less
_UNCOPIED = RuntimeError, TypeError, NotImplementedError  # what copying what others keep in a module may raise
_DOUBLE = {torch.float32: torch.float64, torch.complex64: torch.complex128}


def exact_twin(model: nn.Module, links: list[tuple[str, nn.Module]]) -> nn.Module | None:
    """A copy of a float32 model in float64; None where it might be another function than the model.

    A layer of fastlip is given the effective weights of the original: made from its parameters in float64 they would
    differ. Modules whose forward is neither ours nor torch's, and parametrized ones, are not copied.
    """
    dtypes = {tensor.dtype for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()}
    if dtypes != {torch.float32} or not all(_is_known(module) for module in _modules_of(links)):
        return None
    try:
        twin = copy.deepcopy(model).double()
    except _UNCOPIED:
        return None
    for original, layer in zip(model.modules(), twin.modules(), strict=True):
        if isinstance(layer, LipschitzLayer) and isinstance(original, LipschitzLayer):
            layer.supplied = _Raised(original)
            # Nothing is kept, and so no approximation that evaluation may take instead.
            layer.__dict__["may_cache"] = _never
    return twin


class _Raised:
    """The effective weights of a layer, for its copy in float64."""

    def __init__(self, original: LipschitzLayer):
        self.original = original

    def __call__(self, layer: LipschitzLayer, context: tuple[Hashable, ...]) -> tuple[Tensor, ...]:
        return tuple(weight.detach().to(_DOUBLE[weight.dtype]) for weight in self.original.effective(*context))


def _never() -> bool:
    return False


def _modules_of(links: Iterable[tuple[str, nn.Module]]) -> Iterable[nn.Module]:
    for _, module in links:
        if isinstance(module, Branch):
            for inner in module.links.values():
                yield from _modules_of(inner)
        else:
            yield module


def _is_known(module: Any) -> bool:
    if isinstance(module, nn.Softplus):  # its jump at the threshold is no multiple of the unit roundoff
        return False
    return has_rule(module) and not parametrize.is_parametrized(module) and not module._forward_pre_hooks
