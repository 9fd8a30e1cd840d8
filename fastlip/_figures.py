"""Pictures for files: drawn without a display, and independent of the backend and style of the environment."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fastlip import _extras
from fastlip._files import write_atomically


def missing() -> str:
    """Why no picture can be drawn here, or an empty string."""
    if absent := _extras.missing("matplotlib"):
        return absent
    try:
        _import()
    except (ImportError, OSError, ValueError) as error:
        return f"matplotlib cannot be imported: {' '.join(str(error).split())}"
    return ""


@contextmanager
def own_style() -> Iterator[None]:
    """In this context figures are drawn with matplotlib's defaults, not with the user's ``matplotlibrc``.

    A style for papers would hand every text, names of folders among them, to LaTeX (``text.usetex``).
    """
    with _extras.needed_for("a plot"):
        matplotlib = _import()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def new_figure(width: float, height: float, dpi: int) -> Any:
    """An empty figure of so many inches that draws itself with Agg, whatever ``MPLBACKEND`` says.

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


def save(path: Path, figure: Any, kind: str = "png") -> None:
    """Writes a figure as a file of this kind, atomically."""
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        write_atomically(path, lambda file: figure.savefig(file, format=kind))


def _import() -> Any:
    """matplotlib; its import fails where MPLBACKEND names a backend that is not there, as notebooks' often is not."""
    if "matplotlib" in sys.modules or not (backend := os.environ.pop("MPLBACKEND", None)):
        import matplotlib

        return matplotlib
    try:
        import matplotlib
    finally:
        os.environ["MPLBACKEND"] = backend
    with suppress(ValueError):
        matplotlib.rcParams["backend"] = backend  # for the caller's own figures
    return matplotlib
