import pytest
import torch

from fastlip.data import Data, TensorImages, load
from fastlip.training.recipe_files import default_recipe
from fastlip.training.setup import model_of, prepare_process


@pytest.fixture
def tiny_data():
    """48 training and 16 test digits."""
    digits = load("digits")
    parts = [
        TensorImages(images.pixels(torch.arange(count)), images.labels[:count])
        for images, count in ((digits.train, 48), (digits.test, 16))
    ]
    return Data("digits", *parts, digits.classes, digits.shape, digits.divisor, digits.mean)


@pytest.fixture
def tiny_recipe():
    """A recipe of three steps an epoch with the smallest network."""

    def make(**options):
        small = {"width": 2, "layers_per_block": 1, "batch_size": 16, "epochs": 4, "lr": 0.05, "threads": 1}
        return default_recipe({**small, **options})

    return make


@pytest.fixture
def make_training(tiny_data, tmp_path):
    """A Training in tmp_path, seeded as the command does it."""
    from fastlip.training.loop import Training

    def make(recipe, folder="run", state=None, model=None):
        prepare_process(recipe)
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        return Training(model or model_of(recipe, tiny_data), recipe, tiny_data, path, state)

    return make
