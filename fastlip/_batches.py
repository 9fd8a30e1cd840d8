"""The batches that certificates and attacks take: pairs, dicts with usual keys, tensors or NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

IMAGE_KEYS = ("image", "images", "img", "x", "input", "inputs", "pixel_values", "data")
LABEL_KEYS = ("label", "labels", "y", "target", "targets")


def check_batch(index: int, batch: Any) -> tuple[Tensor, Tensor]:
    """A batch's images and labels; TypeError or ValueError names the batch.

    A batch is a pair, a longer sequence whose further entries do not count, or a dict with one key of images and one
    of labels. Images and labels are tensors, NumPy arrays or lists of numbers.
    """
    images, labels = (_tensor(index, *item) for item in zip(("images", "labels"), _pair(index, batch), strict=True))
    if not images.is_floating_point():
        raise TypeError(
            f"loader: the images of batch {index} are {images.dtype}, expected floating-point numbers on the scale "
            "on which the model was trained, such as images.float() / 255"
        )
    if images.dim() == 0 or labels.dim() == 0 or len(labels) != len(images):
        raise ValueError(
            f"loader: batch {index} has images of shape {tuple(images.shape)} and labels of shape "
            f"{tuple(labels.shape)}, expected as many labels as images"
        )
    if not images.isfinite().all():
        raise ValueError(f"loader: the images of batch {index} contain NaN or Inf")
    return images, labels


def _pair(index: int, batch: Any) -> tuple[Any, Any]:
    if isinstance(batch, Mapping):
        return _entry(index, batch, "images", IMAGE_KEYS), _entry(index, batch, "labels", LABEL_KEYS)
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return batch[0], batch[1]
    is_alone = isinstance(batch, (Tensor, np.ndarray)) or (isinstance(batch, (tuple, list)) and len(batch) == 1)
    why = "it has no labels" if is_alone else f"it is of type {type(batch).__name__}"
    raise TypeError(f"loader: batch {index} is no pair of images and labels: {why}")


def _entry(index: int, batch: Mapping[Any, Any], what: str, keys: tuple[str, ...]) -> Any:
    found = [key for key in batch if isinstance(key, str) and key.lower() in keys]
    if len(found) != 1:
        raise ValueError(
            f"loader: batch {index} has the keys {list(batch)}; expected exactly one of {', '.join(keys)} "
            f"for the {what}"
        )
    return batch[found[0]]


def _tensor(index: int, what: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        # A copy: the memory of an array may be read-only, and torch warns of it.
        return torch.as_tensor(np.array(value))
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(value).__name__
        raise TypeError(f"loader: the {what} of batch {index} are of type {kind}: {error}") from None
