"""RandAugment and TrivialAugment: random operations on training images, through torchvision or kornia.

What is random is drawn here, from a generator of the batch, so that a run can be resumed bit for bit and several
processes draw what one would. torchvision's own transforms draw from torch's global generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from fastlip._extras import needed_for
from fastlip.data.kornia_functions import KorniaFunctions

AugmentName = Literal["none", "randaugment", "trivialaugment"]
AugmentPackage = Literal["torchvision", "kornia"]
MOST_MAGNITUDE = 30

_Apply = Callable[[Any, Tensor, float], Tensor]


def _shear(image: Tensor, slope: float, functional: Any, horizontal: bool) -> Tensor:
    angle = math.degrees(math.atan(slope))
    shear = [angle, 0.0] if horizontal else [0.0, angle]
    return functional.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, center=[0, 0])


def _translate(image: Tensor, pixels: float, functional: Any, horizontal: bool) -> Tensor:
    step = [int(pixels), 0] if horizontal else [0, int(pixels)]
    return functional.affine(image, angle=0.0, translate=step, scale=1.0, shear=[0.0, 0.0])


# Each operation: the function of (torchvision's functional module, images, value), and whether its value has a sign.
_OPERATIONS: dict[str, tuple[_Apply, bool]] = {
    "identity": (lambda functional, image, value: image, False),
    "shear x": (lambda functional, image, value: _shear(image, value, functional, True), True),
    "shear y": (lambda functional, image, value: _shear(image, value, functional, False), True),
    "translate x": (lambda functional, image, value: _translate(image, value, functional, True), True),
    "translate y": (lambda functional, image, value: _translate(image, value, functional, False), True),
    "rotate": (lambda functional, image, value: functional.rotate(image, angle=value), True),
    "brightness": (lambda functional, image, value: functional.adjust_brightness(image, 1 + value), True),
    "color": (lambda functional, image, value: functional.adjust_saturation(image, 1 + value), True),
    "contrast": (lambda functional, image, value: functional.adjust_contrast(image, 1 + value), True),
    "sharpness": (lambda functional, image, value: functional.adjust_sharpness(image, 1 + value), True),
    "posterize": (lambda functional, image, value: functional.posterize(image, bits=round(8 - value)), False),
    "solarize": (lambda functional, image, value: functional.solarize(image, threshold=255 * value), False),
    "autocontrast": (lambda functional, image, value: functional.autocontrast(image), False),
    "equalize": (lambda functional, image, value: functional.equalize(image), False),
}
_NAMES = tuple(_OPERATIONS)


def value_of(kind: AugmentName, name: str, side: int, magnitude: int) -> float:
    """The value of an operation, without a sign.

    Args:
        kind: ``"randaugment"`` or ``"trivialaugment"``.
        name: the operation.
        side: side of an image in pixels.
        magnitude: from 0 to 30.
    """
    wide = kind == "trivialaugment"
    largest = {
        "shear": 0.99 if wide else 0.3,  # slope
        "translate": 32.0 if wide else 150 / 331 * side,  # pixels
        "rotate": 135.0 if wide else 30.0,  # degrees
        "posterize": 6.0 if wide else 4.0,  # bits of 8 that are dropped
        "solarize": 0.0,  # pixels from this fraction of white on are inverted
    }
    first = 1.0 if name == "solarize" else 0.0
    last = largest.get(name.partition(" ")[0], 0.99 if wide else 0.9)  # others: added to the factor 1
    return float(torch.linspace(first, last, MOST_MAGNITUDE + 1)[magnitude])  # with the rounding of torchvision


class ImageOperations:
    """Random operations on training images: RandAugment or TrivialAugment.

    Sources: Cubuk et al., NeurIPS 2020 (arXiv 1909.13719); Müller and Hutter, ICCV 2021 (arXiv 2103.10158).
    Each of 14 operations is as likely as the others: identity, shear, translation (both along x and y), rotation,
    brightness, color, contrast, sharpness, posterize, solarize, autocontrast, equalize. RandAugment applies some, one
    after another, all with one magnitude; TrivialAugment applies one with a random magnitude and wider ranges. The
    value of an operation is its largest one times magnitude / 30, with a random sign where it has one. The largest
    values are those of ``torchvision.transforms.v2``. Images have 8 bits.

    Args:
        kind: ``"randaugment"`` or ``"trivialaugment"``.
        operations: number of operations of RandAugment, at least 1; default 2.
        magnitude: of RandAugment, from 0 to 30; default 9.
        probability: fraction of the images that are changed, from 0 (exclusive) to 1; default 1.0.
        package: computes the operations: ``"torchvision"`` (default), or ``"kornia"``, which works with any build of
            torch. Their results differ by at most two of 255 grey levels.

    Raises:
        ValueError: an argument is out of its range, or torchvision cannot be imported.
        MissingPackageError: the package is not installed.

    Examples:
        >>> fastlip.data.ImageOperations("randaugment", operations=2, magnitude=40)
        Traceback (most recent call last):
        ValueError: magnitude=40: must be from 0 to 30
    """

    def __init__(
        self,
        kind: AugmentName,
        operations: int = 2,
        magnitude: int = 9,
        probability: float = 1.0,
        package: AugmentPackage = "torchvision",
    ):
        if kind not in get_args(AugmentName)[1:]:
            raise ValueError(f"kind={kind!r}: allowed are 'randaugment', 'trivialaugment'")
        if operations < 1:
            raise ValueError(f"operations={operations}: must be at least 1")
        if not 0 <= magnitude <= MOST_MAGNITUDE:
            raise ValueError(f"magnitude={magnitude}: must be from 0 to {MOST_MAGNITUDE}")
        if not 0 < probability <= 1:
            raise ValueError(f"probability={probability}: must be above 0 and at most 1")
        if package not in get_args(AugmentPackage):
            raise ValueError(f"package={package!r}: allowed are 'torchvision', 'kornia'")
        self.kind: AugmentName = kind
        self.operations = operations if kind == "randaugment" else 1
        self.magnitude = magnitude
        self.probability = probability
        self.package: AugmentPackage = package
        _functional(kind, package)

    def __call__(self, x: Tensor, generator: torch.Generator, rows: slice, total: int) -> Tensor:
        """Returns images of which some are changed.

        Args:
            x: images (b, c, h, w) in [0, 1], with 1 or 3 channels: some rows of a batch.
            generator: source of the random numbers of the batch.
            rows: the rows of the batch that x holds.
            total: number of images in the batch.

        Returns:
            Images of the same shape. Those that are changed are rounded to 8 bits before.
        """
        chosen = (torch.rand(total, generator=generator) < self.probability)[rows]
        drawn = [self._draw(total, generator)[:, rows][:, chosen] for _ in range(self.operations)]
        if not chosen.any():
            return x
        images = (x[chosen] * 255).round_().to(torch.uint8)
        for kinds, magnitudes, signs in drawn:
            images = self._apply(images, kinds, magnitudes, signs)
        x = x.clone()
        x[chosen] = images.float().div_(255)
        return x

    def _draw(self, total: int, generator: torch.Generator) -> Tensor:
        """Operation, magnitude and sign (0 or 1) for each image of a batch, int64 (3, total)."""
        draw = partial(torch.randint, size=(total,), generator=generator)
        kinds, signs = draw(len(_NAMES)), draw(2)
        given = torch.full((total,), self.magnitude)
        return torch.stack((kinds, given if self.kind == "randaugment" else draw(MOST_MAGNITUDE + 1), signs))

    def _apply(self, images: Tensor, kinds: Tensor, magnitudes: Tensor, signs: Tensor) -> Tensor:
        """One operation for each image; images with the same one are changed together."""
        functional, changed = _functional(self.kind, self.package), torch.empty_like(images)
        settings, group = torch.stack((kinds, magnitudes, signs), 1).unique(dim=0, return_inverse=True)
        for index, (kind, magnitude, sign) in enumerate(settings.tolist()):
            name, members = _NAMES[kind], group == index
            apply, signed = _OPERATIONS[name]
            value = value_of(self.kind, name, images.shape[-1], magnitude)
            changed[members] = apply(functional, images[members], -value if signed and sign else value)
        return changed


def _functional(kind: str, package: AugmentPackage) -> Any:
    """The package's functions of images, under torchvision's names."""
    try:
        with needed_for(f"augment={kind!r}"):
            if package == "kornia":
                return KorniaFunctions()
            from torchvision.transforms.v2 import functional
    except RuntimeError as error:  # its operators are missing
        raise ValueError(
            f"augment={kind!r}: torchvision does not fit this torch, {torch.__version__}: {error}; "
            "augment_by='kornia' needs no build for it"
        ) from None
    return functional
