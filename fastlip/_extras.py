"""The packages of the extras, and the one-line message that says which extra installs a missing one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

# For each module its package, and the extra of pyproject.toml that installs it.
EXTRAS: dict[str, tuple[str, str]] = {
    "click": ("click", "train"),
    "jinja2": ("jinja2", "train"),
    "matplotlib": ("matplotlib", "train"),
    "PIL": ("pillow", "train"),
    "sklearn": ("scikit-learn", "train"),
    "tomli": ("tomli", "train"),
    "tqdm": ("tqdm", "train"),
    "pytorch_optimizer": ("pytorch-optimizer", "optim"),
    "schedulefree": ("schedulefree", "optim"),
    "torchvision": ("torchvision", "augment"),
    "kornia": ("kornia", "kornia"),
    "onnx": ("onnx", "onnx"),
    "onnxruntime": ("onnxruntime", "onnx"),
    "onnxscript": ("onnxscript", "onnx"),
}


class MissingPackageError(ModuleNotFoundError):
    """A package of an extra is not installed. The message is one line with the command that installs it."""


def missing(*modules: str) -> str:
    """The message that names these modules' missing packages and how to install them; empty if none is missing."""
    absent = [module for module in modules if not _is_there(module)]
    return _text(absent) if absent else ""


@contextmanager
def needed_for(what: str) -> Iterator[None]:
    """Returns a context in which the import of a missing extra raises :class:`MissingPackageError`.

    Args:
        what: what needs the package, such as ``"a plot"``; the message begins with it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if not is_of_an_extra(error):
            raise
        raise MissingPackageError(f"{what}: {_text([_module_of(error)])}", name=error.name) from None


def is_of_an_extra(error: ImportError) -> bool:
    """Whether the module that could not be found is of a package of an extra."""
    return isinstance(error, ModuleNotFoundError) and _module_of(error) in EXTRAS


def _module_of(error: ImportError) -> str:
    return (error.name or "").partition(".")[0]


def _is_there(module: str) -> bool:
    """Whether a module can be found, without importing it."""
    try:
        return find_spec(module) is not None
    except ValueError:  # the module is in sys.modules without a specification
        return False


def _text(modules: list[str]) -> str:
    """The message that these modules' packages are not installed."""
    packages = " and ".join(EXTRAS[module][0] for module in modules)
    verb = "is" if len(modules) == 1 else "are"
    return f'{packages} {verb} not installed: pip install "fastlip[{EXTRAS[modules[0]][1]}]"'
