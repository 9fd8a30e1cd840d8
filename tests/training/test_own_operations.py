"""Augmentation by a function of one's own: seeded for each image, resumed bit for bit, and its mistakes named."""

import random

import numpy as np
import pytest
import torch
from checkpoints import assert_equal, load_state, without_times
from same_batches import check_shares, check_workers

from fastlip._extras import MissingPackageError
from fastlip.data import Batches, DataError, TensorImages
from fastlip.data.own_operations import OwnOperations
from fastlip.training.recipe import Recipe
from fastlip.training.setup import batches_of

MODULE = """
import random
import numpy as np
import torch


def noisy():
    def change(x):
        assert x.shape[0] == 1
        x += 0.1 * torch.rand(x.shape)  # in place, which must not reach the data
        return (x + 0.05 * np.random.rand() + 0.05 * random.random()).clamp(0, 1)

    return change


def of_bytes():
    return lambda x: (x * 255).to(torch.uint8)


def cropping():
    return lambda x: x[..., 1:]


def standardising():
    return lambda x: (x - 0.5) / 0.2


def nothing():
    return None


def of_an_image(x, strength=1):
    return x


def of_an_extra():
    raise ModuleNotFoundError("No module named 'kornia.augmentation'", name="kornia.augmentation")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_changes.py").write_text(MODULE)
    (tmp_path / "needs_kornia.py").write_text("import kornia_that_is_missing\n")
    yield "own_changes"
    import sys

    sys.modules.pop("own_changes", None)


def batches(probability=1.0, **options):
    stored = torch.randint(256, (23, 3, 4, 4), generator=torch.Generator().manual_seed(0)).byte()
    operations = OwnOperations("own_changes:noisy", probability)
    return Batches(TensorImages(stored, torch.arange(23)), 255.0, 10, operations=operations, **options)


def states():
    return torch.get_rng_state(), str(np.random.get_state()), random.getstate()


def test_the_generators_of_the_run_are_left_alone(module):
    before, kept = states(), batches().images.all_pixels.clone()
    made = batches()
    first, again = list(made.epoch(0)), list(batches().epoch(0))
    for one, two in zip(before, states(), strict=True):
        assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
    assert all(torch.equal(x, y) for (x, _), (y, _) in zip(first, again, strict=True))
    assert torch.equal(made.images.all_pixels, kept)
    assert not torch.equal(first[0][0], next(iter(batches(seed=1).epoch(0)))[0])


def test_a_fraction_of_the_images_changes(module):
    plain = batches()
    plain.operations = None
    pairs = list(zip(batches(0.5).epoch(3), plain.epoch(3), strict=True))
    changed = torch.cat([(x != y).flatten(1).any(1) for (x, _), (y, _) in pairs])
    assert 5 <= changed.sum() <= 18


@pytest.mark.parametrize("count", [2, 7])
def test_the_shares_of_all_processes_are_the_batches(module, count):
    check_shares(batches, count)


def test_worker_processes_hand_out_the_same_batches(module):
    check_workers(batches)


def test_a_resumed_run_is_the_same_bit_for_bit(module, make_training, tiny_recipe, tmp_path):
    recipe = tiny_recipe(augment="own_changes:noisy", epochs=3, save_every=1)
    straight = make_training(recipe, "straight")
    straight.fit(tensorboard=False)
    make_training(recipe).fit(stop_after=1, tensorboard=False)
    parts = make_training(recipe, state=load_state(tmp_path / "run"))
    parts.fit(tensorboard=False)
    assert_equal(*(without_times(load_state(training.folder.path)) for training in (straight, parts)))
    plain = make_training(tiny_recipe(epochs=3), "plain")
    plain.fit(tensorboard=False)
    assert plain.progress.history[-1]["train_loss"] != parts.progress.history[-1]["train_loss"]


def test_bytes_are_divided(module):
    x = torch.randint(256, (2, 1, 3, 3)).float() / 255
    y = OwnOperations("own_changes:of_bytes")(x, torch.Generator(), slice(0, 2), 2)
    assert (x - y).abs().max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cropping", r"returned shape \(1, 1, 8, 7\) for an image of shape \(1, 1, 8, 8\)"),
        ("standardising", "returned values from .* expected \\[0, 1\\]"),
    ],
)
def test_wrong_results_are_named(module, tiny_data, tiny_recipe, name, text):
    made = batches_of(tiny_recipe(augment=f"own_changes:{name}"), tiny_data, tiny_data.train, augment=True)
    with pytest.raises(DataError, match=f"^augment='own_changes:{name}': {text}"):
        next(iter(made.epoch(0)))


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("own_changes:nothing", "augment='own_changes:nothing': got NoneType, expected a function of images"),
        ("own_changes:missing", "augment='own_changes:missing': 'own_changes' has no function 'missing'"),
        (
            "own_changes:of_an_image",
            r"augment='own_changes:of_an_image': needs arguments \(x\), expected a function",
        ),
        ("no_such_module:make", "augment='no_such_module:make': cannot import 'no_such_module'"),
        ("needs_kornia:make", "augment='needs_kornia:make': cannot import 'needs_kornia': No module named"),
    ],
)
def test_wrong_places_are_named(module, place, text):
    with pytest.raises(DataError, match=f"^{text}"):
        OwnOperations(place)


def test_a_package_of_an_extra_is_named(module):
    with pytest.raises(MissingPackageError) as caught:
        OwnOperations("own_changes:of_an_extra")
    text = "augment='own_changes:of_an_extra': kornia is not installed: pip install \"fastlip[kornia]\""
    assert str(caught.value) == text


def test_the_command_trains_with_it(module, cli, tmp_path):
    small = ["--width=2", "--layers-per-block=1", "--batch-size=512", "--epochs=1", "--threads=1", "--no-tensorboard"]
    code, _, errors = cli("train", "--augment=own_changes:noisy", f"--out={tmp_path / 'run'}", *small)
    assert code == 0, errors
    code, _, errors = cli("train", "--augment=own_changes:cropping", f"--out={tmp_path / 'other'}", *small)
    assert code != 0
    assert "returned shape (1, 1, 8, 7)" in errors
    assert "Traceback" not in errors
    assert Recipe(augment="a.b:c").augment == "a.b:c"
