"""Dense layers y = Q x + b, with the matrix Q as effective weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip import ops
from fastlip.kernels.common.gate import is_recorded, is_transformed
from fastlip.kernels.common.precision import FULL, cpu_products
from fastlip.kernels.common.products import WORTHWHILE
from fastlip.kernels.linear.api import OPERATOR as LINEAR
from fastlip.kernels.polar_linear import api as polar_linear
from fastlip.kernels.skew_exp_linear import api as skew_exp_linear
from fastlip.nn._quasi_residual import with_identity
from fastlip.nn.applications.application import Application
from fastlip.nn.base import as_it_runs

_is_compiling, _autocasts = torch.compiler.is_compiling, torch.is_autocast_enabled
_MANY_CHANNELS = 128  # at 64 both take as long
DENSE_ARGUMENTS = ("application", "in_features", "out_features")


def _weight_with_identity(layer: Any) -> Tensor:
    return with_identity(layer, layer.raw_weight)


@dataclass(frozen=True)
class FewVectors:
    """An op that trains with Q x in less work than with Q, from x and a matrix that Q is made of.

    ``pays(x, V)`` says whether it does, for a V like the matrix. ``matrix(layer)`` is the op's matrix.
    """

    product: Callable[..., Tensor]
    pays: Callable[[Tensor, Tensor], bool]
    matrix: Callable[[Any], Tensor] = _weight_with_identity


def _exponential_product(x: Tensor, K: Tensor, *, backend: Any) -> Tensor:
    """All rows of exp((K - Kᵀ) / 2) for the first columns, as many as x has features."""
    return ops.skew_exp_linear(F.pad(x, (0, K.shape[1] - x.shape[-1])), K, backend=backend)


POLAR = FewVectors(ops.polar_linear, polar_linear.pays)
EXPONENTIAL = FewVectors(_exponential_product, skew_exp_linear.pays)


@dataclass(frozen=True)
class Dense(Application):
    """y = Q x + bias; ``orthogonal``: Q has orthonormal rows or columns.

    ``few_vectors``: an op for training on a CPU, where x has few vectors for the layer's features. :data:`POLAR`
    takes ``raw_weight``, with its identity if there is one, where Q is its polar factor, :data:`EXPONENTIAL` where Q
    are the first rows and columns of the exponential of its skew part. Evaluation, and whoever asks for the weight,
    has Q itself.
    """

    orthogonal: bool = False
    few_vectors: FewVectors | None = None

    def __call__(self, layer: Any, x: Tensor) -> Tensor:
        """Q x + bias."""
        layer._check_input(x, layer.in_features)
        few = self.few_vectors
        if not (few and layer.training and is_short(few, layer, x, layer.raw_weight)):
            weight, bias = layer._effective()[0], layer.bias
            # Inputs are counted here too: one call less where they are few. A compiler would keep what was decided.
            by_torch = _is_compiling() or x.numel() * layer.out_features < WORTHWHILE
            return F.linear(x, weight, bias) if by_torch else affine(layer, x, weight, bias)
        y = few.product(x, few.matrix(layer), backend=layer.backend)
        if y.shape[-1] > layer.out_features:
            y = y[..., : layer.out_features]
        return y if layer.bias is None else y + layer.bias

    @torch.no_grad()
    def bound(self, layer: Any, input_shape: tuple[int, ...]) -> float:
        """The largest singular value of the matrix, as products see it (rounded under autocast)."""
        return ops.spectral_norm(as_it_runs(layer._effective()[0])).item()

    def describe(self, layer: Any) -> str:
        """The arguments of ``torch.nn.Linear``, and the backend."""
        return describe_dense(layer)


def affine(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """W x + b, by ``fastlip.ops.linear`` unless someone wants torch's product: a compiler, or lower precision."""
    if _is_compiling() or x.numel() * len(weight) < WORTHWHILE or not x.is_cpu or layer.backend == "reference":
        return F.linear(x, weight, bias)
    if cpu_products() not in FULL or _autocasts("cpu"):
        return F.linear(x, weight, bias)
    return LINEAR(x, weight, bias, "auto")


def pointwise(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    """W x + b at each pixel: the layer's convolution with a kernel of one tap, at stride 1.

    Many channels that are neighbours in memory are vectors of a dense layer: oneDNN's convolution takes up to 1.3
    times as long, forward and backward.
    """
    many = layer.groups == 1 and min(weight.shape[:2]) >= _MANY_CHANNELS
    if _is_compiling() or not (many and x.is_cpu and x.dim() == 4) or x.is_contiguous() or x.stride(1) != 1:
        return F.conv2d(x, weight, layer.bias, groups=layer.groups)
    return affine(layer, x.permute(0, 2, 3, 1), weight[:, :, 0, 0], layer.bias).permute(0, 3, 1, 2)


def is_short(few: FewVectors, layer: Any, x: Tensor, V: Tensor) -> bool:
    """Whether the op takes less work for a matrix like V, and nothing but autograd sees how Q x is computed."""
    return not _is_compiling() and few.pays(x, V) and only_autograd_sees(layer)


def only_autograd_sees(layer: Any) -> bool:
    """Whether a step in C++ on a CPU, with gradients of its own, may take the place of the effective weight."""
    if not (layer.raw_weight.requires_grad and torch.is_grad_enabled() and layer.backend in ("auto", "native")):
        return False
    if layer._supplied is not None or layer._modules or is_transformed():
        return False
    return not is_recorded() and cpu_products() in FULL and not _autocasts("cpu")


def describe_dense(layer: Any) -> str:
    """The arguments of ``torch.nn.Linear``, and the backend."""
    return f"{layer.in_features}, {layer.out_features}, bias={layer.bias is not None}, backend={layer.backend!r}"
