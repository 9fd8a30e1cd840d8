"""Vectors and matrices for the agreement tests and the benchmarks.

Length: products of n terms each, and a random square matrix loses about n of its digits' accuracy to its condition.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.common.case import Case


class _Conditioned(Case):
    """V is the identity and noise, whose singular values are between 0.6 and 1.4 or so: the kernels use inverses."""

    def make(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
        """Standard normal x, and V."""
        tensors = super().make(dtype, device, seed)
        V = tensors["V"]
        V.mul_(0.2 / max(V.shape) ** 0.5).diagonal().add_(1)
        return tensors


def _case(kind: type[Case], rows: tuple[int, ...], m: int, n: int, layout: str = "contiguous", bench: bool = False):
    return kind({"x": (*rows, n), "V": (m, n)}, {}, (4 * max(m, n)) ** 2, layout, bench)


CASES = {
    "random": _case(Case, (3,), 9, 9),
    "random_tall": _case(Case, (2, 2), 7, 4),
    "random_wide": _case(Case, (3,), 2, 6),
    "one": _case(_Conditioned, (), 1, 1),
    "c17": _case(_Conditioned, (4,), 17, 17),
    "tall": _case(_Conditioned, (2, 3), 40, 33),
    "wide_strided": _case(_Conditioned, (5,), 33, 63, layout="strided"),
    "no_vectors": _case(_Conditioned, (0,), 4, 4),
    "dense_256": _case(_Conditioned, (64,), 256, 256, bench=True),
}
