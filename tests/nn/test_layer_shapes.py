"""Shapes that every constrained layer takes, and the arguments and inputs that it refuses."""

import pytest
import torch
from layer_catalog import automatic, name_of, perturb
from layer_items import (
    CHANNELS,
    CONVOLUTIONS,
    DENSE,
    IMAGE,
    every_automatic_convolution,
    every_convolution,
    every_convolution_of_any_shape,
    every_dense_layer,
    every_layer,
    make,
)
from torch import nn

from fastlip import nn as lip
from fastlip.nn import MaxMin


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


@every_convolution_of_any_shape
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
