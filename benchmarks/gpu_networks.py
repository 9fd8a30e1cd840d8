"""Steps of whole networks on a GPU next to plain ones: ``fastlip bench``, for as long as there is time.

    python benchmarks/gpu_networks.py [--compiled] [--seconds 480] [--dry-run] [--output FILE]

--compiled: the contestants that torch compiles, which takes it minutes. FILE keeps the rows that it has of other
settings, and lists those for which no time was left. --dry-run runs each setting on a CPU at a small size.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import gpu_clock
import torch

from fastlip.benchmarking import Setting, run, why_not
from fastlip.benchmarking.literals import Contestant
from fastlip.models import METHODS

EAGER: tuple[Contestant, ...] = ("fused", "fused CUDA graph", "reference")
COMPILED: tuple[Contestant, ...] = ("fused", "fused compiled", "plain compiled")
SIZES = ("S", "XS")
COMPILED_METHODS = ("cayley", "aol", "sll", "lot")


def settings(compiled: bool) -> list[tuple[Setting, tuple[Contestant, ...]]]:
    """The items to time for each method and size, the most important first."""
    if compiled:
        return [(_setting(method, "XS"), COMPILED) for method in COMPILED_METHODS]
    return [(_setting(method, size), EAGER) for size in SIZES for method in METHODS]


def _setting(method: str, size: str) -> Setting:
    options = {"training_sigma": "power"} if method == "cpl" else {}  # as published
    return Setting(method, size, device="cuda", layer_options=options)


def on_cpu(setting: Setting, contestants: tuple[Contestant, ...]) -> tuple[Setting, tuple[Contestant, ...]]:
    """The same at a small size where a GPU is not needed; what only a GPU runs is checked to be known."""
    for contestant in contestants:
        if reason := why_not(contestant, setting.method, setting.device):
            raise SystemExit(f"{contestant} of {setting.method}: {reason}")
    small = replace(setting, size="XS", batch_size=4, image_size=8, layers_per_block=1, rounds=1, device="cpu")
    return small, tuple(name for name in contestants if "compiled" not in name and "graph" not in name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--seconds", type=float, default=480, help="after which nothing further is begun")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--commit", default="unknown")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    started = time.monotonic()
    report = json.loads(options.output.read_text()) if options.output and options.output.exists() else {}
    device = torch.device("cpu" if options.dry_run else "cuda")
    report |= {**gpu_clock.about(device), "commit": options.commit}
    for setting, contestants in settings(options.compiled):
        key = f"{setting.method} {setting.size}{' compiled' if options.compiled else ''}"
        if time.monotonic() - started > options.seconds:
            report.setdefault("no time left for", []).append(key)
            continue
        if options.dry_run:
            setting, contestants = on_cpu(setting, contestants)
        report[key] = [row.to_dict() for row in run(setting, contestants)]
        print(key, json.dumps({row["contestant"]: row["train_ms"] for row in report[key]}), flush=True)
        if options.output:
            options.output.write_text(json.dumps(report, indent=1) + "\n")
    for key in report.get("no time left for", []):
        print(f"no time left for {key}")


if __name__ == "__main__":
    main()
