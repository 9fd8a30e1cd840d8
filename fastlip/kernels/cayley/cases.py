"""Matrices for the agreement tests and the benchmarks, and the same algebra by a linear solver.

Length: the backward is two products of n terms each, of complex numbers two parts each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.common.case import Case

DTYPES = (torch.float64, torch.float32, torch.complex128, torch.complex64)


def _case(*shape: int, layout: str = "contiguous", bench: bool = False) -> Case:
    return Case({"M": shape}, {}, (2 * max(shape[-2:])) ** 2, layout, bench)


def _frequencies(channels: int, side: int) -> Case:
    """The complex matrices of a convolution on side x side images."""
    return _case((side * side - 4) // 2, channels, channels, bench=True)


CASES = {
    "c1": _case(3, 1, 1),
    "c2": _case(2, 2, 2),
    "c3": _case(2, 2, 3, 3),
    "c17": _case(5, 17, 17),
    "c63_strided": _case(2, 63, 63, layout="strided"),
    "c64": _case(3, 64, 64),
    "c100": _case(100, 100),
    "one_column": _case(4, 3, 1),
    "one_row": _case(4, 1, 3),
    "tall": _case(3, 5, 3),
    "wide": _case(3, 3, 5),
    "tall_50_33": _case(2, 50, 33),
    "wide_33_70": _case(2, 33, 70),
    "empty_batch": _case(0, 4, 4),
    "c16_s32": _frequencies(16, 32),
    "c32_s32": _frequencies(32, 32),
    "c64_s32": _frequencies(64, 32),
    "c128_s16": _frequencies(128, 16),
    "c256_s8": _frequencies(256, 8),
    "dense_512": _case(512, 512, bench=True),
}


def by_solve(M: Tensor) -> Tensor:
    """(I + A)^{-1} (I - A) for square M, by elimination with pivots."""
    A, identity = M - M.mH, torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
    return torch.linalg.solve(identity + A, identity - A)


BASELINES = {"solve": by_solve}
