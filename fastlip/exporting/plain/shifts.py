"""Modules that add constants, subtract means, multiply by a number, shift images, or take norms of windows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastlip.exporting.plain._module import PASSES, Plain, Shape
from fastlip.nn.pooling import norms_of_windows
from fastlip.nn.shaping import shifted

BY_OUTPUT = 2.0**-100  # roundings that are no multiple of the input: not 0, which is for modules without any


class Shift(Plain):
    """Adds a number to each channel, dimension 1 of inputs with ``rank`` dimensions besides that of the samples."""

    TENSORS = ("shift",)
    shift: Tensor
    rank: int | None

    def forward(self, x: Tensor) -> Tensor:
        """X plus the numbers."""
        if self.rank is None:
            return (x.movedim(1, -1) + self.shift).movedim(-1, 1)
        return x + self.shift.view(-1, *[1] * (self.rank - 1))

    def roundings(self, input_shape: Shape) -> float:
        """A sum."""
        return 1.0


class ShiftImage(Plain):
    """Adds an image."""

    TENSORS = ("shift",)
    shift: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """X plus the image."""
        for axis in (-2, -1):
            torch._assert(x.shape[axis] == self.shift.shape[axis], "expected images of the size of the position bias")
        return x + self.shift

    def roundings(self, input_shape: Shape) -> float:
        """A sum."""
        return 1.0


class Centre(Plain):
    """Subtracts means over ``dims``, which are counted from the end."""

    dims: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        """X, centred."""
        return x - x.mean(self.dims, keepdim=True)

    def roundings(self, input_shape: Shape) -> float:
        """A mean and a difference."""
        return PASSES * math.sqrt(math.prod(input_shape[dim] for dim in self.dims))


class Multiply(Plain):
    """Multiplies by a positive number."""

    factor: float

    def forward(self, x: Tensor) -> Tensor:
        """The product."""
        return x * self.factor

    def lipschitz_bound(self, input_shape: Shape) -> float:
        """The number."""
        return self.factor

    def roundings(self, input_shape: Shape) -> float:
        """A product, and the number's own rounding."""
        return 2.0


class Weigh(Plain):
    """Subtracts a centre, and multiplies each entry by a positive number: samples have ``sides``, where not 1."""

    TENSORS = ("weights", "center")
    weights: Tensor
    center: Tensor | None
    sides: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        """The products, in the dtype of x."""
        for axis, side in enumerate(self.sides, start=1):
            if side > 1:
                torch._assert(x.shape[axis] == side, "expected samples that the input weights fit")
        moved = x if self.center is None else x - self.center
        return (moved * self.weights).to(x.dtype)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        """The largest weight."""
        return self.weights.detach().double().amax().item()

    def roundings(self, input_shape: Shape) -> float:
        """Errors of the size of the outputs, which count for every module, and so next to none."""
        return BY_OUTPUT


class AbsoluteFirst(Plain):
    """|x| of the first ``channels`` entries along ``dim``."""

    channels: int
    dim: int

    def forward(self, x: Tensor) -> Tensor:
        """X with absolute values."""
        count = x.shape[self.dim] - self.channels
        rest = x.narrow(self.dim, self.channels, count)
        return torch.cat((torch.abs(x.narrow(self.dim, 0, self.channels)), rest), self.dim)


class ShiftPixels(Plain):
    """Moves four groups of ``channels`` channels by ``step`` pixels."""

    channels: int
    step: int

    def forward(self, x: Tensor) -> Tensor:
        """X with moved channels."""
        return shifted(x, self.channels, self.step)


class AdaptiveNormPool(Plain):
    """L2 norm of the windows that tile an image or a volume."""

    output_size: tuple[int, ...]

    def forward(self, x: Tensor) -> Tensor:
        """The norm of each window of x."""
        return norms_of_windows(x, self.output_size)

    def roundings(self, input_shape: Shape) -> float:
        """A sum over the window, and roots."""
        return PASSES * math.sqrt(math.prod(input_shape[-len(self.output_size) :]))
