"""Batch centering in a step of several parts, and in processes whose shares of a batch differ or are empty."""

import dataclasses

import pytest
import torch
from fresh_processes import command, join, outputs, start_ranks

from fastlip import nn as lip
from fastlip.data import TensorImages, load
from fastlip.training import checkpoint, distributed
from fastlip.training.distributed import World
from fastlip.training.loop import Training
from fastlip.training.recipe_files import default_recipe
from fastlip.training.setup import model_of, prepare_process

BRO_NET = {"model": "bro_net", "method": "bro", "width": 4, "depth": 2, "lr": 1e-3}


def centering(training):
    return [layer for layer in training.model.modules() if isinstance(layer, lip.BatchCentering)]


@pytest.mark.parametrize("count", [2, 3, 16])
def test_the_running_means_are_those_of_all_parts(make_training, tiny_recipe, count):
    training = make_training(tiny_recipe(accumulate=count, **BRO_NET))
    x, y = next(training.train_batches.epoch(0, 0, 1))
    layers, means = centering(training), {}
    assert len(layers) == 2

    def note(layer, inputs):
        means.setdefault(layer, []).append((inputs[0].mean((0, 2, 3)), len(inputs[0])))

    handles = [layer.register_forward_pre_hook(note) for layer in layers]
    training.step(x, y)
    for handle in handles:
        handle.remove()
    for layer in layers:
        assert [images for _, images in means[layer]] == [len(part) for part in x.tensor_split(count)]
        expected = sum(mean * images for mean, images in means[layer]) / len(x)
        torch.testing.assert_close(layer.running_mean, layer.momentum * expected, rtol=1e-5, atol=1e-7)
        assert layer._noted is None
    # What comes before the first of them does not depend on the parts.
    whole = make_training(tiny_recipe(**BRO_NET), "whole")
    whole.step(x, y)
    torch.testing.assert_close(layers[0].running_mean, centering(whole)[0].running_mean, rtol=1e-5, atol=1e-7)


def test_a_part_that_fails_leaves_the_layers_as_they_were(make_training, tiny_recipe):
    training = make_training(tiny_recipe(accumulate=2, **BRO_NET))
    x, y = next(training.train_batches.epoch(0, 0, 1))
    with pytest.raises(ValueError, match="x: got shape"):
        training.step(x[:, :, :, :4, None], y)
    assert all(layer._noted is None and layer._counted for layer in centering(training))


# Batches of four and two images: three processes have 1, 1, 2 and 0, 1, 1 of them.
SHARES = {**BRO_NET, "batch_size": 4, "accumulate": 2, "epochs": 2, "threads": 1}


def train(folder, world, **changes):
    data, recipe = load("digits"), default_recipe({**SHARES, **changes})
    parts = [TensorImages(part.pixels(torch.arange(6)), part.labels[:6]) for part in (data.train, data.test)]
    data = dataclasses.replace(data, train=parts[0], test=parts[1])
    prepare_process(recipe)
    model = model_of(recipe, data).double()
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    folder.mkdir()
    Training(model, recipe, data, folder, None, world).fit(tensorboard=False)


def train_together(folder):
    world = distributed.join("cpu")
    train(folder / f"{world.rank}", world)
    distributed.leave()


def test_three_processes_are_one(tmp_path):
    codes = join(start_ranks(train_together, tmp_path, size=3, folder=tmp_path))
    assert codes == [0, 0, 0], outputs(tmp_path)
    train(tmp_path / "alone", World(), accumulate=1)
    together, alone = (checkpoint.load(tmp_path / name / "checkpoint.pt")["model"] for name in ("0", "alone"))
    for name, value in alone.items():
        assert (together[name] - value).abs().max() <= 1e-9 * max(1.0, value.abs().max()), name


def break_second():
    import fastlip.training.loop as loop

    original = Training.step

    def step(self, x, y):
        return original(self, x * float("nan") if self.world.rank else x, y)

    loop.Training.step = step
    sizes = ("--model=bro_net", "--width=4", "--depth=1", "--batch-size=512", "--epochs=1", "--threads=1")
    command("train", *sizes, "--no-tensorboard", "--out=run")


def test_the_process_with_the_cause_is_the_one_that_explains(tmp_path):
    """A mean over processes hands on what is not finite; only one of them knows why."""
    assert join(start_ranks(break_second, folder=tmp_path)) == [1, 1], outputs(tmp_path)
    errors = [line for line in "".join(outputs(tmp_path)).splitlines() if line.startswith("Error: ")]
    assert errors == ["Error: epoch 1, step 1: loss is nan: the input is not finite"]
