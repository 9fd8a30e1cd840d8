"""SVHN, the street view house numbers, from its MATLAB files (http://ufldl.stanford.edu/housenumbers, format 2).

A file has ``X``, uint8 (32, 32, 3, n), and ``y``, (n, 1), in which 10 stands for the digit 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fastlip.data.images import Data, DataError, TensorImages
from fastlip.data.matlab import read_matlab

_SIDE, _CLASSES = 32, 10


def svhn(root: str | Path) -> Data:
    """Reads SVHN from ``train_32x32.mat`` and ``test_32x32.mat``.

    Args:
        root: folder of these files.

    Returns:
        73257 training and 26032 test images of shape (3, 32, 32) in 10 classes, the digits. ``mean`` is that of the
        training images.

    Raises:
        DataError: a file is missing, truncated, damaged or not one of SVHN; the message names it.

    Examples:
        >>> fastlip.data.svhn("nowhere")
        Traceback (most recent call last):
        fastlip.data.decoding.DataError: nowhere/train_32x32.mat: no such file
    """
    train, test = (svhn_images(Path(root) / f"{part}_32x32.mat") for part in ("train", "test"))
    mean = train.all_pixels.double().mean((0, 2, 3)) / 255
    names = tuple(map(str, range(_CLASSES)))
    return Data("svhn", train, test, names, (3, _SIDE, _SIDE), 255.0, tuple(mean.tolist()))


def svhn_images(file: Path) -> TensorImages:
    """The images of one file.

    Args:
        file: ``train_32x32.mat``, ``test_32x32.mat`` or ``extra_32x32.mat``.

    Raises:
        DataError: the file is missing, truncated, damaged or not one of SVHN.
    """
    found = read_matlab(file)
    pixels, labels = (found.get(name, np.empty(0)) for name in ("X", "y"))
    if pixels.ndim != 4 or pixels.shape[:3] != (_SIDE, _SIDE, 3) or pixels.dtype != np.uint8 or not pixels.size:
        got = f"X of shape {pixels.shape} and type {pixels.dtype}" if "X" in found else f"the variables {[*found]}"
        raise DataError(f"{file}: got {got}, expected X of shape (32, 32, 3, n) and type uint8: not a file of SVHN")
    if labels.shape != (pixels.shape[3], 1):
        raise DataError(
            f"{file}: got y of shape {labels.shape}, expected ({pixels.shape[3]}, 1), a label for each image"
        )
    if not np.isin(labels, np.arange(1, _CLASSES + 1)).all():
        raise DataError(f"{file}: labels from {labels.min()} to {labels.max()} found, expected 1 to {_CLASSES}")
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)))
    return TensorImages(images, torch.from_numpy(labels[:, 0].astype(np.int64) % _CLASSES))
