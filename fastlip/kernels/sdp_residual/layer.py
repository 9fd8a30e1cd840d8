"""The convolutional layer's algorithm, written once: torch's convolutions, between them the passes of a backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fastlip.kernels.common import channels_last as images
from fastlip.kernels.common.literals import PaddingMode
from fastlip.kernels.common.padding import Pads
from fastlip.kernels.conv_chain import layers
from fastlip.kernels.sdp_residual.api import folded


class Passes(layers.Passes, Protocol):
    """What happens to channels-last images between the two convolutions."""

    def relu(self, z: Tensor, bias: Tensor, frame: Pads, keep: bool) -> tuple[Tensor, Tensor]:
        """h = relu(z + bias), only if it is to be kept, and h with its frame."""
        ...

    def relu_backward(self, v: Tensor, h: Tensor, scale: Tensor, frame: Pads) -> tuple[Tensor, Tensor, Tensor]:
        """u = scale v where h > 0, with its frame, and per channel the sums of u and of v h."""
        ...


@dataclass(frozen=True)
class Kernels:
    """The op's functions on one backend."""

    passes: Passes

    def supports(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor,
        dilation: tuple[int, int],
        groups: int,
        padding_mode: PaddingMode,
        pairing: str,
    ) -> str:
        """Empty, or why these kernels cannot run."""
        if weight.dim() != 4 or x.dim() != 4:
            return "no kernel for dense weights and for images without a batch dimension"
        if groups != 1:
            return f"no kernel for groups={groups}"
        return images.refuse(x, (bias, scale), (weight,), padding_mode, dilation) or self.passes.missing(x)

    def unprofitable(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor,
        dilation: tuple[int, int],
        groups: int,
        padding_mode: PaddingMode,
        pairing: str,
    ) -> str:
        """Empty, or why the reference is faster. It is not with 1x1 kernels and circular padding, at any size."""
        if padding_mode == "circular" or images.is_matrix(weight):
            return ""
        return images.too_small(x, weight.shape[0] + weight.shape[1], padding_mode)

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor,
        second: Tensor | None,
        recompute: bool,
        dilation: Sequence[int],
        padding_mode: PaddingMode,
        pairing: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Y, h = relu(W x + b) unless it is to be computed again, and the bits of MaxMin."""
        x = x.contiguous(memory_format=images.LAST)
        frame = images.opposite(images.frame_of(weight, dilation, padding_mode))
        h, framed = self._hidden(x, weight, bias, dilation, padding_mode, frame, not recompute)
        second = folded(weight, scale) if second is None else second
        z = images.convolve(framed, second, dilation, padding_mode)
        y, _, mask = self.passes.activate(z, None, x, pairing, images.NO_FRAME, True)
        return y, h.new_empty((0, 0, 0, 0)) if recompute else h, mask

    def backward(
        self,
        gradient: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: Tensor,
        h: Tensor | None,
        mask: Tensor,
        needs_x: bool,
        needs_weight: bool,
        dilation: Sequence[int],
        padding_mode: PaddingMode,
        pairing: str,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The gradients of x and weight, empty unless needed (each costs convolutions), of bias and scale."""
        frame = images.frame_of(weight, dilation, padding_mode)
        x, gradient = (image.contiguous(memory_format=images.LAST) for image in (x, gradient))
        if h is None:
            h, _ = self._hidden(x, weight, bias, dilation, padding_mode, images.NO_FRAME, True)
        residual, framed = gradient, self.passes.frame(gradient, frame) if pairing == "none" else gradient
        if pairing != "none":
            residual, framed, _ = self.passes.deactivate(gradient, mask, pairing, frame, keep=True, sums=False)
        v = images.convolve(framed, weight, dilation, padding_mode)
        adjoint = images.adjoint(weight)
        # Σ_n of the gradient of W₂ᵀ; the scale is a factor of its rows.
        second = images.weight_gradient(framed, h, weight, dilation, padding_mode) if needs_weight else None
        framed, u_sum, product_sum = self.passes.relu_backward(v, h, scale.contiguous(), images.opposite(frame))
        weight_gradient = x_gradient = x.new_empty(0)
        if second is not None:
            first = images.adjoint_weight_gradient(x, framed, adjoint, dilation, padding_mode)
            weight_gradient = -(first + scale[:, None, None, None] * second)
        if needs_x:
            z = images.convolve(framed, adjoint, dilation, padding_mode)
            x_gradient, _, _ = self.passes.activate(z, None, residual, "none", images.NO_FRAME, True)
        return x_gradient, weight_gradient, -u_sum, -product_sum

    def _hidden(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        dilation: Sequence[int],
        padding_mode: PaddingMode,
        frame: Pads,
        keep: bool,
    ) -> tuple[Tensor, Tensor]:
        """H = relu(W x + b), without (only if it is to be kept) and with the frame of the second convolution."""
        framed = self.passes.frame(x, images.frame_of(weight, dilation, padding_mode))
        z = images.convolve(framed, weight, dilation, padding_mode)
        return self.passes.relu(z, z.new_zeros(z.shape[1]) if bias is None else bias.contiguous(), frame, keep)
