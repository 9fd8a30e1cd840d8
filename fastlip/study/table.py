"""The table of a study: a row for each run, finished, failed or still to come."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastlip.certification.certificates import DEFAULT_EPS
from fastlip.models import TITLES
from fastlip.study.measuring import Measured
from fastlip.study.settings import Contender

_EPS_NAMES = ("36/255", "72/255", "108/255", "1")


@dataclass(frozen=True)
class Row:
    """A contender with its costs (``measured``) and its ``result``.

    ``reason`` says why there are no figures: the contender failed or was not run yet. It is "" for a finished run.
    ``budget`` is in seconds.
    """

    contender: Contender
    budget: float
    measured: Measured | None
    result: dict[str, Any]
    reason: str

    @property
    def finished(self) -> bool:
        """Whether the run is trained and certified."""
        return not self.reason

    @property
    def epochs_in_budget(self) -> float:
        """The number of epochs that fit into the budget."""
        return self.budget / self.measured.seconds_per_epoch if self.measured else 0.0

    def values(self) -> dict[str, Any]:
        """The row's columns as values that JSON can hold."""
        row: dict[str, Any] = {**self.contender._asdict(), "status": "finished" if self.finished else self.reason}
        m, r = self.measured, self.result
        names = ("accuracy", "epochs", "steps", "lr", "weight_decay", "trained_seconds")
        row |= {name: r.get(name) for name in names}
        for kind in ("cra", "joint_cra"):
            shares = r.get(kind, [None] * len(DEFAULT_EPS))
            row |= {f"{kind} {name}": share for name, share in zip(_EPS_NAMES, shares, strict=True)}
        row["lipschitz"] = r.get("lipschitz")
        row["epochs_in_budget"] = self.epochs_in_budget if m else None
        row |= _costs(m) if m else dict.fromkeys(_COSTS)
        return row


def _costs(m: Measured) -> dict[str, Any]:
    return {
        "parameters": m.parameters,
        "seconds_per_epoch": m.seconds_per_epoch,
        "images_per_second": m.images / m.seconds_per_epoch,
        "step_ms": 1e3 * m.step,
        "evaluation_ms": 1e3 * m.evaluate,
        "evaluation_fresh_ms": 1e3 * m.evaluate_fresh,
        "evaluation_images_per_second": m.batch_size / m.evaluate,
        "train_memory": m.train_memory,
        "evaluation_memory": m.evaluate_memory,
        "evaluation_fresh_memory": m.evaluate_fresh_memory,
    }


_COSTS = (
    "parameters",
    "seconds_per_epoch",
    "images_per_second",
    "step_ms",
    "evaluation_ms",
    "evaluation_fresh_ms",
    "evaluation_images_per_second",
    "train_memory",
    "evaluation_memory",
    "evaluation_fresh_memory",
)


def to_csv(rows: Sequence[Row]) -> str:
    """The table as CSV, with empty cells where there is no figure."""
    text = io.StringIO()
    values = [row.values() for row in rows]
    writer = csv.DictWriter(text, list(values[0]) if values else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(values)
    return text.getvalue()


def to_text(rows: Sequence[Row]) -> str:
    """The table for a terminal."""
    lines = [
        f"{'method':<10} {'size':<4} {'backend':<9} {'epochs':>6} {'s/epoch':>8} {'images/s':>8} {'accuracy':>8}"
        f" {'CRA ' + _EPS_NAMES[0]:>10} {_EPS_NAMES[1]:>7} {_EPS_NAMES[2]:>7} {_EPS_NAMES[3]:>7}"
        f" {'audited L':>10} {'train MB':>8} {'eval. MB':>8}"
    ]
    return "\n".join(lines + [_line(row) for row in rows])


def _line(row: Row) -> str:
    v = row.values()
    name = f"{TITLES[v['method']]:<10} {v['size']:<4} {v['backend']:<9}"
    speed = f"{v['seconds_per_epoch']:>8.3g} {v['images_per_second']:>8.0f}" if row.measured else f"{'-':>8} {'-':>8}"
    if not row.finished:
        return f"{name} {'-':>6} {speed} {row.reason}"
    shares = " ".join(f"{share:>7.1%}" for share in row.result["cra"][1:])
    memory = f"{v['train_memory'] / 1e6:>8.3g} {v['evaluation_memory'] / 1e6:>8.3g}" if row.measured else ""
    return (
        f"{name} {v['epochs']:>6.1f} {speed} {v['accuracy']:>8.1%} {row.result['cra'][0]:>10.1%} {shares}"
        f" {v['lipschitz']:>10.7f} {memory}"
    )
