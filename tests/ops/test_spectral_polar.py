import math

import pytest
import torch

from fastlip import nn as lip
from fastlip import ops, testing
from fastlip.kernels.polar.reference import adjoint_from_factor
from fastlip.kernels.polar.reference import polar as exact_polar
from fastlip.kernels.spectral_conv.api import kernel_spectrum, own_frequencies, per_frequency
from fastlip.kernels.spectral_polar.api import OP


def require(backend):
    if backend != "reference" and (reason := OP.status(backend)):
        pytest.skip(reason)


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 1), (2, 2)], ids=str)
@pytest.mark.parametrize(("dilation", "groups"), [((1, 1), 1), ((2, 1), 2)])
def test_is_the_polar_factor_at_each_frequency(size, dilation, groups, backend):
    require(backend)
    weight = random(4, 4 // groups, 3, 3).requires_grad_()
    spectrum = kernel_spectrum(weight, size, dilation).unflatten(1, (groups, -1))
    expected = per_frequency(ops.polar, spectrum, size).flatten(1, 2)
    Q = ops.spectral_polar(weight, size, dilation, groups, backend=backend)
    torch.testing.assert_close(Q, expected, rtol=1e-11, atol=1e-11)
    assert (Q[: own_frequencies(size)].imag == 0).all()
    G = random(*Q.shape, dtype=Q.dtype, seed=1)
    gradients = (torch.autograd.grad(value, weight, G)[0] for value in (Q, expected))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def of_condition(channels, condition, dtype):
    """A kernel of one tap with these singular values, from 1 down."""
    U, W = (torch.linalg.qr(random(channels, channels, seed=seed))[0] for seed in (0, 1))
    s = torch.logspace(0, -math.log10(condition), channels, dtype=torch.float64)
    return (U * s @ W).to(dtype)[:, :, None, None]


@pytest.mark.parametrize("condition", [1.0, 10.0, 1e3, 1e5])
def test_single_precision_is_as_accurate_as_the_condition_allows(condition):
    require("native")
    exact, weight = (of_condition(20, condition, dtype).requires_grad_() for dtype in (torch.float64, torch.float32))
    truth = ops.spectral_polar(exact, (1, 1), backend="reference")
    Q = ops.spectral_polar(weight, (1, 1), backend="native")
    eps = torch.finfo(torch.float32).eps
    identity = torch.eye(20, dtype=Q.dtype)
    torch.testing.assert_close(Q[0].mH @ Q[0], identity, rtol=0, atol=16 * eps)
    torch.testing.assert_close(Q, truth.to(Q.dtype), rtol=0, atol=8 * condition * eps)
    if condition <= 10:
        G = random(*Q.shape, seed=2)
        expected = torch.autograd.grad(truth, exact, G.to(truth.dtype))[0]
        (found,) = torch.autograd.grad(Q, weight, G.to(Q.dtype))
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=64 * eps * expected.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_singular_extreme_and_zero_kernels_stay_orthogonal_with_finite_gradients(dtype):
    require("native")
    repeated = torch.eye(4, dtype=dtype)[:, :, None, None].repeat(1, 1, 1, 2)  # vanishes where k_x = 2
    rank_one = random(4, 1, 1, 1, dtype=dtype) * random(1, 4, 1, 1, dtype=dtype, seed=1)
    root = torch.finfo(dtype).max ** 0.6
    for weight in (repeated, rank_one, 0 * rank_one, repeated / root, repeated * root):
        leaf = weight.clone().requires_grad_()
        Q = ops.spectral_polar(leaf, (2, 4), backend="native")
        identity = torch.eye(4, dtype=Q.dtype).expand(Q.shape)
        torch.testing.assert_close(Q.mH @ Q, identity, rtol=0, atol=100 * torch.finfo(dtype).eps)
        (gradient,) = torch.autograd.grad(Q, leaf, random(*Q.shape, dtype=Q.dtype, seed=2))
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_the_adjoint_of_ill_conditioned_matrices_needs_the_factor_alone(dtype):
    V = random(3, 5, 5, dtype=dtype).requires_grad_()
    G = random(3, 5, 5, dtype=dtype, seed=1)
    Q = exact_polar(V)
    (expected,) = torch.autograd.grad(Q, V, G)
    found = adjoint_from_factor(G, Q.detach(), V.detach())
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_only_singular_matrices_are_left_to_the_reference(monkeypatch):
    require("native")
    calls = []
    original = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda V, **options: calls.append(len(V)) or original(V, **options))
    weight = torch.eye(5)[:, :, None, None].repeat(1, 1, 1, 2)
    weight[..., 1] *= 0.9
    ops.spectral_polar(weight, (4, 4), backend="native")
    assert calls == []
    weight[..., 1] = weight[..., 0]
    ops.spectral_polar(weight, (4, 4), backend="native")
    assert sum(calls) == 2  # k_x = 2, where the matrix is real: elsewhere phases leave a rounding


def test_native_keeps_the_factor_and_the_weight_and_a_layer_no_matrix_more():
    require("native")
    weight = random(4, 4, 3, 3, dtype=torch.float32).requires_grad_()
    spectrum, taps = (36 + 4) // 2 * 16 * 8, 4 * 4 * 9 * 4
    assert testing.bytes_kept(lambda: ops.spectral_polar(weight, (6, 6), backend="native")) == spectrum + taps
    layer = lip.LOTConv2d(4, 4, 3)
    x = random(2, 4, 6, 6, dtype=torch.float32)
    assert testing.bytes_kept(lambda: layer(x), list(layer.parameters())) == spectrum + x.nbytes


def test_as_an_operator():
    require("native")
    packet = torch.ops.fastlip
    weight, options = random(4, 4, 3, 3, dtype=torch.float32).requires_grad_(), ([5, 4], [1, 1], 1, "native")
    Q, perturbed = packet.spectral_polar_forward(weight, *options)
    tests = ["test_schema", "test_faketensor", "test_autograd_registration"]
    torch.library.opcheck(packet.spectral_polar_forward.default, (weight, *options), test_utils=tests)
    arguments = (torch.randn_like(Q), Q.detach(), perturbed, weight.detach(), *options)
    torch.library.opcheck(packet.spectral_polar_backward.default, arguments, test_utils=tests)

    def loss(w):
        return torch.view_as_real(ops.spectral_polar(w, (5, 4))).sin().sum()

    torch._dynamo.reset()
    torch.compile(loss, backend="aot_eager", fullgraph=True)(weight).backward()
    torch.testing.assert_close(weight.grad, torch.autograd.grad(loss(weight), weight)[0])


def test_arguments_are_checked():
    with pytest.raises(TypeError, match=r"weight: got torch\.complex64"):
        ops.spectral_polar(torch.ones(2, 2, 3, 3, dtype=torch.complex64), (4, 4))
    for shape, groups in (((2, 3, 3), 1), ((2, 0, 3, 3), 1), ((3, 2, 3, 3), 2)):
        with pytest.raises(ValueError, match=r"weight: got shape .*groups="):
            ops.spectral_polar(torch.ones(shape), (4, 4), groups=groups)
    with pytest.raises(ValueError, match="backend='fast'"):
        ops.spectral_polar(torch.ones(2, 2, 3, 3), (4, 4), backend="fast")
