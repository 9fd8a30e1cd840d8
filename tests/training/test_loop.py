"""The loop: exact continuation, interruption, and stopping on what is not finite."""

import csv
import signal

import pytest
import torch
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.nn.base import LipschitzLayer
from fastlip.training.checkpoint import CheckpointError
from fastlip.training.logs import COLUMNS
from fastlip.training.loop import EPS, Training
from fastlip.training.run_folder import RunFolder
from fastlip.training.setup import model_of
from fastlip.training.watch import Interrupted, NotFiniteError, explain_not_finite, require_finite_parameters


def load_state(folder):
    return RunFolder(folder).load_state()


def read_log(folder):
    with RunFolder(folder).log.open() as file:
        return list(csv.DictReader(file))


def assert_same_run(one, other):
    """Weights, momentum, schedule, counters and figures: all but times."""
    one, other = load_state(one), load_state(other)
    assert one["model"].keys() == other["model"].keys()
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name
    for index, entry in one["optimizer"]["state"].items():
        assert torch.equal(entry["momentum_buffer"], other["optimizer"]["state"][index]["momentum_buffer"])
    assert one["scheduler"] == other["scheduler"]
    assert torch.equal(one["random"]["torch"], other["random"]["torch"])
    timed = {"images_per_second", "seconds"}
    for row, other_row in zip(one["progress"]["history"], other["progress"]["history"], strict=True):
        assert {k: v for k, v in row.items() if k not in timed} == {
            k: v for k, v in other_row.items() if k not in timed
        }


@pytest.fixture
def straight(make_training, tiny_recipe):
    training = make_training(tiny_recipe(), "straight")
    training.fit(tensorboard=False)
    return training.folder.path


def test_training_learns_and_logs_every_epoch(make_training, tiny_recipe):
    training = make_training(tiny_recipe(epochs=3))
    before = [p.clone() for p in training.model.parameters()]
    training.fit(tensorboard=False)
    assert any(not torch.equal(p, q) for p, q in zip(before, training.model.parameters(), strict=True))
    rows = read_log(training.folder.path)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert set(rows[0]) == set(COLUMNS)
    assert all(0 <= float(row["test_cra"]) <= float(row["test_accuracy"]) <= 1 for row in rows)


def test_the_log_agrees_with_the_certificate(make_training, tiny_recipe):
    training = make_training(tiny_recipe(epochs=2))
    training.fit(tensorboard=False)
    certificate = fastlip.certify(training.model.eval(), training.test_batches, eps=[EPS])
    row = training.progress.history[-1]
    assert row["test_accuracy"] == certificate.accuracy
    # The certificate also takes off rounding: one of the 16 images may lie in between.
    assert 0 <= row["test_cra"] - certificate.cra[EPS] <= 1 / 16


def test_two_and_two_epochs_are_four(straight, make_training, tiny_recipe):
    make_training(tiny_recipe()).fit(stop_after=2, tensorboard=False)
    state = load_state(straight.parent / "run")
    assert state["progress"]["epoch"] == 2
    make_training(tiny_recipe(), state=state).fit(tensorboard=False)
    assert_same_run(straight, straight.parent / "run")


@pytest.mark.parametrize("step", [1, 5, 12])
def test_an_interrupted_run_continues_exactly(straight, make_training, tiny_recipe, monkeypatch, step):
    training = make_training(tiny_recipe())
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", interrupted_at(step))
        with pytest.raises(Interrupted) as stop:
            training.fit(tensorboard=False)
    assert stop.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is handler
    state = load_state(training.folder.path)
    assert (3 * state["progress"]["epoch"] + state["progress"]["batch"]) == step
    make_training(tiny_recipe(), state=state).fit(tensorboard=False)
    assert_same_run(straight, training.folder.path)


def interrupted_at(step):
    original, count = Training.step, 0

    def one_step(self, x, y):
        nonlocal count
        count += 1
        if count == step:
            signal.raise_signal(signal.SIGINT)
        return original(self, x, y)

    return one_step


def test_a_fraction_of_an_epoch_is_trained(make_training, tiny_recipe):
    """1.7 epochs of three steps are five steps, over which the learning rate goes up and down."""
    training = make_training(tiny_recipe(epochs=1.7))
    assert (training.steps, training.epochs, training.images) == (5, 2, 48 + 32)
    training.fit(tensorboard=False)
    assert training.finished
    assert (training.scheduler.last_epoch, training.scheduler.total_steps) == (5, 5)
    assert [row["epoch"] for row in read_log(training.folder.path)] == ["1", "2"]


@pytest.mark.parametrize("schedule", ["onecycle", "triangular"])
def test_the_shortest_run_is_a_step(make_training, tiny_recipe, schedule):
    training = make_training(tiny_recipe(epochs=0.1, schedule=schedule))
    assert training.steps == 1
    training.fit(tensorboard=False)
    assert training.finished
    assert training.progress.history[0]["epoch"] == 1


def test_the_parts_of_a_step_share_effective_weights(make_training, tiny_recipe, monkeypatch):
    """They are computed once for three parts, and the gradients are those of the whole."""
    whole, parts = (make_training(tiny_recipe(method="cayley", accumulate=n)) for n in (1, 3))
    x, y = next(whole.train_batches.epoch(0, 0, 1))
    whole.step(x, y)
    computed, compute = [], LipschitzLayer._compute

    def counted(self, *arguments):
        computed.append(self)
        return compute(self, *arguments)

    monkeypatch.setattr(LipschitzLayer, "_compute", counted)
    parts.step(x, y)
    assert len(computed) == len(set(computed)) == sum(isinstance(m, LipschitzLayer) for m in parts.model.modules())
    pairs = zip(whole.model.named_parameters(), parts.model.parameters(), strict=True)
    for (name, one), other in pairs:
        assert (one.grad - other.grad).abs().max() <= 1e-5 * max(1e-3, one.grad.abs().max()), name
    assert all(layer._supplied is None for layer in computed)


@pytest.fixture
def interrupts():
    """Python's own handler: a process in the background may ignore the signal."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


def test_a_second_interrupt_acts_at_once(make_training, tiny_recipe, monkeypatch, interrupts):
    training = make_training(tiny_recipe())
    training.fit(stop_after=1, tensorboard=False)
    before = training.folder.checkpoint.read_bytes()

    def step(self, x, y):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", step)
        with pytest.raises(KeyboardInterrupt):
            training.fit(tensorboard=False)
    assert training.folder.checkpoint.read_bytes() == before


def test_an_interrupt_between_epochs_is_not_lost(make_training, tiny_recipe, monkeypatch):
    training = make_training(tiny_recipe(epochs=1))
    evaluate = Training._evaluate

    def interrupted(self):
        signal.raise_signal(signal.SIGINT)
        return evaluate(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_evaluate", interrupted)
        with pytest.raises(Interrupted):
            training.fit(tensorboard=False)
    assert load_state(training.folder.path)["progress"]["epoch"] == 1


class Poison(nn.Module):
    """Passes x on; from the second epoch on its output holds one NaN."""

    calls = 0

    def forward(self, x):
        self.calls += self.training
        if self.calls > 3:
            x = x.clone()
            x[0, 0] = float("nan")
        return x


def poisoned(model):
    return nn.Sequential(model, Poison(), nn.Identity())


def test_nan_stops_at_once_and_names_the_layer(make_training, tiny_recipe, tiny_data):
    training = make_training(tiny_recipe(), model=poisoned(model_of(tiny_recipe(), tiny_data)))
    with pytest.raises(NotFiniteError, match=r"epoch 2, step 1: loss is nan: layer '1' \(Poison\): its output"):
        training.fit(tensorboard=False)
    state = load_state(training.folder.path)
    assert state["progress"]["epoch"] == 1
    assert all(value.isfinite().all() for value in state["model"].values())


def test_infinite_parameters_are_never_saved(make_training, tiny_recipe):
    training = make_training(tiny_recipe())
    training.save()
    before = training.folder.checkpoint.read_bytes()
    name, parameter = list(training.model.named_parameters())[-1]
    with torch.no_grad():
        parameter.view(-1)[0] = float("inf")
    layer, _, own_name = name.rpartition(".")
    with pytest.raises(NotFiniteError, match=f"layer '{layer}' .*its parameter '{own_name}' is not finite"):
        training.save()
    assert training.folder.checkpoint.read_bytes() == before


def test_the_first_layer_that_is_not_finite_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2))
    x = torch.ones(1, 2)
    assert "every layer's output is finite" in explain_not_finite(model, x)
    assert explain_not_finite(model, x * float("inf")) == "the input is not finite"
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
        model[1][0].bias[1] = float("inf")
    assert explain_not_finite(model, x) == "layer '1.0' (Linear): its parameter 'bias' is not finite"
    with pytest.raises(NotFiniteError, match=r"layer '1\.0' \(Linear\)"):
        require_finite_parameters(model)
    assert not model[2]._forward_hooks


def test_a_checkpoint_of_another_network_or_data_set_is_refused(straight, make_training, tiny_recipe):
    state = load_state(straight)
    with pytest.raises(CheckpointError, match="its weights do not fit"):
        make_training(tiny_recipe(width=4), "other", state)
    state["data"]["training_images"] = 47
    with pytest.raises(CheckpointError, match="training_images is 48, the run was trained with 47"):
        make_training(tiny_recipe(), "other", state)


def test_the_seed_decides_the_run(straight, make_training, tiny_recipe):
    make_training(tiny_recipe(), "again").fit(tensorboard=False)
    assert_same_run(straight, straight.parent / "again")
    other = make_training(tiny_recipe(seed=1), "other")
    other.fit(tensorboard=False)
    weights = load_state(straight)["model"].items()
    assert any(not torch.equal(value, load_state(other.folder.path)["model"][name]) for name, value in weights)


@pytest.mark.parametrize("loss", ["temperature-ce", "hkr", "emma", "logit-annealing"])
def test_every_loss_trains(make_training, tiny_recipe, loss):
    training = make_training(tiny_recipe(loss=loss, epochs=1))
    training.fit(tensorboard=False)
    assert training.progress.history[0]["train_loss"] != 0


def test_tensorboard_gets_the_epochs(make_training, tiny_recipe):
    pytest.importorskip("tensorboard")
    training = make_training(tiny_recipe(epochs=1))
    training.fit()
    assert list(training.folder.path.glob("events.out.tfevents.*"))


def test_a_failed_decomposition_names_the_layer_whose_parameters_are_nan():
    model = nn.Sequential(nn.Flatten(), lip.BjorckLinear(4, 4))
    with torch.no_grad():
        model[1].raw_weight[0, 0] = float("nan")
    x = torch.ones(1, 4)
    assert explain_not_finite(model, x) == "layer '1' (BjorckLinear): its parameter 'raw_weight' is not finite"
