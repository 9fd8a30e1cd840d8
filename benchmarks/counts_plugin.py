"""A plugin of pytest: how many tests passed, failed and were skipped, and which failed, in a small JSON file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

_MOST = 50  # failures that are named


def pytest_addoption(parser: Any) -> None:
    """Adds --json-summary."""
    parser.addoption("--json-summary", type=Path, help="file for the numbers of tests by outcome")


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    """Writes the file."""
    path = config.getoption("--json-summary")
    if path is None:
        return
    found = terminalreporter.stats
    counts = Counter({name: len(found.get(name, ())) for name in ("passed", "failed", "error", "skipped")})
    collected = terminalreporter._numcollected
    failures = [report.nodeid for name in ("failed", "error") for report in found.get(name, ())]
    path.write_text(json.dumps({"collected": collected, **counts, "failures": failures[:_MOST]}, indent=1) + "\n")
