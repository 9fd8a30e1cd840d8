"""Full precision for parametrizations and bounds: they run in IEEE float32 or better.

Autocast is a setting of a thread. The format in which float32 products are computed (TF32, bfloat16) is a setting of
the process: :func:`ieee` counts its users. The first one raises the precision, the last one restores the user's
settings, and in between the products of other threads have full precision too.

cuDNN's convolutions use TF32 by default, and this default cannot be restored once it was changed. The computation of
weights does not change it: convolutions of weights on a GPU run in float64 (:func:`for_convolution`).
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.compiled import constant

_get = torch._C._get_fp32_precision_getter
_set = torch._C._set_fp32_precision_setter
FULL = ("none", "ieee")  # "none": nothing is lowered
_FULL = frozenset(FULL)
# The precision of float32 products on the CPU: one call of C each, for what every training forward asks.
cpu_products, cpu_convolutions = partial(_get, "mkldnn", "matmul"), partial(_get, "mkldnn", "conv")
_NOTHING = nullcontext()


def autocasts(device: torch.device) -> bool:
    """Whether operations on this device run under autocast; on the meta device none do."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context without autocast on this device; an empty one, which costs less, if autocast is off already."""
    return torch.autocast(device.type, enabled=False) if autocasts(device) else _NOTHING


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The type in which autocast multiplies x; None without autocast, and for float64, which it leaves alone."""
    if x.dtype == torch.float64 or not autocasts(x.device):
        return None
    return torch.get_autocast_dtype(x.device.type)


def is_ieee(device: torch.device) -> bool:
    """Whether float32 products on this device (cuDNN's convolutions apart) are computed in float32."""
    if device.type == "cuda":
        return _get("cuda", "matmul") in FULL
    return _get("mkldnn", "matmul") in FULL and _get("mkldnn", "conv") in FULL


def stays_ieee(device: torch.device) -> bool:
    """Whether :func:`is_ieee` holds here, and not only because another thread computes weights now."""
    return PRODUCTS.look(partial(is_ieee, device))


def ieee(device: torch.device) -> AbstractContextManager[object]:
    """A context in which float32 products on this device are IEEE float32; an empty one if they are already.

    A program that is being compiled cannot change settings: see :func:`widens`.
    """
    if torch.compiler.is_compiling():
        return _NOTHING
    # Another thread may enter the context while this one looks at the setting: then it is not the user's own.
    entries = PRODUCTS.entries
    if PRODUCTS.holders == 0 and is_ieee(device) and PRODUCTS.entries == entries:
        return _NOTHING
    return PRODUCTS


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context for weights: :func:`without_autocast` and :func:`ieee`."""
    if not autocasts(device):
        return ieee(device)
    outer, inner = torch.autocast(device.type, enabled=False), ieee(device)
    return outer if inner is _NOTHING else _both(outer, inner)


def everything_ieee() -> AbstractContextManager[object]:
    """A context for certification: every float32 product is IEEE float32, cuDNN's convolutions too."""
    return _both(PRODUCTS, _convolutions)


# torch.compile guards its programs by the settings that this reads.
@constant
def widens(device: torch.device) -> bool:
    """Whether a program that is being compiled needs float64 for weights, as its float32 products are lowered."""
    return not stays_ieee(device)


def wider(tensor: Tensor) -> Tensor:
    """The tensor in double precision, if its numbers are of another."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def for_convolution(tensor: Tensor) -> Tensor:
    """Returns the tensor, in float64 if cuDNN would round its numbers to TF32."""
    lowered = tensor.is_cuda and tensor.dtype == torch.float32 and _convolution_is_lowered()
    return tensor.double() if lowered else tensor


@constant
def _convolution_is_lowered() -> bool:
    return _get("cuda", "conv") not in FULL


@contextmanager
def _both(outer: AbstractContextManager[object], inner: AbstractContextManager[object]) -> Iterator[None]:
    with outer, inner:
        yield


class _Depth(threading.local):
    """How many contexts this thread is in."""

    contexts = 0


class _Settings:
    """The precision of some float32 products in this process; a context in which it is full.

    Args:
        products: their names in torch's present interface.
        older: setter, getter and value for full precision in the older interface, which covers a part of them. Torch
            raises an error if the two interfaces differ.
    """

    def __init__(self, products: tuple[tuple[str, str], ...], *older: Any) -> None:
        self.holders = self.entries = 0  # contexts that are open, and all so far
        self._lock, self._here = threading.Lock(), _Depth()
        self._names, self._interface = products, older
        self._values: dict[tuple[str, str], str] = {}
        self._older: Any = None

    def __enter__(self) -> None:
        with self._lock:
            self.entries += 1
            self.holders += 1
            self._here.contexts += 1
            # Also if another context is open: the user may have changed the settings since.
            if not set(itertools.starmap(_get, self._names)) <= _FULL:
                self._raise()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self.holders == 1 and self._values:
                self._restore()
            self._here.contexts -= 1
            self.holders -= 1  # last: without holders the settings are the user's

    def look(self, is_full: Callable[[], bool]) -> bool:
        """Whether the settings are full; not where that is the work of other threads alone."""
        with self._lock:
            return is_full() and not (self._values and not self._here.contexts)

    def _raise(self) -> None:
        setter, getter, full = self._interface
        self._values = {name: _own_value(*name) for name in self._names}
        try:
            self._older = getter()
            setter(full)
        except RuntimeError:  # the interfaces differ already
            self._older = None
        for name in self._names:
            _set(*name, "ieee")

    def _restore(self) -> None:
        if self._older is not None:
            self._interface[0](self._older)
        for name, value in self._values.items():
            _set(*name, value)
        self._values, self._older = {}, None


def _own_value(library: str, product: str) -> str:
    """The setting of this product itself: "none" if it follows that of its library, or of all libraries.

    A product without a setting of its own changes with those above it, which are varied here between values of full
    precision.
    """
    seen = _get(library, product)
    if seen == "none":
        return seen
    other = "none" if seen == "ieee" else "ieee"
    above = [("generic", "all")] if product == "all" else [("generic", "all"), (library, "all")]
    kept = [_get("generic", "all") if name[0] == "generic" else _own_value(*name) for name in above]
    for name in above:
        _set(*name, other)
    follows = _get(library, product) == other
    for name, value in zip(above, kept, strict=True):
        _set(*name, value)
    return "none" if follows and _get(library, "all") == seen else seen


PRODUCTS = _Settings(
    (("cuda", "matmul"), ("mkldnn", "matmul"), ("mkldnn", "conv")),
    torch._C._set_float32_matmul_precision,
    torch._C._get_float32_matmul_precision,
    "highest",
)
_convolutions = _Settings(
    (("cuda", "conv"), ("cuda", "rnn")), torch._C._set_cudnn_allow_tf32, torch._C._get_cudnn_allow_tf32, False
)
