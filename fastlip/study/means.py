"""The runs of a contender with all of its seeds as one row: means and standard deviations."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastlip.study.contenders import NETWORK, Contender, text_of
from fastlip.study.table import EPS_NAMES, Row

CRA = f"cra {EPS_NAMES[0]}"
# Figures that depend on the seed.
_SPREAD = ("accuracy", "trained_seconds", *(f"{kind} {name}" for kind in ("cra", "joint_cra") for name in EPS_NAMES))
_OF_ONE_RUN = ("seed", "status", "lipschitz")


@dataclass(frozen=True)
class Group:
    """The runs of a contender, one for each seed.

    Args:
        rows: at least one row.
        label: the contender's name next to those of the other groups, without what all have in common.
    """

    rows: tuple[Row, ...]
    label: str

    @property
    def contender(self) -> Contender:
        """The contender with the recipe's seed."""
        return self.rows[0].contender.with_seed(None)

    @property
    def finished(self) -> tuple[Row, ...]:
        """The runs that are trained and certified."""
        return tuple(row for row in self.rows if row.finished)

    @property
    def reason(self) -> str:
        """The reason of the first run without figures, and how many there are of several; "" if all are finished."""
        missing = [row for row in self.rows if not row.finished]
        if not missing:
            return ""
        count = f"{len(missing)} of {len(self.rows)} runs: " if len(self.rows) > 1 else ""
        return f"{count}{missing[0].reason}"

    def mean(self, name: str) -> float | None:
        """The mean of this column over the finished runs; None if there are none."""
        found = self._figures(name)
        return statistics.fmean(found) if found else None

    def deviation(self, name: str) -> float | None:
        """The standard deviation of this column over at least two finished runs (with n - 1); otherwise None."""
        found = self._figures(name)
        return statistics.stdev(found) if len(found) > 1 else None

    @property
    def lipschitz(self) -> float | None:
        """The largest audited constant of the runs."""
        return max(self._figures("lipschitz"), default=None)

    def values(self) -> dict[str, Any]:
        """The columns as values that JSON can hold: each figure's mean under its name, then its deviation."""
        first = self.rows[0].values()
        figures: dict[str, Any] = {"label": self.label}
        for name, value in first.items():
            if name == "status":
                figures |= {"runs": len(self.finished), "status": self.reason or "finished"}
            elif name in _SPREAD:
                figures |= {name: self.mean(name), f"{name} std": self.deviation(name)}
            elif name not in _OF_ONE_RUN:
                # Costs and settings are the same for all seeds.
                figures[name] = next((v for row in self.rows if (v := row.values()[name]) is not None), value)
            elif name == "lipschitz":
                figures[name] = self.lipschitz
        return figures

    def _figures(self, name: str) -> list[float]:
        return [value for row in self.finished if (value := row.values()[name]) is not None]


def groups_of(rows: Sequence[Row]) -> list[Group]:
    """The rows by contender, in the order in which these first appear."""
    by_contender: dict[Contender, list[Row]] = {}
    for row in rows:
        by_contender.setdefault(row.contender.with_seed(None), []).append(row)
    labels = _labels([group[0] for group in by_contender.values()])
    groups = zip(by_contender.values(), labels, strict=True)
    return [Group(tuple(sorted(group, key=lambda row: row.about.get("seed", 0))), label) for group, label in groups]


def _labels(rows: Sequence[Row]) -> list[str]:
    """A name for each row, with the size, backend and variant if they are not the same in all rows."""
    sizes = {row.contender.size for row in rows}
    backends = {row.contender.backend for row in rows if not row.contender.is_plain}
    fields = dict.fromkeys(name for row in rows for name in row.about if name != "seed")
    plain = [row for row in rows if row.contender.is_plain]
    other = [row for row in rows if not row.contender.is_plain]
    varied = [name for name in fields if _differs(other, name)]
    # A twin has a loss and an optimiser of its own; only its network varies, and perhaps the recipe that has it.
    of_twins = [name for name in fields if name in ("recipe", *NETWORK) and _differs(plain, name)]
    return [
        " ".join(_parts(row, len(sizes) > 1, len(backends) > 1, of_twins if row.contender.is_plain else varied))
        for row in rows
    ]


def _differs(rows: Sequence[Row], name: str) -> bool:
    return len({row.about.get(name) for row in rows}) > 1


def _parts(row: Row, size: bool, backend: bool, varied: Sequence[str]) -> Iterable[str]:
    yield row.contender.title
    if size:
        yield row.contender.size
    if backend and not row.contender.is_plain:
        yield row.contender.backend
    yield from (text_of(name, row.about[name]) for name in varied)
