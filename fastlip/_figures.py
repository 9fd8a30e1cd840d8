"""Figures that are written to files: drawn without a display, whatever backend and style the environment sets."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from fastlip import _extras
from fastlip._files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def missing() -> str:
    """The reason why this installation cannot draw figures, or an empty string."""
    if absent := _extras.missing("matplotlib"):
        return absent
    try:
        _import()
    except (ImportError, OSError, ValueError) as error:
        return f"matplotlib cannot be imported: {' '.join(str(error).split())}"
    return ""


@contextmanager
def own_style() -> Iterator[None]:
    """Returns a context in which figures are drawn with matplotlib's defaults, not with the user's ``matplotlibrc``.

    With a style for papers (``text.usetex``) LaTeX would read every text, including names of folders.
    """
    with _extras.needed_for("a plot"):
        matplotlib = _import()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def new_figure(width: float, height: float, dpi: int) -> Figure:
    """Returns an empty figure that draws itself with Agg, whatever ``MPLBACKEND`` says; width and height in inches.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    with _extras.needed_for("a plot"):
        _import()
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(path: Path, figure: Figure, kind: str = "png") -> None:
    """Writes a figure as a file of this kind, one of matplotlib's, as a whole or not at all."""
    with warnings.catch_warnings():
        # Characters that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        write_atomically(path, lambda file: figure.savefig(file, format=kind))


def _import() -> ModuleType:
    """Imports matplotlib without ``MPLBACKEND``: if it names a missing backend, as in notebooks, the import fails."""
    if "matplotlib" in sys.modules or not (backend := os.environ.pop("MPLBACKEND", None)):
        import matplotlib

        return matplotlib
    try:
        import matplotlib
    finally:
        os.environ["MPLBACKEND"] = backend
    with suppress(ValueError):
        matplotlib.rcParams["backend"] = backend  # the caller's own figures use it
    return matplotlib
