"""Functions and shapes that everyday forwards use: the audit follows them."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from test_auditing import jacobian_norm
from torch import nn

import fastlip

MASK = torch.tensor([True, False, True, False])


class Computing(nn.Module):
    def __init__(self, compute):
        super().__init__()
        self.compute, self.fc = compute, nn.Linear(4, 4)

    def forward(self, x, extra=None, return_features=False):
        return (x, extra) if return_features else self.compute(self, x)


def checked(net, x):
    batch, features = x.shape
    if features != 4 or x.dim() != 2 or x.ndim != 2 or not x.dtype.is_floating_point:
        raise ValueError("other inputs are not for this network")
    return net.fc(x).view(batch, 2, 2).flatten(1)


def leaky(net, x):
    h = net.fc(x)
    return torch.where(h > 0, h, -0.1 * h)


def added(net, x):
    h = net.fc(x)
    h += x
    return h


# (forward, the bound for |W| = w)
FORWARDS = {
    "checks": (checked, lambda w: w),
    "mean": (lambda net, x: net.fc(x).view(-1, 1, 2, 2).mean((2, 3)), lambda w: w / 2),
    "mean by name": (lambda net, x: torch.mean(net.fc(x), dim=1, keepdim=True), lambda w: w / 2),
    "sum": (lambda net, x: net.fc(x).sum(-1, keepdim=True), lambda w: 2 * w),
    "centred": (lambda net, x: net.fc(x - x.mean(1, keepdim=True)), lambda w: 2 * w),
    "clamp": (lambda net, x: net.fc(x).clamp(-0.1, 0.1), lambda w: w),
    "clamp below": (lambda net, x: torch.clamp(net.fc(x), min=0), lambda w: w),
    "relu6": (lambda net, x: F.relu6(net.fc(x)), lambda w: w),
    "larger": (lambda net, x: torch.maximum(net.fc(x), x), lambda w: math.hypot(w, 1)),
    "where": (lambda net, x: torch.where(MASK, net.fc(x), torch.zeros_like(x)), lambda w: w),
    "where of two": (lambda net, x: torch.where(MASK, net.fc(x), x), lambda w: math.hypot(w, 1)),
    "where by sign": (leaky, lambda w: w),
    "masked": (lambda net, x: net.fc(x).masked_fill(MASK, 3.0), lambda w: w),
    "zeros": (lambda net, x: torch.cat((net.fc(x), torch.zeros_like(x)), 1), lambda w: w),
    "new zeros": (lambda net, x: torch.cat((net.fc(x), x.new_zeros(x.shape[0], 2)), 1), lambda w: w),
    "dropout": (lambda net, x: F.dropout(net.fc(x), 0.5, net.training), lambda w: w),
    "cast": (lambda net, x: net.fc(x.to(x.dtype)).type_as(x), lambda w: w),
    "added in place": (added, lambda w: w + 1),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_functions(name):
    torch.manual_seed(0)
    compute, expected = FORWARDS[name]
    net = Computing(compute).eval()
    norm = torch.linalg.matrix_norm(net.fc.weight.detach().double(), 2).item()
    bound = fastlip.audit(net, (4,)).bound
    assert math.isclose(bound, expected(norm), rel_tol=1e-6)
    assert jacobian_norm(copy.deepcopy(net), (4,)) <= bound * (1 + 1e-6)


def test_a_certificate_goes_through_them():
    net = Computing(leaky).eval()
    images = torch.randn(16, 4)
    with torch.no_grad():
        labels = net(images).argmax(1)
    found = fastlip.certify(net, [(images, labels)])
    assert found.accuracy == 1
    assert 0 < found.rounding < 1e-5


@pytest.mark.parametrize(
    ("compute", "text"),
    [
        (lambda net, x: torch.where(net.fc(x) > 0, x, -x), "may jump"),
        (lambda net, x: torch.where(x > 0, x + 1, x), "may jump"),
        (lambda net, x: torch.where(x > 1, x, 0.5 * x), "may jump"),
        (lambda net, x: net.fc(x) * (x > 0), "no rule for (gt|mul)"),
        (lambda net, x: net.fc(x.half().float()), "no rule for half"),
        (lambda net, x: net.fc(x).to(torch.bfloat16), "changes torch.float32"),
        (lambda net, x: x if x.sum() > 0 else net.fc(x), "control flow"),
        (lambda net, x: net.fc(x).clamp(min=x), "no rule for clamp of 2 tensors"),
    ],
)
def test_what_has_no_bound_is_named(compute, text):
    with pytest.raises(TypeError, match=text):
        fastlip.audit(Computing(compute), (4,))


class Resizing(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, x):
        return F.interpolate(x, **self.options)


MODES = ["nearest", "nearest-exact", "bilinear", "bicubic", "area"]


@pytest.mark.parametrize("options", [{"scale_factor": 2}, {"scale_factor": 0.7}, {"size": (7, 3)}], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_interpolation_is_bounded_by_its_norm(mode, options):
    modules = [Resizing(mode=mode, **options)]
    if mode != "area":
        modules.append(nn.Upsample(mode=mode, **options))
    if mode in ("bilinear", "bicubic"):
        modules += [Resizing(mode=mode, align_corners=True, **options)]
    for module in modules:
        bound = fastlip.audit(module, (2, 5, 6)).bound
        assert math.isclose(bound, jacobian_norm(copy.deepcopy(module), (2, 5, 6)), rel_tol=1e-5)


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.CircularPad2d(2), (2, 4, 4), 2),
        (nn.CircularPad1d((1, 0)), (2, 4), 2**0.5),
        (nn.ReflectionPad2d(1), (2, 3, 3), 3),
        (nn.ReplicationPad2d(2), (1, 4, 4), 3),
        (nn.UpsamplingNearest2d(scale_factor=2), (1, 3, 3), 2),
    ],
    ids=repr,
)
def test_paddings_that_repeat(module, shape, expected):
    assert math.isclose(fastlip.audit(module, shape).bound, expected, rel_tol=1e-6)
