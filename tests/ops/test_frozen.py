"""Frozen kernels, as of a network under attack, cost no weight gradients; what is wanted is right."""

import pytest
import torch

from fastlip import ops
from fastlip.kernels.common import channels_last
from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.kernels.conv_chain.api import OP
from fastlip.kernels.sdp_residual.api import folded

X, FIRST, SECOND = (2, 4, 5, 5), (6, 4, 3, 3), (4, 6, 3, 3)


@pytest.fixture
def count(monkeypatch):
    """The weight gradients that the kernels compute."""
    seen = []
    original = channels_last._convolution_backward

    def record(*arguments):
        seen.extend([1] * arguments[-1][1])  # the gradients asked for: input, weight, bias
        return original(*arguments)

    monkeypatch.setattr(channels_last, "_convolution_backward", record)
    return seen


@pytest.fixture(params=["native", "triton"])
def backend(request):
    """Triton's turn comes in its interpreter: tests/gpu/test_interpreter.py runs this file there."""
    x = torch.zeros(X)
    weight = torch.zeros(FIRST)
    if reason := OP.why_not(request.param, x, [weight], [None], [], [ConvGeometry.like(weight)], "adjacent"):
        pytest.skip(reason)
    return request.param


def random(shape):
    return torch.randn(*shape, dtype=torch.float64)


def chain(backend, x, first, second, bias0, bias1, scale0, scale1):
    scales = None if scale0 is None else [scale0, scale1]
    return ops.conv_chain(x, [first, second], [bias0, bias1], scales, backend=backend)


def residual(backend, x, weight, bias, scale):
    return ops.sdp_residual(x, weight, bias, scale, pairing="adjacent", backend=backend)


def gradients(function, backend, tensors, wanted):
    leaves = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
    y = function(backend, *leaves)
    return torch.autograd.grad(y.square().sum(), [leaves[i] for i in wanted])


@pytest.mark.parametrize("wanted", [[0], [0, 1], [2], [3, 4], [5], [0, 6], [0, 1, 2, 3, 4, 5, 6]], ids=str)
def test_conv_chain(wanted, count, backend):
    tensors = [random(shape) for shape in (X, FIRST, SECOND, (6,), (4,), (4,), (6,))]
    found = gradients(chain, backend, tensors, wanted)
    expected = gradients(chain, "reference", tensors, wanted)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert len(count) == bool({1, 5} & {*wanted}) + bool({2, 6} & {*wanted})


@pytest.mark.parametrize("wanted", [[0], [1], [2], [3], [0, 2], [0, 1, 2, 3]], ids=str)
def test_sdp_residual(wanted, count, backend):
    tensors = [random(X), random(FIRST), random((6,)), random((6,)).abs()]
    found = gradients(residual, backend, tensors, wanted)
    expected = gradients(residual, "reference", tensors, wanted)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert len(count) == 2 * (1 in wanted)


def test_the_folded_second_weight_of_sdp_residual_is_used(backend):
    x, weight, bias, scale = random(X), random(FIRST), random((6,)), random((6,)).abs()
    second = folded(weight, scale)
    y, doubled = (ops.sdp_residual(x, weight, bias, scale, second=w, backend=backend) for w in (second, 2 * second))
    expected = ops.sdp_residual(x, weight, bias, scale, backend="reference")
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(doubled, 2 * expected - x)
