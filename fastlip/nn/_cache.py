"""The evaluation cache of a layer: what was computed from its parameters, for as long as these hold the same bits."""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrize

from fastlip.kernels.common.gate import is_observed, is_only_captured
from fastlip.nn._fingerprint import PLAIN, fingerprint, is_plain

# Looked up once: each forward in evaluation asks them.
_is_compiling = torch.compiler.is_compiling
_transforms_are_active = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack
_tracing_state = torch._C._get_tracing_state
CACHED_CONTEXTS = 8  # resolutions kept at once
_CACHED_DERIVATIVES = 2  # of each kind
# Held while a dictionary of a few entries is replaced. One for all layers: a lock of a layer's own cannot be copied.
_LOCK = threading.Lock()
_clock = itertools.count()

Key = tuple[Hashable, ...]
# Classes of attributes that are no tensors: isinstance for each of a layer's 30 takes longer than a small kernel.
_harmless: set[type] = set()


@dataclass(slots=True)
class _Stamp:
    """The sources of an entry, as a fingerprint or the objects themselves, and its last use."""

    of: tuple[Any, ...]
    used: int = field(default_factory=partial(next, _clock))


class EvaluationCache:
    """Results that a layer computed from its parameters and buffers, kept while these hold the same bits.

    Every use compares a fingerprint of the bits of all parameters, buffers and other tensors of the layer, so that no
    way of writing to them leaves the cache stale. Entries are computed from a copy of these tensors, so that each
    belongs to one state of the layer, whatever other threads write meanwhile. ``frozen`` (:func:`fastlip.freeze`)
    leaves the comparison out. The dictionary is replaced, never changed: threads may share a layer.

    ``generation`` counts the changes of what else the weights depend on, such as options. A copy of a cache is empty.

    While a CUDA graph is captured, a frozen layer uses what it has kept. ``captured`` holds it from then on, also
    after the freeze: the graph reads that memory in each replay.
    """

    __slots__ = ("captured", "entries", "frozen", "generation")

    def __init__(self) -> None:
        self.captured: dict[int, Any] = {}
        self.entries: dict[Key, tuple[_Stamp, Any]] = {}
        self.frozen = False
        self.generation = 0

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return EvaluationCache, ()

    def recall(
        self,
        layer: nn.Module,
        key: Key,
        compute: Callable[[Any], Any],
        most: int = _CACHED_DERIVATIVES,
        tensors: list[Tensor] | None = None,
    ) -> Any:
        """Returns ``compute(copy of layer)``, where :func:`may_cache` holds, kept until a bit of the layer changes.

        The copy has the layer's tensors as they were at one moment. Of keys with the same first word the ``most``
        that were used last are kept. ``tensors`` are those of the layer, for callers that have them.
        """
        kept = self.entries.get(key)
        if kept is not None and self.frozen:
            return self._frozen(*kept)
        mark = fingerprint(tensors_of(layer) if tensors is None else tensors)
        if kept is not None and kept[0].of == mark:
            kept[0].used = next(_clock)
            return kept[1]
        generation = self.generation
        # Inference tensors could not be used later where autograd records.
        with torch.inference_mode(False), torch.no_grad():
            twin = _copy_of(layer)
            value = compute(twin)
            if mark is not None:
                self._keep(key, _Stamp(fingerprint(tensors_of(twin)) or ()), value, most, generation)
        return value

    def look_up(self, layer: nn.Module, key: Key) -> tuple[Any, Any]:
        """The fingerprint of the layer now, and what is kept of it under this key; None where that is out of date."""
        kept = self.entries.get(key)
        if kept is not None and self.frozen:
            kept[0].used = next(_clock)
            return kept[0].of, kept[1]
        mark = fingerprint(tensors_of(layer))
        if kept is not None and kept[0].of == mark:
            kept[0].used = next(_clock)
            return mark, kept[1]
        return mark, None

    def keep_unless_changed(
        self, layer: nn.Module, key: Key, mark: Any, generation: int, value: Any, most: int
    ) -> None:
        """Keeps what was computed of the layer itself, unless it changed since ``mark`` and ``generation``."""
        if mark is not None and fingerprint(tensors_of(layer)) == mark:
            self._keep(key, _Stamp(mark), value, most, generation)

    def derive(
        self,
        kind: str,
        context: Hashable,
        sources: tuple[Any, ...],
        compute: Callable[[], Any],
        most: int = _CACHED_DERIVATIVES,
    ) -> Any:
        """Returns ``compute()``, kept as long as this cache holds the very objects ``sources`` that it is made of."""
        kept = self.entries.get((kind, context))
        if kept is not None and all(one is other for one, other in zip(kept[0].of, sources, strict=True)):
            return self._frozen(*kept)
        generation = self.generation
        with torch.inference_mode(False), torch.no_grad():
            value = compute()
        if not is_only_captured():  # the memory is the graph's otherwise
            self._keep((kind, context), _Stamp(sources), value, most, generation)
        return value

    def _frozen(self, stamp: _Stamp, value: Any) -> Any:
        """The kept value, which a CUDA graph may read from now on."""
        stamp.used = next(_clock)
        if is_only_captured():
            self.captured[id(value)] = value
        return value

    def snapshot(self, layer: nn.Module) -> Any:
        """A copy of the layer with its tensors as they are, kept until a bit of them changes."""
        return self.recall(layer, ("snapshot",), lambda twin: twin, 1)

    def clear(self) -> None:
        """Empties the cache; what other threads are computing is not kept either."""
        with _LOCK:
            self.generation += 1
            self.entries = {}

    def thaw(self) -> None:
        """Empties the cache and ends a freeze."""
        self.clear()
        self.frozen = False

    def _keep(self, key: Key, stamp: _Stamp, value: Any, most: int, generation: int) -> None:
        with _LOCK:
            if generation != self.generation:
                return
            kept = {**self.entries, key: (stamp, value)}
            if len(kept) > most:
                alike = sorted((k for k in kept if _kind(k) == _kind(key)), key=lambda k: kept[k][0].used)
                for oldest in alike[:-most]:
                    del kept[oldest]
            self.entries = kept


def clear_all(layers: Iterable[Any]) -> None:
    """Empties the caches of layers, as :meth:`EvaluationCache.clear` each."""
    with _LOCK:
        for layer in layers:
            layer._cache.generation += 1
            layer._cache.entries = {}


def may_cache(layer: Any) -> bool:
    """Whether kept results may be used as they are: :func:`may_keep`, and no parameter wants a gradient.

    Weights that are supplied are not those of the parameters, of which everything that is kept is made.
    """
    return kept_of(layer) is not None


def kept_of(layer: Any) -> list[Tensor] | None:
    """The tensors of which kept results are made (:func:`tensors_of`), where :func:`may_cache` holds; else None."""
    if layer.training or layer._supplied is not None:
        return None
    # As is_observed, without a call: each forward in evaluation asks.
    observed = (
        (_is_compiling() or _transforms_are_active() or _dispatch_modes() or _tracing_state() is not None)
        or forward_ad._current_level >= 0
        or (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
    )
    if observed and not _uses_kept(layer):
        return None
    state, found = layer.__dict__, []
    for group in (state["_parameters"], state["_buffers"]):
        for tensor in group.values():
            if tensor is None:
                continue
            # As is_plain, without a call for each tensor.
            if type(tensor) not in PLAIN or tensor.is_meta or tensor.layout is not torch.strided:
                return None
            found.append(tensor)
    if state["_modules"] or not _harmless.issuperset(map(type, state.values())):
        found = tensors_of(layer)
    if torch.is_grad_enabled():
        for tensor in found:
            if tensor.requires_grad:
                return None
    return found


def _uses_kept(layer: Any) -> bool:
    """Whether a CUDA graph is captured in which a layer that is frozen uses what it has kept."""
    return layer._cache.frozen and bool(layer._cache.entries) and is_only_captured()


def may_keep(layer: nn.Module) -> bool:
    """Whether results for the present parameters may be kept: in evaluation, outside traces and transforms."""
    if layer.training or is_observed():
        return False
    state = layer.__dict__
    return all(is_plain(t) for g in (state["_parameters"], state["_buffers"]) for t in g.values() if t is not None)


def _kind(key: Key) -> str:
    return key[0] if key and isinstance(key[0], str) else "weights"


def tensors_of(layer: nn.Module) -> list[Tensor]:
    """All tensors that the layer computes with: parameters, buffers, attributes, what parametrizations give now.

    Replicas for data parallelism and pruned layers have parameters as attributes.
    """
    state = layer.__dict__
    modules = state["_modules"]
    given = [getattr(layer, name) for name in _parametrized(layer)] if modules else ()
    found = []
    for tensor in (*state["_parameters"].values(), *given, *state["_buffers"].values()):
        if tensor is not None:
            found.append(tensor)
    if not _harmless.issuperset(map(type, state.values())):
        found += _attributes(state).values()
    for name, module in modules.items():
        if name != "parametrizations" and module is not None:
            found += (*module.parameters(), *module.buffers())
    return found


def _attributes(state: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors among the attributes of a module."""
    present = list(state.items())  # other threads may add to it
    found = {name: value for name, value in present if isinstance(value, Tensor)}
    _harmless.update({type(value) for _, value in present} - {type(value) for value in found.values()})
    return found


def _parametrized(layer: nn.Module) -> list[str]:
    return list(layer.parametrizations) if parametrize.is_parametrized(layer) else []  # type: ignore[call-overload]


def _copy_of(layer: Any) -> Any:
    """The layer with copies of its tensors and no cache; parametrizations are replaced by what they give."""
    kind = parametrize.type_before_parametrizations(layer)
    state: dict[str, Any] = dict(vars(layer))
    if not _harmless.issuperset(map(type, state.values())):
        state |= _clones(_attributes(state))
    for group in ("_parameters", "_buffers"):
        state[group] = _clones(state[group]) if state[group] else {}
    modules, state["_modules"] = state["_modules"], {}
    if modules:
        state["_parameters"] |= _clones({name: getattr(layer, name) for name in _parametrized(layer)})
        others = {name: module for name, module in modules.items() if name != "parametrizations"}
        state["_modules"] = copy.deepcopy(others)
    state |= {"_cache": EvaluationCache(), "_supplied": None}
    result = object.__new__(kind)
    result.__dict__.update(state)
    return result


def _clones(tensors: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, tensor in list(tensors.items()):  # other threads may add to them
        found[name] = None if tensor is None else tensor.detach().clone()
    return found
