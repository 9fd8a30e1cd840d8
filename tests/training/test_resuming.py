"""A run stopped and continued is the run in one go, bit for bit: with every field of a recipe."""

import dataclasses

import numpy as np
import pytest
import torch
from checkpoints import assert_equal, load_state, without_times
from fresh_processes import outputs, run_ranks

from fastlip.data import TensorImages, load
from fastlip.models import METHODS
from fastlip.training import distributed
from fastlip.training.loop import Training
from fastlip.training.recipe import Recipe
from fastlip.training.recipe_files import default_recipe
from fastlip.training.setup import model_of, prepare_process

FREE = {"optimizer": "adamw-schedulefree", "schedule": "constant"}
ADAM = {"optimizer": "adam", "lr": 0.01}
LIP_NEXT = {"model": "lip_next", "method": "lot", "depth": 1, "width": 4, "lr": 0.01}
BRO_NET = {"model": "bro_net", "method": "bro", "depth": 1, "width": 4, "lr": 1e-3}
LIP_RES_NET = {"model": "lip_res_net", "method": "cayley", "depth": 1, "width": 4, "lr": 1e-3}
SLL_NET = {"model": "sll_net", "method": "sll", "size": "S", "width": 4}
UNTRIED = {"M", "L", "XL", "none"}  # only larger
MIXED = {"extra_data": "extra.npz", "extra_ratio": 0.25}
KORNIA = {"augment": "randaugment", "augment_by": "kornia"}

# Together they have every field, and every choice of those that have choices.
RUNS = {
    "published settings of bro_net": {
        **{**BRO_NET, **MIXED, **KORNIA, "optimizer": "nadam", "lookahead": 2, "schedule": "cosine", "warmup": 0.1},
        **{"clip_norm": 3.0, "weight_decay": 4e-5, "decayed": "weights", "ema": 0.8, "shift": 1, "flip": True},
        **{"precision": "bf16", "accumulate": 2, "loss": "emma", "epochs": 3.4},
    },
    "published settings of lip_next": {
        **{**LIP_NEXT, **MIXED, **KORNIA, "optimizer": "nadam", "lookahead": 2, "schedule": "cosine", "warmup": 0.1},
        **{"clip_norm": 0.1, "weight_decay": 4e-5, "decayed": "weights", "ema": 0.8, "shift": 1, "patch": 2},
        **{"precision": "bf16", "manifold_lr": 0.02, "loss": "emma", "radius": 0.5, "radius_start": 0.1, "ramp": 1.0},
    },
    "schedule-free": {
        **{**FREE, **MIXED, "method": "cayley", "lr": 0.01, "warmup": 0.1, "clip_norm": 3.0, "weight_decay": 0.1},
        **{"decayed": "weights", "ema": 0.8, "precision": "bf16", "loss": "logit-annealing", "beta1": 0.8},
        **{"augment": "trivialaugment", "augment_by": "kornia", "annealing": 2.0, "extra_ratio": 0.8},
    },
    "sgd": {"nesterov": True, "momentum": 0.5, "weight_decay": 0.1, "schedule": "triangular", "size": "S"},
    "sgd without momentum": {"method": "bcop", "momentum": 0.0, "lipschitz": 3.0, "offset": 1.0, "center": True},
    "adam": {**ADAM, "method": "aoc", "beta1": 0.5, "beta2": 0.9, "schedule": "constant", "seed": 7},
    "adamw": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.1, "method": "sll", "layers_per_block": 2},
    "Lookahead of adamw": {"optimizer": "adamw", "lookahead": 2, "lookahead_alpha": 0.3, "lr": 0.01, "save_every": 2},
    "Lookahead of sgd": {"lookahead": 5, "method": "cpl", "ema": 0.8, "batch_size": 20},
    "a network of power iterations": {"method": "soc", "accumulate": 3, "channels_last": True, "width": 4},
    "hkr": {"method": "lot", "loss": "hkr", "alpha": 0.5, "min_margin": 0.5, "workers": 1, "shift": 1},
    "temperature-ce": {"method": "bro", "loss": "temperature-ce", "temperature": 0.5, "backend": "reference"},
    "share": {"method": "aol", "augment": "own_images:darker", "augment_probability": 0.5, "share": True},
    "sll_net": {**SLL_NET, "loss": "emma", "ramp": 0.0},
    "lip_res_net": {**LIP_RES_NET, "quasi_residual": False, "centering": False, "augment_operations": 1, **KORNIA},
    "bro_net": {**BRO_NET, "rank": 0.125, "depth": 2, "augment_magnitude": 30, **KORNIA},
    "published_conv_net": {"model": "published_conv_net", "method": "aol"},
}
# Where a run is, not what it computes; a GPU; and what has tests of its own: the compiler (test_compile.py) and data
# sets (test_data.py).
ELSEWHERE = {"data", "path", "image_size", "deterministic", "device", "threads", "compile", "cuda_graph"}


@pytest.fixture(autouse=True)
def _files(tmp_path, monkeypatch):
    """A second data set, and an augmentation of one's own."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (30, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "extra.npz", image=images, label=np.arange(30) % 10)
    (tmp_path / "own_images.py").write_text(
        "import torch\n\n\ndef darker():\n    return lambda image: image * torch.rand(1)\n"
    )
    monkeypatch.chdir(tmp_path)


def need(options):
    """Skips a run whose package is missing."""
    if options.get("augment_by") == "kornia":
        pytest.importorskip("kornia")
    if options.get("optimizer") == FREE["optimizer"]:
        pytest.importorskip("schedulefree")
    if options.get("lookahead") and options.get("model") != "lip_next":  # ManifoldOptimizer has its own
        pytest.importorskip("pytorch_optimizer")


def test_the_runs_have_every_field_and_choice():
    for item in dataclasses.fields(Recipe):
        values = {options.get(item.name, item.default) for options in RUNS.values()}
        changed = any(options.get(item.name, item.default) != item.default for options in RUNS.values())
        assert changed != (item.name in ELSEWHERE), item.name
        if item.name not in ELSEWHERE:
            plain = {name for name in item.metadata.get("choices", ()) if name.startswith("plain_")}
            wanted = METHODS if item.name == "method" else set(item.metadata.get("choices", ())) - plain - UNTRIED
            assert values >= set(wanted), item.name


@pytest.mark.parametrize("name", RUNS)
def test_two_and_two_epochs_are_four_bit_for_bit(make_training, tiny_recipe, tmp_path, name):
    need(RUNS[name])
    recipe = tiny_recipe(**RUNS[name])
    straight = make_training(recipe, "straight")
    straight.fit(tensorboard=False)
    assert straight.finished
    make_training(recipe).fit(stop_after=2, tensorboard=False)
    state = load_state(tmp_path / "run")
    assert state["progress"]["epoch"] == 2
    torch.manual_seed(5)  # a fresh process has other random numbers
    resumed = make_training(recipe, state=state)
    resumed.fit(tensorboard=False)
    assert_equal(*(without_times(load_state(training.folder.path)) for training in (straight, resumed)))
    trained = resumed.result.state_dict()
    assert any(not torch.equal(value, trained[key]) for key, value in state["model"].items())


TOGETHER = {
    "share": {"method": "cayley", "share": True, "accumulate": 2, "width": 2, "layers_per_block": 1},
    "bro_net": {**BRO_NET, "ema": 0.8, "optimizer": "nadam"},
    "lip_next": {**LIP_NEXT, "optimizer": "adam", "lookahead": 2, "manifold_lr": 0.02},
}


def train_by_ranks(folder):
    """Each run in one go and in two, by all processes together."""
    world, digits = distributed.join("cpu"), load("digits")
    parts = [TensorImages(part.pixels(torch.arange(45)), part.labels[:45]) for part in (digits.train, digits.test)]
    data = dataclasses.replace(digits, train=parts[0], test=parts[1])
    for name, options in TOGETHER.items():
        recipe = default_recipe({"batch_size": 16, "epochs": 4, "lr": 0.05, "threads": 1, **options})

        def start(where, recipe=recipe, state=None):
            prepare_process(recipe)
            where.mkdir(exist_ok=True)
            return Training(model_of(recipe, data), recipe, data, where, state, world)

        halves = folder / f"{name}, halves, {world.rank}"
        start(folder / f"{name}, straight, {world.rank}").fit(tensorboard=False)
        start(halves).fit(stop_after=2, tensorboard=False)
        torch.distributed.barrier()
        state = load_state(folder / f"{name}, halves, 0")
        start(halves, state=state).fit(tensorboard=False)
    distributed.leave()


def test_two_processes_continue_bit_for_bit(tmp_path):
    codes = run_ranks(train_by_ranks, tmp_path, folder=tmp_path)
    assert codes == [0, 0], outputs(tmp_path)
    for name in TOGETHER:
        straight, halves = (load_state(tmp_path / f"{name}, {way}, 0") for way in ("straight", "halves"))
        assert straight["progress"]["epoch"] == 4
        assert_equal(without_times(straight), without_times(halves))
