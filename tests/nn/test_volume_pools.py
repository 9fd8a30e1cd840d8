"""Pools and shuffles of volumes: norm 1, and that they compute what their names say."""

import pytest
import torch
import torch.nn.functional as F
from layer_catalog import singular_values

import fastlip
from fastlip import nn as lip

POOLS = {
    "average": lip.ScaledAvgPool3d((1, 2, 3)),
    "norm": lip.L2NormPool3d(2),
    "adaptive": lip.AdaptiveL2NormPool3d((2, 1, 3)),
    "global": lip.AdaptiveL2NormPool3d(),
    "unshuffle": lip.PixelUnshuffle3d((1, 3, 2)),
    "shuffle": lip.PixelShuffle3d((2, 1, 2)),
}


@pytest.mark.parametrize("name", POOLS)
def test_pools_and_shuffles_have_norm_1(name):
    module, shape = POOLS[name], (4, 2, 4, 5)
    x = torch.randn(3, *shape)
    largest, _ = singular_values(module, shape)
    assert largest <= 1 + 1e-9
    assert torch.equal(module(x[0]), module(x)[0])
    assert fastlip.audit(module, shape).bound == pytest.approx(1)
    assert fastlip.audit(module, shape).layers[0].exact
    for known in (shape, None):
        plain = fastlip.export(module, known)
        assert torch.equal(plain(x), module(x))
        assert fastlip.audit(plain, shape).bound == pytest.approx(1)
    with pytest.raises(ValueError, match="expected 4 dimensions"):
        fastlip.audit(module, (4, 12, 12))


def test_pools_and_shuffles_compute_what_they_say():
    x = torch.randn(2, 4, 3, 4, 5)
    for three, two in (
        (lip.ScaledAvgPool3d((1, 4, 2)), lip.ScaledAvgPool2d((4, 2))),
        (lip.L2NormPool3d((1, 4, 2)), lip.L2NormPool2d((4, 2))),
        (lip.AdaptiveL2NormPool3d((3, 2, 3)), lip.AdaptiveL2NormPool2d((2, 3))),
        (lip.PixelUnshuffle3d((1, 2, 2)), lip.PixelUnshuffle(2)),
    ):
        frames = torch.stack([two(frame) for frame in x.unbind(2)], 2)
        torch.testing.assert_close(three(x), frames)
    torch.testing.assert_close(lip.L2NormPool3d(2)(x) ** 2, 8 * F.avg_pool3d(x**2, 2))
    torch.testing.assert_close(lip.AdaptiveL2NormPool3d(1)(x).flatten(1), x.flatten(2).norm(dim=2))
    for pool in (lip.AdaptiveL2NormPool3d((2, 3, 2)), lip.L2NormPool3d((3, 2, 5)), lip.PixelUnshuffle3d(2)):
        assert pool(x).norm().item() == pytest.approx(x.norm().item(), rel=1e-6)
    shuffled = lip.PixelUnshuffle3d((3, 2, 5))(x)
    assert torch.equal(lip.PixelShuffle3d((3, 2, 5))(shuffled), x)
    assert torch.equal(lip.MaxMin()(x), lip.MaxMin(dim=-4)(x))
    last = x.contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(lip.MaxMin()(last), lip.MaxMin()(x))
    zero = torch.zeros(1, 1, 2, 2, 2, requires_grad=True)
    lip.L2NormPool3d(2)(zero).sum().backward()
    assert torch.equal(zero.grad, torch.zeros(1, 1, 2, 2, 2))


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (lambda: lip.ScaledAvgPool3d(2, stride=1), None, "stride=1"),
        (lambda: lip.L2NormPool3d(2, (2, 2, 3)), None, "stride="),
        (lambda: lip.AdaptiveL2NormPool3d(0), None, "output_size=0"),
        (lambda: lip.PixelUnshuffle3d(0), None, "downscale_factor=0"),
        (lambda: lip.ScaledAvgPool3d(5), (2, 3, 4, 8, 8), "x: got shape"),
        (lambda: lip.L2NormPool3d(2), (2, 3, 4), "x: got shape"),
        (lambda: lip.PixelUnshuffle3d(2), (2, 3, 4), "x: got shape"),
        (lambda: lip.PixelShuffle3d(2), (2, 3, 4, 4, 4), "upscale_factor="),
    ],
)
def test_wrong_pools_are_refused(make, shape, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        make()(torch.zeros(shape or (1, 2, 8, 8, 8)))
