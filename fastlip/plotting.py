"""The plot of a certificate: accuracy that is certain, and accuracy that an attack has not disproved, against eps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fastlip import _figures
from fastlip.certification.attacks import AttackResult
from fastlip.certification.certificates import Certificate

_POINTS = 400
_CERTIFIED, _ATTACKED, _CLEAN = "#1f5fa8", "#c8501e", "#444444"


def missing() -> str:
    """Why no plot can be made here, or an empty string."""
    return _figures.missing()


def plot_curves(
    path: str | Path, certificate: Certificate, attack: AttackResult | None = None, title: str = ""
) -> None:
    """Writes a PNG, atomically: clean, certified and attacked accuracy against the L2 radius.

    The horizontal axis ends at the largest eps of the certificate. Points are the eps asked for; between them the
    attacked curve is what the distances found imply.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    with _figures.own_style():
        _figures.save(Path(path), _curves(certificate, attack, title))


def _curves(certificate: Certificate, attack: AttackResult | None, title: str) -> Any:
    figure = _figures.new_figure(6.4, 4.0, dpi=160)
    axes = figure.add_subplot()
    largest = max(certificate.cra, default=0.0) or 1.0
    _draw(axes, certificate, attack, torch.linspace(0, largest, _POINTS, dtype=torch.float64))
    axes.set(
        xlim=(0, largest), ylim=(0, 100), xlabel="L2 radius ε of images in [0, 1]", ylabel="accuracy, %", title=title
    )
    axes.title.set(fontsize="medium", parse_math=False)  # names of folders are no formulas
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="best", fontsize="small")
    return figure


def _draw(axes: Any, certificate: Certificate, attack: AttackResult | None, grid: torch.Tensor) -> None:
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


def _mark(axes: Any, shares: dict[float, float], color: str, marker: str) -> None:
    heights = [100 * share for share in shares.values()]
    axes.plot(list(shares), heights, marker, color=color, markersize=5, linestyle="", clip_on=False, zorder=3)
