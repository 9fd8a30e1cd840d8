"""Vectors and matrices for the agreement tests and the benchmarks.

Length: products of n terms each, one after another.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.common.case import Case


class _Small(Case):
    """A has a norm of about 0.4 or less, as layers near their initial values: the kernels sum the series."""

    def make(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
        """Standard normal x, and K."""
        tensors = super().make(dtype, device, seed)
        tensors["K"].mul_(0.25 / len(tensors["K"]) ** 0.5)
        return tensors


def _case(kind: type[Case], rows: tuple[int, ...], n: int, layout: str = "contiguous", bench: bool = False) -> Case:
    return kind({"x": (*rows, n), "K": (n, n)}, {}, (4 * n) ** 2, layout, bench)


CASES = {
    "random": _case(Case, (3,), 9),
    "random_many": _case(Case, (70,), 9),
    "one": _case(_Small, (), 1),
    "c17": _case(_Small, (4,), 17),
    "strided": _case(_Small, (2, 3), 33, layout="strided"),
    "no_vectors": _case(_Small, (0,), 4),
    "dense_256": _case(_Small, (64,), 256, bench=True),
    "dense_1024": _case(_Small, (256,), 1024, bench=True),
}
