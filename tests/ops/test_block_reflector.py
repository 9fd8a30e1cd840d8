import pytest
import torch

from fastlip import ops
from fastlip.kernels.common.dispatch import registered

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
backends = pytest.mark.parametrize("backend", ["reference", "native"])


@pytest.fixture(autouse=True)
def _with_native(request):
    needed = "backend" in request.fixturenames and request.getfixturevalue("backend") == "native"
    if needed and (reason := registered["block_reflector"].status("native")):
        pytest.skip(reason)


def random(shape, dtype, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def defect(Q):
    gram = Q @ Q.mH if Q.shape[-2] <= Q.shape[-1] else Q.mH @ Q
    return (gram - torch.eye(gram.shape[-1], dtype=Q.dtype)).abs().amax().item() if Q.numel() else 0.0


@backends
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 2), (2, 2, 5, 1), (6, 3), (1, 1)], ids=str)
def test_is_the_formula_of_the_paper(shape, dtype, backend):
    V = random(shape, dtype)
    expected = torch.eye(shape[-2], dtype=dtype) - 2 * V @ torch.linalg.inv(V.mH @ V) @ V.mH
    torch.testing.assert_close(ops.block_reflector(V, backend=backend), expected, rtol=1e-11, atol=1e-11)


@backends
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (9, 16), (16, 9)])
def test_is_orthogonal_however_ill_conditioned(dtype, condition, rows, columns, backend):
    V = random((3, 16, 6), torch.complex128 if dtype.is_complex else torch.float64)
    U, _, Wh = torch.linalg.svd(V, full_matrices=False)
    values = torch.logspace(0, 1, 6, base=1 / condition, dtype=torch.float64)
    V = ((U * values) @ Wh).to(dtype)
    Q = ops.block_reflector(V, rows, columns, backend=backend)
    assert Q.shape == (3, rows, columns)
    assert Q.dtype == dtype
    assert defect(Q) < 40 * torch.finfo(dtype).eps


SINGULAR = {
    "zero": lambda V: 0 * V,
    "a zero column": lambda V: V * torch.tensor([1, 0, 1, 1]),
    "equal columns": lambda V: V[..., [0, 1, 1, 2]],
    "rank one": lambda V: V[..., :1] * torch.arange(1, 5),
    "large": lambda V: V * 1e30,
    "small": lambda V: V * 1e-30,
    "subnormal": lambda V: V * 1e-41,
    "one of a batch": lambda V: V * torch.tensor([0, 1, 1]).view(3, 1, 1),
}


@backends
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", SINGULAR)
def test_singular_matrices_reflect_what_they_span(kind, dtype, backend):
    V = SINGULAR[kind](random((3, 8, 4), dtype)).to(dtype).requires_grad_()
    Q = ops.block_reflector(V, backend=backend)
    assert defect(Q.detach()) < 40 * torch.finfo(dtype).eps
    wide = V.detach().to(torch.promote_types(dtype, torch.float64))
    largest = wide.abs().amax()
    wide = wide / largest if largest else wide
    U, s, _ = torch.linalg.svd(wide, full_matrices=False)
    U = U * (s > 1e-6 * s[..., :1].clamp(min=1e-300))[..., None, :]
    expected = torch.eye(8) - 2 * U @ U.mH
    tolerance = 1e-3 if kind == "subnormal" else 200 * torch.finfo(dtype).eps
    assert (Q - expected).abs().amax() < tolerance
    (gradient,) = torch.autograd.grad(Q.abs().sum(), V)
    assert gradient.abs().isfinite().all()


@backends
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("parts", [(5, 5), (5, 3), (2, 5)], ids=str)
def test_gradients(parts, dtype, backend):
    V = random((2, 5, 2), dtype).requires_grad_()
    function = lambda V: ops.block_reflector(V, *parts, backend=backend)  # noqa: E731
    assert torch.autograd.gradcheck(function, V)
    assert torch.autograd.gradgradcheck(function, V)


@backends
def test_gradient_is_the_closed_form(backend):
    V, G = random((2, 6, 3), torch.complex128).requires_grad_(), random((2, 6, 6), torch.complex128, 1)
    (result,) = torch.autograd.grad(ops.block_reflector(V, backend=backend), V, G)
    V = V.detach()
    U = V @ torch.linalg.inv(V.mH @ V)
    expected = -2 * (torch.eye(6) - U @ V.mH) @ (G + G.mH) @ U
    torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-11)


@backends
def test_the_scale_has_no_effect_and_full_rank_is_minus_the_identity(backend):
    V = random((2, 5, 2), torch.float64)
    function = lambda V: ops.block_reflector(V, backend=backend)  # noqa: E731
    torch.testing.assert_close(function(V), function(1e-5 * V))
    torch.testing.assert_close(function(random((4, 4), torch.float64)), -torch.eye(4, dtype=torch.float64))


@backends
def test_results_do_not_depend_on_the_rest_of_the_batch(backend):
    V = random((4, 8, 3), torch.float32)
    alone = ops.block_reflector(V[1:2], backend=backend)
    V[0] = 0
    V[2] = torch.nan
    Q = ops.block_reflector(V, backend=backend)
    torch.testing.assert_close(Q[1:2], alone)
    assert torch.equal(Q[0], torch.eye(8))
    assert Q[2].isnan().all()


def test_low_precision_and_autocast_compute_in_float32():
    V = random((4, 2), torch.bfloat16)
    assert ops.block_reflector(V).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = ops.block_reflector(V)
    assert torch.equal(cast, ops.block_reflector(V))


def test_compile_agrees_with_eager():
    V = random((2, 4, 2), torch.complex128)
    compiled = torch.compile(ops.block_reflector, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(V), ops.block_reflector(V))


def test_arguments_are_checked():
    with pytest.raises(TypeError, match=r"V: got torch\.int64"):
        ops.block_reflector(torch.eye(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="rows=3: expected between 1 and the 2 rows of V"):
        ops.block_reflector(torch.eye(2), 3)
    with pytest.raises(ValueError, match="columns=0"):
        ops.block_reflector(torch.eye(2), columns=0)
    with pytest.raises(ValueError, match="triton"):
        ops.block_reflector(torch.eye(2), backend="triton")
