"""Inputs of another dtype than a layer takes are refused: the error names the argument, its dtype and the layer's."""

import pytest
import torch
from layer_catalog import layers, name_of

from fastlip import nn as lip

SHAPES = {"Linear": (2, 4), "Conv1d": (2, 4, 6), "Conv2d": (2, 4, 6, 6), "Conv3d": (1, 4, 3, 3, 3)}
ITEMS = [(item, suffix) for suffix in SHAPES for item in layers(suffix) if not item[1]]


def make(item, suffix):
    cls, options = item
    return cls(4, 4, **options) if suffix == "Linear" else cls(4, 4, 3, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
@pytest.mark.parametrize(("item", "suffix"), ITEMS, ids=[name_of(item) for item, _ in ITEMS])
def test_a_layer_names_the_dtype(item, suffix, dtype):
    layer = make(item, suffix)
    x = torch.ones(SHAPES[suffix], dtype=dtype)
    for training in (True, False):
        with (
            torch.set_grad_enabled(training),
            pytest.raises(TypeError, match=f"x: got {dtype}, expected (torch.float32|a floating)"),
        ):
            layer.train(training)(x)


def test_transposed_convolutions_and_chains_name_the_dtype():
    for layer in (lip.AOCConvTranspose2d(4, 4, 2, 2), lip.Chain(lip.SLLConv2d(4, 4, 3), lip.MaxMin())):
        with pytest.raises(TypeError, match=r"x: got torch.int64, expected .* convert x"):
            layer(torch.ones(1, 4, 6, 6, dtype=torch.int64))


@pytest.mark.parametrize(
    "layer", [lip.BatchCentering(4), lip.LayerCentering(4, -1), lip.PositionBias((2, 2))], ids=repr
)
def test_integers_are_not_centred(layer):
    """The means and the bias would be cut to integers."""
    with pytest.raises(TypeError, match=r"x: got torch.uint8, expected a floating-point tensor"):
        layer(torch.ones(2, 4, 2, 2, dtype=torch.uint8))


def test_autocast_takes_what_it_casts():
    x = torch.rand(2, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert lip.AOLLinear(4, 4)(x).dtype == torch.bfloat16
