"""Convolutions by one matrix per frequency of a circular image, or by one matrix for a kernel of one tap."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlip import ops
from fastlip.kernels.common.geometry import ConvGeometry, Pair
from fastlip.kernels.common.rearrange import space_to_depth
from fastlip.kernels.spectral_conv.api import OPERATOR as SPECTRAL_CONV
from fastlip.kernels.spectral_conv.api import FixedSpectrum, kernel_spectrum, own_frequencies
from fastlip.nn._cache import CACHED_CONTEXTS
from fastlip.nn.applications import spectra, training_spectra
from fastlip.nn.applications.application import ConvApplication
from fastlip.nn.applications.dense import FewVectors, is_short, only_autograd_sees, pointwise
from fastlip.nn.arguments import require_same
from fastlip.nn.base import LipschitzLayer, as_it_runs
from fastlip.nn.fusion import Fusion


@dataclass(frozen=True)
class FrequencyConvolution(ConvApplication):
    """Q_k at each frequency k of the image after space-to-depth: ``_effective(*fft_size)`` is (Q,).

    Circular padding: the frequencies of the image. Zero padding: those of an FFT size that is larger by
    dilation * (kernel_size - 1); the image is embedded in zeros and the result cropped, and neither adds norm.
    A stride is space-to-depth: each stride[0] x stride[1] patch becomes channels (sides are first padded with
    zeros at their end to a multiple of the stride), then follows a convolution of stride 1 with a kernel of
    ceil(kernel_size / stride) taps. A kernel of one tap is one dense matrix (:func:`pointwise`).

    In evaluation, where nothing is differentiated, the matrices are kept as the kernels read them, whatever their
    size. These take the place of ``_effective(*fft_size)``, which is kept next to them only where something else asks
    for it, such as a bound or a gradient of the input.

    ``taps``: the taps of the kernel after space-to-depth. ``reach``: their halo.

    Training on a CPU may have ways of its own, which are faster where images are few. ``few_images(layer, images,
    fft_size)``: MaxMin of Q * x + bias after space-to-depth, or None where it is not for these. ``few_vectors``: an
    op for a kernel of one tap, as :class:`Dense` has it.
    """

    few_images: Callable[[Any, Tensor, Pair], Tensor | None] | None = None
    few_vectors: FewVectors | None = None
    taps: Pair = field(init=False, repr=False)
    reach: Pair = field(init=False, repr=False)

    def __post_init__(self) -> None:
        taps = self.strided_size(self.geometry.kernel_size)
        reach = tuple([d * (k - 1) for k, d in zip(taps, self.geometry.dilation, strict=True)])
        object.__setattr__(self, "taps", taps)  # the dataclass is frozen
        object.__setattr__(self, "reach", reach)

    def __call__(self, layer: Any, x: Tensor) -> Tensor:
        """Q * x + bias."""
        layer._check_input(x, layer.in_channels, self.geometry.axes)
        if not layer.training and (kept := kept_size(layer, self, x)):
            return apply_kept(layer, self, x, kept)
        if max(self.geometry.stride) > 1:
            x = space_to_depth(x, self.geometry.stride)
        if self.geometry.axes != 2:
            return self._of_volumes(layer, x)
        if self.taps == (1, 1):
            return self._of_one_tap(layer, x)
        height, width = x.shape[-2], x.shape[-1]
        if self.geometry.padding_mode != "circular":
            height, width = height + self.reach[0], width + self.reach[1]
        (Q,) = layer._effective(height, width)
        bias, groups = layer.bias, self.geometry.groups
        plain = x.device.type == "cpu" and x.dim() == 4 and 0 not in x.shape and x.dtype == Q.real.dtype
        if plain and not torch.is_autocast_enabled("cpu"):  # nothing is left for the public function to do
            return SPECTRAL_CONV(x, Q, bias, (height, width), groups, layer.backend)
        return ops.spectral_conv(x, Q, bias, (height, width), groups, backend=layer.backend)

    def _of_one_tap(self, layer: Any, x: Tensor) -> Tensor:
        """Q x + bias at each pixel of images after space-to-depth, with one matrix Q."""
        few = self.few_vectors
        if few and layer.training and self.geometry.groups == 1 and x.dim() == 4:
            pixels = x.permute(0, 2, 3, 1)
            if is_short(few, layer, pixels, layer.raw_weight[:, :, 0, 0]):
                y = few.product(pixels, few.matrix(layer)[:, :, 0, 0], backend=layer.backend)
                return (y if layer.bias is None else y + layer.bias).permute(0, 3, 1, 2)
        return pointwise(layer, x, layer._effective()[0])

    def _of_volumes(self, layer: Any, x: Tensor) -> Tensor:
        """Q * x + bias for volumes after space-to-depth."""
        geometry = self.geometry
        fft_size = self.fft_size(layer, *x.shape[-geometry.axes :])
        (Q,) = layer._effective(*fft_size)
        if not fft_size:
            return F.conv3d(x, Q, layer.bias, groups=geometry.groups)
        return ops.spectral_conv(x, Q, layer.bias, fft_size, geometry.groups, backend=layer.backend)

    def fft_size(self, layer: Any, *sides: int) -> tuple[int, ...]:
        """The FFT size of an image with these sides after space-to-depth; () for a kernel of one tap."""
        if max(self.taps) == 1:
            return ()
        if self.geometry.padding_mode == "circular":
            return sides
        return tuple([side + more for side, more in zip(sides, self.reach, strict=True)])

    def weight_shape(self, layer: Any) -> tuple[int, ...]:
        """The shape of a kernel after space-to-depth: (out_channels, columns, *taps)."""
        patch = math.prod(self.geometry.stride)
        return layer.out_channels, layer.in_channels // self.geometry.groups * patch, *self.taps

    def matrices(
        self, weight: Tensor, fft_size: tuple[int, ...], orthogonalize: Callable[[Tensor, int], Tensor]
    ) -> tuple[Tensor, ...]:
        """(Q,), the matrices of a kernel made orthogonal by ``orthogonalize(V, reals)``; ``reals`` of V are real.

        (F, cout, cin / groups) at the unique frequencies of the FFT size; (cout, cin / groups, 1, 1) without one.
        """
        groups = self.geometry.groups
        if not fft_size:
            rows = weight.flatten(1).unflatten(0, (groups, -1))
            return (orthogonalize(rows, 0).reshape(weight.shape),)
        spectrum = kernel_spectrum(weight, fft_size, self.geometry.dilation).unflatten(1, (groups, -1))
        return (orthogonalize(spectrum, own_frequencies(fft_size)).flatten(1, 2),)

    def bound(self, layer: Any, input_shape: tuple[int, ...]) -> float:
        """The largest singular value of the matrices that are applied to images of this shape, in float64."""
        size = self.strided_size(input_shape)
        fft_size = self.fft_size(layer, *size)
        with torch.no_grad():
            (Q,) = layer._effective(*fft_size)
        if not fft_size:
            return float(ops.spectral_norm(as_it_runs(Q), size, groups=self.geometry.groups))
        return largest_singular_value(Q.unflatten(1, (self.geometry.groups, -1)))

    def fused(self, layer: LipschitzLayer, activation: nn.Module) -> Fusion | None:
        """With MaxMin in the last stage of the transform."""
        return fused_by_kept(layer, self, activation, self._train)

    def _train(self, layer: Any, x: Tensor, fft_size: Pair) -> Tensor:
        """MaxMin of Q * x + bias in training, after space-to-depth."""
        if self.few_images is not None and only_autograd_sees(layer):
            y = self.few_images(layer, x, fft_size)
            if y is not None:
                return y
        (Q,) = layer._effective(*fft_size)
        return training_spectra.maxmin_in_training(x, Q, layer.bias, fft_size)


def kept_size(layer: LipschitzLayer, application: Any, x: Tensor) -> Pair | None:
    """The FFT size at which evaluation applies kept matrices per frequency to x; None where they are not kept.

    ``application.fft_size(layer, *sides)`` says the size after space-to-depth, () where there are none.
    """
    geometry = application.geometry
    if geometry.axes != 2 or geometry.groups != 1 or not spectra.is_kept(layer, x) or 0 in x.shape[-2:]:
        return None
    fft_size = application.fft_size(layer, *application.strided_size(x.shape))
    return (fft_size[0], fft_size[1]) if fft_size else None


def apply_kept(layer: Any, application: Any, x: Tensor, fft_size: Pair, pairing: str = "none") -> Tensor:
    """Q * x + bias by kept matrices, and MaxMin after it if a pairing is given."""
    compute = partial(_fixed, fft_size=fft_size)
    (spectrum,) = layer._cache.recall(layer, ("spectra", fft_size), compute, CACHED_CONTEXTS)
    return spectra.apply(space_to_depth(x, application.geometry.stride), spectrum, layer.bias, pairing)


def fused_by_kept(
    layer: LipschitzLayer,
    application: Any,
    activation: Any,
    train: Callable[[Any, Tensor, Pair], Tensor] | None = None,
) -> Fusion | None:
    """With MaxMin in the last stage of the transform: in evaluation by kept matrices.

    ``train(layer, images, fft_size)``: the same in training, where the kernels in C++ run.
    """
    geometry = application.geometry
    if geometry.axes != 2:
        return None

    def plan(x: Tensor) -> Pair | None:
        if not layer.training:
            return kept_size(layer, application, x)
        # A pair of channels of two groups may lie in two vectors.
        if train is None or geometry.groups != 1 or activation.pairing != "adjacent":
            return None
        if not spectra.trains_by_kernels(layer, x) or 0 in x.shape:
            return None
        fft_size = application.fft_size(layer, *application.strided_size(x.shape))
        return (fft_size[0], fft_size[1]) if fft_size else None

    def run(x: Tensor, fft_size: Pair) -> Tensor:
        layer._check_input(x, layer.in_channels, 2)  # type: ignore[arg-type]
        if train is None or not layer.training:
            return apply_kept(layer, application, x, fft_size, activation.pairing)
        return train(layer, space_to_depth(x, geometry.stride), fft_size)

    return Fusion(plan, run)


def _fixed(layer: Any, fft_size: Pair) -> tuple[FixedSpectrum]:
    (Q,) = layer._compute(fft_size)
    inputs = layer.in_channels * math.prod(layer.stride)
    return (spectra.fix(layer, Q[:, : layer.out_channels, :inputs], fft_size),)


def largest_singular_value(Q: Tensor) -> float:
    """Over a batch of complex matrices: an upper bound, from the eigenvalues of QᴴQ in double precision."""
    Q = Q.detach().to(torch.complex128)
    gram = Q @ Q.mH if Q.shape[-2] < Q.shape[-1] else Q.mH @ Q
    rounding = 4 * sum(Q.shape[-2:]) * torch.finfo(torch.float64).eps
    return float(torch.linalg.eigvalsh(gram).max().clamp(min=0).sqrt()) * (1 + rounding)


def check_patches(padding: Any, geometry: ConvGeometry) -> None:
    """Raises ValueError for a padding that does not keep the image's size, and for a dilated stride."""
    require_same(padding, geometry)
    if max(geometry.stride) > 1 and max(geometry.dilation) > 1:
        raise ValueError(f"dilation={geometry.dilation}: allowed is 1 where stride={geometry.stride} exceeds 1")
