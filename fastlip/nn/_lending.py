"""Weights of like layers, computed together in a forward pass of training and lent to each layer.

On a GPU a step of a network of small layers waits for the host, which launches one kernel after the other. A
:class:`Chain` therefore lets the first layer of a kind that asks for its weights compute those of all
(``_merging.py``). The others receive theirs through the hook ``_supplied`` when they ask, if no parameter has
changed.
"""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Hashable, Iterator
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fastlip.nn._merging import kind_of, merged, sources_of
from fastlip.nn.base import LipschitzLayer

Context = tuple[Hashable, ...]
# What each layer asked for when it was last called: layers that asked for the same are computed together.
_asked: WeakKeyDictionary[LipschitzLayer, Context] = WeakKeyDictionary()


def may_lend(x: Tensor) -> bool:
    """Whether weights are computed together for these images: on a GPU, where nothing but autograd follows.

    Checkpoints expect that a pass that is repeated does what the first one did, whatever ran meanwhile.
    """
    return x.is_cuda and not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None  # pyright: ignore[reportAttributeAccessIssue]
    )


@contextlib.contextmanager
def lent(modules: nn.Sequential) -> Iterator[None]:
    """In this context like layers of a sequence, and of those within it, compute their weights together."""
    lender = _Lender(_layers(modules))
    for layer in lender.kinds:
        layer.__dict__["_supplied"] = lender
    try:
        yield
    finally:
        for layer in lender.kinds:
            layer.__dict__.pop("_supplied", None)


def _layers(modules: nn.Sequential) -> Iterator[LipschitzLayer]:
    for module in modules:
        if isinstance(module, nn.Sequential):
            yield from _layers(module)
        elif isinstance(module, LipschitzLayer) and module.training and module._supplied is None:
            yield module


class _Lender:
    """The hook of the layers of one forward pass: each may ask once, and computes its weights itself after that."""

    def __init__(self, layers: Iterator[LipschitzLayer]):
        self.kinds: dict[LipschitzLayer, Hashable] = {}
        self._like: defaultdict[Hashable, list[LipschitzLayer]] = defaultdict(list)
        self._weights: dict[LipschitzLayer, tuple[Context, Hashable, tuple[Tensor, ...]]] = {}
        self._thread = threading.get_ident()
        for layer in layers:
            kind = None if layer in self.kinds else kind_of(layer)  # twice in a sequence: it is asked twice
            if kind is not None:
                self.kinds[layer] = kind
                self._like[kind].append(layer)

    def __call__(self, layer: LipschitzLayer, context: Context) -> tuple[Tensor, ...] | None:
        if threading.get_ident() != self._thread:
            return None
        present = self._weights.pop(layer, None)
        if present is not None:
            return present[2] if present[:2] == (context, _state(layer)) else None
        like, asked = self._like[self.kinds[layer]], _asked.get(layer)
        _asked[layer] = context
        if layer not in like:
            return None
        together = [layer] if asked != context else [other for other in like if _asked.get(other) == context]
        self._like[self.kinds[layer]] = [other for other in like if other not in together]
        if len(together) == 1:
            return None
        for other, weights in zip(together, merged(together, context), strict=True):
            self._weights[other] = context, _state(other), weights
        return self._weights.pop(layer)[2]


def _state(layer: LipschitzLayer) -> Hashable:
    """Marks of the tensors that the weights are computed from: identities, and how often they were written to."""
    found = [tensor for tensor in sources_of(layer).values() if tensor is not None]
    return tuple((id(tensor), 0 if tensor.is_inference() else tensor._version) for tensor in found)
