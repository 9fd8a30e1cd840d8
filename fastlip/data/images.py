"""Data sets: two sets of labelled images, and the scale of their values."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from fastlip._extras import needed_for
from fastlip.data.decoding import DataError, decode

_DECODING_THREADS = 4
# Decoded images stay in memory if the whole set takes no more than this; TinyImageNet takes 1.2e9 bytes.
KEPT_BYTES = 2**31


class Images(Protocol):
    """Protocol of labelled images; a class of your own may implement it.

    Attributes:
        labels: class numbers, int64 (n,).

    Examples:
        >>> images: fastlip.data.Images = fastlip.data.digits().train
        >>> images.pixels(torch.tensor([0, 5])).shape, images.labels[:3]
        (torch.Size([2, 1, 8, 8]), tensor([3, 9, 1]))
    """

    labels: Tensor

    def pixels(self, indices: Tensor) -> Tensor:
        """Returns stored values of images, uint8 (b, c, h, w).

        Args:
            indices: indices of the images, int64 (b,).
        """
        ...


class TensorImages:
    """Images in memory.

    Args:
        pixels: stored values, uint8 (n, c, h, w).
        labels: class numbers, int64 (n,).

    Examples:
        >>> images = fastlip.data.TensorImages(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4))
        >>> images.pixels(torch.tensor([2, 0])).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, pixels: Tensor, labels: Tensor):
        self.all_pixels = pixels
        self.labels = labels

    def pixels(self, indices: Tensor) -> Tensor:
        """Returns stored values of images, uint8 (b, c, h, w).

        Args:
            indices: indices of the images, int64 (b,).
        """
        return self.all_pixels[indices]


class FileList(Sequence[Path]):
    """Paths in one block of bytes, which worker processes share: a million of them take 100 MB."""

    def __init__(self, files: Sequence[str | Path]):
        self.block = np.array([os.fsencode(file) for file in files], dtype=np.bytes_)

    def __len__(self) -> int:
        return len(self.block)

    @overload
    def __getitem__(self, index: int) -> Path: ...

    @overload
    def __getitem__(self, index: slice) -> list[Path]: ...

    def __getitem__(self, index: int | slice) -> Path | list[Path]:
        if isinstance(index, slice):
            return [Path(os.fsdecode(name)) for name in self.block[index]]
        return Path(os.fsdecode(self.block[index]))


class FolderImages:
    """Image files, decoded as RGB when they are requested, several at a time.

    A set of at most ``KEPT_BYTES`` is decoded once and kept, except in worker processes. Of a larger set only the
    requested images are in memory.

    Args:
        files: paths of the images.
        labels: class numbers, int64 (n,).
        side: side in pixels of every image.
        resize: whether to resize each image so that its shorter side has this length, and crop its centre; otherwise
            an image of another size raises DataError.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("RGB", (48, 32), "red").save(f"{folder}/red.png")
        ...     images = fastlip.data.FolderImages([f"{folder}/red.png"], torch.tensor([0]), side=16, resize=True)
        ...     images.pixels(torch.tensor([0])).shape
        torch.Size([1, 3, 16, 16])
    """

    def __init__(self, files: Sequence[str | Path], labels: Tensor, side: int, resize: bool):
        self.files = FileList(files)
        self.labels = labels
        self.side = side
        self.resize = resize
        self._kept: Tensor | None = None
        self._known = torch.zeros(len(files), dtype=torch.bool)

    def pixels(self, indices: Tensor) -> Tensor:
        """Returns decoded images, uint8 (b, 3, side, side).

        Args:
            indices: indices of the images, int64 (b,).

        Raises:
            DataError: a file cannot be decoded, or has another size; the message names it.
        """
        if len(self.files) * 3 * self.side**2 > KEPT_BYTES or get_worker_info() is not None:
            return self._read(indices)
        if self._kept is None:
            self._kept = torch.empty(len(self.files), 3, self.side, self.side, dtype=torch.uint8)
        new = indices[~self._known[indices]]
        if len(new):
            self._kept[new] = self._read(new)
            self._known[new] = True
        return self._kept[indices]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": None, "_known": torch.zeros_like(self._known)}

    def _read(self, indices: Tensor) -> Tensor:
        """Decodes the images at these indices in threads: Pillow releases the interpreter's lock."""
        files = [self.files[index] for index in indices.tolist()]
        with ThreadPoolExecutor(_DECODING_THREADS) as pool:
            images = list(pool.map(self._decode, files))
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)

    def _decode(self, file: Path) -> np.ndarray:
        """One image, (side, side, 3)."""
        with needed_for("image files"):
            from PIL import Image, ImageOps

        image = decode(file)
        if self.resize:
            image = ImageOps.fit(image, (self.side, self.side), Image.Resampling.BILINEAR)
        if image.size != (self.side, self.side):
            raise DataError(
                f"{file}: got {image.width}x{image.height} pixels, expected {self.side}x{self.side} like the"
                " rest; give an image size to resize them all"
            )
        return np.asarray(image)


@dataclass(frozen=True)
class Data:
    """A data set: training and test images, their classes, their shape and the scale of their values.

    Args:
        name: name of the data set.
        train: training images.
        test: test images.
        classes: names of the classes, by class number.
        shape: shape (c, h, w) of an image.
        divisor: stored values divided by it lie in [0, 1], the scale of inputs and of certified radii.
        mean: mean of each channel on that scale. Subtracting it changes no distance.

    Examples:
        >>> data = fastlip.data.digits()
        >>> data.classes[:3], data.mean
        (('0', '1', '2'), (0.3053,))
    """

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    divisor: float
    mean: tuple[float, ...]

    def __str__(self) -> str:
        c, h, w = self.shape
        return (
            f"{self.name}: {len(self.train.labels)} training and {len(self.test.labels)} test images,"
            f" {c}x{h}x{w}, {len(self.classes)} classes, values / {self.divisor:g} in [0, 1]"
        )
