"""The tables of ``benchmarks/ablation.py``: each choice with mean and standard deviation over seeds."""

from __future__ import annotations

import statistics
from typing import Any

from tables import measured, read, table

_HEADS = {"loss": "loss", "block": "block of bro_net", "layer": "layers and network"}
_FIGURES = ("accuracy", "cra_0.1412", "cra_0.5", "cra_1")


def ablation(data: str) -> str:
    """One table for the losses, one for the blocks and one for the layers, on this data set."""
    file, found = read(f"ablation_{data}.json")
    rows = found["rows"]
    seeds = len(rows[0]["accuracy"])
    about = measured(file, found["command"], f"{found['machine']}, one thread, {found['date']}", found["torch"])
    budget, images = found["budget"], found["judging_images"]
    judged = f"{budget:g} s of training steps for each run, {seeds} seeds, {images} images judge."
    for date in dict.fromkeys(row.get("date", found["date"]) for row in rows):
        if date != found["date"]:
            names = ", ".join(row["name"] for row in rows if row.get("date") == date)
            judged += f" Trained again on {date} (`--again`), with the same time of a step: {names}."
    tables = [_table(kind, head, rows) for kind, head in _HEADS.items()]
    return "\n\n".join((f"{about} {judged}", *tables))


def _table(kind: str, head: str, rows: list[dict[str, Any]]) -> str:
    heads = (head, "chosen", "steps", "accuracy", "CRA(36/255)", "CRA(0.5)", "CRA(1)")
    lines = [
        (row["name"], _chosen(row["chosen"]), str(row["steps"]), *(_mean(row[figure]) for figure in _FIGURES))
        for row in rows
        if row["table"] == kind
    ]
    return table(heads, lines)


def _chosen(values: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items())


def _mean(shares: list[float]) -> str:
    return f"{statistics.mean(shares):.1%} ± {100 * statistics.stdev(shares):.1f}".replace("%", " %")
