"""The audit's bound against the exact norm, by a dense decomposition in float64, for random layers and geometries."""

import math
import random

import pytest
import torch
from layer_catalog import jacobians, layers, perturb
from torch import nn

import fastlip
from fastlip import nn as lip

# torch.nn.Conv2d's own, for even kernels.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")
CONFIGURATIONS = 500
ORDINARY = 40
# Their bound covers every mask of their relu, or every skew kernel of the same norm.
NOT_LINEAR = (lip.SLLConv2d, lip.CPLConv2d, lip.SLLLinear, lip.CPLLinear)


def random_geometry(draw, own):
    groups = draw.choice((1, 1, 1, 2))
    channels = [groups * draw.randint(1, 3) for _ in range(2)]
    kernel = draw.choice(((3, 3), (1, 1), (2, 2), (draw.randint(1, 4), draw.randint(1, 4)), (5, 5)))
    stride = draw.choice((1, 1, 1, 2, (draw.randint(1, 3), draw.randint(1, 3))))
    options = {"groups": groups, "stride": stride, "dilation": draw.choice((1, 1, 2, (1, 3)))}
    options["padding_mode"] = draw.choice(("circular", "circular", "zeros") if own else MODES)
    options["padding"] = draw.choice(("same", "valid", draw.randint(0, 2), (draw.randint(0, 2), draw.randint(0, 1))))
    return (*channels, kernel), options, (channels[0], draw.randint(1, 7), draw.randint(1, 7))


MODES = ("zeros", "circular", "circular", "reflect", "replicate")


def random_layer(draw):
    """A layer and the shape of its input; ValueError or RuntimeError where there is no such layer."""
    kind = draw.choice(("torch", "torch", "own", "own", "own", "dense", "other"))
    if kind == "dense":
        cls, options = draw.choice([*layers("Linear"), (nn.Linear, {})])
        sizes = draw.randint(1, 30), draw.randint(1, 30)
        return cls(*sizes, **options), sizes[:1]
    arguments, geometry, shape = random_geometry(draw, own=kind == "own")
    if kind == "own":
        cls, options = draw.choice(layers("Conv2d"))
        return cls(*arguments, **geometry, **options), shape
    if kind == "torch":
        return nn.Conv2d(*arguments, **geometry), shape
    geometry = {**geometry, "padding_mode": "zeros", "padding": draw.randint(0, 2)}
    other = draw.choice(("one-dimensional", "transposed", "average"))
    if other == "transposed":
        return nn.ConvTranspose2d(*arguments, **geometry), shape
    if other == "average":
        pad = draw.randint(0, 1)
        return nn.AvgPool2d(draw.randint(2 * pad or 1, 3), draw.randint(1, 3), pad, draw.random() < 0.5), shape
    line = {name: value for name, value in geometry.items() if isinstance(value, (int, str))}
    return nn.Conv1d(*arguments[:2], draw.randint(1, 4), **line), (shape[0], draw.randint(1, 12))


def configuration(index):
    """The index-th layer that exists, in double precision, away from its initialisation, with its input's shape."""
    draw = random.Random(index)
    torch.manual_seed(index)
    while True:
        try:
            layer, shape = random_layer(draw)
            layer = perturb(layer.double(), 0.5).eval()
            with torch.no_grad():
                if layer(torch.zeros(1, *shape, dtype=torch.float64)).numel() > 0:
                    return layer, shape
        except (ValueError, RuntimeError):
            continue


def is_circular(layer, shape):
    """A convolution on the image as a torus, whose norm the bound must meet."""
    if not hasattr(layer, "padding_mode") or layer.padding_mode != "circular" or isinstance(layer, NOT_LINEAR):
        return False
    if isinstance(layer, lip.SOCConv2d):
        return False  # the bound is that of its series for every kernel of this norm
    geometry = zip(shape[-2:], layer.stride, layer.dilation, layer.kernel_size, padding_of(layer), strict=True)
    return all(side % step == 0 and total == d * (k - 1) for side, step, d, k, total in geometry)


def padding_of(layer):
    if layer.padding in ("same", "valid"):
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        return reach if layer.padding == "same" else (0, 0)
    padding = layer.padding if isinstance(layer.padding, tuple) else (layer.padding,) * 2
    return [2 * side for side in padding]


def exact_norm(layer, shape):
    points = torch.randn(2, *shape, dtype=torch.float64) * torch.tensor([0.3, 5.0]).view(-1, *[1] * len(shape))
    return torch.linalg.svdvals(jacobians(layer, points)).amax().item()


def check(index):
    layer, shape = configuration(index)
    exact = exact_norm(layer, shape)
    found = fastlip.audit(layer, shape)
    assert found.bound >= exact * (1 - 1e-12), layer
    if is_circular(layer, shape):
        assert found.bound <= exact * 1.01 + 1e-12, layer
    if found.layers[0].exact:
        assert math.isclose(found.bound, exact, rel_tol=1e-9, abs_tol=1e-12), layer
    return is_circular(layer, shape), found.layers[0].exact


@pytest.mark.parametrize("start", range(0, ORDINARY, 10))
def test_bounds_of_random_configurations(start):
    for index in range(start, start + 10):
        check(index)


@pytest.mark.slow
def test_bounds_of_five_hundred_random_configurations():
    kinds = [check(index) for index in range(CONFIGURATIONS)]
    assert sum(circular for circular, _ in kinds) > 40
    assert sum(exact for _, exact in kinds) > 100
