"""Data sets of one's own: data sets of torch or Hugging Face, or tensors, with their labels."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fastlip._extras import is_of_an_extra, needed_for
from fastlip.data.images import Data, DataError, Images, TensorImages
from fastlip.inspection.loading import IMAGE_KEYS, LABEL_KEYS, collated, entry_of, is_pair
from fastlip.inspection.standardised import remark

Array = Tensor | np.ndarray


class Samples(Protocol):
    """Protocol of a map-style data set: torch's ``Dataset`` and Hugging Face's have these methods."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


LabelledSet = tuple[Array, Array] | Samples
_PLACE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_CHECKED = 64  # images that are examined before training


class DatasetImages:
    """The samples of a map-style data set as images.

    Args:
        samples: with a length, and at each index a tuple (image, label, ...) or a dict with one key of images and one
            of labels. An image is a tensor or an array (c, h, w) or (h, w), or a Pillow image.
        what: names the set in messages.
    """

    def __init__(self, samples: Any, what: str):
        self.samples = samples
        self.what = what
        self.labels = _labels(self._known_labels(), what)

    def pixels(self, indices: Tensor) -> Tensor:
        """Returns images (b, c, h, w): uint8, or float32 in [0, 1].

        Args:
            indices: indices of the images, int64 (b,).
        """
        images = [self._parts(index)[0] for index in indices.tolist()]
        try:
            return _with_channel(collated(images))
        except (TypeError, ValueError) as error:
            raise DataError(f"{self.what}: {error}") from None

    def _known_labels(self) -> Any:
        """The labels of all samples: from the data set's own list if it has one, otherwise sample by sample."""
        for name in ("targets", "labels"):
            found = getattr(self.samples, name, None)
            if found is not None and not callable(found) and len(found) == len(self.samples):
                return found
        return [self._parts(index)[1] for index in range(len(self.samples))]

    def _parts(self, index: int) -> tuple[Any, Any]:
        sample = self.samples[index]
        if isinstance(sample, Mapping):
            keys = ("images", IMAGE_KEYS), ("labels", LABEL_KEYS)
            return tuple(entry_of(f"{self.what}: sample {index}", sample, *pair) for pair in keys)  # type: ignore[return-value]
        if isinstance(sample, (tuple, list)) and len(sample) > 1:
            return sample[0], sample[1]
        raise DataError(
            f"{self.what}: sample {index} is of type {type(sample).__name__}, expected (image, label) or a dict"
        )


def from_datasets(
    train: LabelledSet, test: LabelledSet, *, name: str = "own", classes: Sequence[str] | None = None
) -> Data:
    """Makes a data set of two sets of labelled images.

    Each set is a pair of tensors or arrays (images, labels), a ``torch.utils.data.Dataset``, or a data set of Hugging
    Face. Images are (c, h, w) or (h, w), all of one square size: uint8, which are divided by 255, or floating-point
    numbers in [0, 1], or Pillow images. Labels are class numbers from 0, or one-hot rows.

    Args:
        train: training images with their labels.
        test: test images with their labels.
        name: name of the data set; default ``"own"``.
        classes: names of the classes; None: those in ``train.classes``, otherwise their numbers.

    Returns:
        The data set, for :class:`fastlip.data.Batches` and training.

    Raises:
        DataError: (a ValueError) images of several sizes, on another scale, standardised or not square; labels that
            are no class numbers, or that differ in number from the images.

    Examples:
        >>> images, labels = torch.rand(32, 1, 8, 8), torch.arange(32) % 4
        >>> print(fastlip.data.from_datasets((images[:24], labels[:24]), (images[24:], labels[24:])))
        own: 24 training and 8 test images, 1x8x8, 4 classes, values / 1 in [0, 1]
    """
    sets = [_images(data, what) for data, what in ((train, "train"), (test, "test"))]
    first, other = (_checked(images, what) for images, what in zip(sets, ("train", "test"), strict=True))
    if first.shape[1:] != other.shape[1:] or first.dtype != other.dtype:
        shapes = [f"{tuple(images.shape[1:])} of {images.dtype}" for images in (other, first)]
        raise DataError(f"test: has images {shapes[0]}, train {shapes[1]}")
    count = max(int(images.labels.max()) for images in sets) + 1
    names = classes if classes is not None else getattr(train, "classes", None) or [str(k) for k in range(count)]
    if len(names) < count:
        raise DataError(f"classes: got {len(names)} names, the labels go up to {count - 1}")
    divisor = _divisor(first)
    mean = tuple(round(value, 2) for value in (first.double().mean((0, 2, 3)) / divisor).tolist())
    return Data(name, *sets, tuple(map(str, names)), tuple(first.shape[1:]), divisor, mean)  # type: ignore[arg-type]


def is_place(text: str) -> bool:
    """Whether a text has the form ``module:function``."""
    return _PLACE.fullmatch(text) is not None


def from_function(place: str) -> Data:
    """The data set that ``module:function`` returns: a ``Data``, or a pair (train, test) for :func:`from_datasets`.

    Modules in the current folder are found too.

    Raises:
        DataError: no such module or function, one that fails to import or needs arguments, or another result.
    """
    found = called(place, "data")
    if isinstance(found, Data):
        return found
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise DataError(
            f"data={place!r}: got {type(found).__name__}, expected a fastlip.data.Data or a pair (train, test) of"
            " data sets"
        )
    return from_datasets(*found, name=place)


def called(place: str, field: str) -> Any:
    """The result of the function ``module:function``.

    Args:
        place: the module, which may lie in the current folder, and its function.
        field: name of the option that has the place, for messages.

    Raises:
        DataError: no such module or function, one that fails to import, or a function that needs arguments.
        MissingPackageError: it needs a package of an extra.
    """
    with needed_for(f"{field}={place!r}"):
        return _function_at(place, field)()


def _function_at(place: str, field: str) -> Any:
    module_name, _, name = place.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        if is_of_an_extra(error):
            raise
        raise DataError(f"{field}={place!r}: cannot import {module_name!r}: {error}") from None
    finally:
        sys.path.remove(here)
    function = getattr(module, name, None)
    if not callable(function):
        raise DataError(f"{field}={place!r}: {module_name!r} has no function {name!r}")
    _require_no_arguments(function, f"{field}={place!r}")
    return function


def _require_no_arguments(function: Any, where: str) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # a function in C may have none
        return
    needed = [
        item.name
        for item in signature.parameters.values()
        if item.default is item.empty and item.kind not in (item.VAR_POSITIONAL, item.VAR_KEYWORD)
    ]
    if needed:
        raise DataError(
            f"{where}: needs arguments ({', '.join(needed)}), expected a function that is called without any"
        )


def images_of(data: Any, what: str) -> tuple[Images, float]:
    """One set of labelled images, and the divisor that puts its stored values on the scale of [0, 1].

    Args:
        data: as each set of :func:`from_datasets`.
        what: names the set in messages.

    Raises:
        DataError: see :func:`from_datasets`.
    """
    images = _images(data, what)
    return images, _divisor(_checked(images, what))


def _divisor(pixels: Tensor) -> float:
    return 255.0 if pixels.dtype == torch.uint8 else 1.0


def _images(data: Any, what: str) -> Images:
    if is_pair(data):
        images, labels = data[0], data[1]
        if isinstance(images, np.ndarray):
            try:
                images = torch.from_numpy(np.array(images))  # a copy: the array may be read-only
            except TypeError as error:
                raise DataError(f"{what}: its images are no numbers: {error}") from None
        if len(images) != len(labels):
            raise DataError(f"{what}: got {len(images)} images and {len(labels)} labels")
        return TensorImages(_with_channel(images), _labels(labels, what))
    if isinstance(data, Tensor) or not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise DataError(
            f"{what}: got {type(data).__name__}, expected a pair (images, labels) or a data set with a length"
        )
    if len(data) == 0:
        raise DataError(f"{what}: has no images")
    return DatasetImages(data, what)


def _labels(labels: Any, what: str) -> Tensor:
    """Class numbers, int64 (n,); DataError for anything that is neither class numbers nor one-hot rows."""
    try:
        found = labels if isinstance(labels, Tensor) else torch.as_tensor(np.array(labels))
    except (TypeError, ValueError) as error:
        raise DataError(f"{what}: its labels are no numbers: {error}") from None
    if found.dim() == 2:
        one_hot = ((found == 0) | (found == 1)).all() and (found.sum(1) == 1).all()
        if not one_hot:
            raise DataError(f"{what}: its labels are soft; training and CRA need one class for each image")
        found = found.argmax(1)
    if found.dim() != 1 or not len(found) or not bool((found == found.long()).all()) or int(found.min()) < 0:
        raise DataError(f"{what}: its labels have shape {tuple(found.shape)} or are no class numbers from 0")
    return found.long()


def _with_channel(images: Tensor) -> Tensor:
    """Images (n, c, h, w); grey ones may come as (n, h, w). Floating-point numbers become float32."""
    images = images[:, None] if images.dim() == 3 else images
    return images.float() if images.is_floating_point() else images


def _checked(images: Images, what: str) -> Tensor:
    """The first images; DataError unless they are square images on the scale of [0, 1] or uint8."""
    first = images.pixels(torch.arange(min(_CHECKED, len(images.labels))))
    if first.dim() != 4 or first.shape[2] != first.shape[3]:
        raise DataError(f"{what}: has images of shape {tuple(first.shape[1:])}, expected (c, h, w) with h = w")
    if first.dtype == torch.uint8:
        return first
    if not first.is_floating_point():
        raise DataError(f"{what}: has images of {first.dtype}, expected uint8, or floating-point numbers in [0, 1]")
    low, high = first.amin().item(), first.amax().item()
    if not 0 <= low <= high <= 1:
        why = remark(first) or "radii are those of images in [0, 1]: put them on that scale"
        raise DataError(f"{what}: has values from {low:.4g} to {high:.4g}, expected [0, 1]; {why}")
    return first
