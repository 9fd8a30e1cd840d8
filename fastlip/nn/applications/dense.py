"""Dense layers y = Q x + b, with the matrix Q as effective weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip import ops
from fastlip.nn.applications.application import Application
from fastlip.nn.base import as_it_runs

DENSE_ARGUMENTS = ("application", "in_features", "out_features")


@dataclass(frozen=True)
class Dense(Application):
    """y = Q x + bias; ``orthogonal``: Q has orthonormal rows or columns."""

    orthogonal: bool = False

    def __call__(self, layer: Any, x: Tensor) -> Tensor:
        """Q x + bias."""
        layer._check_input(x, layer.in_features)
        return F.linear(x, layer.effective()[0], layer.bias)

    @torch.no_grad()
    def bound(self, layer: Any, input_shape: tuple[int, ...]) -> float:
        """The largest singular value of the matrix, as products see it (rounded under autocast)."""
        return ops.spectral_norm(as_it_runs(layer.effective()[0])).item()

    def describe(self, layer: Any) -> str:
        """The arguments of ``torch.nn.Linear``, and the backend."""
        return describe_dense(layer)


def describe_dense(layer: Any) -> str:
    """The arguments of ``torch.nn.Linear``, and the backend."""
    return f"{layer.in_features}, {layer.out_features}, bias={layer.bias is not None}, backend={layer.backend!r}"
