"""Lookahead and schedule-free AdamW: against their formulas, what is evaluated, and resumed bit for bit."""

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import assert_equal, load_state, without_times
from torch import nn

import fastlip
from fastlip._extras import MissingPackageError
from fastlip.training.extra_optimizers import evaluated
from fastlip.training.optimization import optimizer_of, scheduler_of

FREE = {"optimizer": "adamw-schedulefree", "schedule": "constant", "warmup": 0.25, "lr": 0.02}
LOOKAHEAD = {"lookahead": 2, "lookahead_alpha": 0.6}
NEEDED = {"lookahead": "pytorch_optimizer", "optimizer": "schedulefree"}
LIP_NEXT = {"model": "lip_next", "method": "lot", "depth": 1, "width": 4, "layers_per_block": 5}
RUNS = {
    "lookahead of lip_next": {**LIP_NEXT, **LOOKAHEAD, "optimizer": "nadam", "manifold_lr": 0.02},
    "lookahead": {**LOOKAHEAD, "optimizer": "nadam", "clip_norm": 0.5},
    "lookahead of sgd, averaged": {**LOOKAHEAD, "method": "cpl", "ema": 0.8, "lookahead": 5},
    "schedule-free": FREE,
    "schedule-free, averaged": {**FREE, "ema": 0.8},
    "schedule-free, decayed weights": {**FREE, "method": "cayley", "weight_decay": 0.1, "decayed": "weights"},
}


def need(options):
    for name, package in NEEDED.items():
        if name == "lookahead" and options.get("model") == "lip_next":
            continue  # ManifoldOptimizer has it
        if name in options and (name == "lookahead" or options[name] == FREE["optimizer"]):
            pytest.importorskip(package)


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_is_the_same_bit_for_bit(make_training, tiny_recipe, tmp_path, name):
    need(RUNS[name])
    recipe = tiny_recipe(**{"epochs": 3, **RUNS[name]})
    straight = make_training(recipe, "straight")
    straight.fit(tensorboard=False)
    # An odd number of steps, so that Lookahead is stopped between two moves of its slow weights.
    make_training(recipe).fit(stop_after=1, tensorboard=False)
    parts = make_training(recipe, state=load_state(tmp_path / "run"))
    parts.fit(tensorboard=False)
    assert_equal(*(without_times(load_state(training.folder.path)) for training in (straight, parts)))


@pytest.mark.parametrize("name", RUNS)
def test_saving_within_an_epoch_changes_nothing(make_training, tiny_recipe, name):
    need(RUNS[name])
    recipe = tiny_recipe(**{"epochs": 1, **RUNS[name]})
    states = []
    for folder, save_every in (("seldom", 0), ("often", 1)):
        training = make_training(dataclasses.replace(recipe, save_every=save_every), folder)
        training.fit(tensorboard=False)
        state = without_times(load_state(training.folder.path))
        states.append({key: value for key, value in state.items() if key != "recipe"})
    assert_equal(*states)


def small_problem():
    """A network in float64 and the gradient of its loss at its present weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(9, 3).double(), torch.randn(9, 2).double()

    def gradient():
        model.zero_grad()
        (model(x) - y).square().mean().backward()

    return model, gradient


def test_lookahead_follows_its_formula(tiny_recipe):
    pytest.importorskip("pytorch_optimizer")
    recipe = tiny_recipe(lookahead=3, lookahead_alpha=0.4, momentum=0.9, lr=0.1, weight_decay=0.0)
    model, gradient = small_problem()
    optimizer = optimizer_of(recipe, model)
    slow = [parameter.detach().clone() for parameter in model.parameters()]
    fast, velocity = [value.clone() for value in slow], [torch.zeros_like(value) for value in slow]
    for step in range(1, 11):
        gradient()
        for index, parameter in enumerate(model.parameters()):
            velocity[index] = 0.9 * velocity[index] + parameter.grad
            fast[index] = fast[index] - 0.1 * velocity[index]
            if step % 3 == 0:
                slow[index] = slow[index] + 0.4 * (fast[index] - slow[index])
                fast[index] = slow[index].clone()
        optimizer.step()
        for value, parameter in zip(fast, model.parameters(), strict=True):
            torch.testing.assert_close(parameter.detach(), value)


def test_schedule_free_follows_its_formula_and_evaluates_its_average(tiny_recipe):
    pytest.importorskip("schedulefree")
    recipe = tiny_recipe(**{**FREE, "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.1, "lr": 0.03, "epochs": 4})
    model, gradient = small_problem()
    optimizer = optimizer_of(recipe, model)
    scheduler, average = scheduler_of(recipe, optimizer, 3), evaluated(recipe, model, optimizer)
    x = [parameter.detach().clone() for parameter in model.parameters()]
    z, squares = [value.clone() for value in x], [torch.zeros_like(value) for value in x]
    total, largest = 0.0, 0.0
    for step in range(1, 13):
        rate = 0.03 * min(1, step / 3)
        assert scheduler.get_last_lr()[0] == pytest.approx(rate)
        gradient()
        largest = max(largest, rate)
        total += largest**2
        for index, parameter in enumerate(model.parameters()):
            squares[index] = 0.9 * squares[index] + 0.1 * parameter.grad**2
            scale = (squares[index] / (1 - 0.9**step)).sqrt() + 1e-8
            z[index] = z[index] - rate * (parameter.grad / scale + 0.1 * parameter.detach())
            x[index] = x[index] + largest**2 / total * (z[index] - x[index])
        optimizer.step()
        scheduler.step()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        values = [parameter.clone() for parameter in average.refreshed().parameters()]
        for index, parameter in enumerate(model.parameters()):
            assert torch.equal(parameter, before[index])
            torch.testing.assert_close(parameter.detach(), 0.8 * x[index] + 0.2 * z[index])
            torch.testing.assert_close(values[index], x[index])


def test_what_is_certified_and_loaded_is_the_average(make_training, tiny_recipe):
    pytest.importorskip("schedulefree")
    training = make_training(tiny_recipe(method="cpl", **FREE))
    training.fit(tensorboard=False)
    state = load_state(training.folder.path)
    loaded = fastlip.hub.load(training.folder.path)
    for name, value in training.result.state_dict().items():
        assert torch.equal(state["model"][name], value)
        assert torch.equal(loaded.state_dict()[name], value)
        assert torch.equal(state["trained"][name], training.model.state_dict()[name])
    moved = [name for name in state["model"] if not torch.equal(state["model"][name], state["trained"][name])]
    assert set(moved) == {name for name, _ in training.model.named_parameters()}
    certificate = fastlip.certify(loaded, training.test_batches)
    assert training.progress.history[-1]["test_accuracy"] == certificate.accuracy


SMALL = ["--width=2", "--layers-per-block=1", "--batch-size=512", "--epochs=1", "--threads=1", "--no-tensorboard"]


@pytest.mark.parametrize(
    "line",
    ["--optimizer adamw-schedulefree --schedule constant --lr 0.01 --out free", "--lookahead 6 --out lookahead"],
)
def test_the_command_line_trains_and_certifies(cli, monkeypatch, tmp_path, line):
    pytest.importorskip("pytorch_optimizer" if "lookahead" in line else "schedulefree")
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "guide" / "train.md"
    assert f"fastlip train {line.replace('--out ', '--epochs 4 --out runs/')}" in page.read_text(encoding="utf-8")
    options, folder = line.split(), line.split()[-1]
    code, _, errors = cli("train", *options, *SMALL)
    assert code == 0, errors
    assert (tmp_path / folder / "certificate.json").is_file()
    code, _, errors = cli("train", "--resume", "--out", folder, "--lookahead-alpha=0.3")
    assert code != 0
    assert "lookahead_alpha=0.3: the run has 0.5 and keeps it" in errors


def test_the_moving_average_is_that_of_the_weights_that_are_evaluated(make_training, tiny_recipe):
    pytest.importorskip("schedulefree")
    training, seen = make_training(tiny_recipe(**{**FREE, "ema": 0.5, "epochs": 1})), []
    for x, y in training.train_batches.epoch(0):
        training.step(x, y)
        seen.append([value.clone() for value in training.evaluated.refreshed().parameters()])
    expected = seen[0]
    for count, values in enumerate(seen[1:], 1):
        decay = min(0.5, (1 + count) / (10 + count))
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, values, strict=True)]
    for parameter, value in zip(training.result.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter, value)


def test_a_constant_rate_rises_first(tiny_recipe):
    model = nn.Linear(2, 2)
    optimizer = optimizer_of(recipe := tiny_recipe(schedule="constant", warmup=0.25, lr=0.4), model)
    scheduler, rates = scheduler_of(recipe, optimizer, 4), []
    for _ in range(16):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.1, 0.2, 0.3] + 13 * [0.4])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({**FREE, "schedule": "cosine"}, "schedule='cosine': optimizer='adamw-schedulefree' needs 'constant'"),
        ({**FREE, "beta1": 0.0}, "beta1=0.0: optimizer='adamw-schedulefree' needs a value above 0"),
        ({**FREE, "lookahead": 5}, "lookahead=5: optimizer='adamw-schedulefree' has an average of its own"),
        ({"lookahead": -1}, "lookahead=-1: must be at least 0"),
        ({"lookahead": 10_001}, "lookahead=10001: must be at most 10000"),
        ({"lookahead_alpha": 0.0}, "lookahead_alpha=0.0: must be above 0"),
        ({"lookahead_alpha": 1.5}, "lookahead_alpha=1.5: must be at most 1"),
    ],
)
def test_a_wrong_value_is_named(tiny_recipe, fields, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        tiny_recipe(**fields)


def test_averages_of_orthogonal_matrices_are_refused(make_training, tiny_recipe):
    pytest.importorskip("schedulefree")
    with pytest.raises(ValueError, match=r"^optimizer='adamw-schedulefree': averages weights, and model="):
        make_training(tiny_recipe(**LIP_NEXT, **FREE))


@pytest.mark.parametrize("fields", [LOOKAHEAD, FREE], ids=["lookahead", "schedule-free"])
def test_a_missing_package_is_named(monkeypatch, tiny_recipe, fields):
    for module in [name for name in sys.modules if name.partition(".")[0] in NEEDED.values()]:
        monkeypatch.delitem(sys.modules, module)
    for module in NEEDED.values():
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError) as caught:
        optimizer_of(tiny_recipe(**fields), nn.Linear(2, 2))
    text = {
        True: 'lookahead=2: pytorch-optimizer is not installed: pip install "fastlip[optim]"',
        False: "optimizer='adamw-schedulefree': schedulefree is not installed: pip install \"fastlip[optim]\"",
    }
    assert str(caught.value) == text["lookahead" in fields]
