"""``--cuda-graph`` with the network and the optimiser of every recipe, on a CUDA device that computes nothing.

tests/gpu/test_fake_device.py runs this file where that device is.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from fastlip.models import list_models
from fastlip.models.catalog import model_named
from fastlip.optim import ManifoldOptimizer
from fastlip.training.captured_steps import WARM_UPS, CapturedSteps
from fastlip.training.distributed import World
from fastlip.training.gradients import Gradients
from fastlip.training.literals import Optimizer
from fastlip.training.losses import ramp_of
from fastlip.training.optimization import limit_gradient, optimizer_of
from fastlip.training.recipe import Recipe
from fastlip.training.recipe_files import names, read
from fastlip.training.setup import network_of
from fastlip.training.step_fields import SCHEDULE_FREE

pytest.importorskip("triton", minversion="3.6")

ACTIVE = os.environ.get("FASTLIP_FAKE_CUDA") == "1"
inside = pytest.mark.skipif(not ACTIVE, reason="runs in the process that tests/gpu/test_fake_device.py starts")
if ACTIVE:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "gpu"))
    import watch

SHAPE, CLASSES, BATCH = (3, 16, 16), 10, 8
SMALL = {"width": 16, "batch_size": BATCH, "accumulate": 1, "data": "digits", "device": "cuda", "cuda_graph": True}
SMALL |= {"augment": "none", "extra_data": "", "extra_ratio": 0.0}
FEW = {"depth": 1, "layers_per_block": 1}  # of networks that have them
QUICK = ("cifar10-lipnext", "digits-lipnext", "cifar10-liresnet-published")


def recipes():
    """By name: a recipe for each network, method, optimiser and loss that the package's recipes have together."""
    found = {}
    for name in names():
        file = read(name)
        for given in [{}, *({"method": method} for method in file.methods)]:
            values = {**file.values_for(given), **SMALL}
            taken = model_named(values.get("model", Recipe.model)).fields
            recipe = Recipe.from_dict(values | {key: value for key, value in FEW.items() if key in taken})
            optimizer = recipe.optimizer, recipe.nesterov, recipe.momentum > 0, recipe.lookahead > 0
            others = recipe.clip_norm > 0, recipe.decayed, recipe.weight_decay > 0, recipe.ema > 0, recipe.loss
            key = recipe.model, recipe.method, *optimizer, *others
            found.setdefault(key, (" ".join((name, *given.values())), recipe))
    return dict(found.values())


RECIPES = recipes()
MODELS = {recipe.model: recipe for recipe in RECIPES.values()}


def captured(recipe):
    """The steps of ``--cuda-graph``, and the function that takes one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Module, "to", lambda module, *_, **__: module)  # made on the device
        # Matrices that nobody computed are not orthogonal.
        patch.setattr("fastlip.optim.manifold.orthogonality_error", lambda _: 0.0)
        model = network_of(recipe, SHAPE, CLASSES).train()
        optimizer = optimizer_of(recipe, model)
        gradients = Gradients(model, recipe, SHAPE, World())
    ramp = ramp_of(recipe, gradients.loss, 100)

    def add(*batch):
        values = gradients.add(*batch)
        limit_gradient(recipe, model)
        return values

    taken = CapturedSteps(add, optimizer, recipe.batch_size)
    x, y = torch.randn(BATCH, *SHAPE), torch.zeros(BATCH, dtype=torch.long)

    def step():
        taken(x, y, BATCH, BATCH)
        if ramp:
            ramp.step()

    return optimizer, step


def check(recipe):
    """Nothing waits: neither in the capture nor in the steps before and after it, Lookahead's own among them."""
    with watch.gpu() as device:
        optimizer, step = captured(recipe)
        device.strict = True
        for _ in range(WARM_UPS + 1):
            step()
        with device.counting() as counts:
            for _ in range(max(1, recipe.lookahead)):
                step()
    assert counts.by_name["graph"] == max(1, recipe.lookahead)
    assert not counts.waits + counts.uploads
    return optimizer


@inside
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in RECIPES]
)
def test_every_recipe_trains_by_graphs(name):
    recipe = RECIPES[name]
    assert isinstance(check(recipe), ManifoldOptimizer) == (recipe.model == "lip_next")


@inside
@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimizer", [name for name in get_args(Optimizer) if name != SCHEDULE_FREE])
@pytest.mark.parametrize("lookahead", [0, 2])
def test_every_network_trains_by_graphs_with_every_optimiser(model, optimizer, lookahead):
    check(replace(MODELS[model], optimizer=optimizer, lookahead=lookahead))


def test_every_network_has_a_recipe():
    assert {name for name in list_models() if not name.startswith("plain_")} == set(MODELS)
