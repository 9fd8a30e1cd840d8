"""Checks of arguments that several ops share."""

from __future__ import annotations

from typing import Any

import numpy
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


def boolean(name: str, value: Any) -> bool:
    """Returns True or False, also for 1 and 0; TypeError for all else: text such as "no" would count as True."""
    if not isinstance(value, (bool, numpy.bool_)) and not (isinstance(value, int) and value in (0, 1)):
        shown = f"={value!r}" if isinstance(value, (str, int, float, type(None))) else ""
        raise TypeError(f"{name}{shown}: expected True or False, got {type(value).__name__}")
    return bool(value)


def floating_dtype(dtype: Any) -> torch.dtype | None:
    """Returns a real floating-point dtype, or None for torch's default; TypeError names what was given instead."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"dtype={dtype!r}: expected a floating-point torch.dtype, such as torch.float32")
    return dtype


def usable_device(device: Any) -> torch.device:
    """Returns the device; ValueError if torch cannot use it."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:  # an AssertionError without CUDA
        reason = str(error).split("\n", 1)[0]
        raise ValueError(f"device={device!r}: torch cannot use it here: {reason}") from None


def kind_of(value: Any) -> torch.dtype | str:
    """The text for a wrong value in an error: a tensor's dtype, or the type of anything else."""
    return value.dtype if isinstance(value, Tensor) else type(value).__name__


def matrices(name: str, value: Tensor) -> Tensor:
    """A batch of real or complex matrices in at least float32; TypeError or ValueError name the argument."""
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        raise TypeError(f"{name}: got {kind_of(value)}, expected a real or complex floating-point tensor")
    if value.dim() < 2 or 0 in value.shape[-2:]:
        raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected (..., m, n) with m, n at least 1")
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def square_matrix(name: str, matrix: Any, x: Tensor) -> Tensor:
    """A real square matrix that is applied to vectors x, or TypeError or ValueError."""
    matrix = matrices(name, matrix)
    if matrix.is_complex() or x.dtype != matrix.dtype:
        raise TypeError(f"x, {name}: got {x.dtype} and {matrix.dtype}, expected float32 or float64 for both")
    if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name}: got shape {tuple(matrix.shape)}, expected (n, n)")
    if x.dim() == 0 or x.shape[-1] != matrix.shape[1]:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected (*, {matrix.shape[1]})")
    return matrix
