"""The functions of ``torchvision.transforms.v2.functional`` that random operations need, computed by kornia.

kornia works with any torch, where torchvision has a build for each one. Most values are those of torchvision, and the
others differ by one or two of 255.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class KorniaFunctions:
    """Functions of images of 8 bits, uint8 (b, c, h, w), which return such images.

    Raises:
        ModuleNotFoundError: kornia is not installed.
    """

    def __init__(self):
        from kornia import enhance
        from kornia.geometry.transform import warp_affine

        self._enhance = enhance
        self._warp = warp_affine

    def affine(
        self,
        image: Tensor,
        angle: float,
        translate: Sequence[int],
        scale: float,
        shear: Sequence[float],
        center: Sequence[float] | None = None,
    ) -> Tensor:
        """Moves images by whole pixels, or shears them around their first corner.

        Args:
            image: images.
            angle: 0; :func:`rotate` rotates.
            translate: pixels to the right and down.
            scale: 1.
            shear: degrees along x and along y, of which one is 0.
            center: the corner (0, 0); without shear, it does not matter.
        """
        across, down = (-math.tan(math.radians(degrees)) for degrees in shear)
        # The corner is half a pixel from the middle of the first pixel, where kornia counts from.
        return self._moved(image, [[1.0, across, translate[0] + across / 2], [down, 1.0, translate[1] + down / 2]])

    def rotate(self, image: Tensor, angle: float) -> Tensor:
        """Rotates images around their centres.

        Args:
            image: images.
            angle: degrees, counter-clockwise.
        """
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        x, y = (image.shape[3] - 1) / 2, (image.shape[2] - 1) / 2
        return self._moved(image, [[c, s, x - c * x - s * y], [-s, c, y + s * x - c * y]])

    def _moved(self, image: Tensor, matrix: Sequence[Sequence[float]]) -> Tensor:
        """Moves pixels from (x, y) to matrix (x, y, 1), by the nearest pixel; 0 enters at the borders."""
        where = torch.tensor(matrix).expand(len(image), 2, 3)
        return _bytes(self._warp(_floats(image), where, (image.shape[2], image.shape[3]), mode="nearest"))

    def adjust_brightness(self, image: Tensor, brightness_factor: float) -> Tensor:
        """Multiplies the values."""
        return _bytes(self._enhance.adjust_brightness_accumulative(_floats(image), brightness_factor))

    def adjust_saturation(self, image: Tensor, saturation_factor: float) -> Tensor:
        """Moves colours away from their grey values, or towards them; grey images stay."""
        if image.shape[1] == 1:
            return image
        return _bytes(self._enhance.adjust_saturation_with_gray_subtraction(_floats(image), saturation_factor))

    def adjust_contrast(self, image: Tensor, contrast_factor: float) -> Tensor:
        """Moves values away from the mean grey value of their image, or towards it."""
        return _bytes(self._enhance.adjust_contrast_with_mean_subtraction(_floats(image), contrast_factor))

    def adjust_sharpness(self, image: Tensor, sharpness_factor: float) -> Tensor:
        """Moves values away from those of a smoothed image, or towards them; images of less than 3 pixels stay."""
        if min(image.shape[2:]) < 3:
            return image
        return _bytes(self._enhance.sharpness(_floats(image), sharpness_factor))

    def posterize(self, image: Tensor, bits: int) -> Tensor:
        """Keeps the first bits of each value."""
        return image & (256 - 2 ** (8 - bits))

    def solarize(self, image: Tensor, threshold: float) -> Tensor:
        """Inverts the values from a threshold on."""
        return torch.where(image >= threshold, 255 - image, image)

    def autocontrast(self, image: Tensor) -> Tensor:
        """Stretches the values of each channel to those from 0 to 255; constant channels stay."""
        low, high = image.amin((2, 3), keepdim=True), image.amax((2, 3), keepdim=True)
        scale = 255 / (high - low).float()
        return torch.where(high > low, ((image - low) * scale).clamp_(0, 255).to(torch.uint8), image)

    def equalize(self, image: Tensor) -> Tensor:
        """Makes the values of each channel about equally frequent."""
        return _bytes(self._enhance.equalize(_floats(image)))


def _floats(image: Tensor) -> Tensor:
    return image.float() / 255


def _bytes(image: Tensor) -> Tensor:
    return image.mul(255).round_().clamp_(0, 255).to(torch.uint8)
