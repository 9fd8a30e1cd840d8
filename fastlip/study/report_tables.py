"""The tables of the HTML report as cells with a text and a value to sort by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from fastlip.study.colors import Looks, variable
from fastlip.study.formats import NO_FIGURE, best_of, constant
from fastlip.study.means import CRA, Group
from fastlip.study.table import EPS_NAMES, Row
from fastlip.training.run_folder import CERTIFICATE, FAILURE

Line = Mapping[str, Any]


class Figure(NamedTuple):
    """A column of figures: its name in the data, head, format, factor, and whether its best is the largest."""

    name: str
    title: str
    form: str
    scale: float = 1.0
    largest: bool | None = None

    def text(self, value: Any) -> str:
        """The text of a value, or a dash."""
        if value is None:
            return NO_FIGURE
        if self.name == "lipschitz":
            return constant(value)
        return str(value) if isinstance(value, str) else self.form % (self.scale * value)


_EPOCHS = Figure("epochs", "epochs", "%.1f")
_ACCURACY = Figure("accuracy", "accuracy, %", "%.1f", 100, True)
_CERTIFIED = Figure(CRA, f"CRA {EPS_NAMES[0]}, %", "%.1f", 100, True)
_CONSTANT = Figure("lipschitz", "audited L", "")
_SHORT = (_EPOCHS, _ACCURACY, _CERTIFIED, _CONSTANT)
_LONG = (
    Figure("size", "size", ""),
    Figure("backend", "backend", ""),
    _EPOCHS,
    Figure("steps", "steps", "%.0f"),
    Figure("trained_seconds", "trained, s", "%.1f"),
    Figure("lr", "learning rate", "%.3g"),
    Figure("weight_decay", "weight decay", "%.3g"),
    _ACCURACY,
    _CERTIFIED,
    *(Figure(f"cra {name}", name, "%.1f", 100, True) for name in EPS_NAMES[1:]),
    _CONSTANT,
    Figure("parameters", "parameters", "%d"),
    Figure("seconds_per_epoch", "s / epoch", "%.3g", 1, False),
    Figure("images_per_second", "images / s", "%.0f", 1, True),
    Figure("evaluation_ms", "evaluation, ms a batch", "%.3g", 1, False),
    Figure("evaluation_fresh_ms", "without cache", "%.3g"),
    Figure("train_memory", "training memory, MB", "%.3g", 1e-6, False),
    Figure("evaluation_memory", "evaluation memory, MB", "%.3g", 1e-6, False),
    Figure("evaluation_fresh_memory", "without cache", "%.3g", 1e-6),
)


class Cell(NamedTuple):
    """A cell: its text, the deviation after it, the value to sort by, and whether it is the best of its column."""

    text: str
    deviation: str
    value: Any
    best: bool


class Link(NamedTuple):
    """A link to a file of a run."""

    text: str
    address: str


@dataclass(frozen=True)
class TableLine:
    """A line: a label with its colour, cells, the reason where figures are missing, and links."""

    label: str
    color: str
    cells: Sequence[Cell]
    reason: str
    links: Sequence[Link]


@dataclass(frozen=True)
class Table:
    """A table with the titles of its columns of figures."""

    heads: Sequence[str]
    lines: Sequence[TableLine]


def short_table(groups: Sequence[Group], folder: Path) -> Table:
    """The figures that decide: a line for each group, with links to the certificates of its runs."""
    return _table(groups, _SHORT, folder)


def long_table(groups: Sequence[Group], folder: Path) -> Table:
    """All figures of each group."""
    return _table(groups, _LONG, folder)


def runs_table(groups: Sequence[Group], folder: Path) -> Table:
    """All figures of each run."""
    looks = Looks(groups)
    columns = (Figure("seed", "seed", "%d"), *_LONG)
    lines = []
    for group in groups:
        for row in group.rows:
            values = row.values()
            cells = [Cell(column.text(values[column.name]), "", values[column.name], False) for column in columns]
            color = variable(looks.color(group))
            shown = cells if row.finished else ()
            lines.append(TableLine(group.label, color, shown, row.reason, _links([row], folder)))
    return Table([column.title for column in columns], lines)


def _table(groups: Sequence[Group], columns: Sequence[Figure], folder: Path) -> Table:
    looks = Looks(groups)
    best = {c.name: best_of(groups, c.name, c.largest) for c in columns if c.largest is not None}
    lines = []
    for group in groups:
        values = group.values()
        cells = [_cell(column, values, best, group) for column in columns] if group.finished else []
        color = variable(looks.color(group))
        lines.append(TableLine(group.label, color, cells, group.reason, _links(group.rows, folder)))
    return Table([column.title for column in columns], lines)


def _cell(column: Figure, values: Line, best: Mapping[str, float | None], group: Group) -> Cell:
    value, deviation = values[column.name], values.get(f"{column.name} std")
    after = "" if deviation is None else column.text(deviation)
    is_best = value is not None and value == best.get(column.name) and not group.contender.is_plain
    return Cell(column.text(value), after, value, is_best)


def _links(rows: Sequence[Row], folder: Path) -> list[Link]:
    """Links to each run's certificate, or to the traceback of one that failed, from a file in the study's folder."""
    links = []
    for row in rows:
        for file, text in ((CERTIFICATE, "certificate"), (FAILURE, "traceback")):
            if (folder / row.contender.name / file).is_file():
                shown = f"seed {row.about.get('seed', 0)}" if len(rows) > 1 else text
                links.append(Link(shown, f"{quote(row.contender.name)}/{file}"))
                break
    return links
