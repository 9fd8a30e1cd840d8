"""What a rule of the export is: a function of a module, and of where it stands."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch

from torch import nn


@dataclass(frozen=True)
class Target:
    """What a rule may ask: the layer's name, its input's shape without batch, ``fourier``, and the shape's length.

    None where they are unknown, or where the layer is called on several.
    """

    name: str
    input_shape: tuple[int, ...] | None
    fourier: str = "fft"
    rank: int | None = None

    def image(self, stride: tuple[int, int] = (1, 1)) -> tuple[int, int] | None:
        """(h, w) after a stride, None if unknown."""
        if self.input_shape is None or len(self.input_shape) < 3:
            return None
        height, width = (-(-side // step) for side, step in zip(self.input_shape[-2:], stride, strict=True))
        return height, width

    def require_image(self, layer: nn.Module, stride: tuple[int, int] = (1, 1)) -> tuple[int, int]:
        """The same; ValueError if unknown."""
        image = self.image(stride)
        if image is None:
            raise ValueError(
                f"input_shape=None: layer {self.name!r} ({type(layer).__name__}) depends on the image size; "
                "expected the shape of one sample, such as (3, 32, 32)"
            )
        return image


@singledispatch
def exported(module: nn.Module, target: Target) -> nn.Module:
    """The torch.nn form of a fastlip module in eval mode.

    A new layer extends it with ``@exported.register(MyLayer)``; layers that give one kernel or one matrix as
    ``weight`` (``KernelConv2d``, ``MatrixLinear``) need not.
    """
    raise TypeError(f"no rule exports {type(module).__name__}")


def chain(*modules: nn.Module | None) -> nn.Module:
    """What is left, one after the other."""
    present = [module for module in modules if module is not None]
    return present[0] if len(present) == 1 else nn.Sequential(*present)
