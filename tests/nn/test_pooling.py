"""Pooling, HouseHolder and NormalizedLinear: their formulas and norms."""

import math

import pytest
import torch
from layer_catalog import singular_values

from fastlip import nn as lip


@pytest.mark.parametrize("cls", [lip.ScaledAvgPool2d, lip.L2NormPool2d])
@pytest.mark.parametrize(("kernel_size", "size"), [(2, (4, 6)), ((2, 3), (5, 7)), (1, (2, 2)), (3, (3, 3))])
def test_pooling_has_norm_at_most_1(cls, kernel_size, size):
    pool = cls(kernel_size)
    largest, _ = singular_values(pool, (2, *size))
    assert largest == pytest.approx(1, abs=1e-12)
    assert pool.lipschitz_bound((2, *size)) == 1
    x = torch.randn(3, 2, *size)
    torch.testing.assert_close(pool(x[0]), pool(x)[0])
    assert pool(x[:0]).shape == (0, *pool(x).shape[1:])


def test_the_pools_are_their_formulas():
    x = torch.randn(2, 3, 4, 6)
    torch.testing.assert_close(lip.ScaledAvgPool2d(2)(x), 2 * torch.nn.functional.avg_pool2d(x, 2))
    expected = torch.nn.functional.lp_pool2d(x.abs(), 2.0, (2, 3))
    torch.testing.assert_close(lip.L2NormPool2d((2, 3))(x), expected)
    torch.testing.assert_close(lip.L2NormPool2d(2)(x).norm(), x.norm())


def test_the_gradient_of_a_zero_window_is_0():
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    lip.L2NormPool2d(2)(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("cls", [lip.ScaledAvgPool2d, lip.L2NormPool2d])
def test_other_strides_are_refused(cls):
    assert cls(2, stride=(2, 2)).kernel_size == (2, 2)
    for stride in (1, 3, (2, 1)):
        with pytest.raises(ValueError, match="stride="):
            cls(2, stride=stride)
    with pytest.raises(ValueError, match="x: got shape"):
        cls(3)(torch.zeros(1, 1, 2, 5))


@pytest.mark.parametrize("pairing", ["adjacent", "halves"])
@pytest.mark.parametrize("channels", [1, 4, 5])
def test_householder_starts_as_maxmin(channels, pairing):
    x = torch.randn(3, channels, 4, 2)
    activation = lip.HouseHolder(channels, pairing)
    torch.testing.assert_close(activation(x), lip.MaxMin(pairing)(x))
    torch.testing.assert_close(activation(x).norm(dim=1), x.norm(dim=1))


def test_householder_is_orthogonal_and_continuous_at_every_angle():
    activation = lip.HouseHolder(6, dtype=torch.float64)
    with torch.no_grad():
        activation.theta.copy_(torch.tensor([0.3, 2.0, -1.0]))
    largest, smallest = singular_values(activation, (6, 2, 2))
    assert largest == pytest.approx(1, abs=1e-12)
    assert smallest == pytest.approx(1, abs=1e-12)
    half = activation.theta.detach() / 2
    on_the_line = torch.stack((half.cos(), half.sin()), 1).view(1, 6)
    for side in (1e-9, -1e-9):
        moved = activation(on_the_line + side * torch.randn(1, 6, dtype=torch.float64))
        torch.testing.assert_close(moved, on_the_line, rtol=0, atol=1e-8)


def test_householder_learns_its_angle_and_checks_its_channels():
    activation = lip.HouseHolder(4, dim=-1)
    activation(torch.randn(5, 3, 4)).square().mul(torch.arange(4)).sum().backward()
    assert activation.theta.grad.all()
    with pytest.raises(ValueError, match="channels=4: got 3"):
        activation(torch.randn(4, 3))
    with pytest.raises(ValueError, match="pairing='quarters'"):
        lip.HouseHolder(4, "quarters")


def test_normalized_linear_has_unit_rows_and_reports_its_own_norm():
    head = lip.NormalizedLinear(5, 3)
    with torch.no_grad():
        head.raw_weight[0] *= 1e-30
        head.raw_weight[1] = 0
    norms = head.weight.norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([1.0, 0.0, 1.0]))
    head(torch.randn(2, 5)).sum().backward()
    assert head.raw_weight.grad.isfinite().all()
    with torch.no_grad():
        head.raw_weight.fill_(2.0)
    assert head.lipschitz_bound((5,)) == pytest.approx(math.sqrt(3), rel=1e-6)
