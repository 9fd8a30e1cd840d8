"""What the tests of ``fastlip compare`` share."""

import json

from fastlip.study import comparing
from fastlip.study.contenders import Contender
from fastlip.study.means import groups_of
from fastlip.study.measuring import Measured
from fastlip.study.table import Row

# Two epochs of six steps with the smallest network, as if an epoch took a second.
SMALL = ("--width=2", "--layers-per-block=1", "--batch-size=256", "--budget=2", "--out=study", "--no-plain")
TWO = (*SMALL, "--methods=aol,sll")
EPOCH = Measured(500, 256, 1437, 1 / 6, 0.0, 0.01, 0.02, 3000, 2500, 2000)
SLOW = Measured(500, 256, 1437, 1 / 5.4, 0.0, 0.02, 0.03, 6000, 2500, 2000)


def fake_clock(monkeypatch):
    """Measuring that takes no time: the reference is a tenth slower; names in the returned set fail."""
    failing = set()

    def measure(recipes, data, seconds, plain=False):
        found = {name: SLOW if "reference" in name else EPOCH for name in recipes if name not in failing}
        return found, {name: "RuntimeError: no kernel" for name in recipes if name in failing}

    monkeypatch.setattr(comparing, "measure", measure)
    return failing


def rows_of(folder):
    """The rows of a study's table by the names of their runs without seed and variant."""
    rows = json.loads((folder / "table.json").read_text())["rows"]
    return {"-".join((row["method"], row["size"], row["backend"])): row for row in rows}


def assert_one_line(result, text, expected_code=1):
    """The last line of a command's errors is one with this text."""
    code, _, errors = result
    last = errors.splitlines()[-1]
    assert code == expected_code
    assert last.startswith("Error: ")
    assert text in last


def row(method, accuracy, radii, seed=0, *, reason="", changes=(), backend="auto", lipschitz=1.0, step=0.1):
    """A row with these figures; ``radii`` decide CRA."""
    measured = Measured(1, 10, 10, step, 0.0, step, step, 100, 100, 100)
    cra = [sum(radius > eps for radius in radii) / len(radii) for eps in (36 / 255, 72 / 255, 108 / 255, 1.0)]
    result = {
        "accuracy": accuracy,
        "cra": cra,
        "joint_cra": cra,
        "radii": radii,
        "lipschitz": lipschitz,
        "epochs": 3.0,
    }
    history = [{"seconds": 1.0, "test_accuracy": accuracy / 2}, {"seconds": 1.0, "test_accuracy": accuracy}]
    contender = Contender(method, "XS", backend, changes=changes, seed=seed or None)
    about = {**dict(changes), "seed": seed}
    return Row(contender, 10.0, measured, {} if reason else {**result, "history": history}, reason, about)


def groups(*rows):
    """The groups of these rows."""
    return groups_of(rows)
