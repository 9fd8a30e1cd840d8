"""MNIST and the data sets that come as files of the same format: Fashion-MNIST, KMNIST and EMNIST.

An IDX file (http://yann.lecun.com/exdb/mnist) is two zero bytes, a byte for the type (8: unsigned bytes), one for
the number of dimensions, each dimension as a big-endian 32-bit integer, and the values, the last dimension fastest.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch

from fastlip.data.images import Data, DataError, TensorImages

_UNSIGNED_BYTES = 8
_MOST_BYTES = 2**31
_TEST_NAMES = ("t10k", "test")
_FILES = "train-images-idx3-ubyte, train-labels-idx1-ubyte and the same of t10k or test, each perhaps with .gz"


def mnist(root: str | Path) -> Data:
    """Reads MNIST, Fashion-MNIST, KMNIST or a split of EMNIST from its four IDX files, compressed or not.

    The files are ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same of ``t10k`` (EMNIST:
    ``test``). They may end in ``.gz``, have a dot before ``idx``, and begin with the name of a split, as in
    ``emnist-letters-train-images-idx3-ubyte.gz``. EMNIST stores images transposed; they are returned upright. Labels
    that begin at 1 (EMNIST letters) are counted from 0.

    Args:
        root: folder of the files of one data set, or the one above a folder ``raw``.

    Returns:
        Images of shape (1, h, h) with the stored values 0 to 255; MNIST has 60000 training and 10000 test images of
        28x28 pixels in 10 classes. ``mean`` is that of the training images.

    Raises:
        DataError: a file is missing, truncated, damaged or of another format, images and labels do not fit, or there
            are files of several data sets; the message names the file.

    Examples:
        >>> fastlip.data.mnist("nowhere")
        Traceback (most recent call last):
        fastlip.data.decoding.DataError: nowhere: no train-images-idx3-ubyte here or in raw; expected ...
    """
    train, test = _find(Path(root))
    parts = [_read_pair(*files) for files in (train, test)]
    sizes = [pixels.shape[1:] for pixels, _ in parts]
    if sizes[0] != sizes[1]:
        raise DataError(f"{test[0]}: got images of {sizes[1]}, expected {sizes[0]} like those of training")
    first = 1 if min(labels.min() for _, labels in parts) == 1 else 0
    count = int(max(labels.max() for _, labels in parts)) + 1 - first
    upright = (0, 2, 1) if train[0].name.startswith("emnist") else (0, 1, 2)
    images = [
        TensorImages(
            torch.from_numpy(np.ascontiguousarray(pixels.transpose(upright)))[:, None],
            torch.from_numpy(labels.astype(np.int64) - first),
        )
        for pixels, labels in parts
    ]
    pixels = parts[0][0]
    mean = int(pixels.sum(dtype=np.int64)) / pixels.size / 255
    classes = tuple(map(str, range(first, count + first)))
    return Data("mnist", images[0], images[1], classes, (1, *pixels.shape[1:]), 255.0, (mean,))


def training_images(root: str | Path) -> TensorImages:
    """The training images of such a data set alone, for a folder without test images.

    Args:
        root: folder of the files of one data set, or the one above a folder ``raw``.
    """
    pixels, labels = _read_pair(*_pair(*_training(Path(root))))
    return TensorImages(torch.from_numpy(pixels)[:, None], torch.from_numpy(labels.astype(np.int64)))


def _find(root: Path) -> tuple[tuple[Path, Path], tuple[Path, Path]]:
    """The files of images and labels, for training and testing."""
    folder, name = _training(root)
    tests = [name.replace("train-images", f"{part}-images") for part in _TEST_NAMES]
    test = next((name for name in tests if _stored(folder / name)), tests[0])
    return _pair(folder, name), _pair(folder, test)


def _training(root: Path) -> tuple[Path, str]:
    """The folder of the training images and the name of their file, without ``.gz``."""
    for folder in (root, root / "raw"):
        found = sorted({_plain_name(file) for file in folder.glob("*train-images?idx3-ubyte*")})
        if len(found) > 1:
            raise DataError(f"{folder}: files of several data sets ({', '.join(found)}), expected one")
        if found:
            return folder, found[0]
    raise DataError(f"{root}: no train-images-idx3-ubyte here or in raw; expected {_FILES}")


def _pair(folder: Path, images: str) -> tuple[Path, Path]:
    """The file of images of this name, and that of their labels."""
    labels = images.replace("-images", "-labels").replace("idx3", "idx1")
    return _existing(folder / images), _existing(folder / labels)


def _plain_name(file: Path) -> str:
    return file.name.removesuffix(".gz")


def _stored(file: Path) -> Path | None:
    """The file, or the compressed one; None if there is neither."""
    return next((path for path in (file, Path(f"{file}.gz")) if path.is_file()), None)


def _existing(file: Path) -> Path:
    if (stored := _stored(file)) is None:
        raise DataError(f"{file}: no such file, nor {file.name}.gz")
    return stored


def _read_pair(image_file: Path, label_file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, h, h) and labels (n,) of two files that belong together."""
    images, labels = _read_idx(image_file, 3), _read_idx(label_file, 1)
    if len(images) != len(labels):
        raise DataError(f"{label_file}: got {len(labels)} labels, expected {len(images)} as in {image_file.name}")
    if images.shape[1] != images.shape[2]:
        raise DataError(f"{image_file}: got images of {images.shape[1]}x{images.shape[2]} pixels, expected squares")
    return images, labels


def _read_idx(file: Path, dimensions: int) -> np.ndarray:
    """The values of an IDX file of unsigned bytes; DataError if it is damaged or has other dimensions."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            return _parse(file, cast(IO[bytes], stream), dimensions)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error


def _parse(file: Path, stream: IO[bytes], dimensions: int) -> np.ndarray:
    header = stream.read(4 + 4 * dimensions)
    if header[:4] != bytes((0, 0, _UNSIGNED_BYTES, dimensions)):
        expected = f"0000{_UNSIGNED_BYTES:02x}{dimensions:02x}"
        raise DataError(f"{file}: begins with {header[:4].hex() or 'nothing'}, expected {expected}: not an IDX file")
    if len(header) < 4 + 4 * dimensions:
        raise DataError(f"{file}: got {len(header)} bytes, expected more: the file is truncated")
    shape = struct.unpack(f">{dimensions}I", header[4:])
    size = math.prod(shape)
    if not 0 < size <= _MOST_BYTES:
        raise DataError(f"{file}: its header announces {size} values, expected 1 to {_MOST_BYTES}")
    # One byte more than announced: a compressed file is never unpacked further than that.
    content = stream.read(size + 1)
    if len(content) != size:
        problem = "the file is truncated" if len(content) < size else "there is more"
        raise DataError(f"{file}: got {len(content)} values, expected {size} as its header says: {problem}")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape).copy()  # that may be written
