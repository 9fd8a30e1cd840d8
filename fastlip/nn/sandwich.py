"""Sandwich layers: two matrices of one Cayley transform around an activation (Wang, Manchester, ICML 2023)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastlip import ops
from fastlip.kernels.common.geometry import Pair
from fastlip.kernels.common.literals import Backend, Device, Padding, PaddingMode, Sides
from fastlip.kernels.spectral_cayley.api import OPERATOR as SPECTRAL_CAYLEY
from fastlip.nn.applications.application import CONV_ARGUMENTS, show_conv_arguments
from fastlip.nn.applications.dense import DENSE_ARGUMENTS
from fastlip.nn.applications.frequency import check_patches
from fastlip.nn.applications.sandwich import (
    SANDWICH_ACTIVATIONS,
    SandwichActivation,
    SandwichConvolution,
    SandwichDense,
)
from fastlip.nn.arguments import (
    ConvCommon,
    ConvSizes,
    conv_geometry,
    dense_features,
    make_bias,
    make_parameter,
    one_of,
)
from fastlip.nn.base import LipschitzLayer, at_least_float32
from fastlip.nn.cayley import normalize
from fastlip.nn.initial import centre_orthogonal_, zero_

_LARGEST_PSI = 16.0


def check_activation(value: SandwichActivation) -> SandwichActivation:
    """Returns the name of an activation with slopes between 0 and 1, or raises ValueError."""
    return one_of("activation", value, tuple(SANDWICH_ACTIVATIONS))


def make_psi(size: int, bias: bool, activation: SandwichActivation, device: Any, dtype: Any) -> nn.Parameter | None:
    """psi; None for relu without a bias, which does not depend on it."""
    return make_parameter((size,), device, dtype) if bias or activation != "relu" else None


def spread_and_shift(psi: Tensor | None, bias: Tensor | None) -> tuple[Tensor, ...]:
    """(e^psi, e^psi b); without a bias (e^psi,), without psi ().

    psi is limited to 16 in size, and so that e^psi squared is a number of its dtype.
    """
    if psi is None:
        return ()
    limit = min(_LARGEST_PSI, math.log(torch.finfo(psi.dtype).max) / 2)
    spread = at_least_float32(psi).clamp(-limit, limit).exp()
    return (spread,) if bias is None else (spread, spread * at_least_float32(bias))


def reset(layer: SandwichConv2d | SandwichLinear, outputs: int, groups: int = 1) -> None:
    """A = I / sqrt(2) and B = R / sqrt(2), R orthogonal (the identity if square), at the centre tap; psi, bias 0."""
    with torch.no_grad():
        layer.raw_weight.zero_()
        kernel = layer.raw_weight[:, outputs // groups :]
        centre_orthogonal_(kernel, groups)
        kernel.mul_(-math.tan(math.pi / 8))
        layer.alpha.fill_(torch.linalg.vector_norm(at_least_float32(layer.raw_weight)))
    zero_(layer.psi, layer.bias)


def build_sandwich(
    layer: Any, channels: tuple[int, int], sizes: ConvSizes, common: ConvCommon, activation: Any
) -> None:
    """Constructs a Sandwich convolution of images, or of sequences as images of one row."""
    bias, device, dtype, backend = common
    geometry = conv_geometry(channels, *sizes)
    check_patches(sizes[2], geometry)
    LipschitzLayer.__init__(layer, SandwichConvolution(geometry, activation=check_activation(activation)), backend)
    show_conv_arguments(layer, *channels, sizes[2])
    layer.activation = activation
    layer.bias = make_bias(channels[1], bias, device, dtype)
    layer.raw_weight = make_parameter(layer._application.weight_shape(layer), device, dtype)
    layer.alpha = make_parameter((1,), device, dtype)
    layer.psi = make_psi(channels[1], bias, activation, device, dtype)
    layer.reset_parameters()


class SandwichConv2d(LipschitzLayer):
    r"""Sandwich layer of convolutions, y = sqrt(2) A^T Psi sigma(sqrt(2) Psi^{-1} B x + b), A A^T + B B^T = I.

    .. math:: M = \alpha W / \|W\|_F, \qquad [A_k, B_k] = \mathrm{Cayley}(\hat M_k), \qquad \Psi = e^\psi

    at each frequency k, for a kernel W whose first out_channels / groups inputs belong to A; Psi is diagonal, one
    number per hidden channel, of which there are out_channels. Wang, Manchester, *Direct Parameterization of
    Lipschitz-Bounded Deep Networks*, ICML 2023. Activation, proof, numerically stable form: see
    :class:`SandwichLinear`. The layer has its activation inside, and none should follow it.

    Guarantee: Lipschitz constant at most 1, for every image size, kernel size, dilation and groups, circular or zero
    padding. With zero padding both convolutions embed their image in zeros at an FFT size that is larger by dilation
    * (kernel_size - 1), and crop; A^T is still the adjoint of A. With a stride, the image's stride x stride patches
    become channels, then follow convolutions of ceil(kernel_size / stride) taps; an image whose side the stride does
    not divide is padded with zeros.
    Cost: in training one inverse of a matrix of out_channels rows per unique frequency (h w / 2 of them) and four
    Fourier transforms; in eval mode the matrices are computed once per image size. A kernel of one tap has real
    matrices and no transform.
    Initial values: A = I / sqrt(2) and B = R / sqrt(2) with R the identity (square) or an orthogonal matrix at the
    kernel's centre, so that y = sigma(R x) for out_channels <= in_channels; psi and bias 0.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels, and of hidden ones.
        kernel_size: number of taps along each axis.
        stride: step between two outputs; default 1.
        padding: ``"same"`` (default), or the numbers of pixels that equal it.
        dilation: distance of two taps; 1 where stride exceeds 1; default 1.
        groups: number of groups of channels; default 1.
        bias: whether a bias b is added; default True.
        padding_mode: ``"circular"`` (default) or ``"zeros"``.
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.
        activation: sigma: ``"relu"`` (default), ``"softplus"`` or ``"tanh"``.

    Shapes: (n, in_channels, h, w) or (in_channels, h, w) to (n, out_channels, ceil(h / stride), ceil(w / stride)).
    Parameters: ``raw_weight`` (out_channels, (out_channels + in_channels * stride^2) / groups, *ceil(kernel_size /
    stride)), ``alpha`` (1), ``bias`` (out_channels), ``psi`` (out_channels; None for relu without a bias).

    Raises:
        ValueError: another activation, padding or padding mode, a dilated stride, groups that do not divide the
            channels.

    >>> layer = lip.SandwichConv2d(4, 8, 3, stride=2)
    >>> layer(torch.rand(1, 4, 8, 8)).shape
    torch.Size([1, 8, 4, 4])
    >>> layer.lipschitz_bound((4, 8, 8)) <= 1 + 1e-6
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
    _fixed = (*CONV_ARGUMENTS, "activation")
    _application: SandwichConvolution
    activation: SandwichActivation
    raw_weight: nn.Parameter
    alpha: nn.Parameter
    psi: nn.Parameter | None

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
        activation: SandwichActivation = "relu",
    ):
        channels, sizes = (in_channels, out_channels), (kernel_size, stride, padding, dilation, groups, padding_mode)
        build_sandwich(self, channels, sizes, (bias, device, dtype, backend), activation)

    def reset_parameters(self) -> None:
        """A = I / sqrt(2), B = R / sqrt(2) at the kernel's centre in each group; psi and bias 0."""
        reset(self, self.out_channels, self.groups)

    def _parametrize(self, *fft_size: int) -> tuple[Tensor, ...]:
        """(sqrt(2) B, sqrt(2) A^H, e^psi, e^psi b): matrices per frequency, or kernels of one tap."""
        M, rows = normalize(self.raw_weight, self.alpha), self.out_channels // self.groups
        if fft_size:
            Q = SPECTRAL_CAYLEY(M, fft_size, self._application.geometry.dilation, self.groups, self.backend)
        else:
            (kernel,) = self._application.matrices(M, (), lambda V, reals: ops.cayley(V, backend=self.backend))
            Q = kernel.flatten(1)[None]
        Q = math.sqrt(2) * Q.unflatten(1, (self.groups, -1))
        first, second = Q[..., rows:].flatten(1, 2), Q[..., :rows].mH.resolve_conj().flatten(1, 2)
        if not fft_size:
            first, second = first[0, :, :, None, None], second[0, :, :, None, None]
        return first, second, *spread_and_shift(self.psi, self.bias)


class SandwichLinear(LipschitzLayer):
    r"""Dense sandwich layer y = sqrt(2) A^T Psi sigma(sqrt(2) Psi^{-1} B x + b), A A^T + B B^T = I, Psi = e^psi.

    .. math:: [A, B] = \mathrm{Cayley}(\alpha W / \|W\|_F), \qquad
              y = \sqrt 2 A^T \phi(\sqrt 2 B x + e^\psi b), \qquad \phi(z) = e^\psi \sigma(e^{-\psi} z)

    Wang, Manchester, *Direct Parameterization of Lipschitz-Bounded Deep Networks*, ICML 2023. The second form is the
    one that is computed. It is the same function, and no product overflows or loses digits to a large psi: for relu,
    phi(z) = relu(z), and psi scales the bias alone. psi is limited to [-16, 16] (float16: [-5.5, 5.5]), which keeps
    the bound, as it holds for every Psi.

    Guarantee: Lipschitz constant at most 1. The Jacobian is 2 A^T D B with the slopes D of sigma, which commute with
    Psi. It is an off-diagonal block of 2 R^T D R, where R = [A, B] has orthonormal rows; for 0 <= D <= 1 this
    matrix lies between 0 and 2, so that the block has norm at most 1.

    Activations: exactly those that act elementwise with slopes between 0 and 1. For slopes in [l, u] the same proof
    gives max(u, 0) - min(l, 0), and the constant is attained by some A and B: 2 for the absolute value, and 2 for
    MaxMin, whose Jacobian exchanges two features and so has the eigenvalue -1. Both are refused.

    The last layer of a network has no activation: the paper's, B x + b with a part B of a Cayley transform, is
    :class:`CayleyLinear` with orthonormal rows or columns.

    Args:
        in_features: number of input features.
        out_features: number of output features, and of hidden ones.
        bias: whether a bias b is added; default True.
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.
        activation: sigma: ``"relu"`` (default), ``"softplus"`` or ``"tanh"``.

    Shapes: (*, in_features) to (*, out_features). Parameters: ``raw_weight`` (out_features, out_features +
    in_features), ``alpha`` (1), ``bias`` (out_features), ``psi`` (out_features; None for relu without a bias, which
    does not depend on it). Initial values: A = I / sqrt(2) and B = R / sqrt(2) with an orthogonal R (the identity if
    square), so that y = sigma(R x) for out_features <= in_features; psi and bias 0.

    Raises:
        ValueError: another activation.

    >>> model = torch.nn.Sequential(lip.SandwichLinear(4, 8), lip.SandwichLinear(8, 8), lip.CayleyLinear(8, 2))
    >>> model(torch.rand(5, 4)).shape, fastlip.audit(model, (4,)).bound <= 1 + 1e-6
    (torch.Size([5, 2]), True)
    """

    _fixed = (*DENSE_ARGUMENTS, "activation")
    _application: SandwichDense
    psi: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        backend: Backend = "auto",
        *,
        activation: SandwichActivation = "relu",
    ):
        super().__init__(SandwichDense(check_activation(activation)), backend)
        self.in_features, self.out_features = dense_features(in_features, out_features)
        self.activation = activation
        self.bias = make_bias(out_features, bias, device, dtype)
        self.raw_weight = make_parameter((out_features, out_features + in_features), device, dtype)
        self.alpha = make_parameter((1,), device, dtype)
        self.psi = make_psi(out_features, bias, activation, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A = I / sqrt(2), B = R / sqrt(2) with an orthogonal R; psi and bias 0."""
        reset(self, self.out_features)

    def _parametrize(self) -> tuple[Tensor, ...]:
        """(sqrt(2) B, sqrt(2) A^T, e^psi, e^psi b); without a bias, the first three."""
        Q = ops.cayley(normalize(self.raw_weight, self.alpha), backend=self.backend)
        # The gradients of the parts are written once: split's are concatenated, those of slices are sums of zeros.
        A, B = Q.split((self.out_features, self.in_features), 1)
        return math.sqrt(2) * B, math.sqrt(2) * A.mT, *spread_and_shift(self.psi, self.bias)
