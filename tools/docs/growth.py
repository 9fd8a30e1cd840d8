"""How time and memory grow with the sizes of a network, from benchmarks/results/scaling_*.json: tables and picture.

``python tools/docs/growth.py`` draws docs/images/scaling.svg.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import tables

AXES = {
    "batch": "batch (32 channels, 8×8 images, 2 layers)",
    "width": "channels (batch 16, 8×8 images, 2 layers)",
    "side": "image side (batch 16, 16 channels, 2 layers)",
    "depth": "layers (batch 16, 32 channels, 8×8 images)",
}
KINDS = {"training": "training step", "evaluation": "evaluation", "memory": "kept for backward"}
UNITS = {"training": "plain training, ms", "evaluation": "plain evaluation, ms", "memory": "plain memory, MB"}


def found() -> tuple[str, dict[str, Any]]:
    """Path and content of the results."""
    return tables.read("scaling_cpu_*.json")


def about() -> str:
    """How all tables were measured."""
    file, results = found()
    machine = f"CPU ({results['machine']}), {results['threads']} thread, CPU time"
    return tables.measured(file, "python benchmarks/bench_scaling.py", machine, results["torch"])


def table(axis: str, kind: str) -> str:
    """The ratios of one kind along one axis: by the kernels, and in brackets by the reference."""
    rows = [row for row in found()[1]["rows"] if row["axis"] == axis]
    values = sorted({row[axis] for row in rows})
    by_method: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], {})[row[axis]] = row
    cells = [
        (tables.TITLES[method], *(_cell(row.get(value), kind) for value in values))
        for method, row in sorted(by_method.items(), key=lambda item: tables.TITLES[item[0]].lower())
    ]
    plain = next(iter(by_method.values()))
    cells.append((f"*{UNITS[kind]}*", *(f"*{plain[value][UNITS[kind]]:.3g}*" for value in values)))
    return tables.table((AXES[axis].partition(" (")[0], *map(str, values)), cells)


def _cell(row: dict[str, Any] | None, kind: str) -> str:
    if row is None:
        return ""
    reference = row.get(f"reference {kind}")
    return f"{row[f'fused {kind}']:.2f}" + (f" ({reference:.2f})" if reference is not None else "")


def digest() -> str:
    """Digest of the figures; the picture contains it, so that a test finds an old picture."""
    return hashlib.sha256(json.dumps(found()[1]["rows"], sort_keys=True).encode()).hexdigest()


def draw() -> None:
    """Draws the ratios to the plain network, with logarithmic axes."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = found()[1]["rows"]
    methods = sorted({row["method"] for row in rows})
    figure, panels = plt.subplots(len(KINDS), len(AXES), figsize=(10, 6.4), sharey="row", layout="constrained")
    for line, (kind, title) in zip(panels, KINDS.items(), strict=True):
        for panel, (axis, label) in zip(line, AXES.items(), strict=True):
            for index, method in enumerate(methods):
                own = sorted((row[axis], row[f"fused {kind}"]) for row in rows if _is(row, axis, method))
                panel.plot(*zip(*own, strict=True), color=f"C{index}", marker=".", label=tables.TITLES[method])
            panel.axhline(1, color="black", linewidth=0.8)
            panel.set(xscale="log", yscale="log")
            values = sorted({row[axis] for row in rows if row["axis"] == axis})
            panel.set_xticks(values, map(str, values))
            panel.minorticks_off()
            panel.set_yticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
            panel.set_xlabel(label.replace(" (", "\n(", 1), fontsize=7) if kind == "memory" else None
        line[0].set_ylabel(f"{title}\n(plain = 1, lower is better)", fontsize=8)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(methods), frameon=False)
    metadata = {"Date": None, "Creator": "tools/docs/growth.py", "Description": digest()}
    figure.savefig(tables.ROOT / "docs" / "images" / "scaling.svg", metadata=metadata)


def _is(row: dict[str, Any], axis: str, method: str) -> bool:
    return row["axis"] == axis and row["method"] == method


if __name__ == "__main__":
    draw()
