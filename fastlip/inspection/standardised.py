"""Recognises 8-bit images that were standardised, or not divided by 255: radii are then in other units."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_LEVELS = 256
_IMAGES = 16  # of a batch that are examined
_FEWEST = 24  # with fewer different values the steps between them say little
_TOLERANCE = 0.02  # of a step


class Scale(NamedTuple):
    """How stored values k became (k / 255 - mean) / std, for each channel.

    ``mean`` is None where black or white is missing, so that only ``std`` is known.
    """

    mean: tuple[float, ...] | None
    std: tuple[float, ...]


def scale_of(images: Tensor) -> Scale | None:
    """The scale of 8-bit images (n, c, h, w) with 1 or 3 channels; None for other values.

    The values of a channel are (k / 255 - m) / s with whole k: they lie on a grid of step 1 / (255 s).
    """
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        return None
    means: list[float | None] = []
    stds = []
    for channel in images[:_IMAGES].detach().transpose(0, 1).flatten(1).double():
        values = channel.unique()
        step = _step(values)
        if step is None:
            return None
        std = 1 / (255 * step)
        levels = (values[-1] - values[0]).item() / step
        means.append(-values[0].item() * std if round(levels) == _LEVELS - 1 else None)
        stds.append(std)
    known = [mean for mean in means if mean is not None]
    return Scale(tuple(known) if len(known) == len(means) else None, tuple(stds))


def _step(values: Tensor) -> float | None:
    """The step of the grid on which sorted different values of a channel lie; None if there is none."""
    if not _FEWEST <= len(values) <= _LEVELS:
        return None
    gaps = values.diff()
    # Rounding in float32 moves each value; the mean over all steps is more precise than the least gap.
    count = (gaps / gaps.min()).round().sum().item()
    step = (values[-1] - values[0]).item() / count
    places = (values - values[0]) / step
    on_grid = bool(((places - places.round()).abs() <= _TOLERANCE).all())
    return step if on_grid and count < _LEVELS else None


def remark(images: Tensor) -> str:
    """A remark on radii for the scale of these images; "" on that of [0, 1], where a mean may be subtracted."""
    scale = scale_of(images)
    if scale is None or all(abs(std - 1) < 0.01 for std in scale.std):
        return ""
    if all(abs(255 * std - 1) < 0.01 for std in scale.std):
        return (
            "the images have values up to 255: divide them by 255, or radii are 255 times those of images in [0, 1]"
        )
    about = f"std=({', '.join(f'{std:.3g}' for std in scale.std)})"
    if scale.mean is not None:
        about = f"mean=({', '.join(f'{mean:.3g}' for mean in scale.mean)}), {about}"
    return (
        f"the images are standardised with {about}: radii are in these units. For radii of images in [0, 1], put the"
        " standardisation into the model, and pass bounds=(0, 1)"
    )


def warn_of_units(images: Tensor) -> None:
    """Warns of images that are standardised or not divided by 255."""
    if text := remark(images):
        warnings.warn(text, UserWarning, stacklevel=2)


def warn_of_large_eps(eps: Sequence[float], images: Tensor, bounds: tuple[Any, Any] | None) -> None:
    """Warns of radii all of which exceed half the diagonal of the box of all images, as 36 in place of 36/255 does.

    Without bounds the box is known for images (n, c, h, w) of 1 or 3 channels with values in [0, 1].
    """
    least = min((value for value in eps if value > 0), default=0.0)
    if least <= 1:
        return
    if bounds is None:
        if images.dim() != 4 or images.shape[1] not in (1, 3) or images.amin() < 0 or images.amax() > 1:
            return
        bounds = (0.0, 1.0)
    low, high = (torch.as_tensor(value).detach().cpu().double() for value in bounds)
    half = (high - low).expand(images.shape[1:]).square().sum().sqrt().item() / 2
    if least > half:
        levels = (
            f"; if {least:g} levels of 255 are meant, pass eps={least:g}/255" if float(least).is_integer() else ""
        )
        warnings.warn(
            f"eps={least:g}: the image in the middle of the range is within {half:.3g} of every image, so hardly any"
            f" radius is as large as that{levels}",
            UserWarning,
            stacklevel=2,
        )
