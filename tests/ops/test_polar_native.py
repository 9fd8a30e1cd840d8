"""The C++ kernels for the CPU: what the agreement tests, which find them by themselves, do not say."""

import math

import pytest
import torch

from fastlip import ops, testing
from fastlip.kernels.polar.api import OP

if _reason := OP.status("native"):
    pytest.skip(_reason, allow_module_level=True)

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
WIDE = {torch.float32: torch.float64, torch.complex64: torch.complex128}


def random(shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def conditioned(shape, dtype, condition):
    """Matrices with singular values from 5 down to 5 / condition."""
    U, s, Wh = torch.linalg.svd(random(shape, WIDE.get(dtype, dtype)), full_matrices=False)
    s = torch.logspace(0, -math.log10(condition), s.shape[-1], dtype=torch.float64)
    return (5 * (U * s) @ Wh).to(dtype)


def both(V, G, backend="native", reals=0):
    leaf = V.clone().requires_grad_()
    Q = ops.polar(leaf, reals, backend=backend)
    return Q.detach(), torch.autograd.grad(Q, leaf, G)[0]


def defect(Q):
    gram = Q @ Q.mH if Q.shape[-2] < Q.shape[-1] else Q.mH @ Q
    return (gram - torch.eye(gram.shape[-1], dtype=Q.dtype)).abs().amax().item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 20, 20), (2, 150, 150), (2, 100, 130), (3, 40, 9)], ids=str)
def test_no_bit_depends_on_the_number_of_threads(shape, dtype):
    V, G = random(shape, dtype), random(shape, dtype, 1)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(both(V, G))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for found in results[1:] for a, b in zip(found, results[0], strict=True))


@pytest.mark.parametrize("condition", [1.0, 1.3, 30, 1e4, 1e6])
@pytest.mark.parametrize("shape", [(2, 24, 24), (1, 40, 17), (1, 17, 40)], ids=str)
def test_accurate_up_to_the_condition(shape, condition):
    V, G = conditioned(shape, torch.float32, condition), random(shape, torch.float32, 1)
    Q, gradient = both(V, G)
    exact = both(V.double(), G.double(), "reference")
    eps = torch.finfo(torch.float32).eps
    assert defect(Q) < 8 * eps
    # Rounding V itself moves Q by eps / its least singular value, and the gradient by so much of its own size.
    assert (Q - exact[0]).abs().max() < 8 * condition * eps
    assert (gradient - exact[1]).abs().max() < 64 * condition * eps * exact[1].abs().max()


@pytest.mark.parametrize("condition", [1.001, 1.05, 2.4, 30])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [31, 33, 64, 97])
def test_accurate_where_inverses_have_several_blocks(size, dtype, condition):
    shape, wide = (1, size, size), WIDE.get(dtype, dtype)
    V, G = conditioned(shape, dtype, condition), random(shape, dtype, 1)
    exact = both(V.to(wide), G.to(wide), "reference")
    eps = torch.finfo(dtype).eps
    for found, truth in zip(both(V, G), exact, strict=True):
        assert (found - truth).norm() < 4 * math.sqrt(size) * condition * eps * truth.norm()


@pytest.mark.parametrize("outliers", [(40.0, 7.0), (1e-2, 2e-2), (40.0, 1e-2)], ids=str)
@pytest.mark.parametrize("shape", [(1, 48, 48), (1, 70, 40)], ids=str)
def test_singular_values_far_from_the_others_keep_their_sign(shape, outliers):
    U, s, Wh = torch.linalg.svd(random(shape), full_matrices=False)
    s = 1 + 0.01 * random(s.shape, seed=2)
    s[..., :2] = torch.tensor(outliers, dtype=torch.float64)
    V, G = ((U * s[..., None, :]) @ Wh).float(), random(shape, torch.float32, 1)
    Q, gradient = both(V, G)
    exact, of_exact = both(V.double(), G.double(), "reference")
    eps, condition = torch.finfo(torch.float32).eps, (s.max() / s.min()).item()
    assert torch.linalg.eigvalsh(Q.mH.double() @ V.double()).min() > 0.9 * s.min()
    assert (Q - exact).abs().max() < 8 * condition * eps
    assert (gradient - of_exact).abs().max() < 64 * condition * eps * of_exact.abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(6, 6), (6, 3), (3, 6)], ids=str)
def test_only_singular_matrices_are_decomposed(shape, dtype, monkeypatch):
    V, G = conditioned((5, *shape), dtype, 3), random((5, *shape), dtype, 1)
    calls = []
    original = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda V, **options: calls.append(len(V)) or original(V, **options))
    both(V, G)
    assert calls == []
    V[1] = 0
    V[2, :, 1:] = 0
    V[2, 1:] = 0
    Q, gradient = both(V, G)
    assert sum(calls) == 2
    assert defect(Q) < 16 * torch.finfo(dtype).eps
    assert torch.view_as_real(gradient + 0j).isfinite().all()
    keep = [0, 3, 4]
    for found, alone in zip((Q, gradient), both(V[keep], G[keep]), strict=True):
        assert torch.equal(found[keep], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_what_is_not_finite_gives_nan_and_leaves_its_neighbours(dtype):
    V, G = conditioned((4, 5, 3), dtype, 3), random((4, 5, 3), dtype, 1)
    whole = both(V, G)
    V[1, 2, 2], V[2, 0, 0] = math.nan, math.inf
    for found, expected in zip(both(V, G), whole, strict=True):
        assert found[1:3].isnan().all()
        assert torch.equal(found[[0, 3]], expected[[0, 3]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_powers_of_two_change_no_bit(dtype):
    V, G = random((2, 5, 5), dtype), random((2, 5, 5), dtype, 1)
    Q, gradient = both(V, G)
    for factor in (2.0**100, 2.0**-50):
        found = both(V * factor, G)
        assert torch.equal(found[0], Q)
        assert torch.equal(found[1] * factor, gradient)


@pytest.mark.parametrize("shape", [(3, 30, 30), (2, 9, 40)], ids=str)
def test_no_singular_value_exceeds_one_by_more_than_rounding(shape):
    for condition in (1.0, 2.0, 1e3):
        Q, _ = both(conditioned(shape, torch.float32, condition), random(shape, torch.float32, 1))
        assert torch.linalg.svdvals(Q.double()).max() < 1 + 4 * torch.finfo(torch.float32).eps


def test_the_first_matrices_are_taken_as_real():
    V, G = random((4, 2, 5, 3), torch.complex128), random((4, 2, 5, 3), torch.complex128, 1)
    found, expected = both(V, G, reals=2), both(V, G, "reference", 2)
    assert (found[0][:2].imag == 0).all()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_keeps_the_factor_and_the_matrix():
    V = random((3, 8, 5), torch.float32).requires_grad_()
    Q_and_flags = V.nbytes + len(V)
    assert testing.bytes_kept(lambda: ops.polar(V, backend="native"), [V]) == Q_and_flags


def test_taken_where_it_is_faster():
    assert OP.choose("auto", torch.empty(1, 1024, 1100), 0) == "native"
    assert OP.choose("auto", torch.empty(1, 1100, 1100), 0) == "reference"
    assert OP.choose("native", torch.empty(1, 1100, 1100), 0) == "native"
    assert OP.choose("auto", torch.empty(2, 130, 130, dtype=torch.float64), 0) == "reference"
