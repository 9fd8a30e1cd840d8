"""Matrices for the agreement tests and the benchmarks, and the same function by torch.linalg.matrix_exp.

Length: the backward is products of n terms, of complex numbers two parts each; phases round relative to the norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastlip.kernels.common.case import Case

DTYPES = (torch.float64, torch.float32, torch.complex128, torch.complex64)


@dataclass(frozen=True)
class _OfNorm(Case):
    """Matrices whose skew part has about this norm."""

    norm: float = 1.0

    def make(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
        """Normal entries of standard deviation norm / sqrt(2 c)."""
        K = super().make(dtype, device, seed)["K_hat"]
        return {"K_hat": K * (self.norm / (2 * K.shape[-1]) ** 0.5)}


def _case(*shape: int, norm: float = 1.0, layout: str = "contiguous", bench: bool = False) -> Case:
    return _OfNorm({"K_hat": shape}, {}, int((2 * shape[-1] * max(norm, 1.0)) ** 2), layout, bench, norm)


def _frequencies(channels: int, side: int) -> Case:
    """The complex matrices of a convolution on side x side images."""
    return _case((side * side - 4) // 2, channels, channels, norm=0.5, bench=True)


CASES = {
    "c2": _case(3, 2, 2),
    "c1": _case(3, 1, 1),
    "c3": _case(2, 2, 3, 3, norm=0.01),
    "c5_one_squaring": _case(4, 5, 5, norm=0.5),
    "c17_strided": _case(3, 17, 17, norm=2.4, layout="strided"),
    "c17_two_squarings": _case(3, 17, 17, norm=1.6),
    "c33_large": _case(2, 33, 33, norm=3.5),
    "c4_too_large": _case(3, 4, 4, norm=50.0),
    "c64": _case(2, 64, 64, norm=2.4),
    "c100": _case(100, 100, norm=2.4),
    "empty_batch": _case(0, 4, 4),
    "c16_s32": _frequencies(16, 32),
    "c32_s32": _frequencies(32, 32),
    "c64_s16": _frequencies(64, 16),
    "c128_s8": _frequencies(128, 8),
    "c256_s4": _frequencies(256, 4),
    "dense_512": _case(512, 512, norm=0.5, bench=True),
}


def by_matrix_exp(K_hat: Tensor) -> Tensor:
    """The exponential of any matrix."""
    return torch.linalg.matrix_exp((K_hat - K_hat.mH) / 2)


BASELINES = {"matrix_exp": by_matrix_exp}
