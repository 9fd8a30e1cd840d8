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


FOR_IMAGES = [
    *(
        lip.BatchCentering(4),
        lip.LayerCentering(4, -1),
        lip.PositionBias((2, 2)),
        lip.InputWeights(0.5),
        lip.MaxMin(),
    ),
    *(lip.ScaledAvgPool2d(2), lip.L2NormPool2d(2), lip.AdaptiveL2NormPool2d(1), lip.AdaptiveL2NormPool2d(2)),
    *(lip.HouseHolder(4), lip.Scale(0.5), lip.Scale(0.5, learnable=True), lip.LipschitzResidual(torch.nn.ReLU())),
]
FOR_OTHERS = [
    *(((2, 4, 4), pool) for pool in (lip.ScaledAvgPool1d(2), lip.L2NormPool1d(2), lip.AdaptiveL2NormPool1d(1))),
    *(((1, 1, 2, 2, 2), pool) for pool in (lip.ScaledAvgPool3d(2), lip.L2NormPool3d(2), lip.AdaptiveL2NormPool3d(1))),
]


@pytest.mark.parametrize(("shape", "layer"), [*[((2, 4, 2, 2), layer) for layer in FOR_IMAGES], *FOR_OTHERS])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_integers_are_neither_cut_nor_fail_in_torch(shape, layer, dtype):
    """Means, factors and norms would be cut to integers."""
    for training in (True, False):
        with pytest.raises(TypeError, match=f"x: got {dtype}, expected a floating-point tensor"):
            layer.train(training)(torch.ones(shape, dtype=dtype))


@pytest.mark.parametrize("layer", [lip.BatchCentering(4), lip.BatchCentering(4, accumulate=2)], ids=repr)
def test_running_means_name_the_remedy_in_transforms(layer):
    x, gradient_of = torch.randn(3, 2, 4), torch.func.grad(lambda x: layer(x).square().sum())
    for transformed, batch in ((torch.vmap(layer), x), (gradient_of, x[0])):
        with pytest.raises(ValueError, match=r"which torch.func.grad and vmap cannot; use BatchCentering.eval\(\)"):
            layer.train() and transformed(batch)
        layer.eval()
        assert transformed(batch).shape == batch.shape


def test_autocast_takes_what_it_casts():
    x = torch.rand(2, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert lip.AOLLinear(4, 4)(x).dtype == torch.bfloat16
