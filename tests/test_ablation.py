"""``benchmarks/ablation.py --again``: one row is trained again, with the time that the other rows have."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "ablation.py"
RESULTS = SCRIPT.parent / "results" / "ablation_digits.json"
ROW = "layer: LipNeXt"


@pytest.fixture
def ablation(monkeypatch):
    spec = importlib.util.spec_from_file_location("ablation_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ablation_script", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def out(tmp_path):
    file = tmp_path / "digits.json"
    file.write_text(RESULTS.read_text())
    return file


def arguments(out, *more):
    return ["ablation.py", "--data=digits", "--budget=15", f"--folder={out.parent}", f"--out={out}", *more]


def test_one_row_is_replaced_and_keeps_its_time(ablation, out, monkeypatch):
    asked = []

    def run(self, arm, chosen, seed, data):
        asked.append((arm.label, chosen, seed, data is self.judging))
        share = chosen["manifold_lr"]  # the largest rate is the best
        return {
            "accuracy": share,
            "cra": [share] * 3,
            "steps": int(self.budget / self.seconds[arm.label]),
            "seconds": 1,
        }

    monkeypatch.setattr(ablation.Study, "run", run)
    monkeypatch.setattr(ablation.Study, "measure", None)
    monkeypatch.setattr(sys, "argv", arguments(out, f"--again={ROW}", "--seeds=2"))
    before = json.loads(out.read_text())
    ablation.main()
    after = json.loads(out.read_text())
    assert {label for label, *_ in asked} == {ROW}
    best = max(chosen["manifold_lr"] for _, chosen, *_ in asked)
    assert [(chosen["manifold_lr"], seed) for _, chosen, seed, judges in asked if judges] == [(best, 0), (best, 1)]
    for old, new in zip(before["rows"], after["rows"], strict=True):
        if ablation.label_of(old) != ROW:
            assert new == old
            continue
        assert (new["chosen"]["manifold_lr"], new["accuracy"]) == (best, [best, best])
        assert (new["steps"], new["step_seconds"]) == (old["steps"], old["step_seconds"])
    assert {name: value for name, value in after.items() if name != "rows"} == {
        name: value for name, value in before.items() if name != "rows"
    }


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--again=layer: LipNext"], "--again='layer: LipNext': allowed are 'loss: offset-ce'"), (["--budget=5"], "15")],
)
def test_what_does_not_fit_the_file_is_named(ablation, out, monkeypatch, more, message):
    monkeypatch.setattr(sys, "argv", arguments(out, f"--again={ROW}", *more))
    with pytest.raises(SystemExit, match=message):
        ablation.main()
    assert json.loads(out.read_text()) == json.loads(RESULTS.read_text())
