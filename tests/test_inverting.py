"""fastlip.invert_residual: the inverse of x + f(x), its error bound, and what it refuses."""

import itertools
import math

import pytest
import torch
from torch import nn

import fastlip
from fastlip import nn as lip


def contraction(constant=0.9, shape=(3,)):
    torch.manual_seed(0)
    if len(shape) == 1:
        layers = (
            lip.CayleyLinear(3, 16),
            lip.MaxMin(),
            lip.CayleyLinear(16, 16),
            lip.MaxMin(),
            lip.CayleyLinear(16, 3),
        )
    else:
        layers = lip.AOLConv2d(4, 4, 3), lip.MaxMin(), lip.AOLConv2d(4, 4, 3)
    return nn.Sequential(*layers, lip.Scale(constant)).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3,), (4, 6, 6)])
def test_the_inverse_is_within_its_error_bound(shape, dtype):
    f = contraction(shape=shape).to(dtype)
    x = torch.randn(7, *shape, dtype=dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    found = fastlip.invert_residual(f, (x + f(x)).detach(), tolerance=tolerance)
    away = (found.x - x).flatten(1).double().norm(dim=1)
    assert (found.error <= tolerance).all()
    assert (away <= found.error + 20 * torch.finfo(dtype).eps * x.flatten(1).norm(dim=1)).all()
    assert not found.x.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3,), (4, 6, 6)])
def test_the_bound_with_rounding_needs_no_slack(shape, dtype):
    """The exact inverse, of the same effective weights in float64, is within the bound."""
    f = contraction(0.5, shape).to(dtype)
    # Plain layers have the effective weights as parameters: those of 16-bit layers in float32.
    wide = fastlip.export(f.float() if dtype == torch.float16 else f).double()
    y = torch.randn(9, *shape).to(dtype)
    exact = fastlip.invert_residual(wide, y.double(), lipschitz=0.501, tolerance=1e-12)
    f.to(dtype)
    for steps in (5, 60):
        found = fastlip.invert_residual(f, y, tolerance=0, max_steps=steps, rounding="worst-case")
        away = (found.x.double() - exact.x).flatten(1).norm(dim=1)
        assert (away <= found.error + exact.error).all()
        assert found.error.isfinite().all()
    plain = fastlip.invert_residual(f, y, tolerance=0, max_steps=60)
    assert torch.equal(plain.x, found.x)
    if dtype != torch.float64 and len(shape) == 1:
        assert not (away <= plain.error).all(), "what rounding=None leaves out"


def test_the_bound_holds_at_every_step_and_shrinks_by_the_constant():
    f = contraction(0.8).double()
    x = torch.randn(50, 3).double()
    y = (x + f(x)).detach()
    errors = [fastlip.invert_residual(f, y, tolerance=0, max_steps=n) for n in range(1, 40)]
    for n, found in enumerate(errors, 1):
        assert found.steps == n
        assert ((found.x - x).norm(dim=1) <= found.error + 1e-14).all()
    for one, following in itertools.pairwise(errors):
        assert (following.error <= 0.8 * one.error + 1e-13).all()


def test_the_bound_is_attained():
    f = nn.Linear(2, 2, bias=False).eval().double()
    with torch.no_grad():  # f = -x / 2, and the solution is 2 y
        f.weight.copy_(-torch.eye(2) / 2)
    y = torch.tensor([[3.0, 4.0]]).double()
    found = fastlip.invert_residual(f, y, max_steps=1)
    assert (found.x - 2 * y).norm().item() == pytest.approx(found.error.item(), rel=1e-9)


def test_a_stack_of_blocks_is_inverted_block_by_block():
    blocks = [contraction(0.7).double() for _ in range(3)]
    x = torch.randn(5, 3).double()
    y = x
    for f in blocks:
        y = (y + f(y)).detach()
    for f in reversed(blocks):
        y = fastlip.invert_residual(f, y, tolerance=1e-12).x
    torch.testing.assert_close(y, x, atol=1e-10, rtol=0)


def test_not_finite_numbers_have_no_bound():
    found = fastlip.invert_residual(contraction(), torch.tensor([[math.nan, 0, 0], [1, 2, 3]]), max_steps=5)
    assert found.error[0] == math.inf
    assert found.error[1] < math.inf
    found = fastlip.invert_residual(
        contraction(), torch.tensor([[math.nan, 0, 0], [1, 2, 3]]), tolerance=1e-5, rounding="worst-case"
    )
    assert found.error[0] == math.inf
    assert found.error[1] < 1e-3
    assert found.steps < 1000, "a sample without a bound does not keep the others from stopping"


@pytest.mark.parametrize(
    ("f", "options", "error", "text"),
    [
        (contraction(1.0), {}, ValueError, "lipschitz=.*: expected a number below 1"),
        (contraction(), {"lipschitz": 1.0}, ValueError, "lipschitz=1: expected a number below 1"),
        (contraction(), {"lipschitz": math.nan}, ValueError, "lipschitz=nan"),
        (contraction(), {"tolerance": -1.0}, ValueError, "tolerance=-1.0"),
        (contraction(), {"tolerance": "1e-6"}, TypeError, "tolerance='1e-6': expected a number, got str"),
        (contraction(), {"rounding": "none"}, ValueError, "rounding='none': allowed are 'worst-case'"),
        (contraction(), {"max_steps": 0}, ValueError, "max_steps=0"),
        (contraction(), {"max_steps": 1.5}, TypeError, "max_steps=1.5"),
        (contraction().train(), {}, ValueError, "f: is in training mode"),
        (nn.Linear(3, 2).eval(), {"lipschitz": 0.5}, ValueError, r"f: its output has shape \(2, 2\)"),
    ],
)
def test_refuses(f, options, error, text):
    with pytest.raises(error, match=text):
        fastlip.invert_residual(f, torch.randn(2, 3), **options)


def test_refuses_what_is_no_floating_point_tensor():
    for y in ([[1.0, 2.0, 3.0]], torch.ones(2, 3, dtype=torch.long)):
        with pytest.raises(TypeError, match=r"y: got (list|torch.int64), expected a floating-point tensor"):
            fastlip.invert_residual(contraction(), y)
