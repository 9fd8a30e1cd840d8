"""The report of a study: one self-contained HTML file."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastlip import plotting
from fastlip._extras import needed_for
from fastlip._files import write_text
from fastlip.models import TITLES
from fastlip.study import plots
from fastlip.study.comparing import Comparison, machine
from fastlip.study.table import Row

REPORT = "report.html"
_CAPTIONS = {
    plots.BACKENDS: (
        "What the kernels gain",
        "Epochs that fit into the same training time, and the certified accuracy after them.",
    ),
    plots.RADAR: (
        "Six axes",
        "The comparison paper's axes. The best value here scores 5, the worst 1; accuracies are scored linearly,"
        " times and bytes by their logarithm. Grey: the other methods.",
    ),
    plots.TIME: ("Accuracy against time", "After each epoch; evaluation and checkpoints are not counted."),
    plots.CERTIFIED: (
        "Certified accuracy against radius",
        "Fraction of test images that are classified correctly with a certified radius above ε.",
    ),
}


def write_report(comparison: Comparison) -> list[str]:
    """Writes the pictures and report.html into the study's folder; returns a note if the pictures are left out."""
    rows = comparison.rows()
    missing = plotting.missing()
    pictures = [] if missing else plots.draw(comparison.folder, rows)
    figures = [
        {
            "title": _CAPTIONS[name][0],
            "caption": _CAPTIONS[name][1],
            "source": _data_uri(comparison.folder / name),
        }
        for name in _CAPTIONS
        if name in pictures
    ]
    write_text(comparison.folder / REPORT, _render(comparison, rows, figures, missing))
    return [f"plots left out: {missing}"] if missing else []


def _render(comparison: Comparison, rows: Sequence[Row], figures: list[dict[str, str]], missing: str) -> str:
    with needed_for("the report"):
        import jinja2
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fastlip.study", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    lines = [row.values() for row in rows]
    return environment.get_template("report.html.jinja").render(
        data=str(comparison.data),
        settings=comparison.settings,
        machine=machine(comparison.settings),
        rows=lines,
        failed=[line for line, row in zip(lines, rows, strict=True) if not row.finished],
        best=_best([line for line, row in zip(lines, rows, strict=True) if row.finished]),
        gains=_gains(rows),
        colors={line["method"]: plots.color(line["method"]) for line in lines},
        titles=TITLES,
        figures=figures,
        missing=missing,
        audited=max((line["lipschitz"] for line in lines if line["lipschitz"] is not None), default=None),
        command=_command(comparison),
    )


def _data_uri(file: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"


def _best(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The best value of each column, which the table shows in bold."""
    highest = ("accuracy", "cra 36/255", "cra 72/255", "cra 108/255", "cra 1", "images_per_second")
    lowest = ("seconds_per_epoch", "evaluation_ms", "train_memory", "evaluation_memory")
    best = {}
    for names, choose in ((highest, max), (lowest, min)):
        for name in names:
            values = [line[name] for line in lines if line[name] is not None]
            best |= {name: choose(values)} if values else {}
    return best


def _gains(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Compares each other backend with the first of its method and size."""
    gains = []
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        if row.measured is None:
            continue
        method, size, backend = row.contender
        one = first.setdefault((method, size), row)
        if one is not row:
            gains.append(
                {
                    "method": method,
                    "size": size,
                    "backends": (one.contender.backend, backend),
                    "epochs": (one.epochs_in_budget, row.epochs_in_budget),
                    "cra": tuple(r.result["cra"][0] if r.finished else None for r in (one, row)),
                }
            )
    return gains


def _command(comparison: Comparison) -> str:
    """The command that reproduces this study."""
    settings = comparison.settings
    words = ["fastlip compare", f"--budget {settings.budget:g}"]
    words += [f"--search {settings.search}"] if settings.search else []
    for name, value in settings.options.items():
        flag = name.replace("_", "-")
        words.append(
            f"--{'' if value else 'no-'}{flag}" if isinstance(value, bool) else f"--{flag} {shlex.quote(str(value))}"
        )
    rows = [row.contender for row in comparison.rows()]
    for flag, index in (("method", 0), ("size", 1), ("backend", 2)):
        words.append(f"--{flag} {','.join(dict.fromkeys(c[index] for c in rows))}")
    return " ".join(words)
