"""Optimisers, schedules, limits and averages that a recipe names: against their formulas, and resumed bit for bit."""

import math

import pytest
import torch
from checkpoints import assert_equal, load_state, without_times
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.models import METHODS, lip_conv_net
from fastlip.training.averaging import averaged
from fastlip.training.checkpoint import CheckpointError
from fastlip.training.loop import Training
from fastlip.training.optimization import cosine, is_weight, limit_gradient, optimizer_of, scheduler_of

EVERYTHING = {
    "optimizer": "nadam",
    "schedule": "cosine",
    "warmup": 0.25,
    "clip_norm": 0.5,
    "weight_decay": 0.01,
    "decayed": "weights",
    "ema": 0.9,
}


@pytest.mark.parametrize("options", [EVERYTHING, {"optimizer": "adamw"}, {"ema": 0.5, "method": "cpl"}], ids=str)
def test_a_resumed_run_is_the_same_bit_for_bit(make_training, tiny_recipe, options):
    recipe = tiny_recipe(**{"method": "cayley", **options})
    straight = make_training(recipe, "straight")
    straight.fit(tensorboard=False)
    make_training(recipe).fit(stop_after=2, tensorboard=False)
    parts = make_training(recipe, state=load_state(straight.folder.path.parent / "run"))
    parts.fit(tensorboard=False)
    assert_equal(*(without_times(load_state(training.folder.path)) for training in (straight, parts)))


def test_what_is_certified_and_loaded_is_the_average(make_training, tiny_recipe, tiny_data):
    training = make_training(tiny_recipe(ema=0.8))
    network, followed = training.model, None
    moved = []
    training.optimizer.register_step_post_hook(
        lambda *_: moved.append([parameter.detach().clone() for parameter in network.parameters()])
    )
    training.fit(tensorboard=False)
    for count, values in enumerate(moved):
        d = min(0.8, (1 + count) / (10 + count)) if count else 0.0
        pairs = zip(followed or values, values, strict=True)
        followed = [d * average + (1 - d) * value for average, value in pairs]
    state = load_state(training.folder.path)
    loaded = fastlip.hub.load(training.folder.path)
    for name, expected, value in zip(state["trained"], followed, loaded.parameters(), strict=True):
        torch.testing.assert_close(state["model"][name], expected)
        assert torch.equal(state["model"][name], value)
        assert torch.equal(state["trained"][name], network.get_parameter(name))
    assert not torch.equal(*(state[entry][name] for entry in ("model", "trained")))
    certificate = fastlip.certify(loaded, training.test_batches)
    assert training.progress.history[-1]["test_accuracy"] == certificate.accuracy
    assert state["averaged"] == len(moved) == 12


def test_the_average_has_buffers_of_its_own_and_no_gradients():
    model = nn.Sequential(lip.CayleyLinear(4, 4), lip.BatchCentering(4), nn.BatchNorm1d(4))
    average = averaged(model, 0.5)
    for count in range(3):
        before = average.module[1].running_mean.clone()
        model(torch.randn(8, 4) + 3)
        average.update_parameters(model)
        d = min(0.5, (1 + count) / (10 + count)) if count else 0.0
        torch.testing.assert_close(
            average.module[1].running_mean, d * before + (1 - d) * model[1].running_mean, rtol=1e-5, atol=1e-6
        )
    assert int(average.module[2].num_batches_tracked) == 3
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert averaged(model, 0.0) is None


def continued(training):
    """The run in its folder, read again."""
    state = load_state(training.folder.path)
    return Training(training.model, training.recipe, training.data, training.folder.path, state)


@pytest.mark.parametrize("change", [{"trained": {}}, {"averaged": -1}, {"averaged": "3"}, {"trained": {"a": 3}}])
def test_a_checkpoint_without_its_trained_weights_is_refused(make_training, tiny_recipe, change):
    training = make_training(tiny_recipe(ema=0.8))
    training.save()
    state = {**load_state(training.folder.path), **change}
    training.folder.save_state(state)
    with pytest.raises(CheckpointError, match=r"trained|averaged"):
        continued(training)


def test_the_cosine_rises_and_falls_to_zero(make_training, tiny_recipe):
    recipe = tiny_recipe(schedule="cosine", warmup=0.25, lr=0.4)
    model = nn.Linear(2, 2)
    optimizer = optimizer_of(recipe, model)
    scheduler = scheduler_of(recipe, optimizer, 3)
    rates = []
    for _ in range(12):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[:4] == pytest.approx([0.4 / 3, 0.8 / 3, 0.4, 0.4])
    assert rates[3:] == pytest.approx([0.2 * (1 + math.cos(math.pi * i / 9)) for i in range(9)])
    assert 0 < rates[-1] < 0.02
    assert scheduler.get_last_lr()[0] == pytest.approx(0, abs=1e-12)
    assert cosine(0, 1, 0) == 1
    training = make_training(tiny_recipe(schedule="cosine", epochs=0.1))
    training.fit(tensorboard=False)
    assert training.finished


def test_the_gradient_is_limited_and_otherwise_left_alone(tiny_recipe):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model(torch.randn(5, 3)).square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    for clip in (0.0, 2 * norm.item()):
        limit_gradient(tiny_recipe(clip_norm=clip), model)
        assert all(map(torch.equal, gradients, (parameter.grad for parameter in model.parameters())))
    limit_gradient(tiny_recipe(clip_norm=0.5 * norm.item()), model)
    for before, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, 0.5 * before, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_only_weights_decay(tiny_recipe, method):
    model = lip_conv_net(method, width=2, image_size=4, layers_per_block=1, in_channels=1, num_classes=3)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    recipe = tiny_recipe(weight_decay=0.1, lr=1.0, decayed="weights")
    optimizer_of(recipe, model).step()
    kinds = {True: set(), False: set()}
    for name, parameter in model.named_parameters():
        kept = not is_weight(name, parameter)
        expected = before[name] if kept else before[name] - 0.1 * before[name]
        torch.testing.assert_close(parameter, expected)
        kinds[kept].add(name.rpartition(".")[2])
    assert "bias" in kinds[True]
    assert kinds[True] <= {"bias", "alpha", "psi", "log_q", "q"}
    assert kinds[False] <= {"raw_weight", "raw_matrix", "raw_bases", "raw_matrices", "kernel"}


def test_factors_of_rows_and_norms_do_not_decay():
    layer = lip.BCOPConv2d(4, 4, 3, quasi_residual=True)
    assert {name for name, parameter in layer.named_parameters() if is_weight(name, parameter)} == {"raw_matrices"}
    position = lip.PositionBias(4)
    assert not any(is_weight(name, parameter) for name, parameter in position.named_parameters())
    plain = nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
    names = {name for name, parameter in plain.named_parameters() if is_weight(name, parameter)}
    assert names == {"0.weight"}


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("optimizer", "lion", "optimizer='lion': allowed are 'sgd', 'adam', 'adamw', 'nadam'"),
        ("schedule", "step", "schedule='step': allowed are 'onecycle', 'triangular', 'cosine'"),
        ("decayed", "some", "decayed='some': allowed are 'all', 'weights'"),
        ("clip_norm", -1.0, "clip_norm=-1.0: must be at least 0"),
        ("ema", 1.0, "ema=1.0: must be below 1"),
    ],
)
def test_a_wrong_value_is_named(tiny_recipe, field, value, text):
    with pytest.raises(ValueError, match=f"^{text}"):
        tiny_recipe(**{field: value})
