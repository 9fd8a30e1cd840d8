"""The settings that the runs of a study have in common, kept in its folder as study.json."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

from fastlip._files import read_json, write_json
from fastlip.kernels.common.dispatch import check_backend
from fastlip.kernels.common.literals import Backend
from fastlip.models import METHODS, SIZES
from fastlip.models.literals import MethodName, Size
from fastlip.training.recipe import Recipe
from fastlip.training.recipe_files import default_recipe

FILE = "study.json"
# Fields of the recipe that the study decides.
DECIDED = ("model", "method", "size", "backend", "epochs")
# A field that may differ when a study is resumed: the place of its data.
_MOVABLE = ("path",)
# Seconds of training of all default runs on digits together, so that the study takes less than five minutes.
_SHARED_BY_DIGITS = 180.0
# With the published depth of five some methods would learn nothing in so short a time.
_ON_DIGITS = {"layers_per_block": 2}
_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}


class Contender(NamedTuple):
    """One run of a study."""

    method: MethodName
    size: Size
    backend: Backend

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.method}-{self.size}-{self.backend}"

    @classmethod
    def named(cls, name: str) -> Contender:
        """The contender whose folder has this name."""
        method, size, backend = name.rsplit("-", 2)
        return cls(cast(MethodName, method), cast(Size, size), cast(Backend, backend))


@dataclass(frozen=True)
class Settings:
    """Budget, search and recipe of a study.

    Args:
        budget: seconds of training steps for each run.
        search: number of random pairs of learning rate and weight decay tried for each method and size; 0: none, the
            recipe's own pair is used.
        options: given fields of the recipe; the other fields are those of the data set's and method's recipe.

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
        """The contender's recipe with these fields."""
        return default_recipe({**self.options, **contender._asdict(), **decided})

    def to_dict(self) -> dict[str, Any]:
        """The settings as values that JSON can hold."""
        return {"budget": self.budget, "search": self.search, "options": dict(self.options)}


def contenders_of(
    methods: Sequence[MethodName], sizes: Sequence[Size], backends: Sequence[Backend], data: str
) -> list[Contender]:
    """Returns every combination; by default all methods, XS and ``auto``, and on digits ``reference`` too.

    Raises:
        ValueError: an unknown name.
    """
    for what, given, allowed in (("method", methods, METHODS), ("size", sizes, tuple(SIZES))):
        for name in given:
            if name not in allowed:
                raise ValueError(f"{what}={name!r}: allowed are {', '.join(map(repr, allowed))}")
    backends = backends or (("auto", "reference") if data == "digits" else ("auto",))
    for backend in backends:
        check_backend(backend)
    default_size: tuple[Size, ...] = ("XS",)
    groups = itertools.product(sizes or default_size, methods or METHODS, backends)
    return list(dict.fromkeys(Contender(method, size, backend) for size, method, backend in groups))


def default_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The given fields of the recipe, and those of every study of digits."""
    return {**(_ON_DIGITS if given.get("data", "digits") == "digits" else {}), **given}


def default_budget(data: str, runs: int) -> float:
    """Seconds for each of this number of runs on digits; ValueError for data that need hours."""
    if data != "digits":
        raise ValueError(f"budget: data={data!r} needs one, the training time of each run, such as 2h")
    return round(_SHARED_BY_DIGITS / runs, 1)


def seconds_of(text: str) -> float:
    """The seconds of a duration such as 90, 90s, 15m or 2h; ValueError for other text."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(s|m|min|h|)\s*", text)
    if found is None:
        raise ValueError(f"budget={text!r}: expected a duration such as 20, 20s, 15m or 2h")
    return float(found[1]) * _UNITS[found[2]]


def load(folder: Path) -> Settings:
    """The settings of the study in this folder; ValueError where there is none or it cannot be read."""
    file = folder / FILE
    if not file.is_file():
        raise ValueError(f"{folder}: exists and is not a study (no {FILE}); name another folder")
    try:
        return Settings(**read_json(file)["settings"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: damaged ({type(error).__name__}: {error})") from None


def save(folder: Path, settings: Settings) -> None:
    """Creates the study's folder with its settings."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, {"settings": settings.to_dict()})


def continued(
    folder: Path, kept: Settings, budget: float | None, search: int | None, options: Mapping[str, Any]
) -> Settings:
    """The settings of a resumed study; ValueError names the first given setting that contradicts them."""
    given = {**options, **{k: v for k, v in (("budget", budget), ("search", search)) if v is not None}}
    have = {**kept.options, "budget": kept.budget, "search": kept.search}
    for name, value in given.items():
        if name in _MOVABLE or value == have.get(name):
            continue
        had = f"has {have[name]!r}" if name in have else "has the recipe's"
        raise ValueError(f"{name}={value!r}: the study in {folder} {had} and keeps it; name another folder")
    moved = {name: value for name, value in options.items() if name in _MOVABLE}
    return Settings(kept.budget, kept.search, {**kept.options, **moved})
