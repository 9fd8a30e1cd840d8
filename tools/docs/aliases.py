"""The page of the types that signatures of the public functions and classes name, such as ``Sides``.

Every heading has the alias's full name as its anchor, to which mkdocstrings links from signatures.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

MODULES = ("", ".nn", ".ops", ".certification", ".conformal", ".losses", ".models", ".data")
_NAME = re.compile(r"(?<![\w.'\"])[A-Z]\w+(?![\w.'\"])")
# What is an alias: its definition begins with one of these, or is a union.
_FORMS = ("Literal[", "tuple[", "Callable[", "Sequence[")


def page() -> str:
    """A section for each alias, by name: what it stands for, and who takes it."""
    found: dict[tuple[str, str], list[str]] = {}
    for public, function in signatures():
        for name in sorted(set(_NAME.findall(" ".join(map(str, annotations(function)))))):
            if (module := defined_in(sys.modules[function.__module__], name)) is not None:
                found.setdefault((name, module.__name__), []).append(public)
    return "\n\n".join(_section(name, module, users) for (name, module), users in sorted(found.items()))


def signatures() -> Iterator[tuple[str, Any]]:
    """Public names, with the functions whose parameters they have."""
    seen = set()
    for suffix in MODULES:
        module = importlib.import_module(f"fastlip{suffix}")
        for name in module.__all__:
            value = getattr(module, name)
            function = value.__init__ if inspect.isclass(value) else value
            if inspect.isfunction(function) and value not in seen:
                seen.add(value)
                yield f"{module.__name__}.{name}", function


def annotations(function: Any) -> list[Any]:
    """The annotations of a function's parameters."""
    return [parameter.annotation for parameter in inspect.signature(function).parameters.values()]


def defined_in(module: ModuleType, name: str) -> ModuleType | None:
    """The module that defines an alias which this one uses; None for a class or an unknown name."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and any(alias.name == name and not alias.asname for alias in node.names):
            inside = (node.module or "").startswith("fastlip")
            return defined_in(importlib.import_module(str(node.module)), name) if inside else None
    return module if definition(module, name) else None


def definition(module: ModuleType, name: str) -> str:
    """What an alias stands for, as the module has it; '' if the module does not define it."""
    for node in _tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            text = ast.unparse(node.value)
            return text if text.startswith(_FORMS) or isinstance(node.value, ast.BinOp) else ""
    return ""


@functools.cache
def _tree(module: ModuleType) -> ast.Module:
    return ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))


def _section(name: str, module: str, users: list[str]) -> str:
    text = definition(sys.modules[module], name).replace("'", '"')
    shown = ", ".join(f"[`{user.removeprefix('fastlip.')}`][{user}]" for user in users[:6])
    others = f" and {len(users) - 6} more" if len(users) > 6 else ""
    heading = f"## {name} {{ #{module}.{name} }}"
    return f"{heading}\n\n```python\n{name} = {text}\n```\n\nTaken by {shown}{others}."
