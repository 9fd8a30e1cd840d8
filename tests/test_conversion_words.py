"""Norms, factors and drops that other packages write in their own words are converted as torch's are."""

import torch
import torch.nn.functional as F
from converted_networks import convert
from torch import nn


def kinds(report):
    return [(step.before, step.after) for step in report.steps]


class LayerNorm(nn.Module):
    """The layer norm of the channels, written out."""

    def forward(self, x):
        centred = x - x.mean(1, keepdim=True)
        return centred / (centred.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()


class NormAct(nn.BatchNorm2d):
    """A batch norm with a forward of its own and an activation, as timm has it."""

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x):
        mean, variance = self.running_mean, self.running_var
        return self.act(
            F.batch_norm(x, mean, variance, self.weight, self.bias, self.training, self.momentum, self.eps)
        )


class LayerScale(nn.Module):
    """A learnt factor for each channel, reshaped."""

    def __init__(self, channels):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x):
        return x.mul(self.gamma.reshape(1, -1, 1, 1))


def test_norms_and_factors_in_other_words():
    converted, report = convert(nn.Sequential(NormAct(4), LayerScale(4), Norms()), (4, 2, 2))
    assert report.complete, str(report)
    found = [(step.before, step.after, step.note) for step in report.steps]
    centred = "BatchCentering", "subtracts each channel's mean"
    assert found[:3] == [
        ("batch_norm", *centred),
        ("ReLU", "MaxMin", ""),
        ("mul", "removed", "a learnt factor"),
    ]
    assert found[3:] == [("group_norm", *centred), ("instance_norm", *centred)]
    x = torch.rand(3, 4, 2, 2)
    assert (converted.eval()(x) - converted(0 * x)).norm() > 0.5 * x.norm()


class Norms(nn.Module):
    """Norms per channel as functions."""

    def forward(self, x):
        return F.instance_norm(F.group_norm(x, 2))


class StochasticDepth(nn.Module):
    """Drops samples in training."""

    def forward(self, x):
        return x * (torch.rand(len(x)) > 0.5).view(-1, 1, 1, 1) if self.training else x


def test_modules_that_others_write_by_these_names():
    converted, report = convert(nn.Sequential(LayerNorm(), StochasticDepth()), (4, 2, 2))
    assert kinds(report) == [("LayerNorm", "LayerCentering"), ("StochasticDepth", "removed")]
    x = torch.rand(3, 4, 2, 2)
    assert torch.allclose(converted(x), x - x.mean(1, keepdim=True))
