"""AOC: orthogonal convolutions with stride, groups, dilation and transposed form (Boissin et al. 2025)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastlip.kernels.common.geometry import ConvGeometry, Pair
from fastlip.kernels.common.literals import Backend, Device, Padding, PaddingMode, Sides
from fastlip.nn._adaptive import adaptive_kernel, check_coverage, make_adaptive, reset_adaptive
from fastlip.nn._quasi_residual import add_gamma, check_quasi_residual, reset_quasi_residual, with_identity
from fastlip.nn.applications.application import CONV_ARGUMENTS, show_conv_arguments
from fastlip.nn.applications.kernel import KernelConvolution
from fastlip.nn.applications.transposed import TransposedConvolution
from fastlip.nn.arguments import ConvCommon, ConvSizes, conv_geometry, make_bias, one_of, pair
from fastlip.nn.base import LipschitzLayer, at_least_float32, effective_weight
from fastlip.nn.method import Method


def build_aoc(
    layer: Any, channels: tuple[int, int], sizes: ConvSizes, common: ConvCommon, quasi_residual: Any
) -> None:
    """Constructs an AOC convolution of images, or of sequences as images of one row."""
    bias, device, dtype, backend = common
    geometry = conv_geometry(channels, *sizes)
    check_coverage(geometry)
    LipschitzLayer.__init__(layer, KernelConvolution(geometry, orthogonal=True, whole_windows=True), backend)
    show_conv_arguments(layer, *channels, sizes[2])
    layer.bias = make_bias(channels[1], bias, device, dtype)
    layer.raw_matrix, layer.raw_bases = make_adaptive(geometry, layer._ports, device, dtype)
    layer.quasi_residual = check_quasi_residual(quasi_residual, channels, geometry.stride)
    add_gamma(layer, layer.raw_matrix.shape[:2], device, dtype)
    layer.reset_parameters()


class AOCConv2d(LipschitzLayer):
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
    Initial values: R = I where it is square (stride 1: the Dirac kernel, for odd kernels and even channels), and one
    random projector per group. Bias 0.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel_size: number of taps along each axis.
        stride: step between two outputs; default 1.
        padding: ``"same"`` (default), ``"valid"``, or the number of pixels added on each side.
        dilation: distance of two taps; default 1.
        groups: number of groups of channels; default 1.
        bias: whether a bias is added; default True.
        padding_mode: ``"circular"`` (default) or ``"zeros"``.
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.
        quasi_residual: s: I + s gamma M takes the place of the parameter M of R, with a learnt factor gamma for each
            row; True is 1; default False. For in_channels = out_channels and stride 1 only. R is a Cayley transform:
            that of 0 is the identity, and that of I + M is that of M, so that the option only scales M.

    Shapes: (n, in_channels, h, w) or (in_channels, h, w) to the shapes of ``torch.nn.Conv2d``; "same" gives
    ceil(h / stride). Parameters: ``raw_matrix`` (groups, out_channels / groups, c stride[0] stride[1]) with c =
    max(in_channels, floor(out_channels / (stride[0] stride[1]))) / groups; ``raw_bases`` (groups, number of
    projectors, c, floor(c / 2)), where there are any; ``bias`` (out_channels); with ``quasi_residual`` also ``gamma``
    (groups, out_channels / groups). ``weight`` is the effective kernel, differentiable in training.

    Raises:
        ValueError: a kernel smaller than the stride, a dilation that shares a divisor with the stride, another
            padding mode, more circular padding than dilation * (kernel_size - 1) in total per axis, a quasi_residual
            of a layer that is not square, and, in forward, circular padding of a side that the stride does not
            divide.

    >>> layer = lip.AOCConv2d(4, 16, 3, stride=2).eval()
    >>> x = torch.rand(1, 4, 8, 8)
    >>> bool(torch.isclose(layer(x).norm(), x.norm()))
    True
    """

    in_channels: int
    out_channels: int
    kernel_size: Pair
    stride: Pair
    padding: Padding
    dilation: Pair
    groups: int
    padding_mode: PaddingMode
    _fixed = (*CONV_ARGUMENTS, "quasi_residual")
    _grouped = True
    _application: KernelConvolution
    quasi_residual: float
    raw_matrix: nn.Parameter
    raw_bases: nn.Parameter | None
    weight = effective_weight

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sides,
        stride: Sides = 1,
        padding: Padding = "same",
        dilation: Sides = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "circular",
        device: Device = None,
        dtype: torch.dtype | None = None,
        backend: Backend = "auto",
        *,
        quasi_residual: bool | float = False,
    ):
        channels, sizes = (in_channels, out_channels), (kernel_size, stride, padding, dilation, groups, padding_mode)
        build_aoc(self, channels, sizes, (bias, device, dtype, backend), quasi_residual)

    @property
    def _ports(self) -> Pair:
        """Input and output channels of a group."""
        return self.in_channels // self.groups, self.out_channels // self.groups

    def reset_parameters(self) -> None:
        """R = I where it is square, else random; one random projector per group, which cancels in pairs; bias 0."""
        reset_adaptive(self.raw_matrix, self.raw_bases, self.bias)
        reset_quasi_residual(self, self.raw_matrix, self.raw_matrix.shape[1])

    def _parametrize(self) -> tuple[Tensor, ...]:
        """(kernel,) in conv2d's layout, (out_channels, in_channels / groups, kh, kw)."""
        matrix = at_least_float32(self.raw_matrix)
        if self.quasi_residual:
            matrix = with_identity(self, matrix, torch.eye(matrix.shape[2], dtype=matrix.dtype, device=matrix.device))
        return (adaptive_kernel(self._application.geometry, self._ports[0], matrix, self.raw_bases, self.backend),)


class AOCConvTranspose2d(LipschitzLayer):
    r"""The adjoint of an orthogonal strided convolution: a drop-in ``torch.nn.ConvTranspose2d``.

    Its kernel is that of ``AOCConv2d(out_channels, in_channels, kernel_size, stride)``: see there (Boissin et al.,
    ICML 2025).

    Guarantee: Lipschitz constant at most 1. Without padding and for in_channels <= out_channels * stride[0] *
    stride[1] it keeps the norm of every image (all singular values 1); for more input channels, where the kernel
    is as large as the stride, it has orthonormal rows.
    Cost: one transposed convolution, and the kernel as in ``AOCConv2d``. Initial values: as ``AOCConv2d``.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel_size: number of taps along each axis.
        stride: step between two inputs, in pixels of the output; default 1.
        padding: number of pixels cut off on each side of the output; default 0.
        output_padding: number of pixels added at the output's end, less than stride or dilation; default 0.
        groups: number of groups of channels; default 1.
        bias: whether a bias is added; default True.
        dilation: distance of two taps; default 1.
        padding_mode: ``"zeros"`` (default).
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.

    Shapes: (n, in_channels, h, w) or (in_channels, h, w) to (..., out_channels, h', w') with h' = (h - 1) stride[0]
    - 2 padding[0] + dilation[0] (kernel_size[0] - 1) + output_padding[0] + 1; ``output_size`` of the call chooses
    among the sizes that output_padding allows. Parameters: as ``AOCConv2d`` with in_channels and out_channels
    exchanged; ``bias`` (out_channels). ``weight`` is the effective kernel (in_channels, out_channels / groups, kh,
    kw), differentiable in training.

    Raises:
        ValueError: a kernel smaller than the stride, a dilation that shares a divisor with the stride, another
            padding mode, an output_padding of at least stride and dilation, an output_size that is not possible.

    >>> layer = lip.AOCConvTranspose2d(16, 4, 2, stride=2)
    >>> layer(torch.rand(1, 16, 4, 4)).shape
    torch.Size([1, 4, 8, 8])
    """

    in_channels: int
    out_channels: int
    kernel_size: Pair
    stride: Pair
    padding: Padding
    dilation: Pair
    groups: int
    padding_mode: PaddingMode
    _fixed = (*CONV_ARGUMENTS, "output_padding")
    _application: TransposedConvolution
    weight = effective_weight

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sides,
        stride: Sides = 1,
        padding: Sides = 0,
        output_padding: Sides = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Sides = 1,
        padding_mode: Literal["zeros"] = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        backend: Backend = "auto",
    ):
        pads, extra = pair("padding", padding, least=0), pair("output_padding", output_padding, least=0)
        one_of("padding_mode", padding_mode, ("zeros",))
        channels = in_channels, out_channels
        geometry = conv_geometry(channels, kernel_size, stride, pads, dilation, groups, padding_mode, ("zeros",))
        check_output_padding("output_padding", geometry, extra)
        check_coverage(geometry)
        super().__init__(TransposedConvolution(geometry, orthogonal=True, output_padding=extra), backend)
        show_conv_arguments(self, in_channels, out_channels, pads)
        self.output_padding = extra
        self.bias = make_bias(out_channels, bias, device, dtype)
        self.raw_matrix, self.raw_bases = make_adaptive(geometry, self._ports, device, dtype)
        self.reset_parameters()

    @property
    def _ports(self) -> Pair:
        """Input and output channels of a group of the convolution whose adjoint this is."""
        return self.out_channels // self.groups, self.in_channels // self.groups

    def reset_parameters(self) -> None:
        """As ``AOCConv2d``."""
        reset_adaptive(self.raw_matrix, self.raw_bases, self.bias)

    def _parametrize(self) -> tuple[Tensor, ...]:
        """(kernel,) in the layout of conv_transpose2d, (in_channels, out_channels / groups, kh, kw)."""
        geometry = self._application.geometry
        return (adaptive_kernel(geometry, self._ports[0], self.raw_matrix, self.raw_bases, self.backend),)

    def forward(self, x: Tensor, output_size: list[int] | tuple[int, ...] | None = None) -> Tensor:
        """The transposed convolution of x, and bias.

        Args:
            x: (n, in_channels, h, w) or (in_channels, h, w).
            output_size: height and width of the output; None: as ``output_padding`` says.
        """
        extra = None if output_size is None else self._extra(x, tuple(output_size))
        try:
            return self._application(self, x, extra)
        except RuntimeError:
            self._refuse_dtype(x)
            raise

    def _extra(self, x: Tensor, output_size: tuple[int, ...]) -> Pair:
        """The output padding that gives this size."""
        self._check_input(x, self.in_channels, 2)
        least = self._application.output_size(tuple(x.shape), (0, 0))
        height, width = (wanted - side for wanted, side in zip(output_size[-2:], least, strict=True))
        name = f"output_size={output_size}: least {least}; output_padding"
        check_output_padding(name, self._application.geometry, (height, width))
        return height, width


def check_output_padding(name: str, geometry: ConvGeometry, extra: Pair) -> None:
    """Raises ValueError for an output padding that no image needs."""
    limits = tuple(max(s, d) for s, d in zip(geometry.stride, geometry.dilation, strict=True))
    if any(not 0 <= e < limit for e, limit in zip(extra, limits, strict=True)):
        raise ValueError(f"{name}={extra}: expected at least 0 and less than stride or dilation, {limits}")


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
