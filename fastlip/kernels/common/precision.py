"""Where precision must not be lowered: parametrizations and bounds run in IEEE float32 or better.

Autocast is a setting of a thread. What float32 products are made of (TF32, bfloat16) is a setting of the process:
:func:`ieee` counts who needs full precision. The first one raises it, the last one puts the user's settings back, and
meanwhile products of other threads have full precision too.

cuDNN's convolutions use TF32 unless told otherwise, by a default that cannot be put back once it was changed. Weights
leave it alone: what they convolve on a GPU is float64 (:func:`for_convolution`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

_get = torch._C._get_fp32_precision_getter
_set = torch._C._set_fp32_precision_setter
FULL = ("none", "ieee")  # "none": nothing is lowered
# The precision of float32 products on the CPU: one call of C each, for what every training forward asks.
cpu_products, cpu_convolutions = partial(_get, "mkldnn", "matmul"), partial(_get, "mkldnn", "conv")
_NOTHING = nullcontext()


def autocasts(device: torch.device) -> bool:
    """Whether operations on this device run under autocast; meta tensors know none."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off on this device; nothing where it is off already, which costs less."""
    return torch.autocast(device.type, enabled=False) if autocasts(device) else _NOTHING


def is_ieee(device: torch.device) -> bool:
    """Whether float32 products on this device (not cuDNN's convolutions) are made of float32 numbers."""
    if device.type == "cuda":
        return _get("cuda", "matmul") in FULL
    return _get("mkldnn", "matmul") in FULL and _get("mkldnn", "conv") in FULL


def ieee(device: torch.device) -> AbstractContextManager[object]:
    """Float32 products are IEEE float32 on this device; nothing where they are, which costs less than 1 µs.

    A program that is being compiled cannot change settings: see :func:`widens`.
    """
    if torch.compiler.is_compiling() or (PRODUCTS.holders == 0 and is_ieee(device)):
        return _NOTHING
    return PRODUCTS


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """:func:`without_autocast` and :func:`ieee`: for weights."""
    outer, inner = without_autocast(device), ieee(device)
    if outer is _NOTHING:
        return inner
    return outer if inner is _NOTHING else _both(outer, inner)


def everything_ieee() -> AbstractContextManager[object]:
    """Every float32 product is IEEE float32, cuDNN's convolutions too: for what is certified."""
    return _both(PRODUCTS, _convolutions)


# torch.compile guards its programs by the settings that this reads.
@torch.compiler.assume_constant_result
def widens(device: torch.device) -> bool:
    """Whether a program that is being compiled needs float64 for weights: its products will be lowered."""
    return not is_ieee(device)


def for_convolution(tensor: Tensor) -> Tensor:
    """The tensor, in float64 where cuDNN would round its numbers to TF32."""
    lowered = tensor.is_cuda and tensor.dtype == torch.float32 and _convolution_is_lowered()
    return tensor.double() if lowered else tensor


@torch.compiler.assume_constant_result
def _convolution_is_lowered() -> bool:
    return _get("cuda", "conv") not in FULL


@contextmanager
def _both(outer: AbstractContextManager[object], inner: AbstractContextManager[object]) -> Iterator[None]:
    with outer, inner:
        yield


class _Settings:
    """The precision of some float32 products in this process: full while anyone holds it.

    products: names by torch's interface of today. older: setter, getter and full precision of the older interface,
    which sees a part of them; torch refuses to answer where the two say different things.
    """

    def __init__(self, products: tuple[tuple[str, str], ...], *older: Any) -> None:
        self.holders = 0
        self._lock = threading.Lock()
        self._names, self._interface = products, older
        self._values: dict[tuple[str, str], str] = {}
        self._older: Any = None

    def __enter__(self) -> None:
        with self._lock:
            self.holders += 1
            # Also where others hold it already: settings may have been changed since.
            if any(_get(*name) not in FULL for name in self._names):
                self._raise()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.holders -= 1
            if self.holders == 0 and self._values:
                self._restore()

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
    """What was set for this product itself: "none" where it follows its library, or all libraries.

    A product without a setting of its own follows when those above it change, here between values of full precision.
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
