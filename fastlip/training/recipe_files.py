"""Recipe files: TOML, one table per section, with tables for methods and sizes, and a file that they extend.

TOML is what packages already keep their settings in, its values have types, and Python reads it (3.10: ``tomli``).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fastlip._files import read_json
from fastlip.models import METHODS
from fastlip.training.recipe import SIZES, Recipe, brief, check_type, check_value

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parents[1] / "recipes"
FIELDS = {item.metadata["key"]: item for item in fields(Recipe)}
_SECTIONS = tuple(dict.fromkeys(key.partition(".")[0] for key in FIELDS))
_TEXTS = ("summary", "source", "base")

Values = dict[str, Any]


@dataclass(frozen=True)
class RecipeFile:
    """What a recipe file says, as fields of :class:`Recipe`: for all, for each method, for each method and size."""

    name: str
    summary: str
    source: str
    values: Values
    methods: dict[str, Values]
    sizes: dict[tuple[str, str], Values]
    base: RecipeFile | None = None

    def values_for(self, given: Mapping[str, Any]) -> Values:
        """The fields that this file decides, with those of its method and size, and the given ones on top."""
        known = {"method": Recipe.method, "size": Recipe.size, **self._plain(), **given}
        return {**self._tables(known["method"], known["size"]), **given}

    def _plain(self) -> Values:
        return {**(self.base._plain() if self.base else {}), **self.values}

    def _tables(self, method: str, size: str) -> Values:
        below = self.base._tables(method, size) if self.base else {}
        return {**below, **self.values, **self.methods.get(method, {}), **self.sizes.get((method, size), {})}


def names() -> tuple[str, ...]:
    """The recipes that come with fastlip."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def default_name(given: Mapping[str, Any]) -> str:
    """The recipe made for the data set and network among these fields."""
    data = given.get("data", Recipe.data)
    sll = given.get("model", Recipe.model) == "sll_net"
    if data == "digits" or f"{data}-sll" not in names():
        return "digits-sll" if sll else "digits"
    return f"{data}-sll" if sll else f"{data}-comparison"


def read(source: str | Path) -> RecipeFile:
    """The recipe of this name, or in this file (``.toml``); ValueError names file, key, value and what is allowed."""
    return _read(Path(source), ())


def read_recipe(path: Path) -> Recipe:
    """The recipe that a run keeps as JSON; ValueError names a file that is damaged."""
    values = read_json(path)
    try:
        return Recipe.from_dict(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def parse_setting(text: str) -> tuple[str, Any]:
    """Field and value of ``optimizer.lr=0.05``: ValueError unless the key exists and the value is of its type."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text!r}: expected KEY=VALUE, such as optimizer.lr=0.05")
    if key not in FIELDS:
        raise ValueError(f"--set {text!r}: unknown key {key!r}; allowed are {', '.join(FIELDS)}")
    kind = type(FIELDS[key].default)
    parsed = value if kind is str else _typed(value)
    return FIELDS[key].name, _check(f"--set {key}", key, parsed)


def _typed(value: str) -> Any:
    """A number or a truth value as TOML writes it, else the text."""
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):  # not TOML, or more than it can hold
        return value


def _read(source: Path, above: tuple[Path, ...]) -> RecipeFile:
    path = source if source.suffix == ".toml" else FOLDER / f"{source}.toml"
    if path.parent == FOLDER and path.stem not in names():
        raise ValueError(f"recipe={str(source)!r}: allowed are {', '.join(names())}, or a .toml file")
    if path in above:
        raise ValueError(f"{path}: base={above[-1].stem!r}: its bases lead back to it")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path}: is nested too deeply for a recipe") from None
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError, and numbers of too many digits
        raise ValueError(f"{path}: is not TOML: {error}") from None
    return _parse(path, content, above)


def _parse(path: Path, content: Values, above: tuple[Path, ...]) -> RecipeFile:
    _require_known(path, "", content, (*_TEXTS, *_SECTIONS, "methods"))
    texts = {name: _text(path, name, content.pop(name, "")) for name in _TEXTS}
    methods, sizes = {}, {}
    tables = _table(path, "methods", content.pop("methods", {}))
    _require_known(path, "methods.", tables, METHODS)
    for method, table in tables.items():
        prefix = f"methods.{method}"
        _require_known(path, f"{prefix}.", _table(path, prefix, table), (*_SECTIONS, *SIZES))
        for size in SIZES:
            if size in table:
                sizes[method, size] = _fields(path, table.pop(size), f"{prefix}.{size}.")
        methods[method] = _fields(path, table, f"{prefix}.")
    base = _read(_beside(path, texts["base"]), (*above, path)) if texts["base"] else None
    return RecipeFile(path.stem, texts["summary"], texts["source"], _fields(path, content), methods, sizes, base)


def _beside(path: Path, base: str) -> Path:
    """A base that is a file lies where the file that names it says."""
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
        check_type(where, value, type(item.default))
    except TypeError:
        raise ValueError(f"{where}={brief(value)}: expected {type(item.default).__name__}") from None
    check_value(where, value, item.metadata)
    return float(value) if isinstance(item.default, float) else value


def _require_known(path: Path, prefix: str, table: Values, allowed: tuple[str, ...]) -> None:
    for name in table:
        if name not in allowed:
            raise ValueError(f"{path}: {prefix}{name}: unknown key; allowed are {', '.join(allowed)}")


def _table(path: Path, key: str, value: Any) -> Values:
    if not isinstance(value, dict):
        raise ValueError(f"{path}: {key}={brief(value)}: expected a table")
    return value


def _text(path: Path, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{path}: {key}={brief(value)}: expected str")
    return value
