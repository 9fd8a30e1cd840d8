import math

import pytest
import torch

from fastlip import ops, testing
from fastlip.kernels.polar.decomposition import decompose
from fastlip.kernels.polar.reference import ridged_newton

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
SHAPES = ((3, 4, 4), (2, 5, 3), (2, 3, 5), (1, 1), (4, 1, 3), (0, 3, 3))


def random(shape, dtype, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def defect(Q):
    gram = Q @ Q.mH if Q.shape[-2] <= Q.shape[-1] else Q.mH @ Q
    return (gram - torch.eye(gram.shape[-1], dtype=Q.dtype)).abs().amax().item() if Q.numel() else 0.0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_factor_is_orthonormal_and_leaves_a_positive_hermitian_factor(shape, dtype):
    V = random(shape, dtype)
    Q = ops.polar(V)
    tolerance = 100 * torch.finfo(dtype).eps
    assert Q.shape == V.shape
    assert Q.dtype == dtype
    assert defect(Q) < tolerance
    H = Q.mH @ V if V.shape[-2] >= V.shape[-1] else V @ Q.mH
    torch.testing.assert_close(H, H.mH, rtol=0, atol=tolerance)
    assert (torch.linalg.eigvalsh(H) > -tolerance).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 5, 3), (2, 3, 5), (1, 1)], ids=str)
def test_gradcheck(shape, dtype):
    assert torch.autograd.gradcheck(ops.polar, random(shape, dtype).requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 6, 3), (2, 3, 6)], ids=str)
def test_gradient_solves_the_sylvester_equation(shape, dtype):
    V = random(shape, dtype).requires_grad_()
    Q = ops.polar(V)
    G = random(shape, dtype, seed=1)
    (result,) = torch.autograd.grad(Q, V, G)
    V, Q = V.detach(), Q.detach()
    identity = torch.eye(min(shape[-2:]), dtype=dtype)

    def sylvester(H, R):  # H X + X H = R, by the Kronecker matrix
        K = torch.stack([torch.kron(h, identity) + torch.kron(identity, h.mT.contiguous()) for h in H])
        return torch.linalg.solve(K, R.flatten(-2)).unflatten(-1, R.shape[-2:])

    if shape[-2] >= shape[-1]:
        H = Q.mH @ V
        X = sylvester(H, Q.mH @ G - G.mH @ Q)
        expected = Q @ X + (G - Q @ Q.mH @ G) @ torch.linalg.inv(H)
    else:
        H = V @ Q.mH
        X = sylvester(H, G @ Q.mH - Q @ G.mH)
        expected = X @ Q + torch.linalg.inv(H) @ (G - G @ Q.mH @ Q)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)


def singular_matrices(dtype):
    rank_one = random((4, 1), dtype) @ random((1, 4), dtype, 1)
    repeated = torch.eye(4, dtype=dtype)
    half = torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0])).to(dtype)
    tiny = torch.full((4, 4), torch.finfo(dtype).tiny, dtype=dtype)
    return torch.stack([torch.zeros_like(half), rank_one, repeated, half, tiny, tiny**0.5 * half, 1e15 * rank_one])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [4, 2], ids=["square", "tall"])
@pytest.mark.parametrize("wide", [False, True])
def test_singular_matrices_are_finite_and_orthonormal(dtype, columns, wide):
    V = singular_matrices(dtype)[..., :columns]
    V = (V.mT.contiguous() if wide else V).requires_grad_()
    Q = ops.polar(V)
    assert defect(Q.detach()) < 100 * torch.finfo(dtype).eps
    (gradient,) = torch.autograd.grad(Q, V, random(Q.shape, dtype, 2))
    assert torch.isfinite(torch.view_as_real(gradient) if gradient.is_complex() else gradient).all()
    assert gradient[0].abs().max() < 10  # a zero matrix must not drown its neighbours


@pytest.mark.filterwarnings("ignore:.*batching rule:UserWarning")
def test_transforms_and_compile_agree_with_eager():
    V = random((3, 4, 3), torch.float64)
    G = random((3, 4, 3), torch.float64, 1)

    def loss(matrix, weight):
        return (ops.polar(matrix) * weight).sum()

    eager = torch.func.grad(loss)(V, G)
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(V, G), eager)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    leaf = V.clone().requires_grad_()
    compiled(leaf, G).backward()
    torch.testing.assert_close(leaf.grad, eager)


@pytest.mark.parametrize("shape", [(5, 4, 4), (5, 2, 4, 3), (5, 3, 4)], ids=str)
@pytest.mark.parametrize("reals", [0, 2, 5])
def test_some_matrices_of_a_batch_are_taken_as_real(shape, reals):
    V, G = random(shape, torch.complex128).requires_grad_(), random(shape, torch.complex128, 1)
    parts = [V[:reals].real, V[reals:]]
    expected = torch.cat([ops.polar(part).to(V.dtype) for part in parts])
    Q = ops.polar(V, reals)
    assert (Q[:reals].imag == 0).all()
    torch.testing.assert_close(Q, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, V, G)[0] for value in (Q, expected)))


@pytest.mark.parametrize("shape", [(5, 4, 4), (5, 6, 3), (5, 3, 6)], ids=str)
def test_keeps_the_matrices_the_factor_the_smaller_basis_and_the_singular_values(shape):
    V, least = random(shape, torch.complex64).requires_grad_(), min(shape[-2:])
    kept = testing.bytes_kept(lambda: ops.polar(V, 2, backend="reference"))
    complex_bytes, real_bytes = 5 * math.prod(shape[1:]) * 8, 5 * least * 4
    bases = (2 * 4 + 3 * 8) * least**2
    assert kept == 2 * complex_bytes + bases + real_bytes


def test_low_precision_and_autocast_compute_in_float32():
    V = random((4, 4), torch.bfloat16).requires_grad_()
    Q = ops.polar(V)
    assert Q.dtype == torch.float32
    assert defect(Q.detach()) < 1e-5
    V = random((4, 4), torch.float32).requires_grad_()
    plain = torch.autograd.grad(ops.polar(V).sin().sum(), V)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = torch.autograd.grad(ops.polar(V).sin().sum(), V)[0]
    assert torch.equal(plain, cast)


def test_arguments_are_checked():
    with pytest.raises(TypeError, match=r"V: got torch\.int64"):
        ops.polar(torch.eye(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"V: got shape \(3,\)"):
        ops.polar(torch.ones(3))
    with pytest.raises(ValueError, match=r"V: got shape \(2, 0, 3\)"):
        ops.polar(torch.ones(2, 0, 3))
    for V, reals in ((torch.eye(2), 1), (torch.ones(2, 2, 2, dtype=torch.complex64), 3)):
        with pytest.raises(ValueError, match=f"reals={reals}"):
            ops.polar(V, reals)
    with pytest.raises(ValueError, match="backend='fast'"):
        ops.polar(torch.eye(2), backend="fast")


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 5, 3), (2, 3, 5)], ids=str)
def test_ridged_newton_converges_to_the_factor_of_the_ridged_matrix_from_below(shape, dtype):
    V = random(shape, dtype)
    U, s, Wh = torch.linalg.svd(V, full_matrices=False)
    expected = U * (s / (s**2 + 1e-2).sqrt())[..., None, :].to(dtype) @ Wh
    torch.testing.assert_close(ridged_newton(V, 1e-2, 40), expected, rtol=1e-10, atol=1e-10)
    for steps in (1, 3, 10):
        assert torch.linalg.matrix_norm(ridged_newton(V, 1e-4, steps), 2).max() < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", [(3, 20, 20), (2, 30, 12), (2, 12, 30), (4, 1, 1)])
@pytest.mark.parametrize("condition", [3.0, 1e6])
def test_either_way_of_decomposing_is_accurate(shape, dtype, condition):
    wide = torch.promote_types(dtype, torch.float64)
    U, _, Wh = torch.linalg.svd(torch.randn(shape, dtype=wide), full_matrices=False)
    s = torch.logspace(0, -math.log10(condition), Wh.shape[-2], dtype=torch.float64)
    V = (7 * (U * s) @ Wh).to(dtype)
    found, values, right = decompose(V)
    eps = torch.finfo(dtype).eps * max(shape) ** 0.5
    identity = torch.eye(Wh.shape[-2], dtype=dtype).expand(shape[0], -1, -1)
    torch.testing.assert_close(found.mH @ found, identity, rtol=0, atol=8 * eps)
    torch.testing.assert_close(right @ right.mH, identity, rtol=0, atol=8 * eps)
    torch.testing.assert_close((found * values[..., None, :]) @ right, V, rtol=0, atol=8 * 7 * eps)


def test_the_cheap_way_is_taken_where_it_is_accurate(monkeypatch):
    calls = []
    original = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    well = torch.eye(5) + 0.1 * torch.randn(2, 5, 5)
    decompose(well)
    assert not calls
    decompose(torch.stack((well[0], torch.diag(torch.tensor([1.0, 1, 1, 1, 1e-4])))))
    decompose(torch.zeros(1, 3, 3))
    assert len(calls) == 2
