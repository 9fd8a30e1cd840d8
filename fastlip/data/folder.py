"""Folders of image files: ``train/<class>`` and ``val/<class>`` (or ``test/<class>``), and TinyImageNet's layout."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from fastlip._files import printable
from fastlip.data.decoding import size_of
from fastlip.data.images import Data, DataError, FolderImages

_JPEG, _NETPBM = {".jfif", ".jpe", ".jpeg", ".jpg"}, {".pbm", ".pgm", ".pnm", ".ppm"}
_SUFFIXES = {".bmp", ".gif", ".png", ".tif", ".tiff", ".webp", *_JPEG, *_NETPBM}
_NOT_READ = {".avif", ".heic", ".heif", ".jp2", ".jxl", ".dcm", ".exr", ".nii", ".npy", ".npz", ".svg"}
# Folders that archives, network stores and Windows make; names of all other such folders begin with a dot.
_SYSTEM = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
_TINY_SIDE = 64
# The mean of ImageNet, which the published runs on TinyImageNet use.
_MEAN = (0.485, 0.456, 0.406)
_Labelled = list[tuple[str, int]]


def folder(root: str | Path, image_size: int = 0) -> Data:
    """Reads a folder of RGB images: ``train/<class>/**`` and ``val/<class>/**`` (or ``test/<class>/**``).

    Classes are the names of the subfolders of ``train``, sorted. Links are followed. Names that begin with a dot
    (``.ipynb_checkpoints``, ``._x.png``) and folders that systems make (``__MACOSX``) are ignored.
    ``fastlip.data.decoding.decode`` documents which image files are read. Files are decoded when they are needed.

    Args:
        root: the folder.
        image_size: side in pixels: the shorter side of an image is resized to it and the centre is cropped, and radii
            refer to the result. 0 leaves images as they are; all must then be square and of one size; default 0.

    Returns:
        The images, of shape (3, side, side).

    Raises:
        DataError: a missing folder or class, an image without a class, or a file that cannot be read; the message
            names it.

    Examples:
        >>> import os, tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for name in ("train/cat", "train/dog", "val/cat"):
        ...         os.makedirs(f"{root}/{name}")
        ...         Image.new("RGB", (32, 32)).save(f"{root}/{name}/0.png")
        ...     print(fastlip.data.folder(root))
        tmp...: 2 training and 1 test images, 3x32x32, 2 classes, values / 255 in [0, 1]
    """
    root = Path(root)
    classes = _classes(root / "train")
    test = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    if test is None:
        raise DataError(f"{root}: no subfolder val or test")
    unknown = sorted(set(_subfolders(test)) - set(classes))
    if unknown:
        raise DataError(f"{test / unknown[0]}: no such class in {root / 'train'}")
    for split in (root / "train", test):
        if loose := _loose(split):
            raise DataError(f"{loose}: an image outside of the classes' folders has no label")
    training = _by_class(root / "train", classes, all_classes=True)
    side = image_size or _side(training[0][0])
    return _data(
        root.name,
        training,
        _by_class(test, classes, all_classes=False),
        classes,
        side,
        resize=bool(image_size),
    )


def tinyimagenet(root: str | Path) -> Data:
    """Reads TinyImageNet as distributed: ``train/<wnid>/images``, ``val/images`` and ``val/val_annotations.txt``.

    A validation folder that was rearranged into one subfolder per class is read as well.

    Args:
        root: the folder of ``train`` and ``val``, or the one above ``tiny-imagenet-200``.

    Returns:
        100000 training and 10000 test images of shape (3, 64, 64) in 200 classes.

    Raises:
        DataError: a missing or malformed file; the message names it.

    Examples:
        >>> fastlip.data.tinyimagenet("nowhere")
        Traceback (most recent call last):
        fastlip.data.decoding.DataError: nowhere/train: no such folder
    """
    root = Path(root)
    if not (root / "train").is_dir() and (root / "tiny-imagenet-200").is_dir():
        root = root / "tiny-imagenet-200"
    classes = _classes(root / "train")
    annotations = root / "val" / "val_annotations.txt"
    if annotations.is_file():
        test = _annotated(annotations, {name: label for label, name in enumerate(classes)})
    else:
        test = _by_class(root / "val", classes, all_classes=False)
    return _data(
        "tinyimagenet",
        _by_class(root / "train", classes, all_classes=True),
        test,
        classes,
        _TINY_SIDE,
        resize=False,
    )


def _loose(split: Path) -> str:
    """Path of an image file that lies directly in a split's folder, or an empty string."""
    files = (entry for entry in _visible(str(split)) if os.path.splitext(entry.name)[1].lower() in _SUFFIXES)
    return next((entry.path for entry in files if entry.is_file()), "")


def _classes(train: Path) -> tuple[str, ...]:
    """The class names: the subfolders of the training set, at least two."""
    if not train.is_dir():
        raise DataError(f"{train}: no such folder")
    classes = _subfolders(train)
    if len(classes) < 2:
        raise DataError(f"{train}: got {len(classes)} subfolders, expected one for each of at least two classes")
    return classes


def _by_class(split: Path, classes: tuple[str, ...], *, all_classes: bool) -> _Labelled:
    """The images of each class's folder, with the class's number; with all_classes every class must have some."""
    images: _Labelled = []
    for label, name in enumerate(classes):
        files = sorted(_image_files(split / name))
        if all_classes and not files:
            raise DataError(f"{split / name}: no images of class {printable(name)!r}")
        images += [(file, label) for file in files]
    if not images:
        raise DataError(f"{split}: no images in subfolders named as the classes")
    return images


def _subfolders(folder: Path) -> tuple[str, ...]:
    """Names of the subfolders, sorted."""
    return tuple(sorted(entry.name for entry in _visible(str(folder)) if entry.is_dir()))


def _image_files(folder: Path) -> list[str]:
    """All images below a folder, through links too; none if there is no such folder."""
    found: list[str] = []
    if folder.is_dir():
        _collect(str(folder), (), found)
    return found


def _collect(folder: str, above: tuple[tuple[int, int], ...], found: list[str]) -> None:
    """Appends the images below a folder to found; above identifies the folders that lead to it."""
    # Strings and not Paths: a million Paths would take seconds and gigabytes.
    here = os.stat(folder)
    if (here.st_dev, here.st_ino) in above:
        raise DataError(f"{folder}: a link that leads back to a folder above it")
    for entry in _visible(folder):
        suffix = os.path.splitext(entry.name)[1].lower()
        if entry.is_dir():
            _collect(entry.path, (*above, (here.st_dev, here.st_ino)), found)
        elif suffix in _NOT_READ:
            raise DataError(f"{entry.path}: images of this format are not read; convert it to PNG or JPEG")
        elif suffix in _SUFFIXES:
            if not entry.is_file():
                raise DataError(f"{entry.path}: is not a regular file")
            found.append(entry.path)


def _visible(folder: str) -> list[os.DirEntry[str]]:
    """The entries of a folder, without those that file managers, notebooks and systems leave in it."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in _SYSTEM]
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None
    for entry in visible:
        if entry.is_symlink() and not os.path.exists(entry.path):
            raise DataError(f"{entry.path}: a broken link to {os.readlink(entry.path)}")
    return visible


def _annotated(annotations: Path, labels: dict[str, int]) -> _Labelled:
    """The validation images that an annotation file lists, with the numbers of their classes."""
    images: _Labelled = []
    for number, line in enumerate(annotations.read_text(encoding="utf-8", errors="surrogateescape").splitlines(), 1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in labels:
            raise DataError(f"{annotations}:{number}: expected 'file<tab>class<tab>...', got {line[:60]!r}")
        if name in ("", "..") or any(mark in name for mark in "/\\\0"):
            raise DataError(f"{annotations}:{number}: expected the name of a file in images/, got {name[:60]!r}")
        file = annotations.parent / "images" / name
        if not file.is_file():
            raise DataError(f"{file}: no such file, named in {annotations}:{number}")
        images.append((str(file), labels[wnid]))
    if not images:
        raise DataError(f"{annotations}: names no images")
    return images


def _side(file: str) -> int:
    """The side of a square image; DataError if it is not square."""
    width, height = size_of(file)
    if width != height:
        raise DataError(f"{file}: got {width}x{height} pixels, expected a square; give an image size to crop to one")
    return width


def _data(name: str, train: _Labelled, test: _Labelled, classes: tuple[str, ...], side: int, *, resize: bool) -> Data:
    """The data set of these files; class names are made printable."""
    splits = []
    for labelled in (train, test):
        files = [file for file, _ in labelled]
        splits.append(FolderImages(files, torch.tensor([label for _, label in labelled]), side, resize))
    names = tuple(map(printable, classes))
    return Data(printable(name), splits[0], splits[1], names, (3, side, side), 255.0, _MEAN)
