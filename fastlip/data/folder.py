"""Folders of image files: ``train/<class>`` and ``val/<class>`` (or ``test``), and TinyImageNet's layout."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from fastlip._extras import needed_for
from fastlip.data.images import Data, DataError, FolderImages

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_TINY_SIDE = 64
# Of ImageNet's photographs, as the published runs on TinyImageNet have it.
_MEAN = (0.485, 0.456, 0.406)
_Labelled = list[tuple[str, int]]


def folder(root: Path, image_size: int = 0) -> Data:
    """Any folder of RGB images: ``train/<class>/**`` and ``val/<class>/**`` (or ``test/``).

    Classes are the names of train's subfolders, sorted. With image_size = 0 all images must be square and of
    one size; otherwise their shorter side is resized to it and the centre cropped: radii refer to the result.
    """
    classes = _classes(root / "train")
    test = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    if test is None:
        raise DataError(f"{root}: no subfolder val or test")
    unknown = sorted({item.name for item in test.iterdir() if item.is_dir()} - set(classes))
    if unknown:
        raise DataError(f"{test / unknown[0]}: no such class in {root / 'train'}")
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


def _classes(train: Path) -> tuple[str, ...]:
    if not train.is_dir():
        raise DataError(f"{train}: no such folder")
    classes = tuple(sorted(item.name for item in train.iterdir() if item.is_dir()))
    if len(classes) < 2:
        raise DataError(f"{train}: got {len(classes)} subfolders, expected one for each of at least two classes")
    return classes


def _by_class(split: Path, classes: tuple[str, ...], *, all_classes: bool) -> _Labelled:
    images: _Labelled = []
    for label, name in enumerate(classes):
        files = sorted(_image_files(split / name))
        if all_classes and not files:
            raise DataError(f"{split / name}: no images of class {name!r}")
        images += [(file, label) for file in files]
    if not images:
        raise DataError(f"{split}: no images in subfolders named as the classes")
    return images


def _image_files(folder: Path) -> list[str]:
    # Strings: at a million files, paths would take seconds and gigabytes.
    found = os.walk(folder)
    return [
        os.path.join(here, file)
        for here, _, files in found
        for file in files
        if os.path.splitext(file)[1].lower() in _SUFFIXES
    ]


def _annotated(annotations: Path, labels: dict[str, int]) -> _Labelled:
    images: _Labelled = []
    for number, line in enumerate(annotations.read_text(errors="replace").splitlines(), 1):
        name, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in labels:
            raise DataError(f"{annotations}:{number}: expected 'file<tab>class<tab>...', got {line[:60]!r}")
        file = annotations.parent / "images" / name
        if not file.is_file():
            raise DataError(f"{file}: no such file, named in {annotations}:{number}")
        images.append((str(file), labels[wnid]))
    if not images:
        raise DataError(f"{annotations}: names no images")
    return images


def _side(file: str) -> int:
    with needed_for("image files"):
        from PIL import Image

    try:
        with Image.open(file) as image:
            width, height = image.size
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{file}: cannot be decoded as an image ({error})") from None
    if width != height:
        raise DataError(f"{file}: got {width}x{height} pixels, expected a square; give an image size to crop to one")
    return width


def _data(name: str, train: _Labelled, test: _Labelled, classes: tuple[str, ...], side: int, *, resize: bool) -> Data:
    splits = []
    for labelled in (train, test):
        files = [file for file, _ in labelled]
        splits.append(FolderImages(files, torch.tensor([label for _, label in labelled]), side, resize))
    return Data(name, splits[0], splits[1], classes, (3, side, side), 255.0, _MEAN)
