"""Dense layers y = Q x + b, with the matrix Q as effective weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip import ops
from fastlip.kernels.common.gate import is_recorded, is_transformed
from fastlip.kernels.common.precision import FULL, cpu_products
from fastlip.kernels.polar_linear.api import pays
from fastlip.nn._quasi_residual import with_identity
from fastlip.nn.applications.application import Application
from fastlip.nn.base import as_it_runs

DENSE_ARGUMENTS = ("application", "in_features", "out_features")


@dataclass(frozen=True)
class Dense(Application):
    """y = Q x + bias; ``orthogonal``: Q has orthonormal rows or columns.

    ``factor``: Q is the polar factor of ``raw_weight``, with its identity if there is one. In training on a CPU,
    where x has far fewer vectors than the layer has features, :func:`fastlip.ops.polar_linear` then computes Q x.
    Evaluation, and whoever asks for the weight, has Q itself.
    """

    orthogonal: bool = False
    factor: bool = False

    def __call__(self, layer: Any, x: Tensor) -> Tensor:
        """Q x + bias."""
        layer._check_input(x, layer.in_features)
        if not (self.factor and layer.training and _is_short(layer, x)):
            return F.linear(x, layer._effective()[0], layer.bias)
        y = ops.polar_linear(x, with_identity(layer, layer.raw_weight), backend=layer.backend)
        return y if layer.bias is None else y + layer.bias

    @torch.no_grad()
    def bound(self, layer: Any, input_shape: tuple[int, ...]) -> float:
        """The largest singular value of the matrix, as products see it (rounded under autocast)."""
        return ops.spectral_norm(as_it_runs(layer._effective()[0])).item()

    def describe(self, layer: Any) -> str:
        """The arguments of ``torch.nn.Linear``, and the backend."""
        return describe_dense(layer)


def _is_short(layer: Any, x: Tensor) -> bool:
    """Whether polar_linear takes less work, and nothing but autograd sees how Q x is computed."""
    V = layer.raw_weight
    if not (pays(x, V) and V.requires_grad and torch.is_grad_enabled() and layer.backend in ("auto", "native")):
        return False
    if layer._supplied is not None or layer._modules or torch.compiler.is_compiling() or is_transformed():
        return False
    return not is_recorded() and cpu_products() in FULL and not torch.is_autocast_enabled("cpu")


def describe_dense(layer: Any) -> str:
    """The arguments of ``torch.nn.Linear``, and the backend."""
    return f"{layer.in_features}, {layer.out_features}, bias={layer.bias is not None}, backend={layer.backend!r}"
