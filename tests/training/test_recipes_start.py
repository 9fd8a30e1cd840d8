"""Every recipe of the package starts: its network fits its data at full size, and a small one takes a step."""

import math

import pytest
import torch

from fastlip.data import Data, TensorImages
from fastlip.models.catalog import model_named
from fastlip.training.loop import Training
from fastlip.training.recipe_files import FIELDS, default_recipe, names, read
from fastlip.training.run_folder import RunFolder
from fastlip.training.setup import count_weights, model_of, prepare_process

# Shape of an image, and number of classes.
DATA = {
    "digits": ((1, 8, 8), 10),
    "mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
    "tinyimagenet": ((3, 64, 64), 200),
    "svhn": ((3, 32, 32), 10),
    "npz": ((3, 32, 32), 10),
    "folder": ((3, 224, 224), 1000),  # ImageNet's usual side
}
SMALL = {"batch_size": 4, "epochs": 1, "threads": 1, "width": 8}
LARGEST = {"sll_net": "S"}  # sizes of the small networks; the others have XS
ONE_LAYER = ("depth", "layers_per_block")


LARGE_ENOUGH = {"folder-comparison": {"size": "S"}}  # a class for each channel at most


def recipe_of(name, **given):
    path = {} if read(name).values_for({})["data"] == "digits" else {"path": "somewhere"}
    return default_recipe({**path, **given}, name)


def small_recipe(name):
    whole = recipe_of(name)
    fields = model_named(whole.model).fields
    given = {**SMALL, "size": LARGEST.get(whole.model, "XS"), **{key: 1 for key in ONE_LAYER if key in fields}}
    if whole.augment != "none":
        pytest.importorskip("kornia")
        given["augment_by"] = "kornia"
    if whole.lookahead and whole.model != "lip_next":  # ManifoldOptimizer has its own
        pytest.importorskip("pytorch_optimizer")
    return recipe_of(name, **given)


def random_data(name, most=16):
    """A few images of the data set's shape, of at most this side."""
    (channels, side, _), classes = DATA[name][0], min(DATA[name][1], 100)
    shape = (channels, min(side, most), min(side, most))
    torch.manual_seed(0)
    train, test = (
        TensorImages(torch.randint(256, (count, *shape), dtype=torch.uint8), torch.arange(count) % classes)
        for count in (8, 4)
    )
    return Data(name, train, test, tuple(map(str, range(classes))), shape, 255.0, (0.5,) * channels)


def test_the_shapes_are_those_of_all_data_sets():
    assert set(DATA) == set(FIELDS["data.name"].metadata["choices"])


@pytest.mark.parametrize("name", names())
def test_the_network_fits_the_data_at_full_size(name):
    whole = recipe_of(name, **LARGE_ENOUGH.get(name, {}))
    assert count_weights(whole, *DATA[whole.data]) > 1000


@pytest.mark.parametrize("name", names())
def test_a_step_is_taken_and_saved(name, tmp_path):
    recipe = small_recipe(name)
    data = random_data(recipe.data)
    prepare_process(recipe)
    model = model_of(recipe, data)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    training = Training(model, recipe, data, tmp_path)
    training.fit(tensorboard=False)
    (row,) = training.progress.history
    assert math.isfinite(row["train_loss"])
    saved = RunFolder(tmp_path).load_state()["model"]
    moved = [key for key, value in before.items() if not torch.equal(value, saved[key])]
    assert len(moved) > len(before) // 2
