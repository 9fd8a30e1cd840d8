"""The pictures of a study as PNG files: radar, accuracy against time, certified accuracy, gains of the kernels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fastlip import _figures
from fastlip.models import METHODS, TITLES
from fastlip.study.table import Row

RADAR, TIME, CERTIFIED, BACKENDS = "radar.png", "accuracy_time.png", "certified.png", "backends.png"
# Okabe and Ito's colours, which colour-blind people can tell apart (without yellow, which is pale on white), and
# three of Tol's. A method has the same colour in every picture.
_COLORS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#cc79a7",
    "#56b4e9",
    "#000000",
    "#882255",
    "#999933",
    "#6655bb",
)
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
_MARKERS = "os^Dv<>PX*"
_GREY = "#555555"
_AXES = (
    "accuracy",
    "certified\naccuracy",
    "training\ntime",
    "training\nmemory",
    "inference\ntime",
    "inference\nmemory",
)
_LARGEST_RADIUS = 1.0
_POINTS = 200


def color(method: str) -> str:
    """The method's colour, in pictures and report."""
    return _COLORS[METHODS.index(method) % len(_COLORS)]


def draw(folder: Path, rows: Sequence[Row]) -> list[str]:
    """Writes the pictures for which there are figures, and removes the others; returns the written names."""
    finished = [row for row in rows if row.finished]
    written = []
    pictures = {RADAR: _radar, TIME: _accuracy_time, CERTIFIED: _certified, BACKENDS: _backends}
    with _figures.own_style():
        for name, picture in pictures.items():
            figure = picture(rows if picture is _backends else finished)
            if figure is None:
                (folder / name).unlink(missing_ok=True)
            else:
                _figures.save(folder / name, figure)
                written.append(name)
    return written


def new_figure(width: float, height: float) -> Any:
    """An empty figure that needs no display."""
    return _figures.new_figure(width, height, dpi=144)


def open_axes(axes: Any) -> None:
    """Thin grid, no box."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def scores(rows: Sequence[Row]) -> list[list[float]]:
    """Each row's six scores from 1 (worst of the rows) to 5 (best), in the order of the radar's axes.

    Accuracies are scored linearly, times and bytes by their logarithm.
    """
    values = [row.values() for row in rows]
    columns = [[v[name] for v in values] for name in ("accuracy", "cra 36/255")]
    costs = ("seconds_per_epoch", "train_memory", "evaluation_ms", "evaluation_memory")
    columns += [[-math.log(v[name]) for v in values] for name in costs]
    return [list(six) for six in zip(*map(_scored, columns), strict=True)]


def _scored(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [1 + 4 * (value - low) / (high - low) if high > low else 5.0 for value in values]


def _radar(rows: Sequence[Row]) -> Any:
    rows = [row for row in rows if row.measured and row.contender.backend == rows[0].contender.backend]
    if not rows:
        return None
    methods = _distinct(row.contender.method for row in rows)
    sizes = _distinct(row.contender.size for row in rows)
    columns = min(4, len(methods))
    lines = -(-len(methods) // columns)
    figure = new_figure(3.0 * columns, 3.5 * lines + 0.4)
    figure.get_layout_engine().set(h_pad=0.22)
    found = list(zip(rows, scores(rows), strict=True))
    angles = [math.tau * i / len(_AXES) for i in range(len(_AXES) + 1)]
    for index, method in enumerate(methods):
        axes = figure.add_subplot(lines, columns, index + 1, projection="polar")
        _radar_axes(axes, angles)
        for row, six in sorted(found, key=lambda pair: pair[0].contender.method == method):
            ring, dash = [*six, six[0]], _DASHES[sizes.index(row.contender.size) % len(_DASHES)]
            if row.contender.method == method:
                axes.plot(angles, ring, color=color(method), linewidth=2.2, linestyle=dash, label=row.contender.size)
                axes.fill(angles, ring, color=color(method), alpha=0.12)
            else:
                axes.plot(angles, ring, color="#bbbbbb", linewidth=0.6)
        axes.set_title(TITLES[method], color=color(method), fontweight="bold", fontsize=11, pad=16)
        if len(sizes) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(-0.25, 1.2), frameon=False, fontsize=7)
    backend = rows[0].contender.backend
    figure.suptitle(
        f"Scores from 1 (inner ring, worst here) to 5 (outer ring, best here); backend {backend}", fontsize=10
    )
    return figure


def _radar_axes(axes: Any, angles: Sequence[float]) -> None:
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_ylim(0, 5.2)
    axes.set_yticks([1, 2, 3, 4, 5], [""] * 5)
    axes.set_xticks(angles[:-1], _AXES, fontsize=7.5, color=_GREY)
    axes.tick_params(pad=9)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines["polar"].set_visible(False)


def _accuracy_time(rows: Sequence[Row]) -> Any:
    def curve(axes: Any, row: Row, style: dict[str, Any]) -> None:
        epochs = row.result["history"]
        seconds = list(itertools.accumulate(epoch["seconds"] for epoch in epochs))
        accuracy = [100 * epoch["test_accuracy"] for epoch in epochs]
        axes.plot(seconds, accuracy, markersize=4, markevery=1 + len(epochs) // 20, **style)

    return _panels(rows, curve, "seconds of training", "accuracy on test images, %")


def _certified(rows: Sequence[Row]) -> Any:
    grid = torch.linspace(0, _LARGEST_RADIUS, _POINTS, dtype=torch.float64)

    def curve(axes: Any, row: Row, style: dict[str, Any]) -> None:
        radii = torch.tensor(row.result["radii"], dtype=torch.float64).sort().values
        shares = (len(radii) - torch.searchsorted(radii, grid, right=True)).double() / len(radii)
        axes.plot(grid, 100 * shares, markevery=_POINTS // 8, markersize=4, **style)
        axes.set_xlim(0, _LARGEST_RADIUS)

    return _panels(rows, curve, "L2 radius ε of images in [0, 1]", "certified accuracy, %")


def _panels(rows: Sequence[Row], curve: Callable[[Any, Row, dict[str, Any]], None], x: str, y: str) -> Any:
    """Draws a panel for each size (rows) and backend (columns) on the same axes, with one legend below."""
    if not rows:
        return None
    sizes = _distinct(row.contender.size for row in rows)
    backends = _distinct(row.contender.backend for row in rows)
    methods = _distinct(row.contender.method for row in rows)
    figure = new_figure(max(6.4, 5.2 * len(backends)), 4.0 * len(sizes) + 0.6)
    grid = figure.subplots(len(sizes), len(backends), sharex=True, sharey=True, squeeze=False)
    for (i, size), (j, backend) in itertools.product(enumerate(sizes), enumerate(backends)):
        axes = grid[i][j]
        open_axes(axes)
        axes.set_title(f"{size}, backend {backend}", fontsize=10)
        axes.set_xlabel(x if i == len(sizes) - 1 else "")
        axes.set_ylabel(y if j == 0 else "")
        for row in rows:
            if (row.contender.size, row.contender.backend) == (size, backend):
                curve(axes, row, _style(row.contender.method))
    handles = [_handle(method) for method in methods]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(methods), frameon=False, fontsize=9)
    return figure


def _style(method: str) -> dict[str, Any]:
    marker = _MARKERS[METHODS.index(method) % len(_MARKERS)]
    return {"color": color(method), "marker": marker, "linewidth": 1.6, "label": TITLES[method]}


def _handle(method: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], markersize=5, **_style(method))


def _backends(rows: Sequence[Row]) -> Any:
    """Draws epochs in the budget and certified accuracy of the backends next to each other."""
    rows = [row for row in rows if row.measured]
    backends = _distinct(row.contender.backend for row in rows)
    if len(backends) < 2:
        return None
    groups = _distinct(row.contender[:2] for row in rows)
    found = {row.contender: row for row in rows}
    figure = new_figure(11, 0.45 * len(groups) * len(backends) / 2 + 2.0)
    left, right = figure.subplots(1, 2)
    height = 0.8 / len(backends)
    for j, backend in enumerate(backends):
        for i, (method, size) in enumerate(groups):
            row = next((found[c] for c in found if c == (method, size, backend)), None)
            if row is None:
                continue
            place = {"y": i + (j - (len(backends) - 1) / 2) * height, "height": 0.9 * height}
            look = {"color": color(method), "alpha": 1.0 if j == 0 else 0.45, "hatch": "" if j == 0 else "///"}
            cra = 100 * row.result["cra"][0] if row.finished else None
            for axes, width in ((left, row.epochs_in_budget), (right, cra)):
                bar = axes.barh(width=width or 0, edgecolor="white", linewidth=0.5, **place, **look)
                label = f" {backend}: no figure" if width is None else f" {width:.1f} {backend}"
                axes.bar_label(bar, [label], fontsize=7.5)
    for axes, title in ((left, f"epochs in {rows[0].budget:g} s"), (right, "certified accuracy at 36/255, %")):
        axes.set_yticks(range(len(groups)), [" ".join((TITLES[m], s)) for m, s in groups])
        axes.invert_yaxis()
        axes.set_title(title, fontsize=10)
        open_axes(axes)
        axes.margins(x=0.25)
    right.set_xlim(0, 118)
    right.set_xticks(range(0, 101, 20))
    return figure


def _distinct(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))
