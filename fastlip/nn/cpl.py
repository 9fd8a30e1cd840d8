"""CPL: convex potential layers (Meunier, Delattre, Araujo, Allauzen, ICML 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastlip.kernels.common.checks import boolean
from fastlip.kernels.common.geometry import Pair
from fastlip.kernels.common.literals import Backend, Device, Padding, PaddingMode, Sides
from fastlip.kernels.common.precision import for_convolution
from fastlip.nn._earlier import EarlierName
from fastlip.nn._matrix_norm import squared_norm
from fastlip.nn._residual import (
    RESIDUAL_CONV_ARGUMENTS,
    RESIDUAL_DENSE_ARGUMENTS,
    begin_residual_conv,
    make_residual_dense,
    reset_kernel,
    show_residual_dense,
)
from fastlip.nn._sigma import (
    POWER_DENSITY,
    POWER_STEPS,
    fft_side,
    frequencies,
    is_recomputed,
    power_step,
    squared_norm_at,
    squared_norm_bound,
)
from fastlip.nn._warm import WarmStart
from fastlip.nn.applications.residual import ResidualConvolution, ResidualDense, safe_scale
from fastlip.nn.arguments import ConvCommon, ConvSizes, one_of
from fastlip.nn.base import LipschitzLayer, at_least_float32
from fastlip.nn.initial import zero_
from fastlip.nn.method import Method

TrainingSigma = Literal["bound", "power"]
TRAINING_SIGMAS: tuple[TrainingSigma, ...] = ("bound", "power")


def build_cpl(
    layer: Any,
    channels: tuple[int, int],
    sizes: ConvSizes,
    common: ConvCommon,
    inner_channels: Any,
    recompute: Any,
    training_sigma: Any,
) -> None:
    """Constructs a CPL convolution along any axes."""
    one_of("training_sigma", training_sigma, TRAINING_SIGMAS)
    begin_residual_conv(layer, channels, sizes, common, inner_channels, sized=True)
    _, device, dtype, _ = common
    layer.recompute = None if recompute is None else boolean("recompute", recompute)
    layer._training_sigma = training_sigma
    layer.register_buffer("fixed_scale", torch.zeros(layer.groups, device=device, dtype=dtype))
    if training_sigma == "power":
        sides = (max(1, POWER_DENSITY * (k - 1)) for k in layer._application.geometry.kernel_size)
        shape = layer.groups, layer._width // layer.groups, *sides
        layer.register_buffer("power_vector", torch.empty(shape, device=device, dtype=dtype))
    layer.reset_parameters()


class CPLConv2d(LipschitzLayer):
    r"""Convolutional residual layer y = x - (2 / sigma^2) W^T relu(W x + b), sigma an upper bound of \|W\|_2.

    Meunier, Delattre, Araujo, Allauzen, *A Dynamical System Perspective for Lipschitz Neural Networks*, ICML
    2022. W is the padded convolution, W^T its exact adjoint; W = 0 gives the identity.

    sigma bounds \|W\|_2 on images of the input's size: by Gram iteration (five squarings, at most 2.2 % too
    large at 16 channels) on every frequency of the image (circular) or of the FFT size that contains the
    zero-padded image; for large images on 17 (kernel_size - 1) frequencies per axis, enlarged by the 1 % that
    sigma can gain in between. The paper's power iteration approaches \|W\|_2 from below and promises nothing.
    With groups, each has its own sigma.

    Guarantee: Lipschitz constant at most 1, for every kernel size, dilation and groups, zero or circular "same"
    padding, any image size. The function depends on the image size through sigma (not for 1 x 1 kernels, nor
    for images larger than 17 (kernel_size - 1)); in eval mode sigma is computed once per image size. Nothing in the
    state dict depends on the image size.
    Cost: two convolutions at ``width`` channels, and about 17 c^3 multiply-adds for each of n^2 / 2 frequencies.
    Initial values: the kernel at a tenth of Xavier normal (at bias 0 the layer does not depend on the kernel's size,
    and learns faster where it is small), bias 0.

    With ``training_sigma="power"`` that cost is paid in eval mode only: in train mode sigma comes from one step of a
    power iteration per forward, at an FFT size of at most 6 (kernel_size - 1) a side, warm-started from the
    buffer ``power_vector``. It is not an upper bound: in train mode the layer may exceed 1 by a little, and
    ``lipschitz_bound`` says by how much. Eval mode, and so every certificate, keeps the guarantee.

    Width, stride, padding of channels: as ``SLLConv2d``.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels.
        kernel_size: number of taps along each axis.
        stride: step between two outputs; default 1.
        padding: ``"same"`` (default).
        dilation: distance of two taps; default 1.
        groups: number of groups of channels; default 1.
        bias: whether a bias is added; default True.
        padding_mode: ``"zeros"`` (default) or ``"circular"``.
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.
        inner_channels: rows of W; None: ``width``.
        recompute: True keeps half as much for the backward, for one more convolution; None (default): for 1x1
            kernels, and on a CPU for 3x3 kernels with up to 64 inner channels.
        training_sigma: ``"bound"`` (default), or ``"power"``: a power iteration in train mode.

    Shapes: (n, in_channels, h, w) or (in_channels, h, w) to out_channels and ceil(h / stride_h).
    Parameters: ``kernel`` (inner_channels, width / groups, *kernel_size), ``bias`` (inner_channels). Buffer:
    ``fixed_scale`` (groups), 0 unless ``freeze_scale`` set it; ``power_vector`` with ``training_sigma="power"``.

    Raises:
        ValueError: another padding, padding mode or value of training_sigma, groups that do not divide the channels.

    >>> layer = lip.CPLConv2d(4, 8, 3, stride=2)
    >>> layer(torch.rand(1, 4, 8, 8)).shape
    torch.Size([1, 8, 4, 4])
    """

    in_channels: int
    out_channels: int
    kernel_size: Pair
    stride: Pair
    padding: Padding
    dilation: Pair
    groups: int
    padding_mode: PaddingMode
    _fixed = (*RESIDUAL_CONV_ARGUMENTS, "training_sigma")
    _grouped = True
    _application: ResidualConvolution
    recompute: bool | None
    _training_sigma: TrainingSigma
    kernel: nn.Parameter
    inner_channels: int
    _width: int
    training_sigma, width = EarlierName(), EarlierName()
    fixed_scale: Tensor
    power_vector: Tensor

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
        padding_mode: PaddingMode = "zeros",
        device: Device = None,
        dtype: torch.dtype | None = None,
        backend: Backend = "auto",
        *,
        inner_channels: int | None = None,
        recompute: bool | None = None,
        training_sigma: TrainingSigma = "bound",
    ):
        channels, sizes = (in_channels, out_channels), (kernel_size, stride, padding, dilation, groups, padding_mode)
        build_cpl(self, channels, sizes, (bias, device, dtype, backend), inner_channels, recompute, training_sigma)

    def reset_parameters(self) -> None:
        """Kernel at a tenth of Xavier normal in each group; bias 0; some steps of the power iteration."""
        reset_kernel(self.kernel, self.groups)
        zero_(self.bias, self.fixed_scale)
        if self._training_sigma == "power":
            nn.init.normal_(self.power_vector)
            for _ in range(POWER_STEPS):
                self._power_step(self.power_vector.shape[2:])

    def freeze_scale(self, scale: float | Tensor) -> None:
        """Uses this scale rho instead of 2 / sigma^2; 0 undoes it.

        For published checkpoints, whose scale came from a lower bound of sigma. ``lipschitz_bound`` reports what
        it measures: more than 1 if rho sigma^2 > 2.

        Args:
            scale: one number, or one per group; finite, at least 0.
        """
        freeze(self.fixed_scale, scale)

    def _parametrize(self, *image_size: Any) -> tuple[Tensor, ...]:
        """(2 / sigma^2,): the scale of each inner channel, constant in each group."""
        geometry = self._application.geometry
        axes = list(zip(image_size, geometry.kernel_size, geometry.dilation, strict=True))
        if self.training and self._training_sigma == "power":
            sides = (fft_side(side, k - 1, d, self.padding_mode) for side, k, d in axes)
            least = [min(side, kept) for side, kept in zip(sides, self.power_vector.shape[2:], strict=True)]
            return (inner_scale(self.fixed_scale, self.kernel, self._power_step(least)),)
        counts, above = zip(*[frequencies(*axis, self.padding_mode) for axis in axes], strict=True)
        bound = squared_norm_bound(at_least_float32(self.kernel), counts, self.groups)
        return (inner_scale(self.fixed_scale, self.kernel, bound * math.prod(above)),)

    def _power_step(self, sides: Sequence[int]) -> Tensor:
        """Sigma^2 of each group after one step at this FFT size; the vector is kept for the next.

        A recomputed forward takes the vector of the forward that it repeats, and moves nothing.
        """
        weight, kept = for_convolution(at_least_float32(self.kernel)), self.power_vector
        for axis, side in enumerate(sides, 2):
            kept = kept.narrow(axis, 0, side)
        vector = kept.detach().clone()
        if not is_recomputed():
            vector = power_step(weight, vector.to(weight.dtype), self.groups).to(kept.dtype)
            if not torch._C._are_functorch_transforms_active():
                with torch.no_grad():
                    kept.copy_(vector)
        return squared_norm_at(weight, vector.to(weight.dtype))


class CPLLinear(LipschitzLayer):
    r"""Dense residual layer y = x - (2 / sigma^2) W^T relu(W x + b), sigma \|W\|_2, never underestimated.

    Meunier, Delattre, Araujo, Allauzen, *A Dynamical System Perspective for Lipschitz Neural Networks*, ICML 2022,
    with the exact sigma. In training in float32 on a CPU, a power method continues where the last step ended, and a
    Cholesky factor proves that what it finds, enlarged by 0.1 %, is a bound. On GPUs sigma is that of Gram iteration
    (five squarings, at most 2.2 % too large at 16 features, 4.5 % at 256). Lipschitz constant at most 1; W = 0 gives
    the identity. Initial values: the kernel at a tenth of Xavier normal, bias 0.

    Inputs of fewer than out_features features are padded with zeros to ``width`` = max(in_features,
    out_features); the first out_features of the result are kept. Both are 1-Lipschitz.

    Args:
        in_features: number of input features.
        out_features: number of output features.
        bias: whether a bias is added; default True.
        device: of the parameters; default None: torch's default device.
        dtype: of the parameters; default None: torch's default dtype.
        backend: ``"auto"`` (default), ``"reference"``, ``"native"`` or ``"triton"``.
        inner_features: rows of W; None: ``width``.

    Shapes: (*, in_features) to (*, out_features). Parameters: ``kernel`` (inner_features, width), ``bias``
    (inner_features). Buffer: ``fixed_scale`` (1), 0 unless ``freeze_scale`` set it.

    >>> layer = lip.CPLLinear(4, 3)
    >>> layer(torch.rand(2, 4)).shape
    torch.Size([2, 3])
    """

    _fixed = RESIDUAL_DENSE_ARGUMENTS
    _application: ResidualDense
    kernel: nn.Parameter
    in_features: int
    out_features: int
    inner_features: int
    _width: int
    width = EarlierName()
    fixed_scale: Tensor
    _warm: WarmStart

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Device = None,
        dtype: torch.dtype | None = None,
        backend: Backend = "auto",
        *,
        inner_features: int | None = None,
    ):
        super().__init__(make_residual_dense(in_features, out_features, inner_features), backend)
        self.__dict__["_warm"] = WarmStart()  # not registered: no part of the state dict
        show_residual_dense(self, in_features, out_features, bias, device, dtype)
        self.register_buffer("fixed_scale", torch.zeros(1, device=device, dtype=dtype))
        self.reset_parameters()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes the attributes of a pickled layer, of an earlier version too."""
        super().__setstate__({"_warm": WarmStart(), **state})

    def reset_parameters(self) -> None:
        """Kernel at a tenth of Xavier normal; bias 0; no frozen scale."""
        reset_kernel(self.kernel)
        zero_(self.bias, self.fixed_scale)

    def freeze_scale(self, scale: float | Tensor) -> None:
        """Uses this scale rho instead of 2 / sigma^2; 0 undoes it.

        Args:
            scale: a number; finite, at least 0.
        """
        freeze(self.fixed_scale, scale)

    def _parametrize(self) -> tuple[Tensor, ...]:
        """(2 / sigma^2,): the scale of each inner feature."""
        bound = squared_norm(at_least_float32(self.kernel), self._warm if self.training else None)
        return (inner_scale(self.fixed_scale, self.kernel, bound),)


def freeze(fixed_scale: Tensor, scale: float | Tensor) -> None:
    """Fills the buffer of a frozen scale, or raises ValueError."""
    value = torch.as_tensor(scale, dtype=fixed_scale.dtype, device=fixed_scale.device)
    if not (value.isfinite() & (value >= 0)).all():
        raise ValueError(f"scale={scale!r}: expected finite numbers, at least 0")
    with torch.no_grad():
        fixed_scale.copy_(value)


def inner_scale(fixed_scale: Tensor, kernel: Tensor, squared_norm: Tensor) -> Tensor:
    """The frozen scale where there is one, else 2 / sigma^2, for each inner channel."""
    fixed = fixed_scale.to(squared_norm.dtype)
    scale = torch.where(fixed > 0, fixed, safe_scale(squared_norm, kernel.dtype))
    return scale.repeat_interleave(kernel.shape[0] // len(scale))


# An upper bound of sigma in every training step would cost half of the network's time.
METHOD = Method(
    "cpl", CPLConv2d, CPLLinear, options={"training_sigma": "power"}, settings={"digits": {"optimizer.lr": 0.3}}
)
