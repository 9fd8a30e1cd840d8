"""The fields of a recipe that say what is trained on: data set and augmentation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

from fastlip.data.mixing import extra_size
from fastlip.data.operations import MOST_MAGNITUDE, AugmentName, AugmentPackage
from fastlip.data.own import is_place
from fastlip.training.field_rules import about
from fastlip.training.literals import DataName


@dataclass(frozen=True)
class DataFields:
    """The images, and how training changes them."""

    data: DataName | str = field(
        default="digits",
        metadata=about(
            "data.name",
            "data set; module:function is a function of your own that returns (train, test)",
            choices=get_args(DataName),
            other=is_place,
        ),
    )
    path: str = field(default="", metadata=about("data.path", "folder of the data set's files; npz: or the file"))
    image_size: int = field(
        default=0,
        metadata=about(
            "data.image_size",
            "side in pixels to which the images of a folder are resized; 0: as stored",
            least=0,
            most=2**14,
        ),
    )
    extra_data: str = field(
        default="",
        metadata=about(
            "data.extra",
            "second set of training images, such as generated ones: an .npz file, a .mat file of SVHN, or"
            " module:function",
        ),
    )
    extra_ratio: float = field(
        default=0.0,
        metadata=about("data.extra_ratio", "fraction of each batch that is of extra_data, below 1", least=0, below=1),
    )
    center: bool = field(
        default=False, metadata=about("data.center", "subtract the data set's mean, which changes no distance")
    )
    shift: int = field(
        default=0,
        metadata=about("data.shift", "augmentation: random shifts of up to this many pixels", least=0, most=2**14),
    )
    flip: bool = field(default=False, metadata=about("data.flip", "augmentation: random horizontal flips"))
    augment: AugmentName | str = field(
        default="none",
        metadata=about(
            "data.augment",
            "augmentation: random operations on the images; module:function is a function of your own",
            choices=get_args(AugmentName),
            other=is_place,
        ),
    )
    augment_by: AugmentPackage = field(
        default="torchvision",
        metadata=about(
            "data.augment_by",
            "package that computes the operations of augment",
            choices=get_args(AugmentPackage),
        ),
    )
    augment_operations: int = field(
        default=2,
        metadata=about("data.augment_operations", "operations of randaugment, 1 to 16", least=1, most=16),
    )
    augment_magnitude: int = field(
        default=9,
        metadata=about("data.augment_magnitude", "magnitude of randaugment, 0 to 30", least=0, most=MOST_MAGNITUDE),
    )
    augment_probability: float = field(
        default=1.0,
        metadata=about(
            "data.augment_probability", "fraction of images that augment changes, up to 1", above=0, most=1
        ),
    )

    def _check_data(self, batch_size: int) -> None:
        if self.data == "digits" and self.path:
            raise ValueError(f"path={self.path!r}: data='digits' comes with scikit-learn and takes no path")
        if is_place(self.data) and (self.path or self.image_size):
            name = "path" if self.path else "image_size"
            raise ValueError(f"{name}={getattr(self, name)!r}: the function of data={self.data!r} takes none")
        if bool(self.extra_data) != bool(self.extra_ratio):
            needed = "extra_ratio above 0" if self.extra_data else "extra_data"
            given = "extra_data" if self.extra_data else "extra_ratio"
            raise ValueError(f"{given}={getattr(self, given)!r}: needs {needed}")
        if self.extra_data:
            extra_size(batch_size, self.extra_ratio)
