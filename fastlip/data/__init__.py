"""Real images to train and certify on: bundled digits, CIFAR, TinyImageNet, and any folder of images.

Every image is handed out as float32 on the scale of [0, 1]: its stored value divided by a constant that the data
set names (16 for digits, 255 elsewhere). L2 radii are in units of that scale. At most a constant mean goes off,
which changes no distance; nothing is divided by a deviation.
"""

from __future__ import annotations

from pathlib import Path

from fastlip.data.batches import Batches, Share
from fastlip.data.cifar import cifar10, cifar100
from fastlip.data.digits import digits
from fastlip.data.folder import folder, tinyimagenet
from fastlip.data.images import Data, DataError, FolderImages, Images, TensorImages

__all__ = [
    "DATASETS",
    "Batches",
    "Data",
    "DataError",
    "FolderImages",
    "Images",
    "Share",
    "TensorImages",
    "cifar10",
    "cifar100",
    "digits",
    "folder",
    "load",
    "tinyimagenet",
]

_FROM_PATH = {"cifar10": cifar10, "cifar100": cifar100, "tinyimagenet": tinyimagenet, "folder": folder}
DATASETS = ("digits", *_FROM_PATH)


def load(name: str, path: str | Path = "", image_size: int = 0) -> Data:
    """Training and test images of one data set.

    Args:
        name: one of ``DATASETS``; ``"digits"`` comes with scikit-learn.
        path: where the files lie; every data set but digits needs it.
        image_size: images of a ``"folder"`` are resized and cropped to this side; 0 takes them as they are.

    Raises:
        DataError: (a ValueError) a missing, truncated or malformed file, named.
        ValueError: an unknown name, or an argument that this data set has no use for.
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
    if not str(path):
        raise ValueError(f"path='': data={name!r} needs the folder of its files")
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"{root}: {'is not a folder' if root.exists() else 'no such folder'} (data={name!r})")
    return folder(root, image_size) if name == "folder" else _FROM_PATH[name](root)
