"""``fastlip compare``: what it writes, that it can be stopped anywhere, and that a failure is a row."""

import csv
import json
import signal

import pytest
import torch
from studies import SMALL, TWO, assert_one_line, rows_of

from fastlip.study import comparing, running
from fastlip.training.loop import Training


def test_a_study_is_complete_and_not_repeated(cli, tmp_path, clock, monkeypatch):
    code, output, errors = cli("compare", *TWO)
    assert code == 0, errors
    folder = tmp_path / "study"
    rows = rows_of(folder)
    assert list(rows) == ["aol-XS-auto", "aol-XS-reference", "sll-XS-auto", "sll-XS-reference"]
    assert {row["status"] for row in rows.values()} == {"finished"}
    assert [row["steps"] for row in rows.values()] == [12, 10, 12, 10]
    assert [row["epochs"] for row in rows.values()] == pytest.approx([2, 10 / 6, 2, 10 / 6])
    for name, row in rows.items():
        certificate = json.loads((folder / name / "certificate.json").read_text())
        assert row["accuracy"] == certificate["accuracy"]
        assert [row[f"cra {eps}"] for eps in ("36/255", "72/255", "108/255", "1")] == list(
            certificate["cra"].values()
        )
        assert row["lipschitz"] == certificate["lipschitz"] <= 1 + 1e-6
        assert row["seconds_per_epoch"] == pytest.approx(1 if "auto" in name else 6 / 5.4)
    table = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    assert [float(row["accuracy"]) for row in table] == [row["accuracy"] for row in rows.values()]
    assert "CRA 36/255" in output
    before = {name: (folder / name / "checkpoint.pt").read_bytes() for name in rows}

    def refuse(*_, **__):
        raise AssertionError("a finished run is not repeated")

    monkeypatch.setattr(running, "run", refuse)
    monkeypatch.setattr(comparing, "measure", refuse)
    code, again, _ = cli("compare", "--out=study", "--no-plain", "--methods=aol,sll")
    assert code == 0
    assert again.splitlines()[-6:] == output.splitlines()[-6:]
    assert before == {name: (folder / name / "checkpoint.pt").read_bytes() for name in rows}


def test_a_failure_is_a_row_and_can_be_tried_again(cli, tmp_path, clock, monkeypatch):
    honest = running.network_of
    clock.add("bcop-XS-auto")

    def broken(recipe, data, twin):
        if recipe.method == "sll":
            raise RuntimeError("boom <b>\nmore")
        return honest(recipe, data, twin)

    more = (*SMALL, "--backend=auto", "--method=sll", "--method=bcop", "--method=aol")
    with monkeypatch.context() as patch:
        patch.setattr(running, "network_of", broken)
        code, output, errors = cli("compare", *more)
    assert code == 0, errors
    folder = tmp_path / "study"
    states = {name: row["status"] for name, row in rows_of(folder).items()}
    assert states == {
        "sll-XS-auto": "RuntimeError: boom <b>",
        "bcop-XS-auto": "RuntimeError: no kernel",
        "aol-XS-auto": "finished",
    }
    assert "RuntimeError: boom &lt;b&gt;" in (folder / "report.html").read_text()
    assert "more" in (folder / "sll-XS-auto" / "failure.txt").read_text()
    assert "sll-XS-auto: failed: RuntimeError: boom" in output
    clock.clear()
    assert cli("compare", *more)[0] == 0
    assert {name: row["status"] for name, row in rows_of(folder).items()} == states
    assert cli("compare", *more, "--retry")[0] == 0
    assert {row["status"] for row in rows_of(folder).values()} == {"finished"}
    assert not (folder / "sll-XS-auto" / "failure.txt").exists()


def test_nan_is_a_row_with_a_layer(cli, tmp_path, clock):
    result = cli("compare", *SMALL, "--method=aol", "--backend=auto", "--lr=1e30")
    assert_one_line(result, "no run is finished; the first: epoch ")
    assert "layer '" in rows_of(tmp_path / "study")["aol-XS-auto"]["status"]
    assert (tmp_path / "study" / "report.html").exists()


def test_ctrl_c_loses_nothing(cli, tmp_path, clock, monkeypatch):
    fused = ("--methods=aol,sll", "--backend=auto")
    assert cli("compare", *SMALL, "--out=whole", *fused)[0] == 0
    step, count = Training.step, 0

    def interrupted(self, x, y):
        nonlocal count
        count += 1
        if count == 15:  # in the second run
            signal.raise_signal(signal.SIGINT)
        return step(self, x, y)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", interrupted)
        result = cli("compare", *SMALL, *fused)
        assert_one_line(result, "stopped by SIGINT; rerun the same command to resume", 130)
    assert [row["status"] for row in rows_of(tmp_path / "study").values()] == ["finished", "not run yet"]
    assert cli("compare", "--out=study", "--no-plain", "--report-only", *fused)[0] == 0
    assert "not run yet" in (tmp_path / "study" / "report.html").read_text()
    assert cli("compare", *SMALL, *fused)[0] == 0
    for name in rows_of(tmp_path / "study"):
        one, other = (
            torch.load(tmp_path / study / name / "checkpoint.pt", weights_only=True)["model"]
            for study in ("whole", "study")
        )
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_ctrl_c_while_measuring(cli, tmp_path, clock, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(comparing, "measure", stopped)
        assert_one_line(cli("compare", *TWO), "rerun the same command to resume", 130)
    assert cli("compare", *TWO)[0] == 0


def test_a_study_grows_and_keeps_its_settings(cli, tmp_path, clock):
    one = (*SMALL, "--backend=auto")
    assert cli("compare", *one, "--method=aol")[0] == 0
    assert cli("compare", "--out=study", "--no-plain", "--backend=auto", "--method=sll")[0] == 0
    assert list(rows_of(tmp_path / "study")) == ["sll-XS-auto", "aol-XS-auto"]
    assert rows_of(tmp_path / "study")["sll-XS-auto"]["epochs"] == 2
    text = "budget=30.0: the study in study has 2.0 and keeps it"
    assert_one_line(cli("compare", "--out=study", "--budget=30"), text)
    assert_one_line(cli("compare", "--out=study", "--width=8"), "width=8: the study in study has 2")
    assert_one_line(cli("compare", "--out=study", "--seed=3"), "seed=3: the study in study has the recipe's")


def test_the_best_trial_of_a_search_is_what_trains(cli, tmp_path, clock):
    options = (*SMALL, "--method=aol", "--backends=auto,reference", "--search=1")
    code, output, errors = cli("compare", *options)
    assert code == 0, errors
    assert "aol-XS: 2 trials of 0.3 epochs" in output
    folder = tmp_path / "study"
    trials = [json.loads(file.read_text()) for file in (folder / "search" / "aol-XS").glob("*/trial.json")]
    best = max(trials, key=lambda trial: (trial["cra"], trial["accuracy"]))
    assert len({trial["lr"] for trial in trials}) == 2
    for row in rows_of(folder).values():
        assert (row["lr"], row["weight_decay"]) == (best["lr"], best["weight_decay"])


def test_a_budget_below_a_step_is_a_row(cli, tmp_path, clock):
    small = [option for option in SMALL if "budget" not in option]
    result = cli("compare", *small, "--method=aol", "--budget=0.1")
    assert_one_line(result, "no run is finished; the first: a step takes 0.167 s, the budget is 0.1 s")
    assert (tmp_path / "study" / "table.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "text", "code"),
    [
        (["--methods=aol,resnet"], "method='resnet': allowed are '", 1),
        (["--methods=aol,,sll"], "has an empty name", 2),
        (["--size=XL"], "size='XL': allowed are 'XS'", 1),
        (["--backends=auto,fast"], "backend='fast': allowed are", 1),
        (["--budget=0"], "budget=0: must be above 0 seconds", 1),
        (["--budget=soon"], "budget='soon': expected a duration", 1),
        (["--search=-1"], "search=-1: must be at least 0", 1),
        (["--search=2", "--lr=0.1"], "lr=0.1: given, but search=2", 1),
        (["--data=cifar10", "--path=nowhere"], "budget: data='cifar10' needs one", 1),
        (["--data=cifar10", "--budget=1h"], "path='': data='cifar10' needs the folder", 1),
        (["--data=cifar10", "--budget=1h", "--path=nowhere"], "nowhere: no such folder", 1),
        (["--batch-size=0"], "batch_size=0: must be at least 1", 1),
        (["--device=gpu"], "device='gpu': cannot be used here", 1),
        (["--epochs=3"], "--epochs", 2),
        (["--report-only"], "runs/compare-digits: has no study", 2),
    ],
)
def test_a_wrong_option_is_one_line(cli, tmp_path, arguments, text, code):
    assert_one_line(cli("compare", *arguments), text, code)
    assert not any(tmp_path.iterdir()), "a refused study leaves nothing behind"


def test_a_folder_of_something_else_is_left_alone(cli, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "table.csv").write_text("precious")
    assert_one_line(cli("compare", "--out=thesis"), "thesis: exists and is not a study (no study.json)")
    assert_one_line(cli("compare", "--out=thesis/table.csv"), "is not a folder", 2)
    assert [file.name for file in (tmp_path / "thesis").iterdir()] == ["table.csv"]
    (tmp_path / "thesis" / "study.json").write_text("{")
    assert_one_line(cli("compare", "--out=thesis"), "study.json: damaged (JSONDecodeError")
    assert (tmp_path / "thesis" / "table.csv").read_text() == "precious"


def test_cifar_from_a_path(cli, tmp_path, clock):
    record = bytes([3]) + bytes(range(256)) * 12
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        (tmp_path / name).write_bytes(record * 2)
    options = ("--width=2", "--layers-per-block=1", "--budget=2s", "--threads=1", "--no-plain")
    code, _, errors = cli("compare", "--data=cifar10", "--path", tmp_path, "--method=aol", *options)
    assert code == 0, errors
    assert list(rows_of(tmp_path / "runs" / "compare-cifar10")) == ["aol-XS-auto"]
