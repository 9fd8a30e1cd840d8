"""Makes the tables of measured figures in the documentation from benchmarks/results/*.json.

Each function of ``TABLES`` returns Markdown: a line that says how the figures were measured, then the table. All
figures come from the files, those of trained networks from their cards; ``benchmarks_page.py`` writes the tables into
the documentation.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fastlip.models import TITLES, list_models, model_card

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
EPS = "36/255"


def read(name: str) -> tuple[str, dict[str, Any]]:
    """Path, relative to the repository, and content of the only results file of this pattern."""
    (file,) = RESULTS.glob(name)
    return str(file.relative_to(ROOT)), json.loads(file.read_text(encoding="utf-8"))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = (head, ["---"] * len(head), *rows)
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def measured(file: str, command: str, machine: str, torch: str) -> str:
    """The line above a table: machine, version of torch, command and file."""
    return f"{machine}; torch {torch.partition('+')[0]}; `{command}`; `{file}`."


def steps(size: str, processor: str = "") -> str:
    """Training and evaluation steps of one network, as ratios to the same network of ``nn.Conv2d`` layers."""
    file, found = read(f"steps_{size}_{processor}{'_' if processor else ''}cpu_*.json")
    options = found["options"]
    machine = f"{options['machine']}, {options['threads']} threads"
    by_method: dict[str, dict[str, dict[str, Any]]] = {}
    for row in found["rows"]:
        by_method.setdefault(row["method"], {})[row["contestant"]] = row
    ordered = sorted(by_method.items(), key=lambda item: item[1]["fused"]["train"])
    rows = ([_layer(method), *_ratios(contestants)] for method, contestants in ordered)
    about = f"Batch {options['batch_size']}, images {options['image_size']}×{options['image_size']}."
    return "\n".join(
        (
            measured(file, f"fastlip bench --size {size}", machine, options["torch"]),
            f"{about} In brackets: the reference, where it was measured.",
            "",
            table(
                ("method", "training step", "to the best", "evaluation", "to the best", "saved for backward"), rows
            ),
        )
    )


def _layer(method: str) -> str:
    name, _, options = method.partition(" ")
    return f"{TITLES[name]} `{options}`" if options else TITLES[name]


def _ratios(contestants: dict[str, dict[str, Any]]) -> Iterator[str]:
    for column in ("train", "train_to_best", "evaluate", "evaluate_to_best", "saved"):
        own, reference = contestants["fused"].get(column), contestants.get("reference", {}).get(column)
        text = "" if own is None else f"{own:.2f}"
        yield f"{text} ({reference:.2f})" if reference is not None and "best" not in column else text


def digits() -> str:
    """Accuracy, certificate and audit of every method on the digits."""
    file, found = read("digits_cpu.json")
    rows = (
        (
            TITLES[row["method"]],
            _percent(row["accuracy"]),
            _percent(_at(row["joint_cra"])),
            _percent(_at(row["cra"])),
            _bound(row["lipschitz"]),
            f"{row['seconds']:.0f} s",
        )
        for row in found["rows"]
    )
    head = ("method", "accuracy", f"CRA({EPS}), as in papers", f"CRA({EPS})", "audited L", "time")
    about = measured(file, found["command"], f"{found['machine']}, {found['date']}", found["torch"])
    return f"{about}\n\n{table(head, rows)}"


def digits_plain() -> str:
    """Accuracy and audit of the plain network on the digits."""
    file, found = read("digits_plain_cpu.json")
    head = ("seed", "accuracy", f"CRA({EPS})", "audited L")
    rows = (
        (str(row["seed"]), _percent(row["accuracy"]), _percent(_at(row["cra"])), f"{row['lipschitz']:.3g}")
        for row in found["rows"]
    )
    about = measured(file, found["command"], f"{found['machine']}, {found['date']}", found["torch"])
    chosen = f"Learning rate {found['lr']:g}, chosen on a fifth of the training images."
    return f"{about} {chosen}\n\n{table(head, rows)}"


def _at(by_eps: dict[str, float]) -> float:
    above, below = EPS.split("/")
    return by_eps[str(int(above) / int(below))]


def _bound(lipschitz: float) -> str:
    return f"1 + {lipschitz - 1:.1e}" if lipschitz > 1 else f"{lipschitz:.3f}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def compare() -> str:
    """Every method with the same training time, with kernels and with references."""
    file, found = read("compare_digits_cpu_*.json")
    pairs: dict[str, dict[str, dict[str, Any]]] = {}
    for row in found["rows"]:
        pairs.setdefault(row["method"], {})[row["backend"]] = row
    rows = (
        (
            TITLES[method],
            _both(pair, lambda row: f"{row['seconds_per_epoch']:.2f}"),
            _both(pair, lambda row: f"{row['epochs']:.1f}"),
            _both(pair, lambda row: _percent(row["accuracy"])),
            _both(pair, lambda row: _percent(row[f"cra {EPS}"])),
        )
        for method, pair in pairs.items()
    )
    machine = f"{found['machine']['device']}, {found['machine']['threads']} thread"
    head = ("method", "seconds per epoch", f"epochs in {found['budget']} s", "accuracy", f"CRA({EPS})")
    return f"{measured(file, 'fastlip compare', machine, found['machine']['torch'])}\n\n{table(head, rows)}"


def _both(pair: dict[str, dict[str, Any]], show: Callable[[dict[str, Any]], str]) -> str:
    return f"{show(pair['auto'])} ({show(pair['reference'])})"


def attacks() -> str:
    """Attacks within the certified radius and within three times that radius."""
    file, found = read("attack_study_cpu.json")
    rows = (
        (
            TITLES[row["method"]],
            str(row["seed"]),
            _percent(row["accuracy"]),
            _bound(row["lipschitz"]),
            f"{row['broken']} of {row['attacked']}",
            _percent(row["success_at_3x"]),
        )
        for row in found["rows"]
    )
    head = ("method", "seed", "accuracy", "audited L", "successes within the radius", "within three times the radius")
    total = (
        f"In total {found['broken']} of {found['attacked']} attacks succeed within the certified radius,"
        f" and {_percent(found['success_at_3x'])} within three times it."
    )
    about = measured(file, found["command"].partition(" --out")[0], found["machine"], found["torch"])
    return f"{about}\n\n{table(head, rows)}\n\n{total}"


def ops() -> str:
    """Forward and backward pass of every op that was measured with the reference and in C++."""
    file, found = read("ops_cpu_*.json")
    rows = []
    for case, figures in found["milliseconds"].items():
        op, _, name = case.partition(" ")
        if "native" not in figures:
            continue
        others = [f"{label} {_time(value)}" for label, value in figures.items() if label not in _MAIN]
        reference, native = (figures[label] for label in _MAIN)
        ratio = f"{reference['median'] / native['median']:.1f}"
        saved = f"{_size(native)} ({_size(reference)})"
        rows.append(
            (f"`{op}`", name, _time(reference), _time(native), ratio, saved, ", ".join(others).replace("_", " "))
        )
    head = ("op", "case", "reference", "C++", "ratio", "saved (reference)", "other forms")
    machine = f"{found['machine']['cpu']}, {found['threads']} threads, commit {found['commit']}"
    command = found["command"].partition(" (")[0]
    overhead = f"One call of an op costs about {found['overhead of an op call, microseconds']:.0f} µs of dispatch."
    return f"{measured(file, command, machine, found['torch'])}\n\n{table(head, rows)}\n\n{overhead}"


_MAIN = ("reference", "native")


def _time(figure: dict[str, float]) -> str:
    milliseconds = figure["median"]
    return f"{milliseconds:.3g} ms" if milliseconds < 1000 else f"{milliseconds:.0f} ms"


def _size(figure: dict[str, float]) -> str:
    size = figure["bytes saved"]
    unit, factor = next((unit, factor) for unit, factor in _UNITS if size >= factor or factor == 1)
    return f"{size / factor:.3g} {unit}"


_UNITS = (("MB", 10**6), ("kB", 10**3), ("B", 1))


def never_slower() -> str:
    """The backend that ``"auto"`` chooses against the reference, op by op."""
    file, found = read("never_slower_cpu_*.json")
    by_op: dict[str, list[dict[str, Any]]] = {}
    for row in found["rows"]:
        by_op.setdefault(row["op"], []).append(row)
    rows = ((f"`{op}`", *_worst(cases)) for op, cases in by_op.items())
    head = (
        "op",
        "benchmark cases",
        "median ratio",
        "largest ratio",
        "largest ratio to the compiled reference",
        "small cases",
        "largest ratio",
    )
    machine = f"CPU (its name is not in the file), {found['threads']} threads"
    about = measured(file, "python benchmarks/never_slower.py", machine, found["torch"])
    return f"{about}\n\n{table(head, rows)}"


def _worst(cases: list[dict[str, Any]]) -> Iterator[str]:
    """Cells of one op. Only benchmark cases, not the tests' small ones, are timed against the compiled reference."""
    compiled = "auto / compiled reference"
    timed = [case["auto / reference"] for case in cases if compiled in case]
    small = [case["auto / reference"] for case in cases if compiled not in case]
    yield str(len(timed))
    yield f"{statistics.median(timed):.2f}" if timed else ""
    yield f"{max(timed):.2f}" if timed else ""
    yield f"{max(case[compiled] for case in cases if compiled in case):.2f}" if timed else ""
    yield str(len(small))
    yield f"{max(small):.2f}" if small else ""


def sharing() -> str:
    """``fastlip train --share`` with two processes, as ratios to the same step without it."""
    file, found = read("sharded_parametrizations_cpu_*.json")
    options = found["options"]
    rows = (
        (
            TITLES[row["method"]],
            f"{row['step_ratio']:.2f}",
            f"{row['weights_ratio']:.2f}",
            f"{row['effective_bytes'] / 1e6:.3g}",
        )
        for row in sorted(found["rows"], key=lambda row: row["step_ratio"])
    )
    machine = (
        f"CPU (its name is not in the file), {options['processes']} processes of {options['threads']} thread over"
        f" gloo, network {options['size']}, batch {options['batch_size']}"
    )
    head = ("method", "training step", "parametrizations and their adjoints", "MB of effective weights")
    command = "python benchmarks/sharded_parametrizations.py"
    return f"{measured(file, command, machine, options['torch'])}\n\n{table(head, rows)}"


def dense() -> str:
    """Networks of dense layers, as ratios to the same of ``nn.Linear``: training, evaluation, one input at a time."""
    file, found = read("dense_cpu_*.json")
    by_method: dict[str, dict[str, str]] = {}
    for row in found["rows"]:
        setting = f"{row['width']} × {row['depth']}, batch {row['batch']}"
        kinds = ("training", "evaluation", "evaluation, batch 1", "evaluation, batch 1, frozen")
        ratios = [f"{row[kind]['ratio']:.1f}" for kind in kinds if kind in row]
        by_method.setdefault(row["method"], {})[setting] = " / ".join(ratios)
    settings = list(dict.fromkeys(name for cells in by_method.values() for name in cells))
    rows = [
        (f"`{method}`", *(cells.get(name, "") for name in settings)) for method, cells in sorted(by_method.items())
    ]
    machine = f"CPU ({found['machine']}), {found['threads']} thread, CPU time"
    about = measured(file, "python benchmarks/bench_dense.py", machine, found["torch"])
    return f"{about}\n\n{table(('layer', *settings), rows)}"


def manifold() -> str:
    """Orthogonal dense layers whose parameter is the matrix, and their orthogonality errors."""
    file, found = read("manifold_cpu*.json")
    options = found["options"]
    rows = (
        (
            str(row["width"]),
            f"{row['ratio_to_unconstrained']:.2f}",
            f"{row['ratio_to_plain']:.2f}",
            f"{row['error_before']:.1e}",
            f"{row['error_after']:.1e}",
        )
        for row in found["rows"]
    )
    machine = f"CPU (its name is not in the file), {options['threads']} thread, batch {options['batch']}"
    head = ("width", "step / Cayley's", "step / plain", "error before a retraction", "error after it")
    command = "python benchmarks/bench_manifold.py"
    return f"{measured(file, command, machine, options['torch'])}\n\n{table(head, rows)}"


def rounding(network: str) -> str:
    """What the worst-case bound of rounding errors costs certificates: trained on digits, or with initial weights."""
    file, found = read("rounding_costs.json")
    rows = []
    for row in found[network]:
        kinds = row["worst-case"], row["probabilistic"]
        rows.append([TITLES[row["method"]], *(f"{kind['error']:.1e}" for kind in kinds)])
        if network == "digits":
            rows[-1] += [f"{100 * kind['cra']:.1f} %" for kind in kinds]
    head = ["method", "e, worst case", "e, probabilistic", f"CRA({EPS})", "probabilistic"][: len(rows[0])]
    machine = found["machine"].replace(" 1 threads", " 1 thread")
    about = measured(file, found["command"].partition(" --")[0], machine, found["torch"])
    return "\n".join((f"{about} Networks of size {found['size']}.", "", table(head, rows)))


def trained(data: str) -> str:
    """The trained networks of the package for one data set, as their cards describe them."""
    cards = [model_card(name) for name in list_models(f"*.{data}", pretrained=True)]
    head = "name", "parameters", "accuracy", *(f"CRA({eps:.3g})" for eps in cards[0].cra), "audited L"
    rows = (
        (
            f"`{card.name}`",
            f"{card.parameters:,}",
            f"{card.accuracy:.1%}",
            *(f"{share:.1%}" for share in card.cra.values()),
            f"{card.lipschitz:.6f}",
        )
        for card in sorted(cards, key=lambda card: -card.cra[36 / 255])
    )
    about = f"Figures of {cards[0].certified_on}. Trained on {cards[0].trained_on:,} images."
    return "\n".join((about, "", table(head, rows)))


TABLES: dict[str, Callable[..., str]] = {
    "attacks": attacks,
    "compare": compare,
    "dense": dense,
    "digits": digits,
    "digits_plain": digits_plain,
    "manifold": manifold,
    "never_slower": never_slower,
    "ops": ops,
    "rounding": rounding,
    "sharing": sharing,
    "steps": steps,
    "trained": trained,
}
