"""The figures of a study: a row for each run, finished, failed or still to come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastlip.certification.certificates import DEFAULT_EPS
from fastlip.study.contenders import Contender
from fastlip.study.measuring import Measured
from fastlip.training.text import radius_name

EPS_NAMES = tuple(map(radius_name, DEFAULT_EPS))


@dataclass(frozen=True)
class Row:
    """A contender with its costs (``measured``) and its ``result``.

    ``reason`` says why there are no figures: the contender failed or was not run yet. It is "" for a finished run.
    ``budget`` is in seconds. ``about`` has the seed, and the recipe and the fields of it in which contenders differ.
    """

    contender: Contender
    budget: float
    measured: Measured | None
    result: dict[str, Any]
    reason: str
    about: Mapping[str, Any] = field(default_factory=dict)

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
        c = self.contender
        row: dict[str, Any] = {"method": c.method, "size": c.size, "backend": c.backend, **self.about}
        m, r = self.measured, self.result
        row["status"] = "finished" if self.finished else self.reason
        names = ("accuracy", "epochs", "steps", "lr", "weight_decay", "trained_seconds")
        row |= {name: r.get(name, row.get(name)) for name in names}
        for kind in ("cra", "joint_cra"):
            shares = r.get(kind, [None] * len(DEFAULT_EPS))
            row |= {f"{kind} {name}": share for name, share in zip(EPS_NAMES, shares, strict=True)}
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
