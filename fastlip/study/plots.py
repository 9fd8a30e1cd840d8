"""The pictures of a study in SVG: backends, radar, accuracy against time and certified accuracy against radius."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastlip import _figures
from fastlip.study.colors import GREY, INK, LINE, Looks
from fastlip.study.means import CRA, Group

# The sections of the report that have pictures.
BACKENDS, RADAR, TIME, CERTIFIED = "backends", "radar", "time", "certified"
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
_STYLE: dict[Any, str] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fastlip",
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "grid.color": LINE,
}


@dataclass(frozen=True)
class Picture:
    """A picture.

    Args:
        section: where it stands in the report.
        name: its name, that of its file without suffix.
        title: what it shows, for those who cannot see it.
        svg: the picture as the text of an SVG file.
    """

    section: str
    name: str
    title: str
    svg: str


def draw(groups: Sequence[Group]) -> list[Picture]:
    """The pictures for which there are figures; each is one panel, so that they can stand one below the other."""
    finished = [group for group in groups if group.finished]
    looks = Looks(groups)
    pictures = []
    with _figures.own_style():
        import matplotlib

        matplotlib.rcParams.update(_STYLE)
        for section, panels in (
            (BACKENDS, _backends(groups, looks)),
            (RADAR, _radars(finished, looks)),
            (TIME, _panels(finished, looks, _draw_time, "seconds of training", "accuracy on test images, %")),
            (CERTIFIED, _panels(finished, looks, _draw_certified, "L2 radius ε of images in [0, 1]", "CRA, %")),
        ):
            for index, (title, figure) in enumerate(panels):
                name = f"{section}-{index}" if index else section
                pictures.append(Picture(section, name, title, _svg(figure, name)))
    return pictures


def new_figure(width: float, height: float) -> Any:
    """An empty figure that needs no display."""
    return _figures.new_figure(width, height, dpi=144)


def open_axes(axes: Any) -> None:
    """Thin grid, no box."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def scores(lines: Sequence[dict[str, Any]]) -> list[list[float]]:
    """Six scores of each line of a table from 1 (worst) to 5 (best), in the order of the radar's axes.

    Accuracies are scored linearly, times and bytes by their logarithm.
    """
    columns = [[line[name] for line in lines] for name in ("accuracy", CRA)]
    costs = ("seconds_per_epoch", "train_memory", "evaluation_ms", "evaluation_memory")
    columns += [[-math.log(line[name]) for line in lines] for name in costs]
    return [list(six) for six in zip(*map(_scored, columns), strict=True)]


def _scored(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [1 + 4 * (value - low) / (high - low) if high > low else 5.0 for value in values]


def _svg(figure: Any, name: str) -> str:
    """The figure as SVG without date, program and ids that another figure could have too."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub("<metadata>.*?</metadata>", "", file.getvalue().decode(), flags=re.S)
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)


def _radars(groups: Sequence[Group], looks: Looks) -> Iterator[tuple[str, Any]]:
    """A radar for each group with the first backend; the others are in grey behind it."""
    groups = [group for group in groups if not group.contender.is_plain and group.rows[0].measured]
    groups = [group for group in groups if group.contender.backend == groups[0].contender.backend]
    if len(groups) < 2:
        return
    rings = [[*six, six[0]] for six in scores([group.values() for group in groups])]
    angles = [math.tau * i / len(_AXES) for i in range(len(_AXES) + 1)]
    for index, group in enumerate(groups):
        figure = new_figure(3.0, 3.1)
        axes = figure.add_subplot(projection="polar")
        _radar_axes(axes, angles)
        for other in range(len(groups)):
            if other != index:
                axes.plot(angles, rings[other], color=LINE, linewidth=0.6)
        axes.plot(angles, rings[index], color=looks.color(group), linewidth=2.2)
        axes.fill(angles, rings[index], color=looks.color(group), alpha=0.15)
        axes.set_title(group.label, color=looks.color(group), fontweight="bold", fontsize=11, pad=16)
        text = ", ".join(
            f"{axis} {score:.1f}".replace("\n", " ") for axis, score in zip(_AXES, rings[index], strict=False)
        )
        yield f"{group.label}: {text}", figure


def _radar_axes(axes: Any, angles: Sequence[float]) -> None:
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_ylim(0, 5.2)
    axes.set_yticks([1, 2, 3, 4, 5], [""] * 5)
    axes.set_xticks(angles[:-1], _AXES, fontsize=8, color=GREY)
    axes.tick_params(pad=9)
    axes.grid(linewidth=0.6)
    axes.spines["polar"].set_visible(False)


Curve = Callable[[Any, Group, dict[str, Any]], None]


def _draw_time(axes: Any, group: Group, line: dict[str, Any]) -> None:
    """Accuracy after each epoch against seconds of training: both are means over the seeds."""
    epochs = list(zip(*(row.result["history"] for row in group.finished), strict=False))
    seconds = itertools.accumulate(sum(epoch["seconds"] for epoch in runs) / len(runs) for runs in epochs)
    accuracy = [100 * sum(epoch["test_accuracy"] for epoch in runs) / len(runs) for runs in epochs]
    axes.plot(list(seconds), accuracy, markersize=4, markevery=1 + len(epochs) // 20, **line)


def _draw_certified(axes: Any, group: Group, line: dict[str, Any]) -> None:
    """The fraction of the images of all seeds that have a larger radius."""
    grid = torch.linspace(0, _LARGEST_RADIUS, _POINTS, dtype=torch.float64)
    radii = torch.tensor([row.result["radii"] for row in group.finished], dtype=torch.float64).flatten().sort().values
    shares = (len(radii) - torch.searchsorted(radii, grid, right=True)).double() / len(radii)
    axes.plot(grid, 100 * shares, markevery=_POINTS // 8, markersize=4, **line)
    axes.set_xlim(0, _LARGEST_RADIUS)


def _panels(groups: Sequence[Group], looks: Looks, curve: Curve, x: str, y: str) -> Iterator[tuple[str, Any]]:
    """A panel for each size and backend, on the same axes; the plain twin is in all panels of its size."""
    bounded = [group for group in groups if not group.contender.is_plain]
    places = dict.fromkeys((group.contender.size, group.contender.backend) for group in bounded or groups)
    panels = []
    for size, backend in places:
        figure = new_figure(5.6, 4.6)
        axes = figure.add_subplot()
        open_axes(axes)
        title = f"{size}, backend {backend}"
        axes.set_title(title, fontsize=10)
        axes.set(xlabel=x, ylabel=y)
        for group in groups:
            contender = group.contender
            if contender.size == size and (contender.is_plain or contender.backend == backend):
                curve(axes, group, {**looks.line(group), "label": _without(group.label, size, backend)})
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        panels.append((f"{y} against {x}, {title}", figure))
    _share_axes([figure.axes[0] for _, figure in panels])
    yield from panels


def _without(label: str, *words: str) -> str:
    """The label without these words, which the panel's title has."""
    return " ".join(word for word in label.split(" ") if word not in words)


def _share_axes(panels: Sequence[Any]) -> None:
    for limits in ("xlim", "ylim"):
        both = [getattr(axes, f"get_{limits}")() for axes in panels]
        for axes in panels:
            axes.set(**{limits: (min(low for low, _ in both), max(high for _, high in both))})


def _backends(groups: Sequence[Group], looks: Looks) -> Iterator[tuple[str, Any]]:
    """Bars of epochs in the budget and of certified accuracy, with a network's backends next to each other."""
    groups = [group for group in groups if group.rows[0].measured and not group.contender.is_plain]
    backends = list(dict.fromkeys(group.contender.backend for group in groups))
    if len(backends) < 2:
        return
    names = {group.contender.group: _without(group.label, *backends) for group in groups}
    places = list(names)
    height = 0.8 / len(backends)
    for name, title in (
        ("epochs_in_budget", f"epochs in {groups[0].rows[0].budget:g} s"),
        (CRA, "certified accuracy at 36/255, %"),
    ):
        figure = new_figure(5.6, 0.24 * len(places) * len(backends) + 1.0)
        axes = figure.add_subplot()
        for group in groups:
            index = backends.index(group.contender.backend)
            value = group.values()[name]
            shown = 100 * value if name == CRA and value is not None else value
            bar = axes.barh(
                y=places.index(group.contender.group) + (index - (len(backends) - 1) / 2) * height,
                height=0.9 * height,
                width=shown or 0,
                color=looks.color(group),
                alpha=1.0 if index == 0 else 0.45,
            )
            text = "no figure" if shown is None else f"{shown:.1f}"
            axes.bar_label(bar, [f" {group.contender.backend}: {text}"], fontsize=8)
        axes.set_yticks(range(len(places)), list(names.values()))
        axes.invert_yaxis()
        axes.set_title(title, fontsize=10)
        open_axes(axes)
        axes.margins(x=0.3)
        yield title, figure
