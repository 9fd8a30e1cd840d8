"""Matrices for the agreement tests and the benchmarks, and the same formula by a linear solver.

Length: the backward is three products of m terms each, of complex numbers two parts each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.common.case import Case

DTYPES = (torch.float64, torch.float32, torch.complex128, torch.complex64)


def _case(*shape: int, layout: str = "contiguous", bench: bool = False, **parts: int) -> Case:
    return Case({"V": shape}, parts, (2 * shape[-2]) ** 2, layout, bench)


def _frequencies(channels: int, side: int) -> Case:
    """The complex matrices of a convolution on side x side images, at an eighth of the rank."""
    return _case((side * side + 4) // 2, channels, channels // 8, bench=True)


CASES = {
    "c2": _case(3, 2, 1),  # not m = n: Q = -I is constant
    "c3": _case(2, 2, 3, 1),
    "c8": _case(2, 8, 3),
    "one_matrix": _case(6, 3),
    "tall": _case(3, 6, 2, rows=6, columns=4),
    "wide": _case(3, 6, 2, rows=3, columns=6),
    "c63_strided": _case(2, 63, 9, layout="strided"),
    "half": _case(3, 32, 16),
    "empty_batch": _case(0, 4, 2),
    "c16_s32": _frequencies(16, 32),
    "c64_s16": _frequencies(64, 16),
    "c128_s8": _frequencies(128, 8),
    "dense_512": _case(512, 64, bench=True),
}


def by_solve(V: Tensor, rows: int | None = None, columns: int | None = None) -> Tensor:
    """I - 2 V (VᴴV)⁻¹ Vᴴ by elimination with pivots."""
    identity = torch.eye(V.shape[-2], dtype=V.dtype, device=V.device)
    Q = identity - 2 * V @ torch.linalg.solve(V.mH @ V, V.mH)
    return Q[..., :rows, :columns]


BASELINES = {"solve": by_solve}
