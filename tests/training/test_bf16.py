"""``precision="bf16"``: activations of training in bfloat16; weights, evaluation and certificates in float32."""

import pytest
import torch
from checkpoints import assert_equal, load_state, without_times

import fastlip
from fastlip.nn.base import LipschitzLayer


def notes_of(model):
    """The dtypes of the layers' outputs, by whether they train; and the hooks that note them."""
    seen, hooks = {}, []

    def note(layer, _, output):
        key = "trained" if layer.training else "evaluated"
        seen.setdefault(key, set()).add(output.dtype)

    for layer in model.modules():
        if isinstance(layer, LipschitzLayer):
            hooks.append(layer.register_forward_hook(note))
    return seen, hooks


@pytest.mark.parametrize("method", ["aol", "cayley"])
def test_only_activations_of_training_are_in_bfloat16(make_training, tiny_recipe, method):
    training = make_training(tiny_recipe(precision="bf16", method=method, epochs=1))
    seen, hooks = notes_of(training.model)
    training.fit(tensorboard=False)
    for hook in hooks:  # the audit refuses them
        hook.remove()
    certificate = fastlip.certify(training.result.eval(), training.test_batches)
    assert seen == {"trained": {torch.bfloat16}, "evaluated": {torch.float32}}
    state = load_state(training.folder.path)
    kept = [value for values in state["optimizer"]["state"].values() for value in values.values()]
    tensors = [*state["model"].values(), *kept]
    assert {value.dtype for value in tensors if isinstance(value, torch.Tensor)} == {torch.float32}
    loaded = fastlip.hub.load(training.folder.path)
    again = fastlip.certify(loaded, training.test_batches)
    assert torch.equal(certificate.radii, again.radii)
    assert training.progress.history[-1]["test_accuracy"] == certificate.accuracy


def test_it_trains_as_float32_does_up_to_rounding(make_training, tiny_recipe):
    losses = {}
    for precision in ("fp32", "bf16"):
        training = make_training(tiny_recipe(precision=precision, epochs=2), precision)
        training.fit(tensorboard=False)
        losses[precision] = [row["train_loss"] for row in training.progress.history]
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=2**-5)


@pytest.mark.parametrize("options", [{}, {"method": "cpl", "ema": 0.8, "accumulate": 2, "shift": 1}], ids=str)
def test_a_resumed_run_is_the_same_bit_for_bit(make_training, tiny_recipe, tmp_path, options):
    recipe = tiny_recipe(precision="bf16", epochs=3, **options)
    straight = make_training(recipe, "straight")
    straight.fit(tensorboard=False)
    make_training(recipe).fit(stop_after=1, tensorboard=False)
    parts = make_training(recipe, state=load_state(tmp_path / "run"))
    parts.fit(tensorboard=False)
    assert_equal(*(without_times(load_state(training.folder.path)) for training in (straight, parts)))


def test_a_wrong_precision_is_named(tiny_recipe):
    with pytest.raises(ValueError, match=r"^precision='fp16': allowed are 'fp32', 'bf16'"):
        tiny_recipe(precision="fp16")
