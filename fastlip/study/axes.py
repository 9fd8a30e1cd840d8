"""The comparison of a study: the values along each axis, and the runs that they make."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from fastlip.kernels.common.dispatch import check_backend
from fastlip.kernels.common.literals import Backend
from fastlip.models import METHODS, SIZES, SLL_SIZES
from fastlip.models.catalog import MODELS
from fastlip.models.catalog import PLAIN as TWIN
from fastlip.models.literals import MethodName
from fastlip.models.registry import owners_of
from fastlip.study.contenders import NETWORK, PLAIN, Contender
from fastlip.study.settings import Settings
from fastlip.training.literals import Network, Size
from fastlip.training.recipe_files import parse_setting

# What decides a field that --set cannot vary.
_OTHER_OPTIONS = {
    "method": "--method",
    "size": "--size",
    "backend": "--backend",
    "model": "--model",
    "loss": "--loss",
    "seed": "--seeds",
    "epochs": "--budget",
    "data": "--data",
    "path": "--path",
    "image_size": "--image-size",
    "device": "--device",
}

Change = tuple[str, Any]


@dataclass(frozen=True)
class Axes:
    """The values along each axis; an axis without values has its default.

    Args:
        methods: default: all that the network takes.
        sizes: default: the smallest of the network.
        backends: default: ``auto``, and on digits ``reference`` too.
        recipes: names or files; default: the recipe for data set and network.
        models: networks; default: the recipe's.
        losses: default: the recipe's.
        settings: further axes, each with the (field, value) pairs of a recipe along it.
        seeds: number of seeds, from the recipe's on.
        plain: whether the plain twin of each network is a run too.
    """

    methods: Sequence[MethodName] = ()
    sizes: Sequence[Size] = ()
    backends: Sequence[Backend] = ()
    recipes: Sequence[str] = ()
    models: Sequence[Network] = ()
    losses: Sequence[str] = ()
    settings: Sequence[Sequence[Change]] = ()
    seeds: int = 1
    plain: bool = False

    def __post_init__(self):
        networks = [name for name in get_args(Network) if not name.startswith(TWIN)]
        for model in self.models:
            if model.startswith(TWIN) and model.removeprefix(TWIN) in networks:
                raise ValueError(f"model={model!r}: --plain adds the twin of model={model.removeprefix(TWIN)!r}")
        for what, given, allowed in (
            ("method", self.methods, METHODS),
            ("model", self.models, networks),
            ("size", self.sizes, get_args(Size)),
        ):
            for name in given:
                if name not in allowed:
                    raise ValueError(f"{what}={name!r}: allowed are {', '.join(map(repr, allowed))}")
        for backend in self.backends:
            check_backend(backend)
        if self.seeds < 1:
            raise ValueError(f"seeds={self.seeds}: must be at least 1")
        by_stem: dict[str, str] = {}
        for recipe in self.recipes:
            other = by_stem.setdefault(Path(recipe).stem, recipe)
            if other != recipe:
                raise ValueError(f"recipe={recipe!r}: has the name of {other!r}; tables need another")

    @property
    def variants(self) -> list[tuple[str, tuple[Change, ...]]]:
        """Every recipe with every combination of changes."""
        named = (("model", self.models), ("loss", self.losses))
        changes = [[(name, value) for value in values] for name, values in named]
        axes = [axis for axis in (*changes, *self.settings) if axis]
        return [(recipe, chosen) for recipe in self.recipes or ("",) for chosen in itertools.product(*axes)]


def axis_of(text: str) -> list[Change]:
    """The field and each value of ``optimizer.lr=0.05,0.1``; ValueError unless ``--set`` can vary the field."""
    key, equals, values = text.partition("=")
    pairs = [parse_setting(f"{key}{equals}{value.strip()}") for value in values.split(",")]
    field = pairs[0][0]
    if field in _OTHER_OPTIONS:
        raise ValueError(f"--set {text!r}: {_OTHER_OPTIONS[field]} decides {key} of a study")
    return pairs


def contenders_of(axes: Axes, settings: Settings) -> list[Contender]:
    """Every combination of the axes that a network can have, by seed, then size, variant, method and backend.

    Raises:
        ValueError: a size or method that no requested network has, or values that a recipe refuses.
    """
    changed = {name for _, changes in axes.variants for name, _ in changes}
    for name in ("lr", "weight_decay"):
        if settings.search and name in changed:
            raise ValueError(f"--set: varies {name}, but search={settings.search} looks for it")
    once = list(dict.fromkeys(_once(axes, settings)))
    _require_runs(axes, settings)
    found = [*once]
    for repeat in range(1, axes.seeds):
        found += [contender.with_seed(settings.recipe(contender).seed + repeat) for contender in once]
    return found


def _once(axes: Axes, settings: Settings) -> Iterator[Contender]:
    """The contenders with the recipe's own seed; the plain twins come last."""
    on_digits = settings.options.get("data", "digits") == "digits"
    backends: Sequence[Backend] = axes.backends or (("auto", "reference") if on_digits else ("auto",))
    twins: dict[tuple[Any, ...], Contender] = {}
    requests = itertools.product(axes.sizes or (None,), axes.methods or METHODS, axes.variants)
    for wanted, method, (recipe, changes) in requests:
        model = _model_of(settings, recipe, changes)
        owners = owners_of(model)
        if owners and method not in owners:
            continue
        size = _size_of(model, wanted)
        for backend in backends:
            yield _shortened(Contender(method, size, backend, recipe, changes), settings)
        if axes.plain:
            # It has a loss of its own, so that one is enough for all variants of a network.
            network = tuple(change for change in changes if change[0] in NETWORK)
            twin = _shortened(Contender(PLAIN, size, recipe=recipe, changes=network), settings)
            made = settings.recipe(twin)
            taken = ("width", *(MODELS[model].fields if model in MODELS else ("layers_per_block",)))
            twins.setdefault((model, size, *(getattr(made, name) for name in NETWORK if name in taken)), twin)
    yield from twins.values()


def _require_runs(axes: Axes, settings: Settings) -> None:
    """ValueError for a method or network that was asked for, and of which no combination exists."""
    if not axes.methods:
        return
    owners = {}
    for recipe, changes in axes.variants:
        model = _model_of(settings, recipe, changes)
        owners[model] = owners_of(model) or METHODS
    names = ", ".join(map(repr, owners))
    for method in axes.methods:
        if not any(method in of_model for of_model in owners.values()):
            raise ValueError(f"method={method!r}: model: {names} has no layers of it")
    for model, of_model in owners.items():
        if not set(of_model) & set(axes.methods):
            allowed = ", ".join(map(repr, of_model))
            raise ValueError(f"model={model!r}: has layers of {allowed}; method: name one of them too")


def _size_of(model: str, wanted: Size | None) -> Size:
    """The wanted size, or the smallest; ValueError for one that the network does not have."""
    sizes: tuple[Size, ...] = tuple(SLL_SIZES if model == "sll_net" else SIZES)
    if wanted is not None and wanted not in sizes:
        raise ValueError(f"size={wanted!r}: allowed are {', '.join(map(repr, sizes))} for model={model!r}")
    return wanted or sizes[0]


def _model_of(settings: Settings, recipe: str, changes: Sequence[Change]) -> str:
    """The network of a variant, whichever its method."""
    given = dict(changes).get("model") or settings.options.get("model")
    return given or settings.network_of(recipe)


def _shortened(contender: Contender, settings: Settings) -> Contender:
    """The contender without the changes that change nothing: it has the same name with and without them."""
    settings.recipe(contender)
    # The network comes first: it decides the recipe, where none is named, and which fields there are.
    network = tuple(change for change in contender.changes if change[0] == "model")
    recipe = settings.recipe(replace(contender, changes=network))
    same = {**recipe.to_dict(), "model": _model_of(settings, contender.recipe, ())}
    kept = tuple((name, value) for name, value in contender.changes if same[name] != value)
    return replace(contender, changes=kept)
