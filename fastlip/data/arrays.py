"""Images and labels in ``.npz`` files of NumPy: those of Keras and MedMNIST, generated images, and your own.

Nothing in such a file is executed: arrays of Python objects are refused.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from fastlip._files import printable
from fastlip.data.images import Data, DataError, Images
from fastlip.data.own import from_datasets, images_of
from fastlip.inspection.loading import IMAGE_KEYS, LABEL_KEYS

_TRAIN, _TEST = ("train", "training"), ("test", "val", "valid", "validation")
_MOST_BYTES = 2**36
_DAMAGE = (EOFError, NotImplementedError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error)
_EXPECTED = "x_train, y_train, x_test and y_test (or train_images, train_labels, test_images and test_labels)"


def npz(path: str | Path) -> Data:
    """Reads a data set from one ``.npz`` file, or from ``train.npz`` and ``test.npz`` in a folder.

    One file has the arrays ``x_train``, ``y_train``, ``x_test``, ``y_test`` (as Keras writes them), or
    ``train_images``, ``train_labels``, ``test_images``, ``test_labels`` (MedMNIST). If there are no test images,
    those named ``val`` are taken. The files of a folder have ``images`` and ``labels`` each, or other usual names,
    such as ``x`` and ``y``.

    Images are (n, h, w), (n, c, h, w) or, with 1 or 3 channels, (n, h, w, c): uint8, or floating-point numbers in
    [0, 1]. Labels are class numbers from 0, of shape (n,) or (n, 1), or one-hot rows.

    Args:
        path: the file or the folder.

    Returns:
        The data set.

    Raises:
        DataError: a file is missing, truncated or damaged, an array is missing or of another shape, type or scale, or
            the labels do not fit the images; the message names the file.

    Examples:
        >>> import tempfile, numpy as np
        >>> images, labels = np.zeros((12, 8, 8), np.uint8), np.arange(12) % 4
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/own.npz", x_train=images, y_train=labels, x_test=images[:4], y_test=labels[:4])
        ...     print(fastlip.data.npz(f"{folder}/own.npz"))
        own: 12 training and 4 test images, 1x8x8, 4 classes, values / 255 in [0, 1]
    """
    path = Path(path)
    if path.is_dir():
        train, test = (labelled_arrays(path / f"{part}.npz") for part in ("train", "test"))
    else:
        names = _names(path)
        pairs = [_pair_of(names, parts) for parts in (_TRAIN, _TEST)]
        if not (pairs[0] and pairs[1]):
            raise DataError(f"{path}: has the arrays {', '.join(names) or 'none'}; expected {_EXPECTED}")
        train, test = (_read(path, *pair) for pair in pairs if pair)
    try:
        return from_datasets(train, test, name=printable(path.stem or path.name))
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def labelled_arrays(file: Path) -> tuple[Tensor, Tensor]:
    """The images (n, c, h, w) and labels of one set: of a file that has one set only, or its training images.

    Args:
        file: with one array of images and one of labels, under usual names, or those of several sets.

    Raises:
        DataError: the file is missing, truncated or damaged, or has no such arrays.
    """
    names = _names(file)
    own = tuple([name for name in names if name.lower() in keys] for keys in (IMAGE_KEYS, LABEL_KEYS))
    if all(len(found) == 1 for found in own):
        return _read(file, own[0][0], own[1][0])
    if (pair := _pair_of(names, _TRAIN)) is None:
        raise DataError(
            f"{file}: has the arrays {', '.join(names) or 'none'}; expected exactly one of {', '.join(IMAGE_KEYS)}"
            f" for the images and one of {', '.join(LABEL_KEYS)} for the labels, or {_EXPECTED}"
        )
    return _read(file, *pair)


def npz_images(file: Path) -> tuple[Images, float]:
    """The images of one set (see :func:`labelled_arrays`), and the divisor that puts them on the scale of [0, 1].

    Args:
        file: the ``.npz`` file.
    """
    return images_of(labelled_arrays(file), str(file))


def _pair_of(names: list[str], parts: tuple[str, ...]) -> tuple[str, str] | None:
    """The names of the images and labels of the first of these parts that has both."""
    known = {name.lower(): name for name in names}
    for part in parts:
        for image in IMAGE_KEYS:
            for label in LABEL_KEYS:
                for pair in ((f"{image}_{part}", f"{label}_{part}"), (f"{part}_{image}", f"{part}_{label}")):
                    if pair[0] in known and pair[1] in known:
                        return known[pair[0]], known[pair[1]]
    return None


def _names(file: Path) -> list[str]:
    """The names of the arrays in a file."""
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except _DAMAGE as error:
        raise DataError(f"{file}: is not an .npz file, or is truncated: {error}") from None
    return [name.removesuffix(".npy") for name in names if name.endswith(".npy")]


def _read(file: Path, image_name: str, label_name: str) -> tuple[Tensor, Tensor]:
    """Images (n, c, h, w) and labels (n,) or (n, classes) by the names of their arrays."""
    try:
        with zipfile.ZipFile(file) as archive:
            images, labels = (_array(file, archive, name) for name in (image_name, label_name))
    except _DAMAGE as error:
        raise DataError(f"{file}: cannot be read, it may be truncated: {error}") from None
    if images.ndim not in (3, 4):
        raise DataError(
            f"{file}: {image_name} has shape {images.shape}, expected (n, h, w), (n, c, h, w) or (n, h, w, c)"
        )
    if images.ndim == 4 and images.shape[3] in (1, 3) and images.shape[1] == images.shape[2]:
        images = images.transpose(0, 3, 1, 2)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if len(images) != len(labels) or not len(images):
        raise DataError(f"{file}: got {len(images)} images ({image_name}) and {len(labels)} labels ({label_name})")
    return torch.from_numpy(images), torch.from_numpy(labels)


def _array(file: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array. Its header is compared with the size of its entry before memory is taken."""
    entry = archive.getinfo(f"{name}.npy")
    with archive.open(entry) as stream:
        shape, dtype = _header(file, name, stream)
        size = stream.tell() + math.prod(shape) * dtype.itemsize
    if size != entry.file_size or size > _MOST_BYTES:
        raise DataError(
            f"{file}: {name} has {entry.file_size} bytes, expected {size} for {dtype} of shape {shape}, at most"
            f" {_MOST_BYTES}"
        )
    with archive.open(entry) as stream:
        array = npy.read_array(stream, allow_pickle=False)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _header(file: Path, name: str, stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    try:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(stream)
    except (ValueError, SyntaxError) as error:
        raise DataError(f"{file}: {name} is no array of NumPy: {error}") from None
    if dtype.kind not in "biuf":
        raise DataError(f"{file}: {name} is of type {dtype}, expected numbers")
    return shape, dtype
