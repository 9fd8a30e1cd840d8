"""A training run in one frozen dataclass, validated, stored in checkpoints; its fields are the options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from fastlip.data import DATASETS
from fastlip.kernels.common.dispatch import check_backend
from fastlip.losses import RECIPE_LOSSES
from fastlip.models import METHODS

LOSSES = tuple(RECIPE_LOSSES)
MODELS = ("lip_conv_net", "sll_net", "published_conv_net")
SIZES = ("XS", "S", "M", "L", "XL")
OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("onecycle", "triangular")
PRECISIONS = ("fp32", "bf16")
# What may differ when a run is resumed or evaluated elsewhere: where and how it runs, not what is computed.
MOVABLE = ("path", "device", "accumulate", "workers", "save_every", "share", "compile")


# The networks compute in float32: its largest number, and its smallest one of full precision.
_LARGEST, _SMALLEST = torch.finfo(torch.float32).max, torch.finfo(torch.float32).tiny


def _option(key: str, default: Any, help: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"key": key, "help": help, **metadata})


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a run. ValueError names the field that is not allowed.

    A recipe file (``fastlip/recipes/*.toml``, :mod:`fastlip.training.recipe_files`) has the same fields under the
    keys given here, ``optimizer.lr``; :func:`default_recipe` takes the one made for a data set, network and method.
    """

    data: str = _option("data.name", "digits", "data set", choices=DATASETS)
    path: str = _option("data.path", "", "folder of the data set's files")
    image_size: int = _option(
        "data.image_size", 0, "resize a folder's images to this side; 0: as stored", least=0, most=2**14
    )
    model: str = _option("model.name", "lip_conv_net", "network; sll_net: that of the SLL paper", choices=MODELS)
    method: str = _option(
        "model.method", "aol", f"parametrization of the layers: {', '.join(METHODS)} (sll_net: sll)"
    )
    size: str = _option("model.size", "XS", "size of the network (sll_net: S to XL)", choices=SIZES)
    width: int = _option("model.width", 0, "channels of the first block; 0: as the size says", least=0, most=2**16)
    layers_per_block: int = _option(
        "model.layers_per_block", 5, "convolutions in each block of lip_conv_net", least=1, most=1000
    )
    backend: str = _option("model.backend", "auto", "kernels: auto, reference, native or triton")
    epochs: float = _option(
        "schedule.epochs",
        100.0,
        "passes over the training images, to the nearest step (0.5: half of them)",
        above=0,
        most=1e9,
    )
    batch_size: int = _option(
        "schedule.batch_size", 256, "images in a training step, over all processes and parts", least=1, most=2**31 - 1
    )
    optimizer: str = _option("optimizer.name", "sgd", "optimiser", choices=OPTIMIZERS)
    lr: float = _option("optimizer.lr", 0.1, "highest learning rate of the schedule", above=0)
    momentum: float = _option("optimizer.momentum", 0.9, "momentum of SGD", least=0, below=1)
    nesterov: bool = _option("optimizer.nesterov", False, "Nesterov's momentum")
    beta1: float = _option("optimizer.beta1", 0.9, "Adam's decay of the mean gradient", least=0, below=1)
    beta2: float = _option("optimizer.beta2", 0.999, "Adam's decay of its square", least=0, below=1)
    weight_decay: float = _option("optimizer.weight_decay", 0.0, "L2 penalty on all parameters", least=0)
    schedule: str = _option("schedule.name", "onecycle", "schedule of the learning rate", choices=SCHEDULES)
    warmup: float = _option(
        "schedule.warmup", 0.3, "share of the steps in which onecycle's learning rate rises", above=0, below=1
    )
    loss: str = _option("loss.name", "offset-ce", "loss", choices=LOSSES)
    offset: float = _option(
        "loss.offset", 2**1.5 * 36 / 255, "margin that training asks for (u of offset-ce)", least=0
    )
    temperature: float = _option(
        "loss.temperature", 0.25, "temperature (t of offset-ce, 1 / tau of temperature-ce)", above=0
    )
    alpha: float = _option("loss.alpha", 0.9, "share of the hinge in hkr", least=0, most=1)
    min_margin: float = _option("loss.min_margin", 1.0, "margin of the hinge in hkr", above=0)
    center: bool = _option("data.center", False, "subtract the data set's mean (distances stay as they are)")
    shift: int = _option(
        "data.shift", 0, "augmentation: random shifts of up to this many pixels", least=0, most=2**14
    )
    flip: bool = _option("data.flip", False, "augmentation: random horizontal flips")
    seed: int = _option("run.seed", 0, "seed of initialisation, order and augmentation", least=0, below=2**63)
    deterministic: bool = _option("run.deterministic", False, "deterministic algorithms only (always so on a CPU)")
    device: str = _option("run.device", "auto", "where to run: auto, cpu, cuda or cuda:1")
    channels_last: bool = _option("run.channels_last", False, "channels-last images and weights")
    threads: int = _option("run.threads", 0, "CPU threads; 0: as torch chooses", least=0, most=1024)
    precision: str = _option(
        "run.precision", "fp32", "type of activations in training; weights stay in fp32", choices=PRECISIONS
    )
    accumulate: int = _option(
        "run.accumulate", 1, "parts in which each process takes its step's images", least=1, most=2**16
    )
    share: bool = _option(
        "run.share", False, "several processes: each computes the effective weights of a share of the layers"
    )
    compile: bool = _option("run.compile", False, "train through torch.compile")
    workers: int = _option("run.workers", 0, "processes that read images; 0: threads of this one", least=0, most=256)
    save_every: int = _option(
        "run.save_every", 0, "save every so many steps too; 0: after each epoch only", least=0, most=2**63 - 1
    )

    def __post_init__(self):
        for item in fields(self):
            as_type(item.name, getattr(self, item.name), type(item.default))
            check_value(item.name, getattr(self, item.name), item.metadata)
        check_backend(self.backend)
        if self.model == "sll_net" and self.method != "sll":
            raise ValueError(f"method={self.method!r}: model='sll_net' has layers of 'sll' only")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=True: needs momentum above 0")
        if self.accumulate > 1 and RECIPE_LOSSES[self.loss].whole_batch:
            raise ValueError(
                f"accumulate={self.accumulate}: loss={self.loss!r} compares the classes of a whole batch"
            )
        if self.share and self.compile:
            raise ValueError("share=True: compile=True compiles the computation of effective weights into the step")
        if self.data == "digits" and self.path:
            raise ValueError(f"path={self.path!r}: data='digits' comes with scikit-learn and takes no path")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON and checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe with these fields, defaults for the rest; ValueError names a field that is unknown."""
        if not isinstance(values, Mapping):
            raise TypeError(f"recipe: got {type(values).__name__}, expected names and values")
        if unknown := set(values) - {item.name for item in fields(cls)}:
            raise ValueError(f"recipe: unknown fields: {', '.join(sorted(map(str, unknown)))}")
        return cls(**values)

    def refuse_changes(self, given: Mapping[str, Any]) -> None:
        """Raises ValueError where a given option contradicts this recipe: a resumed run keeps its own."""
        for name, value in given.items():
            if name not in MOVABLE and value != getattr(self, name):
                raise ValueError(f"{name}={_shown(value)}: the run has {_shown(getattr(self, name))} and keeps it")


# The keys of the table [loss] of a recipe file, with the fields of Recipe that hold their values.
LOSS_KEYS = {item.metadata["key"]: item.name for item in fields(Recipe) if item.metadata["key"].startswith("loss.")}


def default_recipe(given: Mapping[str, Any], source: str | Path = "") -> Recipe:
    """The recipe for the given fields; the rest is that of a recipe file.

    Args:
        given: fields that are decided.
        source: a recipe's name (``fastlip.training.recipe_files.names()``) or file; by default the recipe that is
            there for the data set and network.

    Raises:
        ValueError: a value that is not allowed, naming its field, or its key and file; files of data without path.
        TypeError: a given value of another type.
    """
    from fastlip.training.recipe_files import default_name, read

    recipe = Recipe.from_dict(read(source or default_name(given)).values_for(given))
    if recipe.data != "digits" and not recipe.path:
        raise ValueError(f"path='': data={recipe.data!r} needs the folder of its files")
    return recipe


def _shown(value: Any) -> str:
    """A field's value for messages: whole numbers without a point."""
    return repr(int(value) if isinstance(value, float) and value.is_integer() else value)


def as_type(name: str, value: Any, kind: type) -> Any:
    """The value, an int as a float where one is expected; TypeError if it is of another type."""
    if kind is float and type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"{name}: got an integer of {value.bit_length()} bits, expected a float32") from None
    if type(value) is not kind:
        raise TypeError(f"{name}: got {value!r}, expected {kind.__name__}")
    return value


def check_value(name: str, value: Any, rules: Mapping[str, Any]) -> None:
    """ValueError unless the value keeps the rules of its field: choices, least, most, above, below; finite."""
    if "choices" in rules and value not in rules["choices"]:
        raise ValueError(f"{name}={value!r}: allowed are {', '.join(map(repr, rules['choices']))}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value!r}: must be finite")
    if type(value) in (int, float) and value and not _SMALLEST <= abs(value) <= _LARGEST:
        raise ValueError(f"{name}={value!r}: must be 0 or of a size from {_SMALLEST:.3g} to {_LARGEST:.3g} (float32)")
    if "least" in rules and value < rules["least"]:
        raise ValueError(f"{name}={value!r}: must be at least {rules['least']}")
    if "most" in rules and value > rules["most"]:
        raise ValueError(f"{name}={value!r}: must be at most {rules['most']}")
    if "above" in rules and value <= rules["above"]:
        raise ValueError(f"{name}={value!r}: must be above {rules['above']}")
    if "below" in rules and value >= rules["below"]:
        raise ValueError(f"{name}={value!r}: must be below {rules['below']}")
