"""A rule of the export: a function of a module, and of where it stands in the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any, Literal, get_args

from torch import nn

from fastlip.inspection.rules import nearest

Fourier = Literal["fft", "matrices", "matrices64"]
FOURIER: tuple[Fourier, ...] = get_args(Fourier)
ExportRule = Callable[[Any, "Target"], nn.Module]


@dataclass(frozen=True)
class Target:
    """Where a module stands in the model, for the rule that exports it.

    Attributes:
        name: the layer's name in the model.
        input_shape: that of its input without the batch; None if unknown, or if the layer is called on several.
        fourier: ``"fft"``, ``"matrices"`` or ``"matrices64"``, how spectral layers transform.
        rank: the number of dimensions of ``input_shape``; None if unknown.
        children: the exported forms of the module's children, by name.
    """

    name: str
    input_shape: tuple[int, ...] | None
    fourier: Fourier = "fft"
    rank: int | None = None
    children: Mapping[str, nn.Module] = field(default_factory=dict, compare=False)

    def image(self, stride: tuple[int, ...] = (1, 1)) -> tuple[int, ...] | None:
        """The sides after a stride, as many as it has: (h, w) or (d, h, w). None if unknown."""
        if self.input_shape is None or len(self.input_shape) <= len(stride):
            return None
        sides = self.input_shape[-len(stride) :]
        return tuple(-(-side // step) for side, step in zip(sides, stride, strict=True))

    def require_image(self, layer: nn.Module, stride: tuple[int, ...] = (1, 1)) -> tuple[int, ...]:
        """The sides after a stride; ValueError if unknown."""
        image = self.image(stride)
        if image is None:
            raise ValueError(
                f"input_shape=None: layer {self.name!r} ({type(layer).__name__}) depends on the image size; "
                "expected the shape of one sample, such as (3, 32, 32)"
            )
        return image


@singledispatch
def exported(module: nn.Module, target: Target) -> nn.Module:
    """Returns the torch.nn form of a fastlip module in eval mode.

    A new module extends it with ``@exported.register(MyModule)``. Layers need not if they apply their weight as
    others do: one kernel or one matrix as ``weight``, one matrix per frequency, a residual map, an exponential.

    Args:
        module: in eval mode.
        target: where it stands.

    Raises:
        TypeError: no rule for this type.

    Example:
        >>> from fastlip.exporting import Target, exported
        >>> exported(lip.CayleyLinear(2, 2).eval(), Target("head", (2,)))
        Linear(in_features=2, out_features=2, bias=True)
    """
    found = rule_of(module)
    if found is None:
        raise TypeError(f"no rule exports {type(module).__name__}")
    return found[1](module, target)


def rule_of(module: nn.Module) -> tuple[type, ExportRule] | None:
    """The class or application that a rule was written for, and the rule; None if there is none."""
    return nearest(exported.registry, module)


def in_sequence(*modules: nn.Module | None) -> nn.Module:
    """The modules that are not None, one after the other."""
    present = [module for module in modules if module is not None]
    return present[0] if len(present) == 1 else nn.Sequential(*present)
