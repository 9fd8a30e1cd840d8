"""The picture of ``fastlip bench``: bars of ratios to plain convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastlip import _figures
from fastlip.benchmarking.contest import Row
from fastlip.models import TITLES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS = {"train": "training step", "evaluate": "evaluation", "saved": "bytes saved for backward"}
# Up to this ratio all bars can be told apart on a linear axis, where their lengths are their ratios.
_LARGEST_LINEAR = 8.0
_STEPS = (1.0, 2.0, 5.0)  # ticks of a logarithmic axis in each power of ten


def draw(rows: Sequence[Row], title: str) -> Figure:
    """A figure with a panel for training, evaluation and memory; shorter bars are cheaper."""
    figure = _figures.new_figure(11, 4.4, dpi=120)
    figure.suptitle(f"{title}: ratio to plain convolutions")
    bars = [_bars(axes, rows, what) for axes, what in zip(figure.subplots(1, 3), _PANELS, strict=True)]
    for axes, heading in zip(figure.axes, _PANELS.values(), strict=True):
        axes.set_title(heading)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("← lower is better     ratio (plain = 1)")
    figure.legend(bars[0].values(), bars[0].keys(), loc="outside lower center", ncols=len(bars[0]), frameon=False)
    return figure


def _bars(axes: Any, rows: Sequence[Row], what: str) -> dict[str, Any]:
    """Draws one column of every row, grouped by method; returns the bars by the contestant's name."""
    methods = list(dict.fromkeys(row.method for row in rows))
    contestants = list(dict.fromkeys(row.contestant for row in rows))
    width = 0.8 / len(contestants)
    bars = {}
    for i, contestant in enumerate(contestants):
        measured = [row for row in rows if row.contestant == contestant and getattr(row, what) is not None]
        offset = (i - (len(contestants) - 1) / 2) * width
        places = [methods.index(row.method) + offset for row in measured]
        bars[contestant] = axes.bar(places, [getattr(row, what) for row in measured], width, color=f"C{i}")
    axes.set_xticks(range(len(methods)), [TITLES[method] for method in methods], rotation=45)
    _scale(axes, [value for row in rows if (value := getattr(row, what)) is not None])
    return bars


def _scale(axes: Any, ratios: Sequence[float]) -> None:
    """A linear axis from 0, or a logarithmic one with ticks such as 0.5, 1, 2, 5, 10 where ratios are far apart."""
    high = max([1.0, *ratios])
    if high <= _LARGEST_LINEAR:
        axes.set_ylim(0, 1.1 * high)
        return
    low = min([1.0, *(ratio for ratio in ratios if ratio > 0)])
    axes.set_yscale("log")
    axes.set_ylim(low / 1.5, 1.3 * high)
    ticks = [step * 10.0**power for power in range(-4, 5) for step in _STEPS]
    shown = [tick for tick in ticks if low / 1.5 <= tick <= 1.3 * high]
    axes.set_yticks(shown, [f"{tick:g}" for tick in shown])
    axes.set_yticks([], minor=True)
