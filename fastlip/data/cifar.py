"""CIFAR-10 and CIFAR-100 from their official binary files (https://www.cs.toronto.edu/~kriz/cifar.html).

A record is one label byte (CIFAR-100: coarse, then fine) and 3072 bytes of red, green and blue 32x32 planes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fastlip.data.images import Data, DataError, TensorImages

_PIXELS = 3 * 32 * 32
_MOST_RECORDS = 60_000  # in all files of either data set
_SHAPE = (3, 32, 32)
# Means of the training images.
_MEAN_10 = (0.4914, 0.4822, 0.4465)
_MEAN_100 = (0.5071, 0.4865, 0.4409)


def cifar10(root: str | Path) -> Data:
    """Reads CIFAR-10 from ``data_batch_1.bin`` to ``_5.bin`` and ``test_batch.bin``.

    Args:
        root: folder of these files, or the one above ``cifar-10-batches-bin``.

    Returns:
        50000 training and 10000 test images of shape (3, 32, 32) in 10 classes.

    Raises:
        DataError: a file is missing, truncated or not one of CIFAR-10; the message names it.

    Examples:
        >>> fastlip.data.cifar10("nowhere")
        Traceback (most recent call last):
        fastlip.data.decoding.DataError: nowhere: no data_batch_1.bin here or in cifar-10-batches-bin; expected ...
    """
    folder = _find(Path(root), "cifar-10-batches-bin", "data_batch_1.bin")
    names = _class_names(folder / "batches.meta.txt", 10)
    train = _read([folder / f"data_batch_{i}.bin" for i in range(1, 6)], 1, 10)
    test = _read([folder / "test_batch.bin"], 1, 10)
    return Data("cifar10", train, test, names, _SHAPE, 255.0, _MEAN_10)


def cifar100(root: str | Path) -> Data:
    """Reads CIFAR-100 with its fine labels from ``train.bin`` and ``test.bin``.

    Args:
        root: folder of these files, or the one above ``cifar-100-binary``.

    Returns:
        50000 training and 10000 test images of shape (3, 32, 32) in 100 classes.

    Raises:
        DataError: a file is missing, truncated or not one of CIFAR-100; the message names it.

    Examples:
        >>> fastlip.data.cifar100("nowhere")
        Traceback (most recent call last):
        fastlip.data.decoding.DataError: nowhere: no train.bin here or in cifar-100-binary; expected ...
    """
    folder = _find(Path(root), "cifar-100-binary", "train.bin")
    names = _class_names(folder / "fine_label_names.txt", 100)
    train = _read([folder / "train.bin"], 2, 100)
    test = _read([folder / "test.bin"], 2, 100)
    return Data("cifar100", train, test, names, _SHAPE, 255.0, _MEAN_100)


def _find(root: Path, subfolder: str, first: str) -> Path:
    """The folder that holds the first file: root or its subfolder."""
    for folder in (root, root / subfolder):
        if (folder / first).is_file():
            return folder
    raise DataError(f"{root}: no {first} here or in {subfolder}; expected the binary version of the data, unpacked")


def _class_names(file: Path, count: int) -> tuple[str, ...]:
    """The class names in a file, one per line; numbers if there is no such file."""
    if not file.is_file():
        return tuple(map(str, range(count)))
    names = tuple(file.read_text(errors="replace").split())
    if len(names) != count:
        raise DataError(f"{file}: got {len(names)} class names, expected {count}")
    return names


def _read(files: list[Path], label_bytes: int, classes: int) -> TensorImages:
    """The images of these files; the last of each record's label bytes is the label."""
    records = np.concatenate([_records(file, label_bytes, classes) for file in files])
    pixels = torch.from_numpy(np.ascontiguousarray(records[:, label_bytes:]).reshape(-1, 3, 32, 32))
    return TensorImages(pixels, torch.from_numpy(records[:, label_bytes - 1].astype(np.int64)))


def _records(file: Path, label_bytes: int, classes: int) -> np.ndarray:
    """The records of one file as bytes, (n, label_bytes + 3072); DataError if it is damaged."""
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    record = label_bytes + _PIXELS
    if (found := file.stat().st_size) > _MOST_RECORDS * record:
        raise DataError(f"{file}: got {found} bytes, expected at most {_MOST_RECORDS * record}")
    content = np.fromfile(file, dtype=np.uint8)
    if content.size == 0 or content.size % record:
        raise DataError(f"{file}: got {content.size} bytes, expected a multiple of {record}: the file is truncated")
    records = content.reshape(-1, record)
    if (highest := int(records[:, label_bytes - 1].max())) >= classes:
        raise DataError(f"{file}: label {highest} found, expected 0 to {classes - 1}: not a file of this data set")
    return records
