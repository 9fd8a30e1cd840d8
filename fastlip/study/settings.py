"""The settings that the runs of a study share, and its runs: both are kept in its folder as study.json."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastlip._files import read_json, write_json
from fastlip.models.registry import owners_of
from fastlip.study.contenders import Contender
from fastlip.study.twin import TWIN_METHOD, TWIN_RECIPE
from fastlip.training.recipe import Recipe
from fastlip.training.recipe_files import default_name, default_recipe, read

FILE = "study.json"
# Fields of the recipe that the study decides or takes several values of.
DECIDED = ("model", "method", "size", "backend", "loss", "epochs")
# A field that may differ when a study is resumed: the place of its data.
_MOVABLE = ("path",)
# Seconds of training of all default runs on digits together, so that the study takes less than five minutes.
_SHARED_BY_DIGITS = 180.0
# With the published depth of five some methods would learn nothing in so short a time.
_ON_DIGITS = {"layers_per_block": 2}
_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600}


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
        given = {**self.options, **dict(contender.changes), "size": contender.size, "backend": contender.backend}
        if contender.is_plain:
            owners = owners_of(given.get("model") or self.network_of(contender.recipe))
            given |= {**TWIN_RECIPE, "method": owners[0] if owners else TWIN_METHOD}
        else:
            given["method"] = contender.method
        if contender.seed is not None:
            given["seed"] = contender.seed
        return default_recipe({**given, **decided}, contender.recipe)

    def network_of(self, recipe: str = "") -> str:
        """The network of this recipe with the study's options."""
        return read(recipe or default_name(self.options)).values_for(self.options).get("model", Recipe.model)

    def to_dict(self) -> dict[str, Any]:
        """The settings as values that JSON can hold."""
        return {"budget": self.budget, "search": self.search, "options": dict(self.options)}


def data_of(recipes: Sequence[str]) -> str:
    """The data set that all of these recipes are for; ValueError if they are for several."""
    names = {recipe: read(recipe).values_for({}).get("data", Recipe.data) for recipe in recipes}
    first = next(iter(names.values()), Recipe.data)
    for recipe, name in names.items():
        if name != first:
            raise ValueError(f"recipe={recipe!r}: is for data={name!r}, the first for {first!r}; --data decides")
    return first


def default_options(given: Mapping[str, Any], recipes: Sequence[str] = ()) -> dict[str, Any]:
    """The given fields of the recipe, and those of every study of digits that names no recipe of its own."""
    own = given.get("data", "digits") == "digits" and not recipes
    return {**(_ON_DIGITS if own else {}), **given}


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


def load(folder: Path) -> tuple[Settings, list[Contender]]:
    """Settings and runs of the study in this folder; ValueError where there is none or it cannot be read."""
    file = folder / FILE
    if not file.is_file():
        raise ValueError(f"{folder}: exists and is not a study (no {FILE}); name another folder")
    kept = read_json(file)
    try:
        # Studies of version 0.1 have no list of their runs, but a file for each.
        if "runs" in kept:
            contenders = [Contender.from_dict(run) for run in kept["runs"]]
        else:
            contenders = [Contender.named(path.stem) for path in sorted(folder.glob("measured/*.json"))]
        return Settings(**kept["settings"]), contenders
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: damaged ({type(error).__name__}: {error})") from None


def save(folder: Path, settings: Settings, contenders: Iterable[Contender]) -> None:
    """Writes settings and runs into the study's folder, which need not exist yet."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = [contender.to_dict() for contender in contenders]
    write_json(folder / FILE, {"settings": settings.to_dict(), "runs": runs})


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
