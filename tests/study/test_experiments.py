"""The experiments at a smaller size: the mathematical claims hold, and figures and numbers are written."""

import json
import sys
from pathlib import Path

import pytest
import torch

from fastlip.study.experiments import (
    EXPERIMENTS,
    module_of,
    pareto,
    random_labels,
    signed_distance,
    temperature,
    two_diracs,
)


def failed(found):
    return [claim for claim in found["claims"] if not claim["holds"]]


def test_kr_of_two_diracs_is_their_distance():
    found = two_diracs.run(distances=(0.1, 2.0), width=8, steps=80)
    for one in found["runs"]:
        assert one["kr"] == pytest.approx(one["distance"], rel=0.01)
        assert one["curve"][0] < 0.9 * one["distance"], "it has something to learn"
    assert not failed(found)


def test_the_signed_distance_has_gradients_of_norm_one():
    found = signed_distance.run(width=32, depth=4, steps=600, batch_size=256, lr=0.05, grid=31)
    norms = torch.tensor(found["norms"])
    assert norms.mean() >= 0.9
    assert norms.max() <= 1 + 1e-4
    assert found["mean_error"] <= 0.04


def test_the_true_distance():
    x = torch.tensor([[-0.45, -0.25], [0.45, 0.35], [0.45, 0.6], [0.0, 1.0]])
    expected = torch.tensor([0.35, 0.25, 0.0, 0.25 - (0.45**2 + 0.65**2) ** 0.5])
    assert torch.allclose(signed_distance.distance(x), expected, atol=1e-6)


def test_random_labels_are_memorised():
    found = random_labels.run(count=60, width=64, depth=2, steps=150)
    assert found["runs"]["random"]["accuracy"] == 1.0
    assert found["runs"]["random"]["median_radius"] < found["runs"]["true"]["median_radius"]
    assert min(found["runs"]["random"]["radii"]) > 0


def test_temperature_trades_robustness_for_accuracy():
    found = temperature.run(temperatures=(0.1, 64.0), count=120, width=16, steps=100)
    for name in ("mixture", "moons"):
        cold, hot = found[name]["runs"]
        assert hot["accuracy"] > cold["accuracy"]
        assert hot["mean_margin"] < cold["mean_margin"]


def test_alpha_trades_robustness_for_accuracy():
    found = pareto.run(alphas=(0.8, 1.0), width=64, steps=120)
    robust, accurate = found["runs"]
    assert accurate["accuracy"] > robust["accuracy"]
    assert accurate["mean_margin"] < robust["mean_margin"]


@pytest.fixture
def short(monkeypatch):
    run = two_diracs.run
    monkeypatch.setattr(two_diracs, "run", lambda seed: run(seed, distances=(1.0,), width=8, steps=80))


def test_an_experiment_writes_figure_and_numbers(cli, tmp_path, short):
    code, output, errors = cli("experiment", "two-diracs", "--seed=1")
    assert code == 0, errors
    assert "smallest KR / d" in output
    folder = tmp_path / "runs" / "experiments"
    found = json.loads((folder / "two-diracs.json").read_text())
    assert found["seed"] == 1
    assert found["runs"][0]["kr"] == pytest.approx(1, rel=0.01)
    assert (folder / "two-diracs.png").stat().st_size > 5000


@pytest.fixture
def never(monkeypatch):
    """The experiment must not begin."""
    monkeypatch.setattr(two_diracs, "run", lambda seed: pytest.fail("it ran"))


def test_a_file_for_the_folder_of_an_experiment(cli, tmp_path, never):
    (tmp_path / "taken").write_text("")
    code, _, errors = cli("experiment", "two-diracs", "--out=taken")
    assert (code, errors.splitlines()[-1]) == (2, "Error: --out=taken: is not a folder")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which not even root may write")
def test_an_experiment_in_a_folder_that_cannot_be_written(cli, never):
    code, _, errors = cli("experiment", "two-diracs", "--out=/proc")
    assert code == 1
    assert errors.startswith("Error: /proc/two-diracs.json: ")


def test_a_claim_that_fails_is_an_error(cli, short, monkeypatch):
    honest = two_diracs.run
    claim = {"claim": "KR", "value": 0.5, "least": 0.99, "most": None, "holds": False}
    monkeypatch.setattr(two_diracs, "run", lambda seed: {**honest(seed), "claims": [claim]})
    code, _, errors = cli("experiment", "two-diracs")
    assert (code, errors) == (1, "Error: not found with seed 0: KR\n")


def test_an_experiment_without_matplotlib(cli, tmp_path, short, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, output, _ = cli("experiment", "two-diracs", "--out=here")
    assert code == 0
    assert "figure left out: matplotlib is not installed" in output
    assert [file.name for file in (tmp_path / "here").iterdir()] == ["two-diracs.json"]


def test_names():
    assert cli_names() == set(EXPERIMENTS)
    with pytest.raises(ValueError, match="experiment='gan': allowed are 'temperature'"):
        module_of("gan")


def cli_names():
    from fastlip.cli.experiment import experiment

    return set(experiment.params[0].type.choices)
