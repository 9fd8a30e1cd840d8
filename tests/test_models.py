"""The comparison paper's ConvNet for every method; fuse and unfuse."""

import pytest
import torch
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.models import METHODS, SIZES, lip_conv_net

# Of the paper's table, in millions; the others differ by Cayley's alpha.
PUBLISHED = {"XS": 1.572, "S": 6.283, "M": 25.12, "L": 100.46}
PUBLISHED_XS = {"bcop": 1.137, "sll": 1.575}


def count(model):
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


@pytest.mark.parametrize("method", METHODS)
def test_parameter_counts_are_the_papers(method):
    with torch.device("meta"):
        model = lip_conv_net(method)
    assert round(count(model), 3) == PUBLISHED_XS.get(method, PUBLISHED["XS"])


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size):
    with torch.device("meta"):
        model = lip_conv_net("cpl", size)
    assert count(model) == pytest.approx(PUBLISHED[size], rel=5e-4)


@pytest.mark.parametrize(
    ("image_size", "in_channels", "blocks"), [(8, 1, 3), (10, 2, 4), (28, 1, 5), (32, 3, 5), (64, 3, 5), (2, 9, 1)]
)
def test_any_image_size_and_number_of_channels(image_size, in_channels, blocks):
    options = {"image_size": image_size, "in_channels": in_channels, "width": 4, "layers_per_block": 1}
    model = lip_conv_net("aol", num_classes=7, **options)
    assert sum(name.startswith("block") for name, _ in model.named_children()) == blocks
    assert model(torch.randn(2, in_channels, image_size, image_size)).shape == (2, 7)
    assert fastlip.audit(model.eval(), (in_channels, image_size, image_size)).bound <= 1 + 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_backward_and_is_audited(method):
    model = lip_conv_net(method, width=4, image_size=8, in_channels=1, layers_per_block=2)
    x = torch.randn(3, 1, 8, 8)
    model(x).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    assert fastlip.audit(model.eval(), (1, 8, 8)).bound <= 1 + 1e-5


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"method": "eco"}, "method='eco': allowed are 'aol'"),
        ({"size": "XXL"}, "size='XXL': allowed are 'XS'"),
        ({"width": 5}, "width=5: expected an even number"),
        ({"image_size": 1}, "image_size=1: expected at least 2"),
        ({"num_classes": 1000, "width": 4}, "num_classes=1000: expected at most"),
        ({"backend": "cuda"}, "backend='cuda': allowed are"),
        ({"layers_per_block": 0}, "layers_per_block=0"),
    ],
)
def test_wrong_arguments_are_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        lip_conv_net(**{"method": "aol"} | arguments)


def test_fuse_and_unfuse_change_the_backend_and_nothing_else():
    class Mine(lip.AOLConv2d):
        pass

    model = nn.Sequential(Mine(3, 4, 3), lip.MaxMin(), nn.Flatten(), lip.AOLLinear(4 * 25, 5))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(2, 3, 5, 5)
    assert fastlip.unfuse(model) is model
    assert {module.backend for module in model.modules() if hasattr(module, "backend")} == {"reference"}
    reference = model(x)
    assert {module.backend for module in fastlip.fuse(model).modules() if hasattr(module, "backend")} == {"auto"}
    torch.testing.assert_close(model(x), reference)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with pytest.raises(TypeError, match="model: got int"):
        fastlip.fuse(3)
