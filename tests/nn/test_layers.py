"""Every constrained layer keeps more than its bound: state dicts, evaluation cache, gradients, dtypes, programs."""

import copy
import pickle

import pytest
import torch
from layer_catalog import KERNELS, name_of, singular_values
from layer_items import (
    EVERY,
    evaluate,
    every_automatic_layer,
    every_bounded_layer,
    every_convolution,
    every_layer,
    make,
    step,
)
from torch import nn

from fastlip import nn as lip
from fastlip.nn import NormalizedLinear


@every_layer
def test_a_state_dict_never_changes_its_keys_and_reloads_exactly(item):
    layer, x = make(item)
    before = {key: tuple(value.shape) for key, value in layer.state_dict().items()}
    expected = evaluate(layer, x)
    step(layer, x, lr=0.0)
    assert {key: tuple(value.shape) for key, value in layer.state_dict().items()} == before
    other, _ = make(item)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(evaluate(other, x), expected, rtol=0, atol=0)


CHANGES = (
    (lip.AOLConv2d, "epsilon", 1.0),
    (lip.SLLConv2d, "epsilon", 1.0),
    (lip.CayleyConv2d, "raw_weight", nn.Parameter(torch.linspace(-1, 2, 324).view(6, 6, 3, 3))),
)


@every_layer
def test_loading_into_an_evaluated_model_changes_its_output_at_once(item):
    (layer, x), (other, _) = make(item), make(item)
    before, expected = evaluate(layer, x), evaluate(other, x)
    assert not torch.equal(before, expected)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(evaluate(layer, x), expected)


@every_layer
def test_an_optimiser_step_refreshes_the_cache(item):
    layer, x = make(item)
    before = evaluate(layer, x)
    step(layer, x)
    vars(layer)["training"] = False  # train(), eval() and any assignment would clear the cache by themselves
    with torch.no_grad():
        after = layer(x)
    assert not torch.equal(after, before)
    assert torch.equal(after, evaluate(copy.deepcopy(layer), x))


@every_layer
def test_an_update_between_two_evaluations_is_seen(item):
    layer, x = make(item)
    before = evaluate(layer, x)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter))
        after = layer(x)
    assert not torch.equal(after, before)
    assert torch.equal(after, evaluate(copy.deepcopy(layer), x))


@pytest.mark.parametrize(("layer_class", "option", "value"), CHANGES)
def test_an_option_changed_on_an_evaluated_layer_is_seen(layer_class, option, value):
    layer = layer_class(6, 6, 3)
    x = torch.randn(2, 6, 5, 5)
    before = evaluate(layer, x)
    setattr(layer, option, value)
    with torch.no_grad():
        after = layer(x)
    assert not torch.equal(after, before)
    assert torch.equal(after, evaluate(copy.deepcopy(layer), x))


@every_layer
def test_another_dtype_refreshes_the_cache(item):
    layer, x = make(item)
    single = evaluate(layer, x)
    layer.double()
    double = evaluate(layer, x.double())
    assert double.dtype == torch.float64
    assert torch.equal(double, evaluate(copy.deepcopy(layer), x.double()))
    torch.testing.assert_close(double.float(), single, rtol=1e-4, atol=1e-4)


@every_convolution
def test_another_resolution_refreshes_the_cache(item):
    layer, x = make(item)
    small = x[..., :3, :4].contiguous()
    large_before, small_after = evaluate(layer, x), evaluate(layer, small)
    assert torch.equal(small_after, evaluate(copy.deepcopy(layer), small))
    assert torch.equal(evaluate(layer, x), large_before)


@every_automatic_layer
@pytest.mark.parametrize("training", [False, True])
def test_shapes_are_known_without_data(item, training):
    layer, x = make(item)
    expected = layer.train(training)(x)
    x = x.to("meta").requires_grad_()
    y = layer.to("meta")(x)
    y.sum().backward()
    assert (y.device.type, y.shape, x.grad.shape) == ("meta", expected.shape, x.shape)


@every_layer
def test_two_evaluations_are_bit_identical_and_copies_too(item):
    layer, x = make(item)
    first = evaluate(layer, x)
    for other in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(evaluate(other, x), first)


@every_layer
def test_every_parameter_gets_a_finite_gradient(item):
    layer, x = make(item)
    for gradient in step(layer, x):
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.any()


@every_layer
def test_zero_parameters_give_a_finite_layer_with_finite_gradients(item):
    layer, x = make(item)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    assert evaluate(layer, x).isfinite().all()
    for gradient in step(layer, x, lr=0.0):
        assert gradient is None or gradient.isfinite().all()
    if item[0] is not NormalizedLinear:
        assert singular_values(layer, x.shape[1:], x.dtype)[0] <= 1 + 1e-5


@every_bounded_layer
def test_single_precision_keeps_the_bound(item):
    for moved in (False, True):
        layer, x = make(item, moved=moved)
        assert singular_values(layer.eval(), x.shape[1:], torch.float32)[0] <= 1 + 1e-5


@every_bounded_layer
def test_training_keeps_the_bound(item):
    layer, x = make(item, dtype=torch.float64)
    for _ in range(3):
        step(layer, x, lr=0.05)
        for mode in (True, False):
            largest, smallest = singular_values(layer.train(mode), x.shape[1:])
            assert largest <= 1 + 1e-6
            if layer._application.orthogonal and getattr(layer, "padding_mode", "circular") == "circular":
                assert smallest >= 1 - 1e-6


@every_layer
def test_the_reported_bound_holds_and_is_attained_where_the_layer_is_affine(item):
    layer, x = make(item, dtype=torch.float64)
    bound = layer.lipschitz_bound(tuple(x.shape[1:]))
    largest, _ = singular_values(layer.eval(), x.shape[1:])
    assert bound >= largest * (1 - 1e-12)
    if item[0] is NormalizedLinear:
        assert bound == pytest.approx(largest, rel=1e-9)
        return
    assert bound <= 1 + 1e-6
    middle = evaluate(layer, torch.zeros_like(x))
    affine = torch.allclose(evaluate(layer, x) + evaluate(layer, -x), 2 * middle, rtol=0, atol=1e-9)
    if affine and getattr(layer, "padding_mode", "circular") == "circular":
        assert bound == pytest.approx(largest, rel=1e-6)


@every_bounded_layer
def test_the_reported_bound_of_single_precision_layers_is_almost_1(item):
    layer, x = make(item)
    assert layer.lipschitz_bound(tuple(x.shape[1:])) <= 1 + 1e-6


@every_automatic_layer
def test_autocast_leaves_the_parametrization_unchanged(item):
    layer, x = make(item)
    seen, effective = [], layer._effective

    def record(*context):
        seen.append(effective(*context))
        return seen[-1]

    layer._effective = record
    plain = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = layer(x)
    assert len(seen) == 2
    for ours, theirs in zip(*seen, strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(mixed.float(), plain)
    torch.testing.assert_close(mixed.float(), plain, rtol=0.1, atol=0.1)


@every_automatic_layer
def test_parameters_in_bfloat16_run(item):
    layer, x = make(item)
    expected = evaluate(layer, x)
    y = evaluate(layer.to(torch.bfloat16), x.to(torch.bfloat16))
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.2, atol=0.2)


def outputs_and_gradients(layer, run, x):
    """Returns the output of a call, in eval mode without a graph, for the cache; in training also the gradients."""
    if not layer.training:
        with torch.no_grad():
            return [run(x)]
    x = x.clone().requires_grad_()
    y = run(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]


@pytest.mark.parametrize("item", [item for item in EVERY if item[1] in ({}, *KERNELS)], ids=name_of)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_compiles_without_a_graph_break(item, mode):
    layer, x = make(item)
    layer.train(mode == "train")
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = outputs_and_gradients(layer, layer, x)
    # Other kernels may run in a compiled layer. Where terms cancel, rounding is that of the largest ones.
    rounding = 16 * torch.finfo(x.dtype).eps * max(1, *(float(right.detach().abs().max()) for right in expected))
    for value, right in zip(outputs_and_gradients(layer, compiled, x), expected, strict=True):
        torch.testing.assert_close(value, right, rtol=1e-4, atol=rounding)
