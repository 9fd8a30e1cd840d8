"""The parts of a study: durations, measuring, searching."""

import dataclasses

import pytest
import torch
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.data import load
from fastlip.kernels.spectral_conv.api import FixedSpectrum
from fastlip.nn.base import LipschitzLayer
from fastlip.study import running
from fastlip.study.measuring import Measured, _kept_weights, measure
from fastlip.study.searching import held_out, pairs, search
from fastlip.study.settings import seconds_of
from fastlip.study.twin import network_of
from fastlip.training.recipe_files import default_recipe
from fastlip.training.run_folder import RunFolder

TINY = {"width": 2, "layers_per_block": 1, "batch_size": 256, "epochs": 1, "threads": 1}


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.mark.parametrize(("text", "seconds"), [("20", 20), ("1.5s", 1.5), (" 15m", 900), ("2h", 7200), (".5", 0.5)])
def test_durations(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-3", "1d", "1e3", "2 h 3"])
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match="expected a duration"):
        seconds_of(text)


@torch.no_grad()
def test_kept_spectra_and_kernels_are_counted():
    layer, x = lip.CayleyConv2d(4, 6, 3).eval(), torch.randn(2, 4, 5, 5)
    assert _kept_weights(nn.Sequential(layer)) == 0
    layer(x)
    Q = 13 * 6 * 4 * 8  # bytes at the 13 frequencies of 5 x 5 pixels
    ((_, (kept,)),) = layer._cache.entries.values()
    expected = kept.panels.nbytes if isinstance(kept, FixedSpectrum) else Q
    assert _kept_weights(nn.Sequential(layer)) == expected > 0
    layer.lipschitz_bound((4, 7, 7))
    assert _kept_weights(nn.Sequential(layer)) == expected + 25 * 6 * 4 * 8
    residual = lip.CPLConv2d(4, 4, 3).eval()
    residual(x)
    (scale,) = residual._effective(5, 5)
    assert _kept_weights(nn.Sequential(residual)) >= scale.nbytes


def test_measuring(digits):
    recipes = {
        backend: default_recipe({**TINY, "method": "cayley", "backend": backend}) for backend in ("auto", "reference")
    }
    recipes["odd"] = default_recipe({**TINY, "width": 3})
    found, failed = measure(recipes, digits, 0.0)
    assert list(failed) == ["odd"]
    assert failed["odd"].startswith("width=3")
    assert list(found) == ["auto", "reference"]
    one, other = found.values()
    assert one.parameters == other.parameters > 100
    for m in (one, other):
        assert m.seconds_per_epoch == max(m.step, m.fetch) * 6
        assert min(m.step, m.fetch, m.evaluate, m.evaluate_fresh) > 0
        # Weights are float32; alpha and biases too. Cayley keeps spectra for evaluation.
        assert m.evaluate_fresh_memory == 4 * m.parameters
        assert m.evaluate_memory > m.evaluate_fresh_memory
        assert m.train_memory > m.evaluate_fresh_memory + 4 * 256 * 2 * 64, "at least the first activation is kept"
    assert Measured(**one.to_dict()) == one


def test_orthogonal_parameters_stay_so_while_they_are_measured(digits):
    given = {**TINY, "data": "digits", "model": "lip_next", "width": 8, "depth": 2, "patch": 2}
    found, failed = measure({"one": default_recipe(given, "digits-lipnext")}, digits, 0.0)
    assert not failed
    assert found["one"].step > 0


def test_a_search_looks_at_training_images_only(digits):
    part = held_out(digits, 0)
    assert len(part.train.labels) + len(part.test.labels) == len(digits.train.labels)
    chosen = torch.cat((part.train.indices, part.test.indices))
    assert torch.equal(chosen.sort().values, torch.arange(len(digits.train.labels)))
    some = torch.tensor([5, 0])
    assert torch.equal(part.test.pixels(some), digits.train.pixels(part.test.indices[some]))


def test_the_best_trial_comes_first_and_none_is_repeated(digits, tmp_path, monkeypatch):
    recipe = default_recipe({**TINY, "seed": 3})
    tried = pairs(recipe, 3)
    assert tried[0] == (recipe.lr, recipe.weight_decay)
    assert tried == pairs(recipe, 3)
    assert tried != pairs(dataclasses.replace(recipe, seed=4), 3)
    assert all(recipe.lr / 10 <= lr <= recipe.lr * 10 and 1e-6 <= wd <= 1e-3 for lr, wd in tried[1:])
    cra = {lr: share for (lr, _), share in zip(tried, (0.2, 0.1, 0.7, 0.4), strict=True)}

    class Trained:
        def __init__(self, recipe):
            row = {"test_accuracy": 0.9, "test_cra": cra[recipe.lr]}
            self.progress = type("Progress", (), {"history": [row]})

    def train(recipe, data, folder, plain):
        folder.mkdir(parents=True)
        if recipe.lr == tried[1][0]:
            raise RuntimeError("diverged")
        return Trained(recipe)

    monkeypatch.setattr(running, "train", train)
    best, *_, worst = search(recipe, digits, tmp_path, 3)
    assert (best["lr"], best["cra"]) == (tried[2][0], 0.7)
    assert (worst["cra"], worst["reason"]) == (0.0, "RuntimeError: diverged")
    monkeypatch.setattr(running, "train", None)
    assert search(recipe, digits, tmp_path, 3)[0] == best


def test_a_search_trains(digits, tmp_path):
    (best, other) = search(default_recipe(TINY), digits, tmp_path, 1)
    assert best["cra"] >= other["cra"]
    assert {best["lr"], other["lr"]} == {lr for lr, _ in pairs(default_recipe(TINY), 1)}
    assert not (tmp_path / "trial-00" / "checkpoint.pt").exists()
    assert RunFolder(tmp_path / "trial-01").trial.exists()


@pytest.mark.parametrize("model", ["lip_conv_net", "sll_net", "bro_net", "lip_res_net"])
def test_the_twin_has_the_same_structure_and_no_constraint(digits, model):
    method = {"sll_net": "sll", "bro_net": "bro"}.get(model, "aol")
    size = "S" if model == "sll_net" else "XS"
    recipe = default_recipe({"width": 4, "model": model, "method": method, "size": size})
    own, twin = (network_of(recipe, digits, plain) for plain in (False, True))
    assert not any(isinstance(layer, LipschitzLayer) for layer in twin.modules())
    x = torch.rand(2, 1, 8, 8)
    assert twin(x).shape == own(x).shape == (2, 10)
    assert twin(x).std() > 1e-3, "the signal reaches the scores"
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter *= 2
    assert fastlip.audit(twin.eval(), (1, 8, 8)).bound > 2
