"""A training run in one frozen dataclass, validated, stored in checkpoints; its fields are the options."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from fastlip.data import DATASETS
from fastlip.ops._op import check_backend

LOSSES = ("offset-ce", "temperature-ce", "hkr")
MODELS = ("lip_conv_net", "sll_net")
SIZES = ("XS", "S", "M", "L", "XL")
# What may differ when a run is resumed or evaluated elsewhere: where things are, not what is computed.
MOVABLE = ("path", "device")


def _option(default: Any, help: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a run. ValueError names the field that is not allowed.

    The defaults are the comparison paper's recipe (Prach et al., CVPR 2024: SGD with momentum, OneCycle, offset
    cross-entropy with u = 2√2·36/255 and t = 1/4); :func:`default_recipe` adapts them to a data set and method.
    """

    data: str = _option("digits", "data set", choices=DATASETS)
    path: str = _option("", "folder of the data set's files")
    image_size: int = _option(0, "resize a folder's images to this side; 0: as stored", least=0)
    model: str = _option("lip_conv_net", "network; sll_net: that of the SLL paper", choices=MODELS)
    method: str = _option("aol", "parametrization of the layers (sll_net: sll)")
    size: str = _option("XS", "size of the network (sll_net: S to XL)", choices=SIZES)
    width: int = _option(0, "channels of the first block; 0: as the size says", least=0)
    layers_per_block: int = _option(5, "convolutions in each block of lip_conv_net", least=1)
    backend: str = _option("auto", "kernels: auto, reference, native or triton")
    epochs: int = _option(100, "passes over the training images", least=1)
    batch_size: int = _option(256, "images in a training step", least=1)
    lr: float = _option(0.1, "highest learning rate of the OneCycle schedule", above=0)
    momentum: float = _option(0.9, "momentum of SGD", least=0, below=1)
    nesterov: bool = _option(False, "Nesterov's momentum")
    weight_decay: float = _option(0.0, "L2 penalty on all parameters", least=0)
    warmup: float = _option(0.3, "share of the steps in which the learning rate rises", above=0, below=1)
    loss: str = _option("offset-ce", "loss", choices=LOSSES)
    offset: float = _option(2**1.5 * 36 / 255, "u of offset-ce: the margin that training asks for", least=0)
    temperature: float = _option(0.25, "t of offset-ce, and 1 / tau of temperature-ce", above=0)
    alpha: float = _option(0.9, "share of the hinge in hkr", least=0, most=1)
    min_margin: float = _option(1.0, "margin of the hinge in hkr", above=0)
    center: bool = _option(False, "subtract the data set's mean (distances stay as they are)")
    shift: int = _option(0, "augmentation: random shifts of up to this many pixels", least=0)
    flip: bool = _option(False, "augmentation: random horizontal flips")
    seed: int = _option(0, "seed of initialisation, order and augmentation", least=0, below=2**63)
    deterministic: bool = _option(False, "deterministic algorithms only (always so on a CPU)")
    device: str = _option("auto", "auto, cpu, cuda, cuda:1, ...")
    channels_last: bool = _option(False, "channels-last images and weights")
    threads: int = _option(0, "CPU threads; 0: as torch chooses", least=0)

    def __post_init__(self):
        for item in fields(self):
            _check_type(item.name, getattr(self, item.name), type(item.default))
            _check_value(item.name, getattr(self, item.name), item.metadata)
        check_backend(self.backend)
        if self.model == "sll_net" and self.method != "sll":
            raise ValueError(f"method={self.method!r}: model='sll_net' has layers of 'sll' only")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=True: needs momentum above 0")
        if self.data == "digits" and self.path:
            raise ValueError(f"path={self.path!r}: data='digits' comes with scikit-learn and takes no path")
        if self.data != "digits" and not self.path:
            raise ValueError(f"path='': data={self.data!r} needs the folder of its files")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON and checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The recipe with these fields, defaults for the rest; ValueError names a field that is unknown."""
        if unknown := set(values) - {item.name for item in fields(cls)}:
            raise ValueError(f"recipe: unknown fields: {', '.join(sorted(unknown))}")
        return cls(**values)

    def refuse_changes(self, given: Mapping[str, Any]) -> None:
        """Raises ValueError where a given option contradicts this recipe: a resumed run keeps its own."""
        for name, value in given.items():
            if name not in MOVABLE and value != getattr(self, name):
                raise ValueError(f"{name}={value!r}: the run has {getattr(self, name)!r} and keeps it")


def default_recipe(given: Mapping[str, Any]) -> Recipe:
    """The recipe for the given fields, with the defaults of their data set, network and method for the rest."""
    defaults = {item.name: item.default for item in fields(Recipe)}
    data, model = (given.get(name, defaults[name]) for name in ("data", "model"))
    of_model = {**_SLL_NET, **(_SLL_NET_ON_DIGITS if data == "digits" else {})} if model == "sll_net" else {}
    method = {**defaults, **of_model, **given}["method"]
    merged = {**defaults, **_OF_DATA.get(data, {}), **_of_method(data, method), **of_model, **given}
    return Recipe.from_dict(merged)


# 1437 training images of 8x8 pixels: steps count for more than large batches, threads would wait for each other,
# and a low temperature reaches in 30 epochs what the published 1/4 does not in 60.
_DIGITS = {"epochs": 30, "batch_size": 64, "lr": 0.1, "temperature": 0.05, "center": True, "threads": 1}
_PHOTOGRAPHS = {"center": True, "flip": True}
_OF_DATA: dict[str, dict[str, Any]] = {
    "digits": _DIGITS,
    "cifar10": {**_PHOTOGRAPHS, "shift": 4},
    "cifar100": {**_PHOTOGRAPHS, "shift": 4},
    "tinyimagenet": {**_PHOTOGRAPHS, "shift": 8},
    "folder": _PHOTOGRAPHS,
}
_OF_DIGITS_METHOD: dict[str, dict[str, Any]] = {
    "aoc": {"lr": 0.02, "temperature": 0.1},
    "bcop": {"lr": 0.02, "temperature": 0.1},
    "cayley": {"lr": 0.02, "temperature": 0.1},
    "cpl": {"lr": 0.3},
    "sll": {"lr": 1.5},
    "soc": {"temperature": 0.1},
}
# The paper's loss: for a head with unit rows its offset is 3 / sqrt(2).
_SLL_NET = {"method": "sll", "size": "S", "offset": 3 / 2**0.5, "temperature": 0.25}
_SLL_NET_ON_DIGITS = {"offset": Recipe.offset, "temperature": 0.05, "lr": 1.0}
# (lr, weight decay) that the comparison paper's random search found for the XS network on CIFAR-10, rounded, from
# the settings published with its code.
_SEARCHED = {
    "aol": (0.057, 3.7e-5),
    "bcop": (0.0065, 2.6e-4),
    "cayley": (0.017, 2.4e-5),
    "cpl": (0.034, 1.3e-4),
    "lot": (0.083, 4.1e-6),
    "sll": (0.091, 2.0e-5),
    "soc": (0.051, 7.2e-6),
}


def _of_method(data: str, method: str) -> dict[str, Any]:
    if data == "digits":
        return _OF_DIGITS_METHOD.get(method, {})
    return dict(zip(("lr", "weight_decay"), _SEARCHED[method], strict=True)) if method in _SEARCHED else {}


def _check_type(name: str, value: Any, kind: type) -> None:
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits:
        raise TypeError(f"{name}: got {value!r}, expected {kind.__name__}")


def _check_value(name: str, value: Any, rules: Mapping[str, Any]) -> None:
    if "choices" in rules and value not in rules["choices"]:
        raise ValueError(f"{name}={value!r}: allowed are {', '.join(map(repr, rules['choices']))}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value!r}: must be finite")
    if "least" in rules and value < rules["least"]:
        raise ValueError(f"{name}={value!r}: must be at least {rules['least']}")
    if "most" in rules and value > rules["most"]:
        raise ValueError(f"{name}={value!r}: must be at most {rules['most']}")
    if "above" in rules and value <= rules["above"]:
        raise ValueError(f"{name}={value!r}: must be above {rules['above']}")
    if "below" in rules and value >= rules["below"]:
        raise ValueError(f"{name}={value!r}: must be below {rules['below']}")
