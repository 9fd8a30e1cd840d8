"""What the runs of a study have in common, kept in its folder as study.json."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fastlip._files import read_json, write_json
from fastlip.kernels.common.dispatch import check_backend
from fastlip.models import METHODS, SIZES
from fastlip.training.recipe import Recipe
from fastlip.training.recipe_files import default_recipe

FILE = "study.json"
# Fields of a recipe that the study decides itself.
DECIDED = ("model", "method", "size", "backend", "epochs")
# What may differ when a study goes on: where the files of its data are.
_MOVABLE = ("path",)
# All default runs on digits share so many seconds of training, so that the whole stays below five minutes.
_SHARED_BY_DIGITS = 180.0
# In so short a time the published depth of five would end before some methods have learnt anything.
_ON_DIGITS = {"layers_per_block": 2}
_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}


class Contender(NamedTuple):
    """One run of a study."""

    method: str
    size: str
    backend: str

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.method}-{self.size}-{self.backend}"


@dataclass(frozen=True)
class Settings:
    """Budget, search and recipe of a study.

    Args:
        budget: seconds of training steps for each run.
        search: random pairs of learning rate and weight decay tried for each method and size; 0: the recipe's own.
        options: fields of the recipe that are given; the rest is the recipe of the data set and method.

    Raises:
        ValueError: a budget that is not positive, a negative search, or both a search and what it searches for.
    """

    budget: float
    search: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not 0 < self.budget < math.inf:
            raise ValueError(f"budget={self.budget:g}: must be above 0 seconds")
        if self.search < 0:
            raise ValueError(f"search={self.search}: must be at least 0")
        for name in ("lr", "weight_decay"):
            if self.search and name in self.options:
                raise ValueError(f"{name}={self.options[name]!r}: given, but search={self.search} looks for it")

    def recipe(self, contender: Contender, **decided: Any) -> Recipe:
        """The contender's recipe, with these fields decided."""
        return default_recipe({**self.options, **contender._asdict(), **decided})

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"budget": self.budget, "search": self.search, "options": dict(self.options)}


def contenders_of(
    methods: Sequence[str], sizes: Sequence[str], backends: Sequence[str], data: str
) -> list[Contender]:
    """Every combination; by default all methods, XS, ``auto``, and on digits ``reference`` beside it.

    Raises ValueError for a name that is not known.
    """
    for what, given, allowed in (("method", methods, METHODS), ("size", sizes, tuple(SIZES))):
        for name in given:
            if name not in allowed:
                raise ValueError(f"{what}={name!r}: allowed are {', '.join(map(repr, allowed))}")
    backends = backends or (("auto", "reference") if data == "digits" else ("auto",))
    for backend in backends:
        check_backend(backend)
    groups = ((method, size) for size in sizes or ("XS",) for method in methods or METHODS)
    return list(dict.fromkeys(Contender(*group, backend) for group in groups for backend in backends))


def default_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The given fields of the recipe, and those that a study of digits has of its own."""
    return {**(_ON_DIGITS if given.get("data", "digits") == "digits" else {}), **given}


def default_budget(data: str, runs: int) -> float:
    """Seconds for each of so many runs on digits; ValueError for data that need hours."""
    if data != "digits":
        raise ValueError(f"budget: data={data!r} needs one: how long each run may train, such as 2h")
    return round(_SHARED_BY_DIGITS / runs, 1)


def seconds_of(text: str) -> float:
    """A duration such as 90, 90s, 15m or 2h in seconds; ValueError if it is none."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(s|m|min|h|)\s*", text)
    if found is None:
        raise ValueError(f"budget={text!r}: expected a duration such as 20, 20s, 15m or 2h")
    return float(found[1]) * _UNITS[found[2]]


def load(folder: Path) -> Settings:
    """The settings of the study in this folder; ValueError where there is none or it cannot be read."""
    file = folder / FILE
    if not file.is_file():
        raise ValueError(f"{folder}: exists and is no study (no {FILE}); name another folder")
    try:
        return Settings(**read_json(file)["settings"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: damaged ({type(error).__name__}: {error})") from None


def save(folder: Path, settings: Settings) -> None:
    """Makes the study's folder with its settings."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, {"settings": settings.to_dict()})


def continued(
    folder: Path, kept: Settings, budget: float | None, search: int | None, options: Mapping[str, Any]
) -> Settings:
    """The settings of a study that goes on; ValueError names the first given one that it contradicts."""
    given = {**options, **{k: v for k, v in (("budget", budget), ("search", search)) if v is not None}}
    have = {**kept.options, "budget": kept.budget, "search": kept.search}
    for name, value in given.items():
        if name in _MOVABLE or value == have.get(name):
            continue
        had = f"has {have[name]!r}" if name in have else "has the recipe's"
        raise ValueError(f"{name}={value!r}: the study in {folder} {had} and keeps it; name another folder")
    moved = {name: value for name, value in options.items() if name in _MOVABLE}
    return Settings(kept.budget, kept.search, {**kept.options, **moved})
