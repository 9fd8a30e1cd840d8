"""Recipe files: TOML, one table per section, with tables for methods and sizes, and a base file that they extend.

TOML is the format in which packages already keep their settings, its values have types, and Python reads it (3.10:
``tomli``). The settings of a method that ``Method.settings`` has for a packaged recipe stand below the recipe's own
table for that method.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from fastlip import _names
from fastlip._extras import needed_for
from fastlip.data.own import is_place
from fastlip.models import METHODS, list_models
from fastlip.models.catalog import model_named
from fastlip.models.registry import REGISTRY
from fastlip.training.field_rules import check_value
from fastlip.training.literals import Size
from fastlip.training.recipe import Recipe, as_type

if sys.version_info >= (3, 11):
    import tomllib
else:
    with needed_for("recipe files"):
        import tomli as tomllib

FOLDER = Path(__file__).parents[1] / "recipes"
_OPTIONS = "fastlip train --help (as options)"
FIELDS = {item.metadata["key"]: item for item in fields(Recipe)}
_SECTIONS = tuple(dict.fromkeys(key.partition(".")[0] for key in FIELDS))
_TEXTS = ("summary", "source", "base")
_SIZES = get_args(Size)

# Recipes of the network that is trained unless told otherwise; for digits they have no such end.
_USUAL = "comparison"

Values = dict[str, Any]


@dataclass(frozen=True)
class RecipeFile:
    """The content of a recipe file as fields of :class:`Recipe`: for all, for a method, for a method and size."""

    name: str
    summary: str
    source: str
    values: Values
    methods: dict[str, Values]
    sizes: dict[tuple[str, str], Values]
    base: RecipeFile | None = None

    def values_for(self, given: Mapping[str, Any]) -> Values:
        """The fields that this file decides for the method and size, replaced by the given ones."""
        known = {"method": Recipe.method, "size": Recipe.size, **self._plain(), **given}
        return {**self._tables(known["method"], known["size"]), **given}

    def _plain(self) -> Values:
        return {**(self.base._plain() if self.base else {}), **self.values}

    def _tables(self, method: str, size: str) -> Values:
        below = self.base._tables(method, size) if self.base else {}
        return {**below, **self.values, **self.methods.get(method, {}), **self.sizes.get((method, size), {})}


def names() -> tuple[str, ...]:
    """Names of the recipes that come with fastlip."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def default_name(given: Mapping[str, Any]) -> str:
    """Name of the recipe made for the data set and network among these fields."""
    data, network = given.get("data", Recipe.data), given.get("model", Recipe.model)
    recipe = model_named(network).recipe if network in list_models() else _USUAL
    if data == "digits" or f"{data}-{recipe}" not in names():
        return "digits" if recipe == _USUAL else f"digits-{recipe}"
    return f"{data}-{recipe}"


def default_recipe(given: Mapping[str, Any], source: str | Path = "") -> Recipe:
    """The recipe with the given fields; a recipe file decides the rest.

    Args:
        given: fields of :class:`Recipe` that are decided.
        source: name (one of :func:`names`) or path of the recipe file; empty: the recipe made for the data set and
            network.

    Raises:
        ValueError: a value that is not allowed, naming its field, or its key and file; files of data without path.
        TypeError: a given value of another type.
    """
    recipe = Recipe.from_dict(read(source or default_name(given)).values_for(given))
    if recipe.data != "digits" and not recipe.path and not is_place(recipe.data):
        raise ValueError(f"path='': data={recipe.data!r} needs the folder of its files")
    return recipe


def read(source: str | Path) -> RecipeFile:
    """Reads the recipe of this name or ``.toml`` file; ValueError names file, key, value and what is allowed."""
    return _read(Path(source), ())


def parse_setting(text: str) -> tuple[str, Any]:
    """Field and value of ``optimizer.lr=0.05``: ValueError unless the key exists and the value is of its type."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text!r}: expected KEY=VALUE, such as optimizer.lr=0.05")
    if key not in FIELDS:
        raise ValueError(f"--set {text!r}: unknown key {key!r}; {_names.allowed(key, list(FIELDS), _OPTIONS)}")
    kind = type(FIELDS[key].default)
    parsed = value if kind is str else _typed(value)
    return FIELDS[key].name, _check(f"--set {key}", key, parsed)


def _typed(value: str) -> Any:
    """A number or a truth value as TOML writes it; otherwise the text."""
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value


def _read(source: Path, above: tuple[Path, ...]) -> RecipeFile:
    path = source if source.suffix == ".toml" else FOLDER / f"{source}.toml"
    if path.parent == FOLDER and path.stem not in names():
        known = _names.allowed(str(source), names(), str(FOLDER), ", or a .toml file")
        raise ValueError(f"recipe={str(source)!r}: {known}")
    if path in above:
        raise ValueError(f"{path}: base={above[-1].stem!r}: its bases lead back to it")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # integers of more digits than Python reads are ValueErrors too
        raise ValueError(f"{path}: is not TOML: {error}") from None
    return _parse(path, content, above)


def _parse(path: Path, content: Values, above: tuple[Path, ...]) -> RecipeFile:
    _require_known(path, "", content, (*_TEXTS, *_SECTIONS, "methods"))
    texts = {name: _text(path, name, content.pop(name, "")) for name in _TEXTS}
    methods, sizes = _own_settings(path), {}
    tables = _table(path, "methods", content.pop("methods", {}))
    _require_known(path, "methods.", tables, METHODS)
    for method, table in tables.items():
        prefix = f"methods.{method}"
        _require_known(path, f"{prefix}.", _table(path, prefix, table), (*_SECTIONS, *_SIZES))
        for size in _SIZES:
            if size in table:
                sizes[method, size] = _fields(path, table.pop(size), f"{prefix}.{size}.")
        methods[method] = {**methods.get(method, {}), **_fields(path, table, f"{prefix}.")}
    base = _read(_next_to(path, texts["base"]), (*above, path)) if texts["base"] else None
    return RecipeFile(path.stem, texts["summary"], texts["source"], _fields(path, content), methods, sizes, base)


def _own_settings(path: Path) -> dict[str, Values]:
    """The fields that methods decide themselves in this recipe, if it comes with fastlip."""
    if path.parent != FOLDER:
        return {}
    return {
        name: {FIELDS[key].name: _check(f"{name}: {key}", key, value) for key, value in settings.items()}
        for name, method in REGISTRY.items()
        if (settings := method.settings.get(path.stem))
    }


def _next_to(path: Path, base: str) -> Path:
    """Path of a base: a file lies relative to the file that names it."""
    return path.parent / base if base.endswith(".toml") else Path(base)


def _fields(path: Path, sections: Any, prefix: str = "") -> Values:
    """The fields in these sections, checked; prefix says where the sections are, for errors."""
    return dict(_checked(path, _table(path, prefix.rstrip("."), sections), prefix))


def _checked(path: Path, sections: Values, prefix: str) -> Iterator[tuple[str, Any]]:
    _require_known(path, prefix, sections, _SECTIONS)
    for section, table in sections.items():
        allowed = tuple(key.partition(".")[2] for key in FIELDS if key.startswith(f"{section}."))
        _require_known(path, f"{prefix}{section}.", _table(path, prefix + section, table), allowed)
        for name, value in table.items():
            key = f"{section}.{name}"
            yield FIELDS[key].name, _check(f"{path}: {prefix}{key}", key, value)


def _check(where: str, key: str, value: Any) -> Any:
    item = FIELDS[key]
    try:
        typed = as_type(where, value, type(item.default))
    except TypeError:
        raise ValueError(f"{where}={value!r}: expected {type(item.default).__name__}") from None
    check_value(where, value, item.metadata)
    return typed


def _require_known(path: Path, prefix: str, table: Values, allowed: tuple[str, ...]) -> None:
    for name in table:
        if name not in allowed:
            raise ValueError(f"{path}: {prefix}{name}: unknown key; {_names.allowed(name, allowed, _OPTIONS)}")


def _table(path: Path, key: str, value: Any) -> Values:
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {key}={value!r}: expected a table")
    return value


def _text(path: Path, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{path}: {key}={value!r}: expected str")
    return value
