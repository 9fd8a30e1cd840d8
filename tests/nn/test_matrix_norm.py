"""The spectral norm of dense CPL layers: a bound, close, whatever was kept of the step before."""

import copy
import math
import pickle
import threading

import pytest
import torch
from torch import func
from torch.utils.checkpoint import checkpoint

from fastlip import nn as lip
from fastlip.kernels.common import binding
from fastlip.nn import _matrix_norm
from fastlip.nn._matrix_norm import TOLERANCE, squared_norm
from fastlip.nn._warm import WarmStart

needs_kernel = pytest.mark.skipif(
    bool(binding.missing("matrix_norm_float32", torch.device("cpu"))), reason="the C++ kernels are not built"
)
SHAPES = [(1, 1), (5, 3), (3, 5), (17, 33), (64, 64), (100, 70)]


def norm_of(W):
    return torch.linalg.matrix_norm(W.detach().double(), 2) ** 2


@pytest.fixture
def decompositions(monkeypatch):
    """Counts them."""
    calls, exact = [], _matrix_norm._exact
    monkeypatch.setattr(_matrix_norm, "_exact", lambda weight: calls.append(1) or exact(weight))
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_without_a_kept_vector_it_is_the_norm(shape, dtype):
    W = torch.randn(shape, dtype=dtype)
    bound, norm = squared_norm(W), norm_of(W)
    assert norm <= bound[0] <= norm * (1 + (50 + sum(shape)) * torch.finfo(dtype).eps)


@needs_kernel
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["random", "along the gradient", "another matrix"])
def test_with_a_kept_vector_it_is_a_bound_within_the_tolerance(shape, kind, decompositions):
    W, warm = torch.randn(shape), WarmStart()
    for _ in range(30):
        W = W.detach().requires_grad_()
        bound, norm = squared_norm(W, warm), norm_of(W)
        assert norm <= bound[0] * (1 + 1e-6)
        assert bound[0] <= norm * (1 + TOLERANCE) * (1 + 1e-4)
        (gradient,) = torch.autograd.grad(bound, W)
        step = gradient if kind == "along the gradient" else torch.randn(shape)
        W = torch.randn(shape) if kind == "another matrix" else W - 1e-2 * W.norm() * step / step.norm()
    assert len(decompositions) == 1  # the first


@needs_kernel
def test_every_forward_of_one_weight_has_the_same_bits():
    W, warm = torch.randn(17, 33), WarmStart()
    first = squared_norm(W, warm)
    assert torch.equal(first, squared_norm(W, warm))
    torch.testing.assert_close(squared_norm(W.clone(), warm), first)  # more steps from the vector of the norm
    with torch.no_grad():
        W.add_(torch.randn(17, 33))
    assert not torch.equal(first, squared_norm(W, warm))


@needs_kernel
def test_a_write_that_torch_does_not_count_leaves_a_bound():
    W, warm = torch.nn.Parameter(torch.randn(9, 9)), WarmStart()
    for _ in range(5):
        squared_norm(W, warm)
        version = W._version
        W.data.copy_(torch.randn(9, 9))  # the address and the count stay, so the vector of another matrix is taken
        assert W._version == version
        assert norm_of(W) <= squared_norm(W, warm)[0] * (1 + 1e-6)


@needs_kernel
@pytest.mark.parametrize(
    "W",
    [torch.eye(6), torch.zeros(4, 5), torch.full((3, 3), 1e25), torch.full((3, 3), 1e-15), torch.ones(5, 5)],
    ids=["identity", "zero", "huge", "tiny", "rank one"],
)
def test_unusual_matrices_with_a_kept_vector(W):
    warm = WarmStart()
    warm.keep(torch.eye(min(W.shape))[0])
    W = W.clone().requires_grad_()
    bound = squared_norm(W, warm)
    expected = norm_of(W)
    assert expected.float() <= bound[0] * (1 + 1e-6)
    if expected.float().isfinite():
        torch.testing.assert_close(bound[0].double(), expected, rtol=2 * TOLERANCE, atol=0)
        assert torch.autograd.grad(bound, W)[0].isfinite().all()


@needs_kernel
@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_gives_nan(number):
    W, warm = torch.ones(4, 4), WarmStart()
    W[1, 2] = number
    assert squared_norm(W).isnan()
    warm.keep(torch.ones(4) / 2)
    assert squared_norm(W, warm).isnan()
    assert squared_norm(torch.ones(4, 4), warm).isfinite()  # nor is what was kept spoilt


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (3, 3)])
def test_first_and_second_derivatives(shape):
    W, direction = torch.randn(2, *shape, dtype=torch.float64)
    W.requires_grad_()
    assert torch.autograd.gradcheck(squared_norm, W, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(squared_norm, W, check_fwd_over_rev=True)
    (expected,) = torch.autograd.grad(torch.linalg.matrix_norm(W, 2) ** 2, W)
    found = func.vmap(func.jacrev(squared_norm))(torch.stack([W.detach(), 2 * W.detach()]))
    torch.testing.assert_close(found[:, 0], torch.stack([expected, 2 * expected]))
    slope = func.jvp(squared_norm, (W.detach(),), (direction,))[1][0]
    torch.testing.assert_close(slope, (expected * direction).sum())


@needs_kernel
def test_derivatives_with_a_kept_vector_are_those_without():
    W, warm = torch.randn(6, 5).requires_grad_(), WarmStart()
    G = torch.randn(6, 5)

    def derivatives(*kept):
        bound = squared_norm(W, *kept)
        (first,) = torch.autograd.grad(bound, W, create_graph=True)
        return torch.autograd.grad(bound, W, retain_graph=True)[0], *torch.autograd.grad((first * G).sum(), W)

    expected = derivatives()
    for _ in range(10):  # the vector improves from call to call
        found = derivatives(warm)
    torch.testing.assert_close(found, expected, rtol=2 * TOLERANCE, atol=1e-3)


def test_second_derivatives_are_finite_where_singular_values_are_equal():
    for W in (torch.eye(4), torch.zeros(3, 2), torch.ones(3, 3)):
        W = W.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(squared_norm(W).sum(), W, create_graph=True)
        assert torch.autograd.grad(gradient.square().sum(), W)[0].isfinite().all()


def trained(layer, steps=5):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x = torch.randn(16, layer.in_features)
    for _ in range(steps):
        optimizer.zero_grad()
        layer(x).square().mean().backward()
        optimizer.step()
    return layer


def test_what_is_kept_belongs_to_no_state_dict_copy_or_pickle():
    layer = trained(lip.CPLLinear(8, 8))
    assert set(layer.state_dict()) == {"kernel", "bias", "fixed_scale"}
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin._warm._kept is None
        torch.testing.assert_close(twin(torch.ones(2, 8)), layer(torch.ones(2, 8)), rtol=0.01, atol=0.01)


def test_evaluation_does_not_depend_on_training_before():
    layer = trained(lip.CPLLinear(8, 8)).eval()
    again = lip.CPLLinear(8, 8)
    again.load_state_dict(layer.state_dict())
    x = torch.randn(5, 8)
    with torch.no_grad():
        assert layer(x).equal(again.eval()(x))
    assert layer.lipschitz_bound((8,)) <= 1 + 1e-6


def test_training_stays_within_the_tolerance_of_evaluation():
    layer, x = trained(lip.CPLLinear(32, 32)), torch.randn(4, 32)
    for _ in range(3):
        y = layer(x)
        expected = layer.eval()(x)
        layer.train()
        assert (y - expected).norm() <= 2 * TOLERANCE * (x - expected).norm() + 1e-5


@needs_kernel
def test_a_checkpointed_layer_repeats_its_forward():
    layer = trained(lip.CPLLinear(16, 16))
    kept, x = layer._warm._kept, torch.randn(4, 16, requires_grad=True)
    y = checkpoint(layer, x, use_reentrant=False)
    moved = layer._warm._kept
    y.sum().backward()
    assert not kept.equal(moved)
    torch.testing.assert_close(layer._warm._kept, moved, rtol=0, atol=1e-6)


def test_threads_may_share_a_layer():
    layer, failures = trained(lip.CPLLinear(32, 32)), []
    x = torch.randn(4, 32)
    expected = layer(x).detach()

    def work():
        for _ in range(50):
            if (layer(x).detach() - expected).abs().max() > 0.05:
                failures.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
