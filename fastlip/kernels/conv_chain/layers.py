"""The algorithm, written once: torch's convolutions, and between them the passes of a backend."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fastlip.kernels.common import channels_last as images
from fastlip.kernels.common.geometry import NO_PADS, ConvGeometry, from_numbers
from fastlip.kernels.common.padding import Pads
from fastlip.kernels.common.winograd import Tile
from fastlip.kernels.conv_chain.reference import scaled


class Passes(Protocol):
    """The passes over channels-last images between convolutions; native.py and triton_kernels.py have one each.

    ``dtypes`` are those of the images. ``on_cpu``: whether all passes are known to run on a CPU.
    """

    @property
    def dtypes(self) -> Collection[torch.dtype]: ...  # noqa: D102

    @property
    def on_cpu(self) -> bool: ...  # noqa: D102

    def missing(self, x: Tensor) -> str:
        """Why these passes cannot run on the device of x; empty if they can."""
        ...

    def with_halo(self, x: Tensor, halo: Pads, /) -> Tensor:
        """x with its halo."""
        ...

    def activate(
        self, z: Tensor, bias: Tensor | None, residual: Tensor | None, pairing: str, halo: Pads, keep: bool, /
    ) -> tuple[Tensor, Tensor, Tensor]:
        """y = maxmin(z + bias) or maxmin(residual - z), y with its halo, and the bits; y only if it is kept."""
        ...

    def layer(
        self,
        image: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        geometry: ConvGeometry,
        pairing: str,
        tile: Tile | None,
        halo: Pads,
        keep: bool,
        /,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A convolution, by tiles or with the image's halo, and :meth:`activate` after it."""
        ...

    def deactivate(
        self, gradient: Tensor, mask: Tensor, pairing: str, halo: Pads, /, keep: bool, sums: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient before MaxMin (only if kept), the same with its halo, its sums per channel (if wanted)."""
        ...

    def gradients(
        self,
        x: Tensor,
        gradient: Tensor,
        weight: Tensor,
        geometry: ConvGeometry,
        needs_x: bool,
        needs_weight: bool,
        added: Tensor | None = None,
        /,
    ) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of a layer's input and kernel (None unless needed) from that of its output, with its halo.

        The first has ``added`` added to it.
        """
        ...


def separately(
    passes: Passes,
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    geometry: ConvGeometry,
    pairing: str,
    tile: Tile | None,
    halo: Pads,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """:meth:`Passes.layer` in two steps."""
    z = images.convolve(image, weight, geometry, tile=tile)
    return passes.activate(z, bias, residual, pairing, halo, keep)


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
        geometries: Sequence[ConvGeometry],
        pairing: str,
    ) -> str:
        """Empty, or why these kernels cannot run."""
        others = [*weights, *biases, *scales]
        reason = images.refuse(x, others, geometries, self.passes.dtypes)
        return reason or ("" if x.is_cpu and self.passes.on_cpu else self.passes.missing(x))

    def unprofitable(
        self,
        x: Tensor,
        weights: list[Tensor],
        biases: list[Tensor | None],
        scales: list[Tensor],
        geometries: Sequence[ConvGeometry],
        pairing: str,
    ) -> str:
        """Empty, or why the reference is faster. With 1x1 kernels alone it is not, at any size."""
        channels, matrices = 0, True
        for weight, geometry in zip(weights, geometries, strict=True):
            channels, matrices = channels + weight.shape[0], matrices and geometry.kernel_size == (1, 1)
        return "" if matrices else images.too_small(x, channels, geometries[0])

    def forward(
        self,
        x: Tensor,
        weights: list[Tensor],
        biases: list[Tensor],
        scales: list[Tensor],
        keep: bool,
        exact: bool,
        numbers: Sequence[int],
        pairing: str,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The last output, and if they are to be kept those before it and the bits of every MaxMin."""
        geometries = from_numbers(tuple(numbers))
        outputs, masks = [], []
        kernels = scaled(weights, scales) if scales else weights
        size, training = (x.shape[2], x.shape[3]), keep and not exact
        tiles, halos = [], []
        for kernel, geometry in zip(kernels, geometries, strict=True):
            tile = images.tile_for(x, kernel, geometry, size, training) if geometry.taps > 1 else None
            tiles.append(tile)
            halos.append(images.halo_for(geometry, tile))
        extended = x.contiguous(memory_format=images.LAST)
        if any(halos[0]):
            extended = self.passes.with_halo(extended, halos[0])
        layers = zip(kernels, biases, geometries, tiles, [*halos[1:], NO_PADS], strict=True)
        for kernel, bias, geometry, tile, halo in layers:
            y, extended, mask = self.passes.layer(
                extended, kernel, bias.contiguous(), None, geometry, pairing, tile, halo, keep
            )
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
        numbers: Sequence[int],
        pairing: str,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The gradients of x (without values unless needed), the kernels and the biases (empty unless needed)."""
        geometries = from_numbers(tuple(numbers))
        inputs = [x.contiguous(memory_format=images.LAST), *between]
        gradient = gradient.contiguous(memory_format=images.LAST)
        weight_gradients, bias_gradients = [], []
        for i in reversed(range(len(kernels))):
            kernel, geometry = kernels[i], geometries[i]
            size = gradient.shape[2], gradient.shape[3]
            tile = images.tile_for(gradient, kernel.transpose(0, 1), geometry, size, True)
            halo = images.halo_for(geometry, tile, adjoint=True)
            _, extended, sums = self.passes.deactivate(
                gradient, masks[i], pairing, halo, keep=False, sums=needs_biases[i]
            )
            needs = needs_x or i > 0, needs_kernels[i]
            x_bar, bar = self.passes.gradients(inputs[i], extended, kernel, geometry, *needs)
            weight_gradients.append(kernel.new_empty(0) if bar is None else bar)
            bias_gradients.append(sums.to(kernel.dtype))
            gradient = gradient if x_bar is None else x_bar
        x_gradient = gradient if needs_x else torch.empty_like(inputs[0])
        return x_gradient, weight_gradients[::-1], bias_gradients[::-1]
