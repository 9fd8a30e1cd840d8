"""Training with a radius that grows: its course, exact continuation, slopes of heads, and parts of a step."""

import pytest
import torch

from fastlip.losses import class_slopes
from fastlip.training.checkpoint import CheckpointError
from fastlip.training.loop import Training
from fastlip.training.losses import loss_of, ramp_of
from fastlip.training.run_folder import RunFolder

SLL = {"model": "sll_net", "method": "sll", "size": "S", "width": 4}


@pytest.fixture
def emma_recipe(tiny_recipe):
    def make(**options):
        return tiny_recipe(loss="emma", radius=0.5, radius_start=0.125, ramp=0.5, **options)

    return make


def radii_of(training):
    """The radius of each step of a run."""
    radii, step = [], Training.step

    def noted(self, x, y):
        radii.append(float(self.gradients.loss.radius))
        return step(self, x, y)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "step", noted)
        training.fit(tensorboard=False)
    return radii


def test_the_radius_grows_over_the_steps_of_the_run(make_training, emma_recipe):
    radii = radii_of(make_training(emma_recipe()))
    assert radii == [0.125 + 0.375 * min(1, step / 6) for step in range(12)]


@pytest.mark.parametrize("options", [{}, SLL], ids=["joint", "unit rows"])
def test_two_and_two_epochs_are_four(make_training, emma_recipe, options):
    straight = make_training(emma_recipe(**options), "straight")
    expected = radii_of(straight)
    first = make_training(emma_recipe(**options))
    first.fit(stop_after=1, tensorboard=False)
    state = first.folder.load_state()
    assert state["ramp"] == {"step": 3}
    second = make_training(emma_recipe(**options), state=state)
    assert radii_of(second) == expected[3:]
    one, other = (RunFolder(training.folder.path).load_state() for training in (straight, second))
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name
    assert torch.equal(one["loss"]["radius"], other["loss"]["radius"])
    assert one["ramp"] == other["ramp"] == {"step": 12}


@pytest.mark.parametrize(("entry", "value"), [("ramp", {}), ("ramp", {"step": -1}), ("loss", {})])
def test_a_checkpoint_without_its_ramp_is_refused(make_training, emma_recipe, entry, value):
    training = make_training(emma_recipe())
    training.fit(stop_after=1, tensorboard=False)
    state = training.folder.load_state() | {entry: value}
    with pytest.raises(CheckpointError, match="the run in it cannot be continued"):
        make_training(emma_recipe(), "other", state)


def test_a_checkpoint_from_before_there_were_ramps_continues(make_training, tiny_recipe):
    training = make_training(tiny_recipe())
    training.fit(stop_after=1, tensorboard=False)
    state = training.folder.load_state()
    assert state["loss"] == state["ramp"] == {}
    del state["loss"], state["ramp"]
    make_training(tiny_recipe(), "other", state).fit(stop_after=1, tensorboard=False)


def test_training_passes_the_slopes_of_the_head(make_training, emma_recipe):
    training = make_training(emma_recipe(**SLL))
    x, y = next(training.train_batches.epoch(0, 0, 1))
    scores = training.model.train()(x)
    loss, slopes = training.gradients.loss, class_slopes(training.model)
    assert slopes.shape == (10, 10)
    expected = loss_with(training, 0.125)(scores, y, slopes).detach() / len(y)
    assert training.step(x, y)[0].item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.takes_slopes


def loss_with(training, radius):
    loss = loss_of(training.recipe, "sum")
    loss.radius.fill_(radius)
    return loss


def test_parts_of_a_step_have_the_gradients_of_the_whole(make_training, emma_recipe):
    whole, parts = (make_training(emma_recipe(accumulate=n, **SLL)) for n in (1, 3))
    x, y = next(whole.train_batches.epoch(0, 0, 1))
    whole.step(x, y), parts.step(x, y)
    for (name, one), other in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        assert (one.grad - other.grad).abs().max() <= 1e-5 * max(1e-3, one.grad.abs().max()), name


def test_the_other_losses_have_no_ramp(tiny_recipe):
    for name in ("offset-ce", "hkr", "logit-annealing"):
        recipe = tiny_recipe(loss=name)
        assert ramp_of(recipe, loss_of(recipe), 12) is None
