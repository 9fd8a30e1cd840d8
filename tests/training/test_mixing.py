"""A second set of training images: its exact share of each batch, its order, and runs with it resumed bit for bit."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from checkpoints import assert_equal, load_state, without_times

from fastlip.data import Augmentation, DataError, Share, TensorImages
from fastlip.data.mixing import MixedBatches, extra_images, extra_size
from fastlip.training.checkpoint import CheckpointError
from fastlip.training.recipe import Recipe
from fastlip.training.setup import batches_of

OWN, EXTRA = 23, 17


def numbered(first, count):
    """Images whose pixels are all their number, and whose labels are it too."""
    numbers = torch.arange(first, first + count)
    return TensorImages(numbers.byte()[:, None, None, None].repeat(1, 1, 2, 2), numbers)


def make_batches(ratio=0.4, batch_size=10, **options):
    return MixedBatches(numbered(0, OWN), numbered(100, EXTRA), ratio, 255.0, batch_size, **options)


def labels_of(batches, epoch):
    return [y.tolist() for _, y in batches.epoch(epoch)]


@pytest.mark.parametrize(("ratio", "size"), [(0.4, 4), (0.44, 4), (0.45, 5), (0.9, 9), (0.05, 1), (0.7, 7)])
def test_each_batch_has_its_share(ratio, size):
    batches = make_batches(ratio, seed=1)
    seen = labels_of(batches, 3)
    counts = [(sum(label < 100 for label in batch), sum(label >= 100 for label in batch)) for batch in seen]
    assert set(counts[:-1]) == {(10 - size, size)}
    own, extra = counts[-1]
    assert own == (OWN % (10 - size) or 10 - size)
    assert abs(extra - own * size / (10 - size)) <= 0.5
    assert sorted(label for batch in seen for label in batch if label < 100) == list(range(OWN))
    assert len(seen) == len(batches)
    assert sum(map(sum, counts)) == batches.image_count
    assert [batches.counts(index)[1] for index in range(len(batches))] == list(map(sum, counts))


def test_every_extra_image_comes_once_before_one_comes_again():
    batches = make_batches(seed=2)
    stream = [index for epoch in range(9) for index in batches._extra_indices(epoch).tolist()]
    passes = [stream[start : start + EXTRA] for start in range(0, len(stream) - EXTRA, EXTRA)]
    assert len(passes) > 5
    assert all(sorted(one) == list(range(EXTRA)) for one in passes)
    assert passes[0] != passes[1]
    drawn = [label for epoch in range(9) for batch in labels_of(batches, epoch) for label in batch if label >= 100]
    counts = np.bincount(drawn)[100:]
    assert counts.max() - counts.min() <= 1


def test_places_orders_and_epochs_differ_and_are_those_of_the_seed():
    first, again = labels_of(make_batches(seed=5), 2), labels_of(make_batches(seed=5), 2)
    assert first == again
    assert first not in (labels_of(make_batches(seed=6), 2), labels_of(make_batches(seed=5), 3))
    places = {
        tuple(label >= 100 for label in batch) for epoch in range(9) for batch in labels_of(make_batches(), epoch)
    }
    assert len(places) > 20


def test_an_epoch_continues_from_any_batch():
    batches = make_batches(augmentation=Augmentation(1, True))
    whole = list(batches.epoch(4))
    for start in range(len(batches)):
        for pair, expected in zip(batches.epoch(4, start), whole[start:], strict=True):
            assert all(map(torch.equal, pair, expected))


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_shares_of_all_processes_are_the_batches(count):
    options = {"augmentation": Augmentation(1, True)}
    whole, parts = make_batches(**options), [make_batches(share=Share(r, count), **options) for r in range(count)]
    for batch, pairs in enumerate(zip(whole.epoch(1), *(part.epoch(1) for part in parts), strict=True)):
        pair, *shares = pairs
        rows = [part.counts(batch)[0] for part in parts]
        for index in range(2):
            joined = torch.cat([share[index][:n] for share, n in zip(shares, rows, strict=True)])
            assert torch.equal(joined, pair[index])


def test_worker_processes_hand_out_the_same_batches():
    here, there = make_batches(), make_batches(workers=1)
    assert labels_of(here, 1) == labels_of(there, 1)


def test_in_order_there_is_no_chance():
    assert next(y.tolist() for _, y in make_batches()) == [0, 1, 2, 3, 4, 5, 100, 101, 102, 103]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The same 30 images as an .npz file and as what functions return."""
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (30, 8, 8), dtype=np.uint8), np.arange(30) % 10
    np.savez(tmp_path / "made.npz", image=images, label=labels)
    code = f"""
import numpy, torch
from torch.utils.data import TensorDataset
arrays = numpy.load({str(tmp_path / "made.npz")!r})

def pair():
    return arrays["image"], arrays["label"]

def samples():
    images = torch.from_numpy(arrays["image"]).float()[:, None] / 255
    return TensorDataset(images, torch.from_numpy(arrays["label"]))
"""
    (tmp_path / "made_images.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    return images, labels


@pytest.mark.parametrize("source", ["made.npz", "made_images:pair", "made_images:samples"])
def test_a_set_on_another_scale_is_put_on_that_of_the_data(files, tiny_data, tiny_recipe, source):
    images, labels = files
    found = extra_images(source, tiny_data)
    stored = found.pixels(torch.tensor([3, 9]))
    torch.testing.assert_close(stored[:, 0] / tiny_data.divisor, torch.from_numpy(images[[3, 9]]).float() / 255)
    assert found.labels.tolist() == labels.tolist()
    recipe = tiny_recipe(extra_data=source, extra_ratio=0.25, center=False)
    batches = batches_of(recipe, tiny_data, tiny_data.train, augment=True)
    x, _ = next(iter(batches.epoch(0)))
    assert x.shape == (16, 1, 8, 8)
    assert 0.9 < x.max() <= 1
    assert batches_of(recipe, tiny_data, tiny_data.test).image_count == 16


def test_the_extra_images_of_svhn_are_read(tmp_path, tiny_data):
    matlab = pytest.importorskip("scipy.io")
    images = np.random.default_rng(1).integers(0, 256, (32, 32, 3, 5), dtype=np.uint8)
    matlab.savemat(tmp_path / "extra_32x32.mat", {"X": images, "y": np.array([[10], [1], [2], [3], [4]], np.uint8)})
    svhn = dataclasses.replace(tiny_data, name="svhn", shape=(3, 32, 32), divisor=255.0)
    found = extra_images(str(tmp_path / "extra_32x32.mat"), svhn)
    assert found.labels.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(found.pixels(torch.tensor([2]))[0], torch.from_numpy(images[..., 2].transpose(2, 0, 1).copy()))
    with pytest.raises(DataError, match=r"extra_32x32\.mat: has images of shape \(3, 32, 32\), expected \(1, 8, 8\)"):
        extra_images(str(tmp_path / "extra_32x32.mat"), tiny_data)


def test_sets_that_do_not_fit_are_named(files, tiny_data, tmp_path):
    images, labels = files
    for name, arrays, message in (
        ("side", (images[:, :4, :4], labels), r"side\.npz: has images of shape \(1, 4, 4\), expected \(1, 8, 8\)"),
        ("classes", (images, labels + 1), r"classes\.npz: has class 10, expected 0 to 9 as in digits"),
        ("lengths", (images, labels[:-1]), r"lengths\.npz: got 30 images"),
    ):
        np.savez(tmp_path / f"{name}.npz", images=arrays[0], labels=arrays[1])
        with pytest.raises(DataError, match=message):
            extra_images(f"{name}.npz", tiny_data)
    for source, message in (
        ("none.npz", "no such file"),
        ("none.mat", "no such file"),
        ("images.png", r"expected an \.npz file, a \.mat file of SVHN, or module:function"),
        ("made_images:nothing", "extra_data='made_images:nothing': 'made_images' has no function 'nothing'"),
    ):
        with pytest.raises(DataError, match=message):
            extra_images(source, tiny_data)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"extra_data": "a.npz"}, "extra_data='a.npz': needs extra_ratio above 0"),
        ({"extra_ratio": 0.5}, "extra_ratio=0.5: needs extra_data"),
        ({"extra_data": "a.npz", "extra_ratio": 1.0}, "extra_ratio=1.0: must be below 1"),
        ({"extra_data": "a.npz", "extra_ratio": -0.1}, "extra_ratio=-0.1: must be at least 0"),
        ({"extra_data": "a.npz", "extra_ratio": 0.001}, "extra_ratio=0.001: that is 0 of the batch_size=256 images"),
        ({"extra_data": "a.npz", "extra_ratio": 0.999}, "extra_ratio=0.999: that is 256 of the batch_size=256"),
    ],
)
def test_a_wrong_value_is_named(fields, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Recipe(**fields)
    assert extra_size(256, 0.7) == 179


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "precision": "bf16", "ema": 0.8, "flip": True}], ids=str)
def test_a_resumed_run_is_the_same_bit_for_bit(files, make_training, tiny_recipe, tmp_path, options):
    recipe = tiny_recipe(extra_data="made.npz", extra_ratio=0.4, shift=1, epochs=3, **options)
    straight = make_training(recipe, "straight")
    straight.fit(tensorboard=False)
    make_training(recipe).fit(stop_after=1, tensorboard=False)
    parts = make_training(recipe, state=load_state(tmp_path / "run"))
    parts.fit(tensorboard=False)
    assert_equal(*(without_times(load_state(training.folder.path)) for training in (straight, parts)))
    plain = make_training(tiny_recipe(shift=1, epochs=3), "plain")
    plain.fit(tensorboard=False)
    assert len(plain.train_batches) < len(straight.train_batches)


def test_a_run_does_not_go_on_with_another_set(files, make_training, tiny_recipe, tmp_path):
    images, labels = files
    recipe = tiny_recipe(extra_data="made.npz", extra_ratio=0.4)
    make_training(recipe).fit(stop_after=1, tensorboard=False)
    state = load_state(tmp_path / "run")
    np.savez("made.npz", image=images[:29], label=labels[:29])
    with pytest.raises(CheckpointError, match=r"extra_data: has .*'images': 29, .* trained with .*'images': 30"):
        make_training(recipe, state=state)


def test_the_command_line_mixes_and_certifies(cli, files, tmp_path):
    small = ["--width=2", "--layers-per-block=1", "--batch-size=256", "--epochs=1", "--threads=1", "--no-tensorboard"]
    code, _, errors = cli("train", "--extra-data=made.npz", "--extra-ratio=0.25", "--out=run", *small)
    assert code == 0, errors
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert (recipe["extra_data"], recipe["extra_ratio"]) == ("made.npz", 0.25)
    (tmp_path / "made.npz").unlink()
    code, _, errors = cli("certify", "run", "--json")
    assert code == 0, f"certificates need no training images: {errors}"
