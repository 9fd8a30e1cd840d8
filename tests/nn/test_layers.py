"""Every constrained layer keeps more than its bound: state dicts, evaluation cache, shapes, dtypes, errors."""

import copy
import pickle

import pytest
import torch
from layer_catalog import KERNELS, automatic, layers, name_of, perturb, singular_values
from torch import nn

from fastlip import nn as lip
from fastlip.nn import MaxMin, NormalizedLinear

CONVOLUTIONS, DENSE = layers("Conv2d"), layers("Linear")
CHANNELS, IMAGE = 4, (4, 6, 5)
EVERY = [*CONVOLUTIONS, *DENSE, (NormalizedLinear, {})]
every_layer = pytest.mark.parametrize("item", EVERY, ids=name_of)
every_bounded_layer = pytest.mark.parametrize("item", [*CONVOLUTIONS, *DENSE], ids=name_of)
every_automatic_layer = pytest.mark.parametrize("item", automatic(EVERY), ids=name_of)
every_convolution = pytest.mark.parametrize("item", CONVOLUTIONS, ids=name_of)
every_automatic_convolution = pytest.mark.parametrize("item", automatic(CONVOLUTIONS), ids=name_of)
every_dense_layer = pytest.mark.parametrize("item", DENSE, ids=name_of)


def make(item, *, moved=True, **more):
    """A layer of four channels or features, away from its initialisation, and an input."""
    cls, options = item
    dtype = more.setdefault("dtype", torch.float32)
    convolution = cls.__name__.endswith("Conv2d")
    layer = cls(CHANNELS, CHANNELS, *([3] if convolution else []), **options, **more)
    x = torch.randn(3, *(IMAGE if convolution else IMAGE[:1]), dtype=dtype)
    return (perturb(layer) if moved else layer), x


def evaluate(layer, x):
    """The output without a graph, where the cache works."""
    layer.eval()
    with torch.no_grad():
        return layer(x)


def step(layer, x, lr=0.1):
    """One optimiser step on a loss that every parameter sees; returns the gradients."""
    layer.train()
    optimizer = torch.optim.SGD(layer.parameters(), lr)
    optimizer.zero_grad()
    (layer(x) * torch.linspace(0.5, 2.0, CHANNELS).view(-1, *[1] * (x.dim() - 2))).square().sum().backward()
    optimizer.step()
    return [parameter.grad for parameter in layer.parameters()]


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
            if layer.orthogonal and getattr(layer, "padding_mode", "circular") == "circular":
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
    seen, effective = [], layer.effective

    def record(*context):
        seen.append(effective(*context))
        return seen[-1]

    layer.effective = record
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
    """Returns the output of a call, in eval mode without a graph, so that the cache works; in training also gradients."""
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


@every_layer
def test_single_samples_and_empty_batches(item):
    layer, x = make(item)
    y = layer(x)
    torch.testing.assert_close(layer(x[:1]), y[:1], rtol=1e-5, atol=1e-6)
    if item in automatic([item]):  # no kernel takes images without a batch
        torch.testing.assert_close(layer(x[0]), y[0], rtol=1e-5, atol=1e-6)
    empty = layer(x[:0])
    assert empty.shape == (0, *y.shape[1:])
    empty.sum().backward()


@every_convolution
def test_channels_last_gives_the_same(item):
    layer, x = make(item)
    expected = layer(x)
    y = layer.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


@every_layer
def test_without_a_bias(item):
    layer, x = make(item, bias=False)
    assert layer.bias is None
    assert "bias" not in layer.state_dict()
    assert not layer(torch.zeros_like(x)).any()


@every_convolution
def test_a_stride_gives_the_shape_of_a_strided_convolution(item):
    cls, options = item
    layer = cls(CHANNELS, 6, 3, stride=2, **options)
    # AOC's windows would overlap where they wrap over a side that the stride does not divide.
    for size in ((6, 4), (5, 3))[: 1 if cls is lip.AOCConv2d else 2]:
        assert layer(torch.zeros(2, CHANNELS, *size)).shape == (2, 6, -(-size[0] // 2), -(-size[1] // 2))


@every_automatic_convolution
def test_groups_do_not_mix(item):
    cls, options = item
    layer = perturb(cls(4, 6, 3, groups=2, **options)).eval()
    x = torch.randn(1, *IMAGE)
    other = x.clone()
    other[:, :2] += 1
    assert torch.equal(layer(x)[:, 3:], layer(other)[:, 3:])
    assert not torch.equal(layer(x)[:, :3], layer(other)[:, :3])


@every_convolution
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"in_channels": 0}, "in_channels=0"),
        ({"out_channels": -1}, "out_channels=-1"),
        ({"kernel_size": 0}, "kernel_size=0"),
        ({"stride": 0}, "stride=0"),
        ({"dilation": 0}, "dilation=0"),
        ({"groups": 3}, "groups=3"),
        ({"padding": "full"}, "padding='full'"),
        ({"padding_mode": "reflect"}, "padding_mode='reflect'"),
        ({"padding_mode": "replicate"}, "padding_mode='replicate'"),
        ({"backend": "gpu"}, "backend='gpu'"),
    ],
)
def test_a_convolution_names_the_argument_it_refuses(item, arguments, text):
    cls, options = item
    with pytest.raises(ValueError, match=text):
        cls(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, **options, **arguments})


@every_dense_layer
@pytest.mark.parametrize("name", ["in_features", "out_features"])
def test_a_dense_layer_names_the_argument_it_refuses(item, name):
    cls, options = item
    with pytest.raises(ValueError, match=f"{name}=0"):
        cls(**{"in_features": 4, "out_features": 4, **options, name: 0})
    with pytest.raises(TypeError, match=f"{name}='4'"):
        cls(**{"in_features": 4, "out_features": 4, **options, name: "4"})


@every_layer
def test_an_input_of_another_width_is_refused(item):
    layer, x = make(item)
    with pytest.raises(ValueError, match="x: got shape"):
        layer(x[:, :-1])


@every_layer
def test_the_representation_names_the_sizes(item):
    layer, _ = make(item)
    assert f"{CHANNELS}, {CHANNELS}" in repr(layer)


# CPL's residual is large and random at first, and shrinks what it rotates.
KEPT_BY_27_LAYERS = {"CPLConv2d": 0.003}


@every_convolution
def test_a_deep_network_trains_from_the_first_step(item):
    """27 layers with MaxMin: neither activations nor gradients vanish at initialisation."""
    cls, options = item
    network = nn.Sequential(*(nn.Sequential(cls(8, 8, 3, **options), MaxMin()) for _ in range(27)))
    x = torch.randn(8, 8, 4, 4, requires_grad=True)
    y = network(x)
    activations = ((y - y.mean(0)).norm() / (x - x.mean(0)).norm()).item()
    (gradient,) = torch.autograd.grad(y.square().sum() / 2, x)
    gradients = (gradient.norm() / y.norm()).item()
    print(f"{name_of(item)}: 27 layers keep {activations:.3f} of the deviation, {gradients:.3f} of the gradient")
    least = KEPT_BY_27_LAYERS.get(cls.__name__, 0.1)
    assert activations > least
    assert gradients > least


def test_every_method_has_both_layers():
    methods = {cls.__name__.removesuffix("Conv2d") for cls, _ in CONVOLUTIONS}
    dense = {cls.__name__.removesuffix("Linear") for cls, _ in DENSE}
    assert methods - dense <= {"AOC", "BCOP"}
    assert set(lip.__all__) >= {cls.__name__ for cls, _ in [*CONVOLUTIONS, *DENSE]}
