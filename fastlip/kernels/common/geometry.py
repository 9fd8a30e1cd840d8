"""The geometry of a two-dimensional convolution as one value: what it reads, where, and how large its output is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip.kernels.common.literals import PaddingMode
from fastlip.kernels.common.padding import Pads, pad, same_pads

Pair = tuple[int, int]
NO_PADS: Pads = (0, 0, 0, 0)
MODES: tuple[PaddingMode, ...] = ("zeros", "circular")
_NUMBERS = 12  # ints of a geometry
_LARGEST_FACTOR = 17  # of a fast FFT size: transforms of larger primes are slow


@dataclass(frozen=True)
class ConvGeometry:
    """Everything that describes a convolution apart from its kernel and channels. Pairs are (vertical, horizontal).

    Args:
        kernel_size: taps along each axis.
        stride: step between two outputs.
        pads: entries added on the (left, right, top, bottom), as ``F.pad`` orders them; None: :meth:`same_pads`.
        dilation: distance between two taps.
        groups: number of groups of channels.
        padding_mode: what is added: ``"zeros"``, or the image itself, repeated (``"circular"``).

    Derived once:

    - ``halo``: the pair ``dilation * (kernel_size - 1)``, how far a kernel reaches beyond one pixel;
    - ``taps``: the number of taps;
    - ``keeps_size``: whether ``pads`` keep an image's size at stride 1;
    - ``symmetric``: whether the pads before and after an image are equal, the only ones that ``F.conv2d`` can add;
    - ``numbers``: the whole value as ints, for the schema of an operator (:func:`from_numbers`).

    >>> geometry = ConvGeometry((3, 3), stride=(2, 2))
    >>> geometry.pads, geometry.halo, geometry.output_size((32, 32))
    ((1, 1, 1, 1), (2, 2), (16, 16))
    """

    kernel_size: Pair
    stride: Pair = (1, 1)
    pads: Pads = None  # type: ignore[assignment]  # None becomes same_pads
    dilation: Pair = (1, 1)
    groups: int = 1
    padding_mode: PaddingMode = "zeros"
    halo: Pair = field(init=False, repr=False, compare=False)
    taps: int = field(init=False, repr=False, compare=False)
    keeps_size: bool = field(init=False, repr=False, compare=False)
    symmetric: bool = field(init=False, repr=False, compare=False)
    numbers: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        (kh, kw), (dh, dw) = self.kernel_size, self.dilation
        same = same_pads(self.kernel_size, self.dilation)
        pads = same if self.pads is None else self.pads
        circular = int(self.padding_mode == "circular")
        numbers = (*self.kernel_size, *self.stride, *pads, *self.dilation, self.groups, circular)
        derived = {
            "pads": pads,
            "halo": (dh * (kh - 1), dw * (kw - 1)),
            "taps": kh * kw,
            "keeps_size": pads == same,
            "symmetric": pads[0] == pads[1] and pads[2] == pads[3],
            "numbers": numbers,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    @classmethod
    def like(
        cls,
        weight: Tensor,
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
        padding_mode: PaddingMode = "zeros",
    ) -> ConvGeometry:
        """The geometry of a kernel (outputs, inputs / groups, kh, kw) at stride 1 that keeps an image's size.

        ValueError for a dilation or padding mode that is not allowed.
        """
        make = _make_like if torch.compiler.is_compiling() else _keep_like
        return make((weight.shape[2], weight.shape[3]), tuple(dilation), groups, padding_mode)

    @classmethod
    def of_module(cls, module: Any) -> ConvGeometry:
        """The geometry of a ``torch.nn.Conv1d``, ``Conv2d`` or a layer with their attributes, as it runs now.

        One-dimensional images are images of one row. ``padding_mode`` may be one that no layer of this package has.
        """
        axes = module.weight.dim() - 2
        one = (1,) * (2 - axes)
        kernel_size = (*one, *module.weight.shape[2:])
        stride, dilation = ((*one, *per_axis(value, axes)) for value in (module.stride, module.dilation))
        geometry = cls(kernel_size, stride, None, dilation, module.groups, module.padding_mode)  # type: ignore[arg-type]
        if module.padding_mode != "zeros":
            # As torch runs them: it reads this list, whatever ``padding`` was set to after construction.
            listed = list(module._reversed_padding_repeated_twice)
            return replace(geometry, pads=(*listed, *[0] * (4 - len(listed))))
        if module.padding == "same":
            return geometry
        if module.padding == "valid":
            return replace(geometry, pads=NO_PADS)
        vertical, horizontal = (*(0,) * len(one), *per_axis(module.padding, axes))
        return replace(geometry, pads=(horizontal, horizontal, vertical, vertical))

    @property
    def same_pads(self) -> Pads:
        """The pads that keep an image's size at stride 1; an even kernel has the odd entry after the image."""
        return same_pads(self.kernel_size, self.dilation)

    @property
    def opposite_pads(self) -> Pads:
        """The pads of the adjoint convolution: what is added before an image here is added after it there."""
        left, right, top, bottom = self.pads
        return right, left, bottom, top

    def padded_size(self, image_size: Pair) -> Pair:
        """Height and width of an image with its pads."""
        left, right, top, bottom = self.pads
        return image_size[0] + top + bottom, image_size[1] + left + right

    def output_size(self, image_size: Pair) -> Pair:
        """Height and width of the output for an image of this height and width."""
        height, width = self.padded_size(image_size)
        return (height - self.halo[0] - 1) // self.stride[0] + 1, (width - self.halo[1] - 1) // self.stride[1] + 1

    def fft_size(self, image_size: Pair) -> Pair:
        """The smallest FFT size, a multiple of the stride, at which a circular convolution contains this one.

        With circular padding the size of the image itself, whatever the stride. With zero padding, and without
        padding, as many zeros are added as the kernel reads on the side of the image on which it reads more; windows
        that lie wholly in the padding give zeros and need no room.
        """
        left, right, top, bottom = self.pads
        height = self._fft_length(image_size[0], self.stride[0], top, bottom, self.halo[0])
        return height, self._fft_length(image_size[1], self.stride[1], left, right, self.halo[1])

    def fast_fft_size(self, image_size: Pair) -> Pair:
        """:meth:`fft_size`, with zero padding enlarged to sizes whose transforms are fast."""
        height, width = self.fft_size(image_size)
        return (height, width) if self.padding_mode == "circular" else (fast_length(height), fast_length(width))

    def embedded_size(self, image_size: Pair) -> Pair:
        """The FFT size at which orthogonal layers embed an image: with zero padding its size plus the halo."""
        if self.padding_mode == "circular":
            return image_size
        return image_size[0] + self.halo[0], image_size[1] + self.halo[1]

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``F.conv2d`` of the image with its pads."""
        left, _, top, _ = self.pads
        if self.padding_mode == "zeros" and self.symmetric:
            return F.conv2d(x, weight, bias, self.stride, (top, left), self.dilation, self.groups)
        padded = pad(x, self.pads, self.padding_mode)
        return F.conv2d(padded, weight, bias, self.stride, 0, self.dilation, self.groups)

    def pad(self, x: Tensor) -> Tensor:
        """The image (..., h, w) with its pads; circular padding may exceed the image."""
        return pad(x, self.pads, self.padding_mode)

    def _fft_length(self, side: int, stride: int, before: int, after: int, halo: int) -> int:
        if self.padding_mode == "circular" and before + after > 0:
            return side
        return -(-(side + max(min(before, halo), min(after, halo))) // stride) * stride


def fast_length(length: int) -> int:
    """The smallest length from here on without prime factors above 17."""
    while _largest_factor(length) > _LARGEST_FACTOR:
        length += 1
    return length


def _largest_factor(number: int) -> int:
    factor = 2
    while factor * factor <= number:
        if number % factor:
            factor += 1
        else:
            number //= factor
    return number


def per_axis(value: Any, axes: int) -> tuple[int, ...]:
    """An int for each axis; a tuple of one entry is repeated."""
    return (value,) * axes if isinstance(value, int) else tuple(value) * (axes // len(value))


def _make_like(kernel_size: Pair, dilation: tuple[int, ...], groups: int, mode: PaddingMode) -> ConvGeometry:
    if len(dilation) != 2 or min(dilation) < 1:
        raise ValueError(f"dilation={dilation!r}: expected a pair of ints, at least 1")
    if mode not in MODES:
        raise ValueError(f"padding_mode={mode!r}: allowed are {', '.join(map(repr, MODES))}")
    return ConvGeometry(kernel_size, dilation=(dilation[0], dilation[1]), groups=groups, padding_mode=mode)


_keep_like = lru_cache(maxsize=256)(_make_like)


@lru_cache(maxsize=256)
def from_numbers(numbers: tuple[int, ...]) -> tuple[ConvGeometry, ...]:
    """The geometries whose ``numbers`` these are, one after the other."""
    found = []
    for at in range(0, len(numbers), _NUMBERS):
        kh, kw, sh, sw, left, right, top, bottom, dh, dw, groups, circular = numbers[at : at + _NUMBERS]
        mode: PaddingMode = "circular" if circular else "zeros"
        found.append(ConvGeometry((kh, kw), (sh, sw), (left, right, top, bottom), (dh, dw), groups, mode))
    return tuple(found)
