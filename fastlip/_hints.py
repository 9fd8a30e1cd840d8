"""Where a name is that the package lacks, found from the text of its modules: nothing is imported for it."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Iterable
from functools import cache
from importlib.abc import InspectLoader

# Modules whose names are looked for.
PARTS = ("nn", "models", "losses", "data", "metrics", "optim", "ops", "conformal", "certification")


def hint(name: str, known: Iterable[str]) -> str:
    """The end of an error for a name that the package lacks: where it is, or the name most like it.

    Args:
        name: that was asked for.
        known: the package's own public names.

    Returns:
        Such as "; it is fastlip.nn.MaxMin"; empty for private names, and where there is nothing to say.
    """
    if name.startswith("_"):
        return ""
    for part in PARTS:
        if name in names_of(f"fastlip.{part}"):
            return f"; it is fastlip.{part}.{name}"
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean fastlip.{close[0]}?" if close else ""


@cache
def names_of(module: str) -> frozenset[str]:
    """The names in a module's ``__all__``, read from its text; none where there is no text.

    Args:
        module: its path, such as ``"fastlip.nn"``.
    """
    spec = importlib.util.find_spec(module)
    loader = spec.loader if spec is not None else None
    source = loader.get_source(module) if isinstance(loader, InspectLoader) else None
    for statement in ast.parse(source or "").body:
        if isinstance(statement, ast.Assign) and [ast.unparse(target) for target in statement.targets] == ["__all__"]:
            return frozenset(ast.literal_eval(statement.value))
    return frozenset()
