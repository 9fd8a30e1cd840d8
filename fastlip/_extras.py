"""The packages of the extras: which extra installs each, and the one line that says so when it is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

# Module: the package that has it, and the extra of pyproject.toml that installs it.
EXTRAS = {
    "click": ("click", "train"),
    "jinja2": ("jinja2", "train"),
    "matplotlib": ("matplotlib", "train"),
    "PIL": ("pillow", "train"),
    "sklearn": ("scikit-learn", "train"),
    "tomli": ("tomli", "train"),
    "tqdm": ("tqdm", "train"),
    "onnx": ("onnx", "onnx"),
    "onnxscript": ("onnxscript", "onnx"),
}


class MissingPackageError(ModuleNotFoundError):
    """A package of an extra is not installed; the message is one line with the command that installs it."""


def missing(*modules: str) -> str:
    """Which of these modules' packages are not installed, and what installs them; empty if all are there."""
    absent = [module for module in modules if not _is_there(module)]
    return _text(absent) if absent else ""


@contextmanager
def needed_for(what: str) -> Iterator[None]:
    """A failing import of an extra's package raises :class:`MissingPackageError`, which says what needs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS:
            raise
        raise MissingPackageError(f"{what}: {_text([module])}", name=error.name) from None


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # an entry of sys.modules that has no specification
        return False


def _text(modules: list[str]) -> str:
    packages = " and ".join(EXTRAS[module][0] for module in modules)
    verb = "is" if len(modules) == 1 else "are"
    return f'{packages} {verb} not installed: pip install "fastlip[{EXTRAS[modules[0]][1]}]"'
