"""The chain's algorithm, written once: torch's convolutions, and between them the passes of a backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastlip.kernels.common import channels_last as images
from fastlip.kernels.common.literals import PaddingMode
from fastlip.kernels.common.padding import Pads
from fastlip.kernels.conv_chain.reference import scaled


class Passes(Protocol):
    """What happens to channels-last images between convolutions; native.py and triton_kernels.py have one each."""

    def missing(self, x: Tensor) -> str:
        """Why these passes cannot run on the device of x; empty if they can."""
        ...

    def frame(self, x: Tensor, frame: Pads) -> Tensor:
        """x with its frame."""
        ...

    def activate(
        self, z: Tensor, bias: Tensor | None, residual: Tensor | None, pairing: str, frame: Pads, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """y = maxmin(z + bias) or maxmin(residual - z), y with its frame, and the bits; y only if it is kept."""
        ...

    def deactivate(
        self, gradient: Tensor, mask: Tensor, pairing: str, frame: Pads, keep: bool, sums: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient before MaxMin (only if kept), the same with its frame, its sums per channel (if wanted)."""
        ...


@dataclass(frozen=True)
class Kernels:
    """The op's functions on one backend."""

    passes: Passes

    def supports(
        self,
        x: Tensor,
        weights: list[Tensor],
        biases: list[Tensor | None],
        scales: list[Tensor],
        padding_mode: PaddingMode,
        dilation: tuple[int, int],
        pairing: str,
    ) -> str:
        """Empty, or why these kernels cannot run."""
        refused = images.refuse(x, [*biases, *scales], weights, padding_mode, dilation)
        return refused or self.passes.missing(x)

    def unprofitable(
        self,
        x: Tensor,
        weights: list[Tensor],
        biases: list[Tensor | None],
        scales: list[Tensor],
        padding_mode: PaddingMode,
        dilation: tuple[int, int],
        pairing: str,
    ) -> str:
        """Empty, or why the reference is faster. Chains of 1x1 kernels win at every size."""
        if all(images.is_matrix(weight) for weight in weights):
            return ""
        return images.too_small(x, sum(weight.shape[0] for weight in weights), padding_mode)

    def forward(
        self,
        x: Tensor,
        weights: list[Tensor],
        biases: list[Tensor],
        scales: list[Tensor],
        keep: bool,
        padding_mode: PaddingMode,
        dilation: Sequence[int],
        pairing: str,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The last output, and if they are to be kept those before it and the bits of every MaxMin."""
        kernels = scaled(weights, scales)
        frames = [images.frame_of(kernel, dilation, padding_mode) for kernel in kernels]
        framed = self.passes.frame(x.contiguous(memory_format=images.LAST), frames[0])
        outputs, masks = [], []
        for kernel, bias, frame in zip(kernels, biases, [*frames[1:], images.NO_FRAME], strict=True):
            z = images.convolve(framed, kernel, dilation, padding_mode)
            y, framed, mask = self.passes.activate(z, bias.contiguous(), None, pairing, frame, keep)
            outputs.append(y)
            masks.append(mask)
        return outputs[-1], outputs[:-1] if keep else [], masks if keep else []

    def backward(
        self,
        gradient: Tensor,
        x: Tensor,
        kernels: list[Tensor],
        between: list[Tensor],
        masks: list[Tensor],
        needs_x: bool,
        needs_kernels: list[bool],
        needs_biases: list[bool],
        padding_mode: PaddingMode,
        dilation: Sequence[int],
        pairing: str,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The gradients of x (without values unless needed), the kernels and the biases (empty unless needed)."""
        inputs = [x.contiguous(memory_format=images.LAST), *between]
        gradient = gradient.contiguous(memory_format=images.LAST)
        weight_gradients, bias_gradients = [], []
        for i in reversed(range(len(kernels))):
            kernel = kernels[i]
            frame = images.opposite(images.frame_of(kernel, dilation, padding_mode))
            _, framed, sums = self.passes.deactivate(
                gradient, masks[i], pairing, frame, keep=False, sums=needs_biases[i]
            )
            adjoint = images.adjoint(kernel)
            arguments = inputs[i], framed, adjoint, dilation, padding_mode
            bar = images.adjoint_weight_gradient(*arguments) if needs_kernels[i] else kernel.new_empty(0)
            weight_gradients.append(bar)
            bias_gradients.append(sums)
            if needs_x or i > 0:
                gradient = images.convolve(framed, adjoint, dilation, padding_mode)
        x_gradient = gradient if needs_x else torch.empty_like(inputs[0])
        return x_gradient, weight_gradients[::-1], bias_gradients[::-1]
