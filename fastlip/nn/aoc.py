"""AOC: orthogonal convolutions with stride, groups, dilation and transposed form (Boissin et al. 2025)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip import ops
from fastlip.kernels.common.literals import Backend, PaddingMode
from fastlip.nn._adaptive import AdaptiveKernel
from fastlip.nn._base import as_it_runs, check_positive_int, make_bias
from fastlip.nn._conv import GEOMETRY, KernelConv2d, Pair, check_groups, make_pair
from fastlip.nn.method import Method


class AOCConv2d(AdaptiveKernel, KernelConv2d):
    r"""Convolution with an orthogonal kernel at its own stride: a drop-in ``torch.nn.Conv2d``.

    .. math:: \hat K(z) = \hat R(z) \prod_i \bigl(P_i + (I - P_i)\, z_{a_i}\bigr), \qquad P_i = Q_i Q_i^T

    R, orthogonal on patches of stride[0] x stride[1] pixels, and kernel_size - stride projectors along each axis.
    Boissin, Mamalet, Fel, Picard, Massena, Serrurier, *An Adaptive Orthogonal Convolution Scheme for Efficient and
    Flexible CNN Architectures*, ICML 2025. R and Q_i are Cayley transforms (Trockman, Kolter 2021) of parameters.

    Guarantee: with circular "same" padding the convolution's matrix has orthonormal rows if in_channels *
    stride[0] * stride[1] >= out_channels, orthonormal columns otherwise (all singular values 1), for every
    kernel_size >= stride, dilation without common divisor with the stride, and groups. Lipschitz constant at most
    1 with zero padding (any amount) and with less circular padding.
    Cost: one convolution; a Cayley transform of R and of half as wide Q_i, and products of c x c matrices, 13 for a
    3 x 3 kernel at stride 1; in eval mode the kernel is computed once.

    Args: as ``torch.nn.Conv2d``, and ``backend``. Initialised with R = I where it is square (stride 1: the Dirac
    kernel, for odd kernels and even channels), and one random projector per group. Bias 0.

    Shapes: (n, in_channels, h, w) or (in_channels, h, w) to the shapes of ``torch.nn.Conv2d``; "same" gives
    ceil(h / stride). Parameters: ``raw_matrix`` (groups, out_channels / groups, c stride[0] stride[1]) with c =
    max(in_channels, floor(out_channels / (stride[0] stride[1]))) / groups; ``raw_bases`` (groups, number of
    projectors, c, floor(c / 2)), where there are any; ``bias`` (out_channels). ``weight`` is the effective kernel,
    differentiable in training.

    Raises ValueError for a kernel smaller than the stride, a dilation that shares a divisor with the stride, other
    padding modes, more circular padding than dilation * (kernel_size - 1) in total per axis, and, in forward,
    circular padding of a side that the stride does not divide.
    """

    orthogonal = True

    @property
    def ports(self) -> Pair:
        """Input and output channels of a group."""
        return self.in_channels // self.groups, self.out_channels // self.groups

    def check_input(self, x: Tensor) -> None:
        """Raises ValueError also where circular windows would meet pixels repeatedly."""
        super().check_input(x)
        left, right, top, bottom = self.pads
        wraps = (top + bottom > 0, left + right > 0) if self.padding_mode == "circular" else (False, False)
        for side, step, wrapped in zip(x.shape[-2:], self.stride, wraps, strict=True):
            if wrapped and side % step:
                raise ValueError(
                    f"x: got shape {tuple(x.shape)}, expected sides that stride={self.stride} divides: with circular "
                    "padding windows would overlap, and no bound holds; allowed is padding_mode='zeros'"
                )


class AOCConvTranspose2d(AdaptiveKernel):
    r"""The adjoint of an orthogonal strided convolution: a drop-in ``torch.nn.ConvTranspose2d``.

    Its kernel is that of ``AOCConv2d(out_channels, in_channels, kernel_size, stride)``: see there (Boissin et al.,
    ICML 2025).

    Guarantee: Lipschitz constant at most 1. Without padding and for in_channels <= out_channels * stride[0] *
    stride[1] it keeps the norm of every image (all singular values 1); for more input channels, where the kernel
    is as large as the stride, it has orthonormal rows.
    Cost: one transposed convolution, and the kernel as in ``AOCConv2d``.

    Args: as ``torch.nn.ConvTranspose2d`` (zero padding, its only padding mode), and ``backend``. Initialised as
    ``AOCConv2d``, bias 0.

    Shapes: (n, in_channels, h, w) or (in_channels, h, w) to (..., out_channels, h', w') with h' = (h - 1) stride[0]
    - 2 padding[0] + dilation[0] (kernel_size[0] - 1) + output_padding[0] + 1; ``output_size`` of the call chooses
    among the sizes that output_padding allows. Parameters: as ``AOCConv2d`` with in_channels and out_channels
    exchanged; ``bias`` (out_channels). ``weight`` is the effective kernel (in_channels, out_channels / groups, kh,
    kw), differentiable in training.

    Raises ValueError for a kernel smaller than the stride, a dilation that shares a divisor with the stride,
    another padding mode, an output_padding of at least stride and dilation, an output_size that is not possible.
    """

    fixed = (*GEOMETRY, "output_padding")
    orthogonal = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        output_padding: int | Pair = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Pair = 1,
        padding_mode: PaddingMode = "zeros",
        device: Any = None,
        dtype: Any = None,
        backend: Backend = "auto",
    ):
        super().__init__(backend)
        self.in_channels = check_positive_int("in_channels", in_channels)
        self.out_channels = check_positive_int("out_channels", out_channels)
        self.kernel_size = make_pair("kernel_size", kernel_size)
        self.stride = make_pair("stride", stride)
        self.padding = make_pair("padding", padding, least=0)
        self.dilation = make_pair("dilation", dilation)
        self.output_padding = make_pair("output_padding", output_padding, least=0)
        self._check_output_padding("output_padding", self.output_padding)
        self.groups = check_groups(groups, in_channels, out_channels)
        if padding_mode != "zeros":
            raise ValueError(f"padding_mode={padding_mode!r}: allowed is 'zeros'")
        self.padding_mode = padding_mode
        self.bias = make_bias(out_channels, bias, device, dtype)
        self.make_parameters(device, dtype)
        self.reset_parameters()

    @property
    def ports(self) -> Pair:
        """Those of the convolution whose adjoint this is."""
        return self.out_channels // self.groups, self.in_channels // self.groups

    @property
    def weight(self) -> Tensor:
        """The effective kernel, (in_channels, out_channels / groups, kh, kw); differentiable in training."""
        return self.only_weight()

    def forward(self, x: Tensor, output_size: list[int] | tuple[int, ...] | None = None) -> Tensor:
        """The transposed convolution of x, and bias."""
        if x.dim() not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(
                f"x: got shape {tuple(x.shape)}, expected (n, {self.in_channels}, h, w) or ({self.in_channels}, h, w)"
            )
        extra = self.output_padding if output_size is None else self._extra(x, tuple(output_size))
        return F.conv_transpose2d(
            x, self.effective()[0], self.bias, self.stride, self.padding, extra, self.groups, self.dilation
        )

    @torch.no_grad()
    def lipschitz_bound(self, input_shape: tuple[int, ...]) -> float:
        """The norm of the convolution of this kernel on images of the output's size, whose adjoint this is."""
        vertical, horizontal = self.padding
        pads = horizontal, horizontal, vertical, vertical
        size = self._output_size(input_shape, self.output_padding)
        weight = as_it_runs(self.weight)
        return ops.spectral_norm(weight, size, self.stride, pads, self.dilation, self.groups, "zeros").item()

    def _output_size(self, shape: tuple[int, ...], extra: Pair) -> Pair:
        geometry = zip(shape[-2:], self.stride, self.padding, self.dilation, self.kernel_size, extra, strict=True)
        height, width = ((n - 1) * s - 2 * p + d * (k - 1) + e + 1 for n, s, p, d, k, e in geometry)
        return height, width

    def _extra(self, x: Tensor, output_size: tuple[int, ...]) -> Pair:
        """The output padding that gives this size."""
        least = self._output_size(tuple(x.shape), (0, 0))
        height, width = (wanted - side for wanted, side in zip(output_size[-2:], least, strict=True))
        self._check_output_padding(f"output_size={output_size}: least {least}; output_padding", (height, width))
        return height, width

    def _check_output_padding(self, name: str, extra: Pair) -> None:
        limits = tuple(max(s, d) for s, d in zip(self.stride, self.dilation, strict=True))
        if any(not 0 <= e < limit for e, limit in zip(extra, limits, strict=True)):
            raise ValueError(f"{name}={extra}: expected at least 0 and less than stride or dilation, {limits}")

    def extra_repr(self) -> str:
        """The arguments that differ from layer to layer."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        text += f", padding={self.padding}, output_padding={self.output_padding}, groups={self.groups}"
        text += f", bias={self.bias is not None}, dilation={self.dilation}, backend={self.backend!r}"
        return text


METHOD = Method(
    "aoc",
    AOCConv2d,
    settings={"digits": {"optimizer.lr": 0.02, "loss.temperature": 0.1}},
    # deel-torchlip has one orthogonalised convolution, that of the reshaped kernel.
    peers={
        "orthogonium": "orthogonium.layers.conv.AOC:AdaptiveOrthoConv2d",
        "deel-torchlip": "deel.torchlip:SpectralConv2d",
    },
)
