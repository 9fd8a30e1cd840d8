"""Checks of arguments that several ops share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlip.kernels.common.literals import Backend

VOLUMES = "no kernel for three spatial dimensions"
BACKENDS = ("auto", "reference", "native", "triton")
# Dtypes in which matrices are computed as they are.
NUMBERS = frozenset((torch.float32, torch.float64, torch.complex64, torch.complex128))


def check_backend(backend: Any) -> Backend:
    """Returns the name of a backend, or raises ValueError with those allowed."""
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: allowed are {', '.join(map(repr, BACKENDS))}")
    return backend


def matrices(name: str, value: Tensor) -> Tensor:
    """A batch of real or complex matrices in at least float32; TypeError or ValueError name the argument."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        got = getattr(value, "dtype", type(value).__name__)
        raise TypeError(f"{name}: got {got}, expected a real or complex floating-point tensor")
    if value.dim() < 2 or 0 in value.shape[-2:]:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected (..., m, n) with m, n at least 1")
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value
