"""Products of real matrices: every size and layout, what they are added to, and the layers that take them."""

import copy

import pytest
import torch
import torch.nn.functional as F

import fastlip
from fastlip import nn as lip
from fastlip.kernels.common import products
from fastlip.kernels.common.products import product
from fastlip.kernels.sdp_residual import dense as residual

native = pytest.importorskip("fastlip.kernels.linear.native")


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def laid_out(matrix, layout):
    """The same matrix with its columns, its rows or neither next in memory, or as part of a wider one."""
    if layout == "columns":
        return matrix.T.contiguous().T
    if layout == "part":
        wide = matrix.new_zeros(matrix.shape[0], matrix.shape[1] + 3)
        wide[:, 1:-2] = matrix
        return wide[:, 1:-2]
    if layout == "apart":
        return matrix.repeat_interleave(2, 1)[:, ::2]
    return matrix


def close(found, right, length):
    tolerance = 4 * length**0.5 * torch.finfo(found.dtype).eps
    assert (found.double() - right).norm() <= tolerance * max(right.norm(), 1e-300)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), (8, 32, 16), (9, 33, 17), (3, 500, 40), (530, 7, 35), (40, 385, 1), (17, 192, 70)]
)
@pytest.mark.parametrize(
    "layouts", [("rows", "rows"), ("columns", "columns"), ("part", "columns"), ("apart", "apart")]
)
def test_every_size_and_layout(sizes, layouts, dtype):
    m, k, n = sizes
    a, b = draw(m, k, dtype=dtype), draw(k, n, dtype=dtype, seed=1)
    right = a.double() @ b.double()
    close(product(laid_out(a, layouts[0]), laid_out(b, layouts[1]), least=0), right, k)


@pytest.mark.parametrize("least", [0, 1 << 60])
def test_what_the_product_is_added_to(least):
    a, b, bias = draw(40, 200), draw(200, 50, seed=1), draw(50, seed=2)
    right = a.double() @ b.double()
    out = draw(40, 50, seed=3)
    before = out.double()
    assert product(a, b, out=out, alpha=-2.0, add=True, least=least) is out
    close(out, before - 2 * right, 200)
    close(product(a, b, bias=bias, least=least), right + bias.double(), 200)
    every_second = bias.repeat_interleave(2)[::2]
    close(product(a, b, bias=every_second, alpha=0.5, least=least), 0.5 * right + bias.double(), 200)
    assert product(a, b, out=out, least=least) is out
    close(out, right, 200)


@pytest.mark.parametrize("sizes", [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_empty_products(sizes):
    m, k, n = sizes
    bias = draw(n)
    assert torch.equal(product(draw(m, k), draw(k, n), bias=bias, least=0), bias.expand(m, n))


def test_numbers_that_are_not_finite_stay_where_they_are():
    a, b = draw(20, 40), draw(40, 50, seed=1)
    a[3, 5], b[:, 7] = float("nan"), float("inf")
    right = a @ b
    found = product(a, b, least=0)
    assert torch.equal(found.isfinite(), right.isfinite())


def test_a_gradient_that_is_one_number_everywhere():
    x, W, b = draw(30, 70).requires_grad_(), draw(50, 70, seed=1).requires_grad_(), draw(50, seed=2).requires_grad_()
    found = torch.autograd.grad(fastlip.ops.linear(x, W, b, backend="native").sum(), (x, W, b))
    for ours, right in zip(found, torch.autograd.grad(F.linear(x, W, b).sum(), (x, W, b)), strict=True):
        torch.testing.assert_close(ours, right)


@pytest.mark.parametrize("needed", ["x", "weight", "bias"])
def test_gradients_that_nobody_asks_for_are_not_computed(needed, monkeypatch):
    tensors = {"x": draw(30, 70), "weight": draw(50, 70, seed=1), "bias": draw(50, seed=2)}
    tensors[needed].requires_grad_()
    y = fastlip.ops.linear(**tensors, backend="native")
    calls = []
    monkeypatch.setattr(native, "product", lambda *a, **k: calls.append(1) or product(*a, **k))
    y.sum().backward()
    assert len(calls) == (needed != "bias")


@pytest.mark.parametrize(
    "layer", ["AOLLinear", "BROLinear", "CayleyLinear", "CPLLinear", "SLLLinear", "SandwichLinear"]
)
@pytest.mark.parametrize("training", [True, False])
def test_layers_multiply_by_the_kernel_and_agree_with_torch(layer, training, monkeypatch):
    torch.manual_seed(0)
    module = lip.__dict__[layer](160, 144).train(training)
    found, calls = {}, []
    for module_of_op in (native, residual):
        monkeypatch.setattr(module_of_op, "product", lambda *a, **k: calls.append(1) or product(*a, **k))
    for faster in (False, True):
        monkeypatch.setattr(products, "is_faster", lambda faster=faster: faster)
        x, twin = draw(3, 40, 160).requires_grad_(), copy.deepcopy(module)
        y = twin(x)
        assert bool(calls) == faster
        wanted = [x, *(twin.parameters() if training else ())]
        found[faster] = [y, *torch.autograd.grad(y.square().sum(), wanted)]
    torch.testing.assert_close(found[True][0], found[False][0], rtol=0, atol=2e-6)
    norm = torch.stack([gradient.norm() for gradient in found[False][1:]]).norm()
    for ours, theirs in zip(found[True][1:], found[False][1:], strict=True):
        assert (ours - theirs).norm() <= 2e-6 * norm


def test_who_lowers_the_precision_and_who_looks_at_calls_gets_torch(monkeypatch):
    monkeypatch.setattr(products, "is_faster", lambda: True)
    monkeypatch.setattr(native, "product", lambda *_, **__: pytest.fail("kernel"))
    layer, x = lip.AOLLinear(160, 160), draw(100, 160)
    with torch.autocast("cpu"):
        layer(x)
    torch.func.vmap(layer)(x[None])
    lip.AOLLinear(160, 160, backend="reference")(x)
    layer.double()(x.double())
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        layer.float()(x)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def test_auto_asks_what_pays(monkeypatch):
    monkeypatch.setattr(products, "is_faster", lambda: True)
    W = torch.eye(256)
    assert not native.unprofitable(torch.ones(64, 256), W, None)
    assert native.unprofitable(torch.ones(8, 256), W, None)
    assert native.unprofitable(torch.ones(64, 256, dtype=torch.float64), W.double(), None)
    monkeypatch.setattr(products, "is_faster", lambda: False)
    assert native.unprofitable(torch.ones(64, 256), W, None)


def test_arguments_are_named():
    W, x = torch.ones(2, 3), torch.ones(4, 3)
    with pytest.raises(TypeError, match=r"weight: got torch.float64"):
        fastlip.ops.linear(x, W.double())
    with pytest.raises(TypeError, match=r"weight: got list"):
        fastlip.ops.linear(x, [[1.0, 2.0, 3.0]])
    with pytest.raises(TypeError, match=r"x: got torch.int64"):
        fastlip.ops.linear(x.long(), W)
    with pytest.raises(ValueError, match=r"weight: got shape \(1, 2, 3\)"):
        fastlip.ops.linear(x, W[None])
    with pytest.raises(ValueError, match=r"x: got shape \(4, 2\), expected \(\*, 3\)"):
        fastlip.ops.linear(x[:, :2], W)
    with pytest.raises(ValueError, match=r"bias: got shape \(3,\), expected \(2,\)"):
        fastlip.ops.linear(x, W, torch.ones(3))
