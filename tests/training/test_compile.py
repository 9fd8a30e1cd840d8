"""``--compile`` trains what eager trains: its losses, with every option that changes how a step is computed."""

from functools import partial

import pytest
import torch

pytestmark = pytest.mark.slow
# A step's loss differs by rounding, which grows through six steps; bfloat16 keeps 8 bits.
TOLERANCE = {"fp32": 1e-5, "bf16": 2**-6}
OPTIONS = {
    "parts": {"accumulate": 3},
    "channels_last": {"method": "cayley", "channels_last": True},
    "bf16": {"precision": "bf16"},
    "centering": {"model": "bro_net", "method": "bro", "width": 4, "depth": 1, "lr": 1e-3, "accumulate": 3},
    "all": {"method": "cpl", "accumulate": 2, "channels_last": True, "precision": "bf16"},
}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def losses(training):
    training.network.train()
    return [training.step(x, y)[0].item() for epoch in (0, 1) for x, y in training.train_batches.epoch(epoch)]


def assert_same_losses(make_training, tiny_recipe, **options):
    trainings = [make_training(tiny_recipe(compile=compiles, **options)) for compiles in (False, True)]
    assert [hasattr(training.network, "_orig_mod") for training in trainings] == [False, True]
    eager, compiled = map(losses, trainings)
    assert len(eager) == 6
    assert len(set(eager)) == 6
    assert compiled == pytest.approx(eager, rel=TOLERANCE[options.get("precision", "fp32")])


@pytest.mark.parametrize("name", OPTIONS)
def test_what_the_compiler_traces_trains_as_eager(make_training, tiny_recipe, monkeypatch, name):
    """All of torch.compile but the generation of code."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    assert_same_losses(make_training, tiny_recipe, **OPTIONS[name])


def test_compiled_code_trains_as_eager(make_training, tiny_recipe):
    assert_same_losses(make_training, tiny_recipe)
