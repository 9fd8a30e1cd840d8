"""Trains every method on the digits by its recipe, and collects the certificates in one file.

``python benchmarks/digits.py --out benchmarks/results/digits_cpu.json`` runs ``fastlip train --method M --threads 1``
for each method and takes the figures from the run folders. It takes about four minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fastlip._machine import processor
from fastlip.models import METHODS

FIGURES = ("accuracy", "cra", "joint_cra", "lipschitz", "rounding")


def measure(method: str, folder: Path, *options: str) -> dict[str, Any]:
    """The certificate of one run of ``fastlip train``, and the seconds from start to certificate."""
    run = folder / method
    command = (sys.executable, "-m", "fastlip", "train", "--method", method, "--out", str(run), "--threads", "1")
    start = time.perf_counter()
    subprocess.run((*command, *options), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    found = json.loads((run / "certificate.json").read_text(encoding="utf-8"))
    versions = json.loads((run / "card.json").read_text(encoding="utf-8"))["versions"]
    return {"method": method, "seconds": seconds, **{name: found[name] for name in FIGURES}, "versions": versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", dest="methods", action="append", choices=METHODS)
    parser.add_argument("--out", type=Path, required=True)
    options, passed_on = parser.parse_known_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for method in options.methods or METHODS:
            rows.append(measure(method, Path(folder), *passed_on))
            print(f"{method}: {rows[-1]['accuracy']:.4f} in {rows[-1]['seconds']:.0f} s", flush=True)
    versions = rows[0]["versions"]
    about = {
        "command": "python benchmarks/digits.py",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{processor()}, one thread",
        **versions,
    }
    rows = [{name: value for name, value in row.items() if name != "versions"} for row in rows]
    options.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
