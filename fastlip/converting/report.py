"""The report of a conversion: every step, what is left, and the Lipschitz bounds before and after."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

from fastlip.certification.input_norms import MeasuredNorm

_WIDTH = 100
_ALLOWED = 1 + 1e-5


@dataclass(frozen=True)
class Step:
    """The step of a conversion for one module or function.

    Attributes:
        path: the module's name in the model; for a function, the name of the module that calls it, and its own.
        before: its type.
        after: what stands there now; empty if it could not be converted.
        note: what else is to be known, or why it could not be converted.
    """

    path: str
    before: str
    after: str
    note: str = ""


@dataclass(frozen=True)
class Conversion:
    """The report of :func:`fastlip.convert`: ``str()`` of it is a table.

    Attributes:
        steps: what became of each module and function that was changed, a ``Step`` each with ``path``, ``before``,
            ``after`` and ``note``.
        failures: what could not be converted, in the same form: ``note`` says why.
        before: the audited Lipschitz bound of the model; None if the audit does not understand it.
        after: the audited Lipschitz bound of the converted model; None if the audit does not understand it.
        reason: why a bound is None or above 1; empty if there is nothing to say.
        norm: the norm of the inputs of the bounds, ``"l2"`` or ``"weighted l2"``.

    Example:
        >>> mlp = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 2))
        >>> _, report = fastlip.convert(mlp, example=torch.rand(2, 4), quiet=True)
        >>> [(step.before, step.after) for step in report.steps]
        [('Linear', 'AOLLinear'), ('GELU', 'MaxMin'), ('Linear', 'LOTLinear')]
        >>> report.complete
        True
    """

    steps: tuple[Step, ...]
    failures: tuple[Step, ...]
    before: float | None
    after: float | None
    reason: str = ""
    norm: MeasuredNorm = "l2"

    @property
    def complete(self) -> bool:
        """Whether everything was converted, and the audit confirms a Lipschitz constant of at most 1 + 1e-5."""
        return not self.failures and self.after is not None and self.after <= _ALLOWED

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        names = ("steps", "failures")
        lists = {name: [dict(vars(step)) for step in getattr(self, name)] for name in names}
        values = {name: getattr(self, name) for name in ("before", "after", "norm", "reason", "complete")}
        return {**lists, **values}

    def __str__(self) -> str:
        lines = _table(self.steps)
        if self.failures:
            lines += ["not converted:", *_table(self.failures)]
        weighted = "" if self.norm == "l2" else f" ({self.norm} norm of the inputs)"
        lines.append(f"Lipschitz bound: {_bound(self.before)} before, {_bound(self.after)} after{weighted}")
        if self.reason:
            lines += textwrap.wrap(self.reason, _WIDTH)
        if not self.complete:
            lines.append("The converted model is not proved to be 1-Lipschitz.")
        return "\n".join(lines)


def _bound(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.6g}"


def _table(steps: tuple[Step, ...]) -> list[str]:
    """A line for each step; notes that do not fit follow below, indented."""
    left = max((len(step.path) for step in steps), default=0)
    kind = max((len(step.before) for step in steps), default=0)
    right = max((len(step.after) for step in steps), default=0)
    lines = []
    for step in steps:
        arrow = f" -> {step.after:<{right}}" if right else ""
        line = f"{step.path:<{left}}  {step.before:<{kind}}{arrow}"
        if step.note and len(line) + 2 + len(step.note) > _WIDTH:
            lines += [
                line.rstrip(),
                *textwrap.wrap(step.note, _WIDTH - 4, initial_indent="    ", subsequent_indent="    "),
            ]
        else:
            lines.append(f"{line}  {step.note}".rstrip())
    return lines
