"""The geometry of a convolution of images or volumes as one value: what it reads, where, and its output's size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from operator import add, mul, sub
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlip.kernels.common.literals import PaddingMode
from fastlip.kernels.common.padding import Pads, pad, same_pads

Sizes = tuple[int, ...]  # an int for each axis: (vertical, horizontal), or (depth, vertical, horizontal)
Pair = Sizes  # where there are images only, or mostly
NO_PADS: Pads = (0, 0, 0, 0)
MODES: tuple[PaddingMode, ...] = ("zeros", "circular")
_NUMBERS = 12  # ints of a geometry of images
_OF_VOLUMES = 17  # of volumes
_LARGEST_FACTOR = 17  # of a fast FFT size: transforms of larger primes are slow


@dataclass(frozen=True)
class ConvGeometry:
    """Everything that describes a convolution apart from its kernel and channels. Pairs are (vertical, horizontal).

    A convolution of volumes has triples instead, (depth, vertical, horizontal), and six pads.

    Args:
        kernel_size: taps along each axis.
        stride: step between two outputs; default None: 1 along each axis.
        pads: entries added on the (left, right, top, bottom), of volumes also (front, back), as ``F.pad`` orders
            them; None: :meth:`same_pads`.
        dilation: distance between two taps; default None: 1 along each axis.
        groups: number of groups of channels.
        padding_mode: what is added: ``"zeros"``, or the image itself, repeated (``"circular"``).

    Derived once:

    - ``axes``: 2 for images, 3 for volumes;
    - ``around``: the pads before each axis, as torch's convolutions order them where these are symmetric;
    - ``totals``: the number of entries added along each axis, before and after it;
    - ``halo``: ``dilation * (kernel_size - 1)``, how far a kernel reaches beyond one pixel;
    - ``taps``: the number of taps;
    - ``keeps_size``: whether ``pads`` keep an image's size at stride 1;
    - ``has_spectrum``: whether a kernel may be applied to images by its spectrum: more than one tap, one group, and
      an output for each pixel;
    - ``symmetric``: whether the pads before and after an image are equal, the only ones that ``F.conv2d`` can add;
    - ``numbers``: the whole value as ints, for the schema of an operator (:func:`from_numbers`).

    >>> geometry = ConvGeometry((3, 3), stride=(2, 2))
    >>> geometry.pads, geometry.halo, geometry.output_size((32, 32))
    ((1, 1, 1, 1), (2, 2), (16, 16))
    """

    kernel_size: Sizes
    stride: Sizes = None  # type: ignore[assignment]  # None becomes 1 along each axis
    pads: Pads = None  # type: ignore[assignment]  # None becomes same_pads
    dilation: Sizes = None  # type: ignore[assignment]  # as stride
    groups: int = 1
    padding_mode: PaddingMode = "zeros"
    axes: int = field(init=False, repr=False, compare=False)
    around: Sizes = field(init=False, repr=False, compare=False)
    totals: Sizes = field(init=False, repr=False, compare=False)
    halo: Sizes = field(init=False, repr=False, compare=False)
    taps: int = field(init=False, repr=False, compare=False)
    keeps_size: bool = field(init=False, repr=False, compare=False)
    has_spectrum: bool = field(init=False, repr=False, compare=False)
    symmetric: bool = field(init=False, repr=False, compare=False)
    numbers: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        one = (1,) * len(self.kernel_size)
        stride, dilation = self.stride or one, self.dilation or one
        same = same_pads(self.kernel_size, dilation)
        pads = same if self.pads is None else self.pads
        taps = math.prod(self.kernel_size)
        circular = int(self.padding_mode == "circular")
        numbers = (*self.kernel_size, *stride, *pads, *dilation, self.groups, circular)
        derived = {
            "axes": len(one),
            "stride": stride,
            "pads": pads,
            "around": pads[-2::-2],
            "dilation": dilation,
            "totals": tuple(map(add, pads[-2::-2], pads[::-2])),
            "halo": tuple(map(sub, map(mul, dilation, self.kernel_size), dilation)),
            "taps": taps,
            "keeps_size": pads == same,
            "has_spectrum": taps > 1 and self.groups == 1 and stride == (1, 1) and pads == same,
            "symmetric": pads[::2] == pads[1::2],
            "numbers": numbers,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Derives anew what is derived: what was pickled by an earlier version may lack some of it."""
        vars(self).update(state)
        self.__post_init__()

    @classmethod
    def like(
        cls,
        weight: Tensor,
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
        padding_mode: PaddingMode = "zeros",
    ) -> ConvGeometry:
        """The geometry of a kernel (outputs, inputs / groups, *taps) at stride 1 that keeps an image's size.

        ValueError for a dilation or padding mode that is not allowed.
        """
        make = _make_like if torch.compiler.is_compiling() else _keep_like
        return make(tuple(weight.shape[2:]), tuple(dilation), groups, padding_mode)

    @classmethod
    def of_module(cls, module: Any) -> ConvGeometry:
        """The geometry of a ``torch.nn.Conv1d``, ``Conv2d``, ``Conv3d`` or a layer with their attributes, as it runs.

        One-dimensional images are images of one row. ``padding_mode`` may be one that no layer of this package has.
        """
        axes = module.weight.dim() - 2
        one = (1,) * (2 - axes)  # nothing where there are two axes or three
        kernel_size = (*one, *module.weight.shape[2:])
        stride, dilation = ((*one, *per_axis(value, axes)) for value in (module.stride, module.dilation))
        geometry = cls(kernel_size, stride, None, dilation, module.groups, module.padding_mode)  # type: ignore[arg-type]
        if module.padding_mode != "zeros":
            # As torch runs them: it reads this list, whatever ``padding`` was set to after construction.
            listed = list(module._reversed_padding_repeated_twice)
            return replace(geometry, pads=(*listed, *[0] * (2 * len(kernel_size) - len(listed))))
        if module.padding == "same":
            return geometry
        if module.padding == "valid":
            return replace(geometry, pads=(0,) * (2 * len(kernel_size)))
        return replace(geometry, pads=around((*(0,) * len(one), *per_axis(module.padding, axes))))

    @property
    def same_pads(self) -> Pads:
        """The pads that keep an image's size at stride 1; an even kernel has the odd entry after the image."""
        return same_pads(self.kernel_size, self.dilation)

    @property
    def opposite_pads(self) -> Pads:
        """The pads of the adjoint convolution: what is added before an image here is added after it there."""
        return tuple([self.pads[at ^ 1] for at in range(len(self.pads))])

    def padded_size(self, image_size: Sizes) -> Sizes:
        """The sides of an image with its pads."""
        return tuple(map(add, image_size, self.totals))

    def output_size(self, image_size: Sizes) -> Sizes:
        """The sides of the output for an image with these sides."""
        axes = zip(self.padded_size(image_size), self.halo, self.stride, strict=True)
        return tuple([(side - halo - 1) // step + 1 for side, halo, step in axes])

    def fft_size(self, image_size: Sizes) -> Sizes:
        """The smallest FFT size, a multiple of the stride, at which a circular convolution contains this one.

        With circular padding the size of the image itself, whatever the stride. With zero padding, and without
        padding, as many zeros are added as the kernel reads on the side of the image on which it reads more; windows
        that lie wholly in the padding give zeros and need no room.
        """
        sides = list(image_size)
        for axis, (before, after) in enumerate(zip(self.pads[-2::-2], self.pads[::-2], strict=True)):
            if self.padding_mode != "circular" or before + after == 0:
                halo, stride = self.halo[axis], self.stride[axis]
                sides[axis] = -(-(sides[axis] + max(min(before, halo), min(after, halo))) // stride) * stride
        return tuple(sides)

    def fast_fft_size(self, image_size: Sizes) -> Sizes:
        """:meth:`fft_size`, with zero padding enlarged to sizes whose transforms are fast."""
        sides = self.fft_size(image_size)
        return sides if self.padding_mode == "circular" else tuple([fast_length(side) for side in sides])

    def embedded_size(self, image_size: Sizes) -> Sizes:
        """The FFT size at which orthogonal layers embed an image: with zero padding its size plus the halo."""
        if self.padding_mode == "circular":
            return image_size
        return tuple(map(add, image_size, self.halo))

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """``F.conv2d`` or ``F.conv3d`` of the image with its pads."""
        convolve = F.conv2d if self.axes == 2 else F.conv3d
        if self.padding_mode == "zeros" and self.symmetric:
            return convolve(x, weight, bias, self.stride, self.around, self.dilation, self.groups)
        padded = pad(x, self.pads, self.padding_mode)
        return convolve(padded, weight, bias, self.stride, 0, self.dilation, self.groups)

    def pad(self, x: Tensor) -> Tensor:
        """The image (..., h, w) with its pads; circular padding may exceed the image."""
        return pad(x, self.pads, self.padding_mode)


def around(sizes: Sizes) -> Pads:
    """The pads that add an int before and after each axis."""
    return tuple([side for side in reversed(sizes) for _ in range(2)])


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


def _make_like(kernel_size: Sizes, dilation: Sizes, groups: int, mode: PaddingMode) -> ConvGeometry:
    if len(dilation) != len(kernel_size) or min(dilation) < 1:
        expected = "a pair of ints" if len(kernel_size) == 2 else f"{len(kernel_size)} ints"
        raise ValueError(f"dilation={dilation!r}: expected {expected}, at least 1")
    if mode not in MODES:
        raise ValueError(f"padding_mode={mode!r}: allowed are {', '.join(map(repr, MODES))}")
    return ConvGeometry(kernel_size, dilation=dilation, groups=groups, padding_mode=mode)


_keep_like = lru_cache(maxsize=256)(_make_like)


@lru_cache(maxsize=256)
def from_numbers(numbers: tuple[int, ...]) -> tuple[ConvGeometry, ...]:
    """The geometries whose ``numbers`` these are, one after the other."""
    if len(numbers) == _OF_VOLUMES:  # the only one: runs of convolutions are of images
        sizes, strides, pads, dilations = numbers[:3], numbers[3:6], numbers[6:12], numbers[12:15]
        volumes: PaddingMode = "circular" if numbers[16] else "zeros"
        return (ConvGeometry(sizes, strides, pads, dilations, numbers[15], volumes),)
    found = []
    for at in range(0, len(numbers), _NUMBERS):
        kh, kw, sh, sw, left, right, top, bottom, dh, dw, groups, circular = numbers[at : at + _NUMBERS]
        mode: PaddingMode = "circular" if circular else "zeros"
        found.append(ConvGeometry((kh, kw), (sh, sw), (left, right, top, bottom), (dh, dw), groups, mode))
    return tuple(found)
