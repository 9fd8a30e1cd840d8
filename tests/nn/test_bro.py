"""BRO: what is its alone. What all layers share is in test_theorems and test_layers."""

import pytest
import torch
from layer_catalog import perturb, singular_values

import fastlip
from fastlip import nn as lip
from fastlip import ops
from fastlip.nn.bro import columns_of_rank


def test_is_the_reflection_of_the_kernel_at_each_frequency():
    layer = perturb(lip.BROConv2d(6, 4, 3, dtype=torch.float64, rank=2, groups=2))
    V = ops.kernel_spectrum(layer.raw_weight, (5, 6)).unflatten(1, (2, 3))
    P = V @ torch.linalg.inv(V.mH @ V) @ V.mH
    expected = (torch.eye(3) - 2 * P)[:, :, :2].flatten(1, 2)
    (Q,) = layer._effective(5, 6)
    torch.testing.assert_close(Q, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rank", [1, 2, 0.125, 0.5, 4])
@pytest.mark.parametrize("options", [{}, {"dilation": 2}, {"stride": 2}], ids=str)
def test_circular_convolutions_are_orthogonal_at_every_rank(rank, options):
    outputs = 16 if "stride" in options else 4
    layer = perturb(lip.BROConv2d(4, outputs, 3, dtype=torch.float64, rank=rank, **options))
    largest, smallest = singular_values(layer, (4, 4, 6))
    assert abs(largest - 1) < 1e-10
    assert abs(smallest - 1) < 1e-10


@pytest.mark.parametrize("rank", [1, 0.5])
def test_zero_padding_is_at_most_one(rank):
    layer = perturb(lip.BROConv2d(4, 4, 3, dtype=torch.float64, rank=rank, padding_mode="zeros"))
    assert singular_values(layer, (4, 4, 6))[0] <= 1 + 1e-10


@pytest.mark.parametrize("sizes", [(5, 5), (7, 3), (3, 7)], ids=str)
@pytest.mark.parametrize("rank", [1, 0.5, 3])
def test_dense_layers_have_orthonormal_rows_or_columns(sizes, rank):
    weight = perturb(lip.BROLinear(*sizes, rank=rank, dtype=torch.float64)).weight
    assert weight.shape == sizes[::-1]
    gram = weight @ weight.T if sizes[1] <= sizes[0] else weight.T @ weight
    torch.testing.assert_close(gram, torch.eye(min(sizes), dtype=torch.float64))


def test_singular_weights_are_finite_and_orthogonal():
    for fill in (0.0, 1.0):
        layer = lip.BROConv2d(8, 8, 3, rank=4)
        torch.nn.init.constant_(layer.raw_weight, fill)
        x = torch.randn(2, 8, 6, 6)
        y = layer(x)
        torch.testing.assert_close(y.norm(), x.norm())
        y.square().sum().backward()
        assert torch.isfinite(layer.raw_weight.grad).all()  # type: ignore[arg-type]
    torch.nn.init.zeros_(layer.raw_weight)
    torch.testing.assert_close(layer(x), x)


def test_the_rank_is_a_number_or_a_fraction():
    assert [columns_of_rank(rank, 16) for rank in (1, 16, 0.125, 0.5, 1.0, 0.001)] == [1, 16, 2, 8, 16, 1]
    assert lip.BROConv2d(8, 16, 3, stride=2, rank=0.25).raw_weight.shape == (32, 8, 2, 2)
    assert lip.BROLinear(8, 6, rank=0.25).raw_weight.shape == (8, 2)
    for rank in (0, 9, -1, 0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="rank="):
            lip.BROLinear(8, 6, rank=rank)
    for rank in ("half", True, None):
        with pytest.raises(TypeError, match="rank="):
            lip.BROConv2d(8, 6, 3, rank=rank)  # type: ignore[arg-type]


def test_networks_take_the_rank():
    net = fastlip.models.lip_conv_net("bro", width=8, image_size=8, in_channels=1, layers_per_block=1, rank=0.5)
    assert net.get_parameter("block1.0.raw_weight").shape == (8, 4, 3, 3)
    assert fastlip.audit(net.eval(), (1, 8, 8)).bound <= 1 + 1e-5
