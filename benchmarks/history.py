"""Times the methods' steps, compares them with the last run on this kind of machine, and keeps the new run.

    python benchmarks/history.py [--size XS] [--method NAME ...] [--rounds 9] [--keep / --no-keep]

A kind of machine is a processor with a number of threads; its history is a file of one JSON object per line in
``benchmarks/results/history/``. A figure has moved if it differs from the last run's by more than three times the
standard error of both medians, and by more than 3 %. Exits with 1 if any has become slower.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import click
import torch

from fastlip._machine import processor
from fastlip.benchmarking import Setting, keep_pages, run
from fastlip.models import METHODS, SIZES

FOLDER = Path(__file__).with_name("results") / "history"
FIGURES = {"train": "training step", "evaluate": "evaluation"}
_ERRORS, _SMALLEST = 3.0, 0.03
_BATCH_SIZES = {"XS": 256, "S": 64, "M": 16, "L": 16}


@click.command()
@click.option("--size", type=click.Choice(list(SIZES)), default="XS", show_default=True, help="Size of the network.")
@click.option("--batch-size", type=click.IntRange(1), help="Images in a step.  [default: XS 256, S 64, M 16]")
@click.option("--image-size", type=click.IntRange(2), default=32, show_default=True, help="Side of the images.")
@click.option("--method", "methods", multiple=True, type=click.Choice(METHODS), help="Repeatable.  [default: all]")
@click.option("--rounds", type=click.IntRange(3), default=9, show_default=True, help="Timed steps of each network.")
@click.option("--keep/--no-keep", default=True, show_default=True, help="Append the run to the machine's history.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), default=FOLDER, help="Of the histories.")
def main(methods: tuple[str, ...], rounds: int, keep: bool, folder: Path, **setting: Any) -> None:
    """Times, compares and keeps; see the top of the file."""
    keep_pages()
    setting["batch_size"] = setting["batch_size"] or _BATCH_SIZES[setting["size"]]
    rows = {}
    for method in methods or METHODS:
        (row,) = run(Setting(method, rounds=rounds, **setting), ["fused"])  # pyright: ignore[reportArgumentType]
        rows[method] = {name: getattr(row, name) for name in (*FIGURES, *(f"{name}_error" for name in FIGURES))}
    versions = {"date": date.today().isoformat(), "commit": commit(), "torch": torch.__version__}
    file = folder / f"{machine()}.jsonl"
    last = last_of(read(file), setting, rows)
    moved = compare(last, rows)
    click.echo("\n".join(lines(rows, last, moved)))
    if keep:
        folder.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({**versions, **setting, "rows": rows}) + "\n")
        click.echo(f"kept in {file}")
    sys.exit(any(change > 0 for change in moved.values()))


def machine() -> str:
    """The kind of this machine, as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", f"{processor()} {torch.get_num_threads()} threads".lower()).strip("-")


def commit() -> str:
    """The commit that is measured; empty outside of a repository."""
    command = ["git", "-C", str(FOLDER.parents[2]), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def read(file: Path) -> list[dict[str, Any]]:
    """The runs of a history, oldest first."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def last_of(
    runs: Sequence[Mapping[str, Any]], setting: Mapping[str, Any], methods: Mapping[str, Any]
) -> dict[str, tuple[Mapping[str, Any], str]]:
    """For each method the figures of the last run with this setting, and the run's date and commit."""
    found = {}
    for entry in runs:
        if all(entry[name] == value for name, value in setting.items()):
            about = f"{entry['date']} {entry['commit']}".strip()
            found.update({method: (row, about) for method, row in entry["rows"].items() if method in methods})
    return found


def compare(
    last: Mapping[str, tuple[Mapping[str, Any], str]], rows: Mapping[str, Mapping[str, float]]
) -> dict[tuple[str, str], float]:
    """The relative change of every figure that has moved beyond noise, by method and figure; above 0: slower."""
    moved = {}
    for method, (before, _) in last.items():
        for figure in FIGURES:
            change = math.log(rows[method][figure] / before[figure])
            noise = _ERRORS * math.hypot(rows[method][f"{figure}_error"], before[f"{figure}_error"])
            if abs(change) > max(noise, math.log1p(_SMALLEST)):
                moved[method, figure] = math.expm1(change)
    return moved


def lines(
    rows: Mapping[str, Mapping[str, float]],
    last: Mapping[str, tuple[Mapping[str, Any], str]],
    moved: Mapping[tuple[str, str], float],
) -> list[str]:
    """A line for each figure: the ratio to plain now, in the last run, and whether it has moved."""
    found = []
    for method, row in rows.items():
        for figure, title in FIGURES.items():
            text = f"{method:8} {title:14} {row[figure]:6.3f} ± {100 * row[f'{figure}_error']:.1f} %"
            if method in last:
                before, about = last[method]
                change = moved.get((method, figure))
                text += f"   {before[figure]:6.3f} on {about}   "
                text += "within noise" if change is None else f"{100 * change:+.0f} %: {_word(change)}"
            found.append(text)
    return found


def _word(change: float) -> str:
    return "slower" if change > 0 else "faster"


if __name__ == "__main__":
    main()
