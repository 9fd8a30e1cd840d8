"""The layers of published LiResNets and BRONets that have no counterpart in ``fastlip.nn``: each with its ridge.

The published code adds a multiple of the identity before it factors or inverts a Gram matrix. Layers with it have
norms just below 1; without it they would be another function.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlip import nn as lip
from fastlip import ops
from fastlip.kernels.common.geometry import Pair
from fastlip.kernels.common.literals import PaddingMode
from fastlip.nn._quasi_residual import add_gamma, reset_quasi_residual, with_identity
from fastlip.nn.applications import Dense, KernelConvolution
from fastlip.nn.applications.application import CONV_ARGUMENTS, show_conv_arguments
from fastlip.nn.applications.dense import DENSE_ARGUMENTS
from fastlip.nn.arguments import conv_geometry, make_bias, make_parameter
from fastlip.nn.base import LipschitzLayer, at_least_float32, effective_weight
from fastlip.nn.initial import zero_

CHOLESKY_RIDGE = 1e-3  # of the neck and the dense layers, times the mean of the Gram matrix's diagonal
REFLECTOR_RIDGE, NECK_REFLECTOR_RIDGE = 1e-7, 1e-5


def cholesky_rows(V: Tensor) -> Tensor:
    """L⁻¹ V with L Lᵀ = V Vᵀ + r I, r = 1e-3 times the mean of the diagonal of V Vᵀ. Its norm is below 1."""
    lower = torch.linalg.cholesky(_ridged(V @ V.mT, CHOLESKY_RIDGE))
    return torch.linalg.solve_triangular(lower, V, upper=False)


def ridged_reflector(V: Tensor, ridge: float, rows: int, columns: int) -> Tensor:
    """The first rows and columns of I - 2 V (VᴴV + r I)⁻¹ Vᴴ, with r relative to the mean of VᴴV's diagonal."""
    identity = torch.eye(V.shape[-2], dtype=V.dtype, device=V.device)[:rows, :columns]
    inner = torch.linalg.solve(_ridged(V.mH @ V, ridge), V[..., :columns, :].mH)
    return identity - 2 * V[..., :rows, :] @ inner


def _ridged(gram: Tensor, ridge: float) -> Tensor:
    """The Gram matrix plus r I; a matrix of zeros becomes the identity, for which the factors are those of V = 0."""
    mean = gram.diagonal(dim1=-2, dim2=-1).real.mean(-1)
    r = torch.where(mean > 0, ridge * mean, 1)
    return gram + r[..., None, None].to(gram.dtype) * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)


class LinearResidualConv2d(LipschitzLayer):
    """LiResNet's convolution, zero-padded, with the kernel V = I + s gamma W. It is not 1-Lipschitz.

    Args:
        channels: number of channels.
        kernel_size: odd number of taps along each axis.
        factor: s.
        bias: whether a bias is added.
        dtype: of the parameters.

    Parameters: ``raw_weight`` (channels, channels, k, k), ``gamma`` (channels), ``bias`` (channels).
    """

    _fixed = (*CONV_ARGUMENTS, "quasi_residual")
    groups: int
    kernel_size: Pair
    weight = effective_weight

    def __init__(self, channels: int, kernel_size: int, factor: float, bias: bool, dtype: torch.dtype | None = None):
        geometry = conv_geometry((channels, channels), kernel_size, 1, "same", 1, 1, "zeros")
        super().__init__(KernelConvolution(geometry))
        show_conv_arguments(self, channels, channels, "same")
        self.quasi_residual = factor
        self.bias = make_bias(channels, bias, None, dtype)
        self.raw_weight = make_parameter((channels, channels, *self.kernel_size), None, dtype)
        add_gamma(self, (channels,), None, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: small normal numbers, gamma 1; bias 0."""
        reset_quasi_residual(self, self.raw_weight, self.raw_weight[:, 0].numel())
        zero_(self.bias)

    def _parametrize(self) -> tuple[Tensor, ...]:
        """(V,): the kernel that the forward pass uses."""
        return (with_identity(self, at_least_float32(self.raw_weight)),)


class CholeskyConv2d(LipschitzLayer):
    """Convolution of disjoint patches by L⁻¹ W with L Lᵀ = W Wᵀ + r I: nearly orthonormal rows, norm below 1.

    Args:
        channels: number of channels.
        patch: side of the patches.
        dtype: of the parameters.

    Parameter: ``raw_weight`` (channels, channels, patch, patch).
    """

    _fixed = CONV_ARGUMENTS
    groups: int
    kernel_size: Pair
    weight = effective_weight

    def __init__(self, channels: int, patch: int, dtype: torch.dtype | None = None):
        geometry = conv_geometry((channels, channels), patch, patch, "valid", 1, 1, "zeros")
        super().__init__(KernelConvolution(geometry))
        show_conv_arguments(self, channels, channels, "valid")
        self.bias = None
        self.raw_weight = make_parameter((channels, channels, patch, patch), None, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: normal numbers, rows of norm about 1."""
        nn.init.normal_(self.raw_weight, std=self.raw_weight[0].numel() ** -0.5)

    def _parametrize(self) -> tuple[Tensor, ...]:
        """(kernel,)."""
        weight = at_least_float32(self.raw_weight)
        return (cholesky_rows(weight.flatten(1)).view_as(weight),)


class CholeskyLinear(LipschitzLayer):
    """Dense layer by L⁻¹ V with L Lᵀ = V Vᵀ + r I: nearly orthonormal rows, norm below 1.

    Args:
        in_features: number of input features.
        out_features: number of output features.
        factor: s of V = I + s gamma W; 0: V = W.
        dtype: of the parameters.

    Parameters: ``raw_weight`` (out_features, in_features), ``bias`` (out_features), with a factor ``gamma``.
    """

    _fixed = (*DENSE_ARGUMENTS, "quasi_residual")
    weight = effective_weight

    def __init__(self, in_features: int, out_features: int, factor: float = 0.0, dtype: torch.dtype | None = None):
        super().__init__(Dense())
        self.in_features, self.out_features = in_features, out_features
        self.quasi_residual = factor
        self.bias = make_bias(out_features, True, None, dtype)
        self.raw_weight = make_parameter((out_features, in_features), None, dtype)
        add_gamma(self, (out_features,), None, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: normal numbers, small and with gamma 1 if there is an identity; bias 0."""
        if not reset_quasi_residual(self, self.raw_weight, self.out_features):
            nn.init.normal_(self.raw_weight, std=self.in_features**-0.5)
        zero_(self.bias)

    def _parametrize(self) -> tuple[Tensor, ...]:
        """(matrix,)."""
        return (cholesky_rows(with_identity(self, at_least_float32(self.raw_weight))),)


class RidgedReflectorConv2d(lip.BROConv2d):
    """BRO's convolution with the published ridge: I - 2 V (VᴴV + r I)⁻¹ Vᴴ at each frequency. Norm at most 1.

    Args:
        channels: number of channels.
        kernel_size: number of taps along each axis.
        rank: columns of V.
        ridge: r over the mean of the diagonal of VᴴV.
        stride: 1, or ``kernel_size`` for disjoint patches.
        padding_mode: ``"zeros"`` or ``"circular"``.
        bias: whether a bias is added.
        factor: s of V = I + s gamma W; 0: V = W.
        dtype: of the parameters.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        rank: int,
        ridge: float,
        *,
        stride: int = 1,
        padding_mode: PaddingMode = "zeros",
        bias: bool = False,
        factor: float = 0.0,
        dtype: torch.dtype | None = None,
    ):
        options: dict[str, Any] = {"padding_mode": padding_mode, "rank": rank, "quasi_residual": factor or False}
        super().__init__(channels, channels, kernel_size, stride, bias=bias, dtype=dtype, **options)
        self.ridge = ridge

    def _parametrize(self, *fft_size: int) -> tuple[Tensor, ...]:
        """(Q,): (F, channels, columns) at the unique frequencies; (channels, columns, 1, 1) for one tap."""
        V, (rows, columns) = with_identity(self, at_least_float32(self.raw_weight)), self._sides()
        if fft_size:
            spectrum = ops.kernel_spectrum(V, fft_size, self._application.geometry.dilation)
            return (ridged_reflector(spectrum, self.ridge, rows, columns),)
        return (ridged_reflector(V.flatten(1), self.ridge, rows, columns)[..., None, None],)


class RidgedReflectorLinear(lip.BROLinear):
    """BRO's dense layer with the published ridge: rows of I - 2 V (VᵀV + r I)⁻¹ Vᵀ. Norm at most 1.

    Args:
        in_features: number of input features.
        out_features: number of output features.
        rank: columns of V.
        ridge: r over the mean of the diagonal of VᵀV.
        factor: s of V = I + s gamma W; 0: V = W.
        dtype: of the parameters.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        ridge: float,
        factor: float = 0.0,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(in_features, out_features, dtype=dtype, rank=rank, quasi_residual=factor or False)
        self.ridge = ridge

    def _parametrize(self) -> tuple[Tensor, ...]:
        """(Q,): the reflection, or its first rows or columns."""
        V = with_identity(self, at_least_float32(self.raw_weight))
        return (ridged_reflector(V, self.ridge, self.out_features, self.in_features),)
