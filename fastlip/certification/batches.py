"""The batches that certificates and attacks take: pairs, dicts with usual keys, tensors or NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastlip.inspection.loading import IMAGE_KEYS, LABEL_KEYS, collated, entry_of, picture
from fastlip.inspection.standardised import remark


def check_batch(index: int, batch: Any) -> tuple[Tensor, Tensor]:
    """A batch's images and labels; TypeError or ValueError names the batch.

    A batch is a pair, a longer sequence whose further entries do not count, or a dict with one key of images and one
    of labels. Images and labels are tensors, NumPy arrays or lists of numbers.
    """
    images, labels = (_tensor(index, *item) for item in zip(("images", "labels"), _pair(index, batch), strict=True))
    _check_dtype(index, images)
    if images.dim() == 0 or labels.dim() == 0 or len(labels) != len(images):
        raise ValueError(
            f"loader: batch {index} has images of shape {tuple(images.shape)} and labels of shape "
            f"{tuple(labels.shape)}, expected as many labels as images"
        )
    _check_finite(index, images)
    return images, labels


def check_inputs(index: int, batch: Any) -> tuple[Tensor, Tensor | None]:
    """A batch's images, and its labels or targets if it has any; TypeError or ValueError names the batch.

    A batch is one of :func:`check_batch`, or images alone: a tensor, an array, a sequence of one, or a dict without
    a key of labels.
    """
    if isinstance(batch, Mapping):
        if any(isinstance(key, str) and key.lower() in LABEL_KEYS for key in batch):
            return check_batch(index, batch)
        batch = _entry(index, batch, "images", IMAGE_KEYS)
    elif not _is_alone(batch):
        return check_batch(index, batch)
    elif isinstance(batch, (tuple, list)):
        batch = batch[0]
    images = _tensor(index, "images", batch)
    _check_dtype(index, images)
    if images.dim() == 0:
        raise ValueError(f"loader: batch {index} is a single number, expected a batch of images")
    _check_finite(index, images)
    return images, None


def _is_alone(batch: Any) -> bool:
    """Whether a batch is images without labels."""
    return isinstance(batch, (Tensor, np.ndarray)) or (isinstance(batch, (tuple, list)) and len(batch) == 1)


def _check_dtype(index: int, images: Tensor) -> None:
    if not images.is_floating_point():
        raise TypeError(
            f"loader: the images of batch {index} are {images.dtype}, expected floating-point numbers on the scale "
            "on which the model was trained, such as images.float() / 255"
        )


def _check_finite(index: int, images: Tensor) -> None:
    if not images.isfinite().all():
        raise ValueError(f"loader: the images of batch {index} contain NaN or Inf")


def check_declared(model: nn.Module, index: int, images: Tensor) -> None:
    """ValueError for images of another shape than the ``input_shape`` that the model was built for, if it says so."""
    declared, shape = getattr(model, "input_shape", None), tuple(images.shape[1:])
    if isinstance(declared, tuple) and shape != declared:
        raise ValueError(f"loader: batch {index} has images of {shape}, the model was built for images of {declared}")


def check_bounds(index: int, images: Tensor, bounds: tuple[Any, Any] | None) -> None:
    """ValueError for images with values outside of the bounds (low, high), which broadcast to an image."""
    if bounds is None:
        return
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise ValueError(f"bounds={bounds!r}: expected (low, high) or None")
    low, high = (torch.as_tensor(value, dtype=images.dtype, device=images.device) for value in bounds)
    if not bool((low <= high).all()):
        raise ValueError(f"bounds={bounds!r}: expected low <= high")
    slack = 4 * torch.finfo(images.dtype).eps * torch.maximum(low.abs(), high.abs()).clamp_min(1)
    if bool(((images < low - slack) | (images > high + slack)).any()):
        least, most = images.amin().item(), images.amax().item()
        raise ValueError(
            f"loader: the images of batch {index} have values from {least:.6g} to {most:.6g}, outside of the bounds; "
            + (
                remark(images)
                or "radii are in the units of the images: put them on the scale of the bounds, and what standardises "
                "them into the model"
            )
        )


def _pair(index: int, batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, Mapping):
        return _entry(index, batch, "images", IMAGE_KEYS), _entry(index, batch, "labels", LABEL_KEYS)
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return batch[0], batch[1]
    why = "it has no labels" if _is_alone(batch) else f"it is of type {type(batch).__name__}"
    raise TypeError(f"loader: batch {index} is no pair of images and labels: {why}")


def _entry(index: int, batch: Mapping[Any, Any], what: str, keys: tuple[str, ...]) -> Any:
    return entry_of(f"loader: batch {index}", batch, what, keys)


def _tensor(index: int, what: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list) and value and picture(value[0]) is not None:
        return collated(value)
    try:
        # A copy: the memory of an array may be read-only, and torch warns of it.
        return torch.as_tensor(np.array(value))
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(value).__name__
        expected = f"tensors, numpy arrays or {'lists of class numbers' if what == 'labels' else 'lists of images'}"
        raise TypeError(
            f"loader: the {what} of batch {index} are of type {kind}, expected {expected}: {error}"
        ) from None
