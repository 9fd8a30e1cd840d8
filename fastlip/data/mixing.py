"""Training batches with a fixed share of images from a second set, such as generated ones."""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastlip.data.arrays import npz_images
from fastlip.data.batches import Batches
from fastlip.data.images import Data, DataError, Images
from fastlip.data.own import called, images_of, is_place
from fastlip.data.svhn import svhn_images

# What the random generators of an epoch are for: the order of the second set, and the places in each batch.
_ORDER, _PLACES = 1, 2


def extra_size(batch_size: int, ratio: float) -> int:
    """The number of images of a batch that come from the second set, the nearest to ratio times batch_size.

    Args:
        batch_size: number of images in a batch.
        ratio: fraction of the batch.

    Raises:
        ValueError: the batch would have no image of one of the two sets.
    """
    size = math.floor(batch_size * ratio + 0.5)
    if not 0 < size < batch_size:
        raise ValueError(
            f"extra_ratio={ratio!r}: that is {size} of the batch_size={batch_size} images of a step, expected at"
            " least 1 of each set"
        )
    return size


def extra_images(source: str, data: Data) -> Images:
    """The second set of training images, on the scale of a data set.

    Args:
        source: path of an ``.npz`` file (arrays of images and of labels) or of a ``.mat`` file of SVHN, or
            ``module:function`` of code that returns a pair (images, labels) or a ``torch.utils.data.Dataset``.
        data: the data set that it is mixed with.

    Raises:
        DataError: it cannot be read, or has images of another shape or classes that the data set lacks.
    """
    if is_place(source):
        images, divisor = images_of(called(source, "extra_data"), f"extra_data={source!r}")
    elif (file := Path(source).expanduser()).suffix == ".mat":
        images, divisor = svhn_images(file), 255.0
    elif file.suffix == ".npz":
        images, divisor = npz_images(file)
    else:
        raise DataError(f"extra_data={source!r}: expected an .npz file, a .mat file of SVHN, or module:function")
    shape = tuple(images.pixels(torch.tensor([0])).shape[1:])
    if shape != data.shape:
        raise DataError(f"{source}: has images of shape {shape}, expected {data.shape} like those of {data.name}")
    if (highest := int(images.labels.max())) >= len(data.classes):
        raise DataError(f"{source}: has class {highest}, expected 0 to {len(data.classes) - 1} as in {data.name}")
    return images if divisor == data.divisor else _Rescaled(images, data.divisor / divisor)


class _Rescaled:
    """Images whose stored values are multiplied by a factor."""

    def __init__(self, images: Images, factor: float):
        self.images = images
        self.labels = images.labels
        self.factor = factor

    def pixels(self, indices: Tensor) -> Tensor:
        return self.images.pixels(indices).float() * self.factor


class _Both:
    """Two sets as one: the images of the second set follow those of the first."""

    def __init__(self, first: Images, second: Images):
        self.first = first
        self.second = second
        self.labels = torch.cat((first.labels, second.labels))

    def pixels(self, indices: Tensor) -> Tensor:
        count = len(self.first.labels)
        own = indices < count
        sets = (self.first, own, 0), (self.second, ~own, count)
        # A process may have images of one set only, and some sets cannot read none.
        parts = [(mask, images.pixels(indices[mask] - start)) for images, mask, start in sets if mask.any()]
        if len({part.dtype for _, part in parts}) > 1:
            parts = [(mask, part.float()) for mask, part in parts]
        pixels = parts[0][1].new_empty(len(indices), *parts[0][1].shape[1:])
        for mask, part in parts:
            pixels[mask] = part
        return pixels


class MixedBatches(Batches):
    """Batches of two sets: each has the same number of images of the second set, at random places.

    An epoch gives every image of the first set once, and those of the second set one after another in random order,
    from epoch to epoch: all of them have been seen before one is seen again. A last, smaller batch has the same
    proportion of both, to the nearest image. All this depends on seed, epoch and batch only.

    Args:
        images: the images of the first set.
        extra: those of the second set, with stored values on the same scale.
        ratio: fraction of a batch that is of the second set; see :func:`extra_size`.
        divisor: as of :class:`Batches`.
        batch_size: number of images in a batch, over all processes and both sets.
        options: as of :class:`Batches`.
    """

    def __init__(self, images: Images, extra: Images, ratio: float, divisor: float, batch_size: int, **options: Any):
        super().__init__(_Both(images, extra), divisor, batch_size, **options)
        self.extra = extra
        self.own_count = len(images.labels)
        self.extra_size = extra_size(batch_size, ratio)
        self.own_size = batch_size - self.extra_size

    @property
    def image_count(self) -> int:
        """Number of images of both sets in an epoch, over all processes."""
        return self.own_count + self._extra_count

    @property
    def description(self) -> dict[str, int]:
        """A checkpoint's entry for the second set, by which another one is noticed."""
        labels = self.extra.labels.contiguous().numpy()
        return {"images": len(labels), "labels": zlib.crc32(labels.tobytes()), "in_batch": self.extra_size}

    @property
    def _extra_count(self) -> int:
        whole, rest = divmod(self.own_count, self.own_size)
        return whole * self.extra_size + (2 * rest * self.extra_size + self.own_size) // (2 * self.own_size)

    def order(self, epoch: int | None) -> Tensor:
        """Returns the indices of the images of an epoch, batch after batch.

        Those of the second set follow those of the first.

        Args:
            epoch: number of the epoch; None: both sets in order.
        """
        own = self._permuted(self.own_count, epoch)
        extra = self._extra_indices(epoch) + self.own_count
        whole = self.own_count // self.own_size
        full = own[: whole * self.own_size].view(whole, -1), extra[: whole * self.extra_size].view(whole, -1)
        last = own[whole * self.own_size :][None], extra[whole * self.extra_size :][None]
        rows = [torch.cat(both, 1) for both in (full, last)]
        if epoch is not None:
            generator = self.generator(epoch, 0, _PLACES)
            places = [torch.rand(block.shape, generator=generator).argsort(dim=1, stable=True) for block in rows]
            rows = [block.gather(1, place) for block, place in zip(rows, places, strict=True)]
        return torch.cat([block.flatten() for block in rows])

    def _extra_indices(self, epoch: int | None) -> Tensor:
        """The images of the second set in an epoch: a stretch of its permutations, one after another."""
        count, size = self._extra_count, len(self.extra.labels)
        if epoch is None:
            return torch.arange(count) % size
        start = epoch * count
        first = start // size
        passes = range(first, (start + count - 1) // size + 1) if count else range(0)
        orders = [torch.randperm(size, generator=self.generator(number, 0, _ORDER)) for number in passes]
        return torch.cat([*orders, torch.empty(0, dtype=torch.long)])[start - first * size :][:count]
