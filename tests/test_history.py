"""benchmarks/history.py: what counts as moved, and what is kept."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def history():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import history
    finally:
        sys.path.remove(str(BENCHMARKS))
    return history


def figures(train, error=0.01):
    return {"train": train, "train_error": error, "evaluate": 0.5, "evaluate_error": error}


def test_what_moved_is_beyond_the_noise_of_both_runs(history):
    last = {name: (figures(1.0), "then") for name in ("same", "slower", "faster", "noisy")}
    rows = {"same": figures(1.029), "slower": figures(1.05), "faster": figures(0.9), "noisy": figures(1.2, 0.1)}
    moved = history.compare(last, rows)
    assert moved == {("slower", "train"): pytest.approx(0.05), ("faster", "train"): pytest.approx(-0.1)}
    text = "\n".join(history.lines(rows, last, moved))
    assert "+5 %: slower" in text
    assert "-10 %: faster" in text
    assert text.count("within noise") == 6


def test_the_last_run_of_the_same_setting_counts(history):
    setting = {"size": "XS", "batch_size": 4, "image_size": 8}
    run = {"date": "2026-01-01", "commit": "abc", **setting}
    other = {**run, "batch_size": 8, "rows": {"aol": figures(9.0)}}
    runs = [
        {**run, "rows": {"aol": figures(1.0), "sll": figures(2.0)}},
        {**run, "rows": {"aol": figures(3.0)}},
        other,
    ]
    last = history.last_of(runs, setting, {"aol": {}, "sll": {}, "cpl": {}})
    assert {name: row["train"] for name, (row, _) in last.items()} == {"aol": 3.0, "sll": 2.0}


def test_runs_are_kept_and_compared(history, tmp_path):
    options = ["--method=aol", "--batch-size=2", "--image-size=4", "--rounds=3", f"--folder={tmp_path}"]
    first = CliRunner().invoke(history.main, options)
    assert first.exit_code == 0, first.output
    (file,) = tmp_path.iterdir()
    assert " on " not in first.output
    second = CliRunner().invoke(history.main, [*options, "--no-keep"])
    assert second.exit_code in (0, 1)
    assert second.output.count(" on ") == 2
    (line,) = file.read_text().splitlines()
    assert json.loads(line)["rows"]["aol"]["train"] > 0
