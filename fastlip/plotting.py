"""The plot of a certificate: certified accuracy, and accuracy under attack, against the L2 radius."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fastlip import _figures
from fastlip.certification.attacks import AttackResult
from fastlip.certification.certificates import Certificate
from fastlip.certification.input_norms import require_same

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_POINTS = 400
_CERTIFIED, _ATTACKED, _CLEAN = "#1f5fa8", "#c8501e", "#444444"


def missing() -> str:
    """The reason why this installation cannot draw plots, or an empty string."""
    return _figures.missing()


def plot_curves(
    path: str | Path, certificate: Certificate, attack: AttackResult | None = None, title: str = ""
) -> None:
    """Writes a PNG of clean, certified and attacked accuracy against the L2 radius.

    The horizontal axis ends at the largest eps of the certificate. Markers show the requested eps; between them the
    attacked curve follows from the distances that the attack found.

    Args:
        path: file to write; it is replaced as a whole or not at all.
        certificate: result of :func:`fastlip.certify`.
        attack: result of :func:`fastlip.attack`, in the same norm; None draws no attacked curve.
        title: title of the plot.

    Raises:
        ValueError: a certificate and an attack in different norms of the inputs.
        ModuleNotFoundError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    if attack is not None:
        require_same("attack", attack.norm, certificate.norm, "the certificate is")
    with _figures.own_style():
        _figures.save(Path(path), _curves(certificate, attack, title))


def _curves(certificate: Certificate, attack: AttackResult | None, title: str) -> Figure:
    """The figure that :func:`plot_curves` saves."""
    figure = _figures.new_figure(6.4, 4.0, dpi=160)
    axes = figure.add_subplot()
    largest = max(certificate.cra, default=0.0) or 1.0
    _draw(axes, certificate, attack, torch.linspace(0, largest, _POINTS, dtype=torch.float64))
    radius = "L2 radius ε of images in [0, 1]" if certificate.norm.weights is None else "weighted L2 radius ε"
    axes.set(xlim=(0, largest), ylim=(0, 100), xlabel=radius, ylabel="accuracy, %", title=title)
    axes.title.set(fontsize="medium", parse_math=False)  # names of folders are not formulas
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best", fontsize="small")
    return figure


def _draw(axes: Axes, certificate: Certificate, attack: AttackResult | None, grid: torch.Tensor) -> None:
    """Draws the curves at the radii of the grid."""
    certified = 100 * certificate.curve(grid)
    clean = 100 * certificate.accuracy
    axes.axhline(clean, color=_CLEAN, linestyle=(0, (5, 3)), linewidth=1.2, label=f"clean ({clean:.1f} %)")
    if attack is not None:
        attacked = 100 * attack.curve(grid)
        axes.plot(grid, attacked, color=_ATTACKED, linewidth=1.8, label=f"under attack ({attack.kind}, upper bound)")
        axes.fill_between(grid, certified, attacked, color="#888888", alpha=0.15, linewidth=0, label="undecided")
        _mark(axes, attack.robust_accuracy, _ATTACKED, "s")
    axes.plot(grid, certified, color=_CERTIFIED, linewidth=1.8, label="certified (lower bound)")
    _mark(axes, certificate.cra, _CERTIFIED, "o")


def _mark(axes: Axes, accuracies: dict[float, float], color: str, marker: str) -> None:
    """Marks the accuracies at the requested radii."""
    heights = [100 * accuracy for accuracy in accuracies.values()]
    axes.plot(list(accuracies), heights, marker, color=color, markersize=5, linestyle="", clip_on=False, zorder=3)
