"""The table of a study as CSV, Markdown, LaTeX and text."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastlip.study.means import CRA, Group
from fastlip.study.table import EPS_NAMES

NO_FIGURE = "–"


@dataclass(frozen=True)
class Column:
    """A column of the printed tables.

    Args:
        title: its head.
        text: the cell of a group.
        best: the column of figures whose largest (``largest``) or smallest value is printed in bold; "": none.
        largest: whether the best value is the largest.
    """

    title: str
    text: Callable[[Group], str]
    best: str = ""
    largest: bool = True


def percent(group: Group, name: str) -> str:
    """Mean ± standard deviation of a fraction, in percent."""
    mean, deviation = group.mean(name), group.deviation(name)
    if mean is None:
        return NO_FIGURE
    return f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def constant(lipschitz: float | None) -> str:
    """An audited constant: with seven decimals unless it is large, so that it is not shown below the bound."""
    if lipschitz is None:
        return NO_FIGURE
    return f"{lipschitz:.7f}" if lipschitz < 100 else f"{lipschitz:.3g}"


def _number(name: str, form: str, scale: float = 1.0) -> Callable[[Group], str]:
    def text(group: Group) -> str:
        value = group.values()[name]
        return NO_FIGURE if value is None else form % (scale * value)

    return text


def _percent(name: str) -> Callable[[Group], str]:
    return lambda group: percent(group, name)


LABEL = Column("network", lambda group: group.label)
EPOCHS = Column("epochs", _number("epochs", "%.1f"))
ACCURACY = Column("accuracy, %", _percent("accuracy"), "accuracy")
CERTIFIED = Column(f"CRA {EPS_NAMES[0]}, %", _percent(CRA), CRA)
CONSTANT = Column("audited L", lambda group: constant(group.lipschitz))
_COLUMNS = (
    LABEL,
    EPOCHS,
    ACCURACY,
    CERTIFIED,
    *(Column(f"CRA {name}, %", _percent(f"cra {name}"), f"cra {name}") for name in EPS_NAMES[1:]),
    CONSTANT,
    Column("s / epoch", _number("seconds_per_epoch", "%.3g"), "seconds_per_epoch", largest=False),
    Column("training memory, MB", _number("train_memory", "%.3g", 1e-6), "train_memory", largest=False),
)


def to_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """Lines with the same columns as CSV, with empty cells where there is no figure."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def best_of(groups: Sequence[Group], name: str, largest: bool) -> float | None:
    """The best figure of a column among networks with a bounded constant; None where all are equal."""
    found = [group.values()[name] for group in groups if group.finished and not group.contender.is_plain]
    known = [value for value in found if value is not None]
    return (max if largest else min)(known) if len(set(known)) > 1 else None


def to_markdown(groups: Sequence[Group]) -> str:
    """The table in Markdown; the best figure of a column is bold."""
    lines = [[column.title for column in _COLUMNS], ["---", *["---:"] * (len(_COLUMNS) - 1)]]
    for cells, reason in _cells(groups, "**%s**"):
        lines.append([cell.replace("|", "\\|") for cell in (*cells[:1], *(cells[1:] if not reason else [reason]))])
        lines[-1] += [""] * (len(_COLUMNS) - len(lines[-1]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_latex(groups: Sequence[Group]) -> str:
    """The table in LaTeX, for the package booktabs; the best figure of a column is bold."""
    count = len(_COLUMNS)
    lines = [rf"\begin{{tabular}}{{l{'r' * (count - 1)}}}", r"\toprule"]
    lines += [" & ".join(_escaped(column.title) for column in _COLUMNS) + r" \\", r"\midrule"]
    for cells, reason in _cells(groups, "\0%s\1"):
        shown = [_escaped(cell).replace("\0", r"\textbf{").replace("\1", "}") for cell in cells]
        if reason:
            shown = [shown[0], rf"\multicolumn{{{count - 1}}}{{l}}{{{_escaped(reason)}}}"]
        lines.append(" & ".join(shown) + r" \\")
    return "\n".join(["% needs \\usepackage{booktabs}", *lines, r"\bottomrule", r"\end{tabular}", ""])


def _cells(groups: Sequence[Group], bold: str) -> list[tuple[list[str], str]]:
    """The cells of each group, and for a group without any figures the reason."""
    best = {column.best: best_of(groups, column.best, column.largest) for column in _COLUMNS if column.best}
    found = []
    for group in groups:
        values = group.values()
        cells = []
        for column in _COLUMNS:
            own = values[column.best] if column.best and not group.contender.is_plain else None
            is_best = own is not None and own == best[column.best]
            cells.append(bold % column.text(group) if is_best else column.text(group))
        found.append((cells, "" if group.finished else group.reason))
    return found


_LATEX = {
    "\\": r"\textbackslash{}",
    "–": "--",
    "±": r"$\pm$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def _escaped(text: str) -> str:
    """Text for LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)


def to_text(groups: Sequence[Group]) -> str:
    """The table for a terminal of 80 columns."""
    columns = (LABEL, EPOCHS, ACCURACY, CERTIFIED, CONSTANT)
    lines = [[column.title for column in columns]]
    lines += [[column.text(group) for column in columns] for group in groups]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    text = [_line(line, widths) for line in lines]
    for index, group in enumerate(groups, 1):
        if not group.finished:
            text[index] = f"{group.label:<{widths[0]}}  {group.reason}"
        elif group.reason:
            text[index] += f"  {group.reason}"
    return "\n".join(text)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    numbers = (f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True))
    return "  ".join((f"{cells[0]:<{widths[0]}}", *numbers))
