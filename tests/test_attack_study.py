"""The study of benchmarks/attack_study.py in small: no attack breaks a certificate, and the attack has teeth."""

import importlib.util
from pathlib import Path

import pytest
import torch

from fastlip.data import load
from fastlip.models import METHODS
from fastlip.training.recipe_files import default_recipe

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "attack_study.py"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("attack_study", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module.study
    torch.set_num_threads(threads)


def check(study, images, options, **how):
    row = study(default_recipe({"threads": 1, **options}), load("digits"), images, **how)
    assert row["attacked"] > 0.7 * images
    assert row["broken"] == 0
    assert row["success_at_3x"] > 0.5


@pytest.mark.parametrize("method", ["cayley", "soc"])
def test_certificates_hold(study, method):
    small = {"method": method, "width": 4, "layers_per_block": 1, "epochs": 3}
    check(study, 64, small, kind="pgd", steps=10, restarts=2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pgd", "apgd"])
@pytest.mark.parametrize("method", METHODS)
def test_certificates_of_every_method_hold(study, method, kind):
    small = {"method": method, "width": 8, "layers_per_block": 2, "epochs": 10}
    check(study, 300, small, kind=kind, steps=20, restarts=3)
