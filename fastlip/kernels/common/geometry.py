"""The geometry of a two-dimensional convolution as one value: what it reads, where, and how large its output is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from fastlip.kernels.common.literals import PaddingMode
from fastlip.kernels.common.padding import Pads, pad, same_pads

Pair = tuple[int, int]
NO_PADS: Pads = (0, 0, 0, 0)


@dataclass(frozen=True)
class ConvGeometry:
    """Everything but the channels that a convolution is given beside its kernel. Pairs are (vertical, horizontal).

    Args:
        kernel_size: taps along each axis.
        stride: step between two outputs.
        pads: entries added on the (left, right, top, bottom), as ``F.pad`` orders them; None: :meth:`same_pads`.
        dilation: distance of two taps.
        groups: number of groups of channels.
        padding_mode: what is added: ``"zeros"``, or the image itself, repeated (``"circular"``).

    Derived once: ``halo``, ``dilation * (kernel_size - 1)``, how far a kernel reaches beyond one pixel, and
    ``keeps_size``, whether ``pads`` keep an image's size at stride 1.

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
    keeps_size: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        (kh, kw), (dh, dw) = self.kernel_size, self.dilation
        same = same_pads(self.kernel_size, self.dilation)
        pads = same if self.pads is None else self.pads
        derived = {"pads": pads, "halo": (dh * (kh - 1), dw * (kw - 1)), "keeps_size": pads == same}
        for name, value in derived.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    @classmethod
    def like(
        cls, weight: Tensor, dilation: Pair = (1, 1), groups: int = 1, padding_mode: PaddingMode = "zeros"
    ) -> ConvGeometry:
        """The geometry of a kernel (outputs, inputs / groups, kh, kw) at stride 1 that keeps an image's size."""
        return cls((weight.shape[2], weight.shape[3]), dilation=dilation, groups=groups, padding_mode=padding_mode)

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
    def taps(self) -> int:
        """Number of taps."""
        return self.kernel_size[0] * self.kernel_size[1]

    def output_size(self, image_size: Pair) -> Pair:
        """Height and width of the output for an image of this height and width."""
        left, right, top, bottom = self.pads
        vertical = (image_size[0] + top + bottom - self.halo[0] - 1) // self.stride[0] + 1
        return vertical, (image_size[1] + left + right - self.halo[1] - 1) // self.stride[1] + 1

    def fft_size(self, image_size: Pair) -> Pair:
        """The smallest FFT size at which a circular convolution contains this one, at stride 1.

        With circular padding the image's own; with zero padding as many zeros are added as the kernel reads on the
        side of the image on which it reads more.
        """
        if self.padding_mode == "circular":
            return image_size
        left, right, top, bottom = self.pads
        return image_size[0] + max(top, bottom), image_size[1] + max(left, right)

    def embedded_size(self, image_size: Pair) -> Pair:
        """The FFT size at which orthogonal layers embed an image: with zero padding its size plus the halo."""
        if self.padding_mode == "circular":
            return image_size
        return image_size[0] + self.halo[0], image_size[1] + self.halo[1]

    def pad(self, x: Tensor) -> Tensor:
        """The image (..., h, w) with its pads; circular padding may exceed the image."""
        return pad(x, self.pads, self.padding_mode)


def per_axis(value: Any, axes: int) -> tuple[int, ...]:
    """An int for each axis; a tuple of one entry is repeated."""
    return (value,) * axes if isinstance(value, int) else tuple(value) * (axes // len(value))
