"""Real images to train and certify on: bundled digits, MNIST, CIFAR, SVHN, TinyImageNet, and your own files.

Every image is float32 on the scale of [0, 1]: its stored value divided by a constant of the data set (16 for digits,
255 elsewhere). L2 radii are in units of that scale. A constant mean may be subtracted, which changes no distance;
images are never divided by a standard deviation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from fastlip.data.arrays import npz
from fastlip.data.batches import Augmentation, Batches, Share
from fastlip.data.cifar import cifar10, cifar100
from fastlip.data.digits import digits
from fastlip.data.folder import folder, tinyimagenet
from fastlip.data.images import Data, DataError, FolderImages, Images, TensorImages
from fastlip.data.mnist import mnist
from fastlip.data.operations import ImageOperations
from fastlip.data.own import from_datasets
from fastlip.data.svhn import svhn

__all__ = [
    "DATASETS",
    "Augmentation",
    "Batches",
    "Data",
    "DataError",
    "FolderImages",
    "ImageOperations",
    "Images",
    "Share",
    "TensorImages",
    "cifar10",
    "cifar100",
    "digits",
    "folder",
    "from_datasets",
    "load",
    "mnist",
    "npz",
    "svhn",
    "tinyimagenet",
]

DatasetName = Literal["digits", "mnist", "cifar10", "cifar100", "tinyimagenet", "svhn", "npz", "folder"]
DATASETS: tuple[DatasetName, ...] = get_args(DatasetName)
_FROM_PATH = {"mnist": mnist, "cifar10": cifar10, "cifar100": cifar100, "tinyimagenet": tinyimagenet, "svhn": svhn}


def load(name: DatasetName, path: str | Path = "", image_size: int = 0) -> Data:
    """Loads the training and test images of one data set.

    Args:
        name: ``"digits"`` (they come with scikit-learn), ``"mnist"`` (also Fashion-MNIST, KMNIST and EMNIST),
            ``"cifar10"``, ``"cifar100"``, ``"tinyimagenet"``, ``"svhn"``, ``"npz"`` or ``"folder"``.
        path: folder of the files, for ``"npz"`` also the file; default ``""``, which digits alone take.
        image_size: side in pixels to which the images of a ``"folder"`` are resized and cropped; 0 keeps their size;
            default 0.

    Returns:
        The two sets of images, their classes and the scale of their values.

    Raises:
        DataError: (a ValueError) a file is missing, truncated or malformed; the message names it.
        TypeError: a path that is no name of a folder.
        ValueError: an unknown name, or an argument that this data set does not take.

    Examples:
        >>> print(fastlip.data.load("digits"))
        digits: 1437 training and 360 test images, 1x8x8, 10 classes, values / 16 in [0, 1]
    """
    if name not in DATASETS:
        raise ValueError(f"data={name!r}: allowed are {', '.join(map(repr, DATASETS))}")
    if image_size < 0:
        raise ValueError(f"image_size={image_size}: must be 0 (as stored) or positive")
    if image_size and name != "folder":
        raise ValueError(f"image_size={image_size}: data={name!r} has a size of its own; only 'folder' is resized")
    if name == "digits":
        if str(path):
            raise ValueError(f"path={str(path)!r}: data='digits' comes with scikit-learn and takes no path")
        return digits()
    if not isinstance(path, (str, Path)):
        raise TypeError(f"path={path!r}: expected the name of a folder, got {type(path).__name__}")
    if not str(path):
        raise ValueError(f"path='': data={name!r} needs the folder of its files")
    root = Path(path).expanduser()
    if name == "npz":
        return npz(root)
    if not root.is_dir():
        raise DataError(f"{root}: {'is not a folder' if root.exists() else 'no such folder'} (data={name!r})")
    return folder(root, image_size) if name == "folder" else _FROM_PATH[name](root)
