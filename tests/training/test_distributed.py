"""Several processes are one: the same steps for every method, one checkpoint, one line for an error."""

import dataclasses
import signal
from importlib.util import find_spec

import pytest
import torch
from fresh_processes import command, join, outputs, run_ranks, start, start_ranks

from fastlip.data import TensorImages, load
from fastlip.models import METHODS
from fastlip.training import checkpoint, distributed
from fastlip.training.distributed import World
from fastlip.training.loop import Training
from fastlip.training.recipe_files import default_recipe
from fastlip.training.setup import model_of, prepare_process

# In seven epochs 21 steps of 16, 16 and 13 images: of the last, one process has six and the other seven.
IMAGES = 45
SMALL = {"width": 2, "layers_per_block": 1, "batch_size": 16, "epochs": 7, "threads": 1, "shift": 1, "flip": True}
UNIT_ROWS = {"model": "sll_net", "method": "sll", "size": "S", "width": 4}
LIP_NEXT = {"model": "lip_next", "method": "lot", "width": 4, "depth": 1, "lr": 0.02}
BRO_NET = {"model": "bro_net", "width": 4, "depth": 1, "lr": 1e-3}
VARIANTS = {
    **{method: {"method": method} for method in METHODS},
    "hkr": {"loss": "hkr"},
    "adam": {"optimizer": "adam", "schedule": "triangular", "lr": 0.01},
    "accumulate": {"method": "cpl", "accumulate": 3},
    "channels_last": {"method": "cpl", "channels_last": True},
    # Each method once, with a share of the layers for each process.
    **{f"share-{method}": {"method": method, "share": True} for method in ("aoc", "bcop", "cayley", "cpl", "soc")},
    "share-hkr": {"method": "aol", "share": True, "loss": "hkr"},
    "emma": {**UNIT_ROWS, "loss": "emma", "epochs": 1},
    "share-emma": {**UNIT_ROWS, "loss": "emma", "epochs": 1, "share": True},
    "share-accumulate": {"method": "lot", "share": True, "accumulate": 2},
    "share-tiny": {"method": "sll", "share": True, "batch_size": 2, "epochs": 1},
    # 3 images a step at most, the last step has none for the first process.
    "tiny": {"batch_size": 2, "epochs": 1},
    # Means over the images of all processes; the average of the weights is what is saved.
    "bro_net": {**BRO_NET, "epochs": 2, "optimizer": "nadam", "schedule": "cosine", "clip_norm": 1.0, "ema": 0.8},
    "share-bro_net": {**BRO_NET, "epochs": 2, "share": True},
    # Matrices on the manifold, which are retracted after each epoch, and so is their average.
    "lip_next": {**LIP_NEXT, "epochs": 2, "optimizer": "adam", "manifold_lr": 0.01, "decayed": "weights", "ema": 0.8},
    "lip_next, Lookahead": {**LIP_NEXT, "epochs": 2, "optimizer": "nadam", "manifold_lr": 0.01, "lookahead": 4},
    # 6 images of each batch are of a second set.
    "mixed": {"extra_data": f"{__name__}:extra", "extra_ratio": 0.4, "epochs": 3},
    "share-lip_next": {**LIP_NEXT, "epochs": 2, "share": True},
}
# Optimisers of packages that may be missing.
if find_spec("pytorch_optimizer"):
    VARIANTS["lookahead"] = {"method": "cpl", "epochs": 3, "lookahead": 2}
if find_spec("schedulefree"):
    VARIANTS["schedule-free"] = {
        **{"method": "cpl", "epochs": 3, "optimizer": "adamw-schedulefree", "schedule": "constant"},
        **{"lr": 0.01, "ema": 0.5},
    }


def digits():
    data = load("digits")
    images = [
        TensorImages(part.pixels(torch.arange(IMAGES)), part.labels[:IMAGES]) for part in (data.train, data.test)
    ]
    return dataclasses.replace(data, train=images[0], test=images[1])


def extra():
    """Images and labels that are mixed with the digits."""
    return torch.randint(256, (25, 8, 8), generator=torch.Generator().manual_seed(0)).byte(), torch.arange(25) % 10


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
        alone = dataclasses.replace(recipe_of(variant), accumulate=1, channels_last=False, share=False)
        train(alone, data, folder / f"{variant}-alone", World())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    codes = run_ranks(train_all, folder, folder=folder)
    assert codes == [0, 0], outputs(folder)
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


LINE = ("train", "--width=2", "--layers-per-block=1", "--batch-size=512", "--threads=1", "--no-tensorboard")


def lines(folder):
    """What the processes wrote to the terminal."""
    return "".join(path.read_text() for path in sorted(folder.glob("output-*.txt")))


def test_a_run_continues_with_another_number_of_processes(tmp_path):
    options = (*LINE, "--epochs=2", "--out=run")
    assert join(start_ranks(command, *options, "--stop-after=1", folder=tmp_path)) == [0, 0], lines(tmp_path)
    output = lines(tmp_path)
    assert output.count(" 1/2 ") == output.count("2 processes") == output.count("train --resume") == 1
    resumed = [start(command, *options, "--resume", folder=tmp_path)]
    whole = [start(command, *options, "--out=whole", folder=tmp_path, environment={"RANK": "whole"})]
    assert join(resumed + whole) == [0, 0], lines(tmp_path)
    found, expected = (checkpoint.load(tmp_path / name / "checkpoint.pt")["model"] for name in ("run", "whole"))
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-5, name


def break_second(kind):
    """The command line, with something broken in the second process only."""
    import fastlip.training.loop as loop

    original, steps = Training.step, []

    def step(self, x, y):
        steps.append(None)
        if self.world.rank == 1 and len(steps) == 2:
            if kind == "error":
                raise OSError(28, "No space left on device", "somewhere")
            if kind == "killed":
                signal.raise_signal(signal.SIGKILL)
            if kind == "nan":
                x = x * float("nan")
            if kind == "signal":
                signal.raise_signal(signal.SIGTERM)
        return original(self, x, y)

    loop.Training.step = step
    command(*LINE, "--epochs=3", "--out=run")


@pytest.mark.parametrize(
    ("kind", "codes", "text"),
    [
        ("error", [1, 1], "somewhere: No space left on device"),
        ("killed", [1, -9], "another process of the run has ended; `--resume` continues the run"),
        ("nan", [1, 1], "epoch 1, step 2: loss is nan: the input is not finite"),
        ("signal", [143, 143], "stopped by SIGTERM; `--resume` continues the run"),
    ],
)
def test_what_ends_one_process_ends_all_with_one_line(tmp_path, kind, codes, text):
    assert join(start_ranks(break_second, kind, folder=tmp_path)) == codes, lines(tmp_path)
    errors = [line for line in lines(tmp_path).splitlines() if line.startswith("Error: ")]
    assert errors == [f"Error: {text}"]
    assert "Traceback" not in lines(tmp_path)
    state = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    assert state["progress"]["batch"] == (2 if kind == "signal" else 0)


@pytest.mark.parametrize(("option", "text"), [("--lr=-1", "lr=-1.0: must be above 0"), ("--colour=red", "--colour")])
def test_a_mistake_that_all_make_is_one_line(tmp_path, option, text):
    assert 0 not in join(start_ranks(command, "train", option, folder=tmp_path))
    (line,) = lines(tmp_path).splitlines()
    assert text in line
