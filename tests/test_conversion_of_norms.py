"""``fastlip.convert``: layer norms that permute their input are centred over the dimensions that they normalise."""

import pytest
import torch
import torch.nn.functional as F
from converted_networks import LayerNorm2d, convert
from torch import nn

import fastlip


class Last(nn.LayerNorm):
    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class LayerNormByHand(nn.Module):
    def forward(self, x):
        centred = x - x.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt()


class LayerNormAct(nn.LayerNorm):
    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.GELU()

    def forward(self, x):
        return self.act(super().forward(x))


class OnlyNamed(nn.LayerNorm):
    """No forward of its own."""


@pytest.mark.parametrize(
    ("norm", "shape", "dims", "activation"),
    [
        (LayerNorm2d(8), (8, 8, 8), (-3,), 1),
        (LayerNorm2d(8).bfloat16(), (8, 4, 6), (-3,), 1),
        (LayerNorm2d(8), (8, 1, 1), (-3,), 1),
        (Last(8), (8, 8, 8), (-1,), -1),
        (Last((8, 8)), (8, 8, 8), (-2, -1), 1),
        (OnlyNamed((8, 8, 8)), (8, 8, 8), (-3, -2, -1), 1),
        (LayerNormByHand(), (8, 8, 8), (-3,), 1),
    ],
)
def test_the_dimensions_of_a_norm_are_found(norm, shape, dims, activation):
    example = torch.rand(2, *shape, dtype=next(norm.parameters(), torch.empty(0)).dtype)
    converted, report = fastlip.convert(nn.Sequential(norm, nn.GELU()), example=example, quiet=True)
    assert report.complete, str(report)
    assert converted.get_submodule("0").dim == dims
    assert converted.get_submodule("1").dim == activation


def test_a_norm_with_an_activation_keeps_both():
    _, report = convert(nn.Sequential(LayerNormAct(8)), (4, 8))
    assert [step.after for step in report.steps] == ["LayerCentering", "MaxMin"]


def test_a_head_of_one_pixel_keeps_the_signal():
    """The head of torchvision's ConvNeXt: a norm over channels after a global pool."""
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), LayerNorm2d(8), nn.Flatten(), nn.Linear(8, 4))
    converted, _ = convert(head, (8, 4, 4))
    one, other = converted(torch.rand(2, 8, 4, 4))
    assert (one - other).norm() > 1e-3
