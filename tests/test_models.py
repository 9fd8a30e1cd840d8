"""The comparison paper's ConvNet for every method; fuse and unfuse."""

import inspect
import math
import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip import official
from fastlip.models import METHODS, SIZES, SLL_SIZES, lip_conv_net, literals, sll_net
from fastlip.models.registry import REGISTRY, owners_of

# Of the paper's table, in millions; the others differ by Cayley's alpha.
PUBLISHED = {"XS": 1.572, "S": 6.283, "M": 25.12, "L": 100.46}
NOT_IN_THE_PAPER = ("aoc", "bro")
PUBLISHED_XS = {"bcop": 1.137, "sll": 1.575}


def count(model):
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


@pytest.mark.parametrize("method", [method for method in METHODS if method not in NOT_IN_THE_PAPER])
def test_parameter_counts_are_the_papers(method):
    with torch.device("meta"):
        model = lip_conv_net(method)
    assert round(count(model), 3) == PUBLISHED_XS.get(method, PUBLISHED["XS"])


def test_types_list_what_is_allowed():
    assert get_args(literals.MethodName) == METHODS == tuple(sorted(REGISTRY))
    assert get_args(literals.Size) == tuple(SIZES)
    assert get_args(literals.SLLSizeName) == tuple(SLL_SIZES)
    assert get_args(literals.OfficialMethodName) == tuple(official._METHODS) == official.METHODS


def test_every_module_with_a_method_is_found():
    sources = {path.stem: path.read_text() for path in Path(lip.__file__).parent.glob("*.py")}
    assert tuple(sorted(name for name, text in sources.items() if re.search(r"^METHOD = ", text, re.M))) == METHODS
    assert owners_of("lip_conv_net") == ()
    assert owners_of("sll_net") == ("sll",)


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
        ({"method": "eco"}, "method='eco': allowed are 'aoc', 'aol'"),
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


# Parameters in millions, from the SLL paper.
@pytest.mark.parametrize(("size", "published"), [("S", 41), ("M", 78), ("L", 118), ("XL", 236)])
def test_the_sll_network_has_the_papers_sizes(size, published):
    with torch.device("meta"):
        assert int(count(sll_net(size))) == published


def test_the_sll_network_is_certified_by_the_rows_of_its_head():
    sizes = {"width": 6, "convolutions": 2, "dense_layers": 2, "inner_features": 12}
    model = sll_net("XL", num_classes=5, image_size=9, in_channels=2, **sizes)
    assert [type(layer).__name__ for layer in model.convolutions] == ["SLLConv2d"] * 2
    assert model.convolutions[0].kernel.shape == (5, 6, 3, 3)
    assert model.dense[0].kernel.shape == (12, 24)
    images, labels = torch.rand(6, 2, 9, 9), torch.arange(6) % 5
    loss = fastlip.losses.OffsetCrossEntropy(3 / 2**0.5, 0.25)(model(images), labels)
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    model.eval()
    body = math.prod(row.bound for row in fastlip.audit(model, model.input_shape).layers[:-1])
    assert body <= 1 + 1e-6
    with torch.no_grad():
        logits = model(images).double()
        labels = logits.argmax(1)
        rows = model.head.weight.double()
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(5, dtype=torch.float64), rtol=1e-6, atol=0)
    gaps = (logits.gather(1, labels[:, None]) - logits).scatter(1, labels[:, None], math.inf)
    exact = (gaps / (rows[labels][:, None] - rows).norm(dim=2)).amin(1) / body
    found = fastlip.certify(model, [(images, labels)], dtype=torch.float64)
    torch.testing.assert_close(found.radii, exact, rtol=1e-4, atol=1e-5)
    assert model.margin_slope >= (rows[:, None] - rows).norm(dim=2).amax()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"size": "XS"}, "size='XS': allowed are 'S', 'M', 'L', 'XL'"),
        ({"in_channels": 50}, "in_channels=50: expected at most the width 45"),
        ({"image_size": 3}, "image_size=3: expected at least 4"),
        ({"num_classes": 1}, "num_classes=1: expected at least 2"),
        ({"backend": "cuda"}, "backend='cuda'"),
    ],
)
def test_wrong_arguments_of_the_sll_network_are_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        sll_net(**arguments)


def test_fuse_and_unfuse_change_the_backend_and_nothing_else():
    class Mine(lip.AOLConv2d):
        pass

    model = nn.Sequential(Mine(3, 4, 3), lip.MaxMin(), nn.Flatten(), lip.AOLLinear(4 * 25, 5))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(200, 3, 5, 5)  # enough for kernels
    assert fastlip.unfuse(model) is model
    assert {module.backend for module in model.modules() if hasattr(module, "backend")} == {"reference"}
    reference = model(x)
    assert {module.backend for module in fastlip.fuse(model).modules() if hasattr(module, "backend")} == {"auto"}
    torch.testing.assert_close(model(x), reference)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with pytest.raises(TypeError, match="model: got int"):
        fastlip.fuse(3)


def test_the_types_of_layer_options_list_what_only_some_methods_have():
    convolutions = [method.convolution for method in REGISTRY.values()]
    arguments = [set(inspect.signature(convolution).parameters) for convolution in convolutions]
    own = set().union(*arguments) - set(inspect.signature(torch.nn.Conv2d).parameters) - {"backend"}
    assert set(fastlip.models.LayerOptions.__annotations__) == own
    assert set(fastlip.models.MethodOptions.__annotations__) == own - {"quasi_residual"}


SMALL = {"image_size": 8, "in_channels": 2, "num_classes": 3}
OF_ONE_SHAPE = {
    "lip_conv_net": {"method": "aol", "width": 4, "layers_per_block": 1},
    "lip_conv_net of many channels": {"method": "aol", "width": 2, "layers_per_block": 1, "in_channels": 3},
    "sll_net": {"width": 4, "convolutions": 1, "dense_layers": 1, "inner_features": 4},
    "bro_net": {"width": 4, "depth": 1, "features": 6, "dense_layers": 1},
    "lip_res_net": {"width": 4, "depth": 1, "features": 6, "dense_layers": 1},
    "lip_next": {"width": 4, "depth": 1},
}


@pytest.mark.parametrize("name", OF_ONE_SHAPE)
@pytest.mark.parametrize("change", [(1, 0, 0), (-1, 0, 0), (0, 8, 8), (0, -4, -4), (0, 0, 1)])
def test_images_of_another_shape_are_refused(name, change):
    """One row of pixels more would be left out by a pool, and a channel more would stand for a zero."""
    options = SMALL | OF_ONE_SHAPE[name]
    model = fastlip.models.create_model(name.partition(" ")[0], **options).eval()
    shape = options["in_channels"], options["image_size"], options["image_size"]
    assert model(torch.rand(2, *shape)).shape == (2, 3)
    other = [size + more for size, more in zip(shape, change, strict=True)]
    with pytest.raises(ValueError, match=r"x: got shape \(2, "):
        model(torch.rand(2, *other))
