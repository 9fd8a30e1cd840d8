"""Data in the forms that people have it in, as batches: loaders, data sets, whole sets in memory."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate

# Batches, or a whole set that :func:`batches_of` divides into batches.
Loader = Iterable[Any] | Dataset[Any]
IMAGE_KEYS = ("image", "images", "img", "x", "input", "inputs", "pixel_values", "data")
LABEL_KEYS = ("label", "labels", "y", "target", "targets")
# Images in a batch of a data set, which has no batch size of its own.
BATCH_SIZE = 256


def batches_of(loader: Any, labelled: bool = True) -> Iterable[Any]:
    """The batches of a loader, or those of a set that is no loader.

    A set is a pair of tensors or arrays (images, labels) or a dict of them, a ``torch.utils.data.Dataset`` of
    samples, or a Hugging Face data set; it is divided into batches of 256. Anything else is taken as an iterable of
    batches.

    Args:
        loader: the batches, or the set.
        labelled: whether every image has a label. Otherwise a tensor or an array is a set too, and a list of two
            tensors is two batches.

    Raises:
        TypeError: nothing that can be iterated over.
        ValueError: a pair with another number of labels than images, or a Hugging Face ``DatasetDict``.
    """
    if not labelled and isinstance(loader, (Tensor, np.ndarray)):
        return _slices(len(loader), lambda rows: loader[rows])
    if is_pair(loader, (tuple, list) if labelled else (tuple,)):
        if len(loader[0]) != len(loader[1]):
            raise ValueError(f"loader: got {len(loader[0])} images and {len(loader[1])} labels")
        return _slices(len(loader[0]), lambda rows: (loader[0][rows], loader[1][rows]))
    if isinstance(loader, Mapping):
        return _of_mapping(loader)
    if _is_table(loader):
        return _slices(len(loader), lambda rows: loader[rows])
    if _is_samples(loader):
        return _slices(len(loader), lambda rows: collated([loader[i] for i in range(rows.start, rows.stop)]))
    if isinstance(loader, (Tensor, np.ndarray)) or not isinstance(loader, Iterable):
        raise TypeError(
            f"loader: got {type(loader).__name__}, expected batches of images and labels, such as a DataLoader, a"
            " Dataset or a pair of tensors (images, labels)"
        )
    return loader


def collated(samples: Sequence[Any]) -> Any:
    """Samples as a batch; Pillow images become tensors (c, h, w) with values in [0, 1]."""
    try:
        return default_collate([_without_pillow(sample) for sample in samples])
    except (RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"loader: its samples cannot be stacked into a batch ({reason}); they need images of one size, as tensors"
        ) from None


def entry_of(where: str, values: Mapping[Any, Any], what: str, keys: Sequence[str]) -> Any:
    """The value of the only one of these keys; ValueError, which begins with where, if there is none or several."""
    found = [key for key in values if isinstance(key, str) and key.lower() in keys]
    if len(found) != 1:
        raise ValueError(
            f"{where} has the keys {list(values)}; expected exactly one of {', '.join(keys)} for the {what}"
        )
    return values[found[0]]


def picture(value: Any) -> Tensor | None:
    """A Pillow image as float32 (c, h, w) in [0, 1]; None for anything else."""
    pillow = sys.modules.get("PIL.Image")
    if pillow is None or not isinstance(value, pillow.Image):
        return None
    if value.mode not in ("L", "RGB"):
        value = value.convert("RGB")
    pixels = torch.from_numpy(np.array(value)).float() / 255
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)


def is_pair(loader: Any, kinds: tuple[type, ...] = (tuple, list)) -> bool:
    """Whether this is a whole set (images, labels), not two batches."""
    if not isinstance(loader, kinds) or len(loader) != 2:
        return False
    images, labels = loader
    return isinstance(images, (Tensor, np.ndarray)) and isinstance(labels, (Tensor, np.ndarray)) and images.ndim > 1


def _is_table(loader: Any) -> bool:
    """Whether this is a data set of Hugging Face, whose slices are dicts of columns."""
    return hasattr(loader, "column_names") and hasattr(loader, "features") and hasattr(loader, "__getitem__")


def _is_samples(loader: Any) -> bool:
    """Whether this is a map-style data set of torch: one sample at each index."""
    return isinstance(loader, Dataset) and not isinstance(loader, IterableDataset) and hasattr(loader, "__len__")


def _of_mapping(loader: Mapping[Any, Any]) -> Iterable[Any]:
    if any(_is_table(value) for value in loader.values()):
        raise ValueError(f"loader: got a dict of data sets; choose one of {', '.join(map(repr, loader))}")
    sizes = {key: len(value) for key, value in loader.items() if hasattr(value, "__len__")}
    if len(set(sizes.values())) != 1 or len(sizes) != len(loader):
        raise ValueError(f"loader: got a dict with entries of lengths {sizes}, expected as many labels as images")
    return _slices(next(iter(sizes.values())), lambda rows: {key: value[rows] for key, value in loader.items()})


def _slices(count: int, batch: Any) -> Iterator[Any]:
    for start in range(0, count, BATCH_SIZE):
        yield batch(slice(start, min(start + BATCH_SIZE, count)))


def _without_pillow(sample: Any) -> Any:
    """The sample with tensors in place of Pillow images."""
    if (image := picture(sample)) is not None:
        return image
    if isinstance(sample, Mapping):
        return {key: _without_pillow(value) for key, value in sample.items()}
    if isinstance(sample, (tuple, list)):
        return tuple(_without_pillow(value) for value in sample)
    return sample
