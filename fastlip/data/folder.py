"""Folders of image files: ``train/<class>`` and ``val/<class>`` (or ``test``), and TinyImageNet's layout."""

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
# Folders of archives, network stores and Windows; all other such folders and files have names that begin with a dot.
_SYSTEM = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
_TINY_SIDE = 64
# Of ImageNet's photographs, as the published runs on TinyImageNet have it.
_MEAN = (0.485, 0.456, 0.406)
_Labelled = list[tuple[str, int]]


def folder(root: Path, image_size: int = 0) -> Data:
    """Any folder of RGB images: ``train/<class>/**`` and ``val/<class>/**`` (or ``test/``).

    Classes are the names of train's subfolders, sorted. Links are followed; names that begin with a dot
    (``.ipynb_checkpoints``, ``._x.png``) and folders that systems make (``__MACOSX``) are left out.
    With image_size = 0 all images must be square and of one size; otherwise their shorter side is resized to it and
    the centre cropped: radii refer to the result. What an image file may be: :func:`fastlip.data.decoding.decode`.
    """
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


def tinyimagenet(root: Path) -> Data:
    """TinyImageNet as distributed: ``train/<wnid>/images``, ``val/images`` and ``val/val_annotations.txt``.

    A validation folder rearranged into one subfolder per class is read as well.
    """
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
    """An image file directly in a split's folder, or an empty string."""
    files = (entry for entry in _visible(str(split)) if os.path.splitext(entry.name)[1].lower() in _SUFFIXES)
    return next((entry.path for entry in files if entry.is_file()), "")


def _classes(train: Path) -> tuple[str, ...]:
    if not train.is_dir():
        raise DataError(f"{train}: no such folder")
    classes = _subfolders(train)
    if len(classes) < 2:
        raise DataError(f"{train}: got {len(classes)} subfolders, expected one for each of at least two classes")
    return classes


def _by_class(split: Path, classes: tuple[str, ...], *, all_classes: bool) -> _Labelled:
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
    return tuple(sorted(entry.name for entry in _visible(str(folder)) if entry.is_dir()))


def _image_files(folder: Path) -> list[str]:
    """All images below a folder, through links too; none where there is no such folder."""
    found: list[str] = []
    if folder.is_dir():
        _collect(str(folder), (), found)
    return found


def _collect(folder: str, above: tuple[tuple[int, int], ...], found: list[str]) -> None:
    # Strings: at a million files, paths would take seconds and gigabytes.
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
    """What a folder holds, without what file managers, notebooks and systems leave in it."""
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
    width, height = size_of(file)
    if width != height:
        raise DataError(f"{file}: got {width}x{height} pixels, expected a square; give an image size to crop to one")
    return width


def _data(name: str, train: _Labelled, test: _Labelled, classes: tuple[str, ...], side: int, *, resize: bool) -> Data:
    splits = []
    for labelled in (train, test):
        files = [file for file, _ in labelled]
        splits.append(FolderImages(files, torch.tensor([label for _, label in labelled]), side, resize))
    names = tuple(map(printable, classes))
    return Data(printable(name), splits[0], splits[1], names, (3, side, side), 255.0, _MEAN)
