"""Several processes are one: the same steps for every method, one checkpoint, one line for an error."""

import dataclasses

import pytest
import torch
from fresh_processes import join, start_ranks

from fastlip.data import TensorImages, load
from fastlip.models import METHODS
from fastlip.training import checkpoint, distributed
from fastlip.training.distributed import World
from fastlip.training.loop import Training
from fastlip.training.recipe import default_recipe
from fastlip.training.setup import model_of, prepare_process

# In seven epochs 21 steps of 16, 16 and 13 images: of the last, one process has six and the other seven.
IMAGES = 45
SMALL = {"width": 2, "layers_per_block": 1, "batch_size": 16, "epochs": 7, "threads": 1, "shift": 1, "flip": True}
VARIANTS = {
    **{method: {"method": method} for method in METHODS},
    "hkr": {"loss": "hkr"},
    "adam": {"optimizer": "adam", "schedule": "triangular", "lr": 0.01},
    "accumulate": {"method": "cpl", "accumulate": 3},
    "channels_last": {"method": "sll", "channels_last": True},
    # 3 images a step at most, the last step has none for the first process.
    "tiny": {"batch_size": 2, "epochs": 1},
}


def digits():
    data = load("digits")
    images = [
        TensorImages(part.pixels(torch.arange(IMAGES)), part.labels[:IMAGES]) for part in (data.train, data.test)
    ]
    return dataclasses.replace(data, train=images[0], test=images[1])


def recipe_of(variant):
    return default_recipe({**SMALL, **VARIANTS[variant]})


def in_double(model):
    """The model in float64, which leaves nothing but mistakes to see."""
    model.double().register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    return model


def train(recipe, data, folder, world):
    prepare_process(recipe)
    folder.mkdir()
    training = Training(in_double(model_of(recipe, data)), recipe, data, folder, None, world)
    training.fit(tensorboard=False)


def train_all(folder):
    """Every variant by two processes together, then by each of them alone."""
    world, data = distributed.join("cpu"), digits()
    for variant in VARIANTS:
        train(recipe_of(variant), data, folder / f"{variant}-{world.rank}", world)
    distributed.leave()
    for variant in list(VARIANTS)[world.rank :: 2]:
        alone = dataclasses.replace(recipe_of(variant), accumulate=1, channels_last=False)
        train(alone, data, folder / f"{variant}-alone", World())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    codes = join(start_ranks(train_all, folder, folder=folder))
    assert codes == [0, 0], [path.read_text() for path in folder.glob("output-*.txt")]
    return folder


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_train_as_one(runs, variant):
    together, alone = (checkpoint.load(runs / f"{variant}-{name}" / "checkpoint.pt") for name in ("0", "alone"))
    start = in_double(model_of(prepared(recipe_of(variant)), digits())).state_dict()
    for name, value in alone["model"].items():
        assert (together["model"][name] - value).abs().max() <= 1e-9 * max(1.0, value.abs().max()), name
    moved = [name for name, value in alone["model"].items() if (value - start[name]).abs().max() > 1e-4]
    assert len(moved) > len(start) // 4
    rows = zip(together["progress"]["history"], alone["progress"]["history"], strict=True)
    for row, expected in rows:
        assert row["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-9)
        for name in ("train_accuracy", "train_cra", "test_accuracy", "test_cra"):
            assert row[name] == expected[name], name


def prepared(recipe):
    prepare_process(recipe)
    return recipe


def test_only_the_first_process_writes(runs):
    assert not list((runs / "aol-1").iterdir())
