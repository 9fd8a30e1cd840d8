import pytest
import torch

from fastlip import ops, testing
from fastlip.kernels.common import binding
from fastlip.kernels.common.dispatch import registered

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
SHAPES = ((3, 4, 4), (2, 5, 3), (2, 3, 5), (1, 1), (4, 1, 3), (0, 3, 3))


def random(shape, dtype, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def defect(Q):
    gram = Q @ Q.mH if Q.shape[-2] <= Q.shape[-1] else Q.mH @ Q
    return (gram - torch.eye(gram.shape[-1], dtype=Q.dtype)).abs().amax().item() if Q.numel() else 0.0


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_columns_or_rows_are_orthonormal(shape, dtype, scale):
    Q = ops.cayley(scale * random(shape, dtype))
    assert Q.shape == shape
    assert Q.dtype == dtype
    assert defect(Q) < 30 * torch.finfo(dtype).eps


@pytest.mark.parametrize("shape", [(8, 6, 6), (8, 9, 6), (8, 6, 9)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_norm_exceeds_one_where_the_inverse_is_inaccurate(shape, dtype):
    Q = ops.cayley(1e5 * random(shape, dtype)).to(torch.complex128)
    assert torch.linalg.svdvals(Q).max() <= 1 + 30 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_is_the_transform_of_the_paper(dtype):
    M = random((2, 5, 3), dtype)
    U, V = M[:, :3], M[:, 3:]
    A, identity = U - U.mH + V.mH @ V, torch.eye(3, dtype=dtype)
    inverse = torch.linalg.inv(identity + A)
    expected = torch.cat((inverse @ (identity - A), -2 * V @ inverse), 1)
    torch.testing.assert_close(ops.cayley(M), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ops.cayley(M.mH), expected.mH, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 5, 3), (2, 3, 5)], ids=str)
def test_gradcheck(shape, dtype):
    assert torch.autograd.gradcheck(ops.cayley, random(shape, dtype).requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("rows", [3, 5])
def test_gradient_is_the_closed_form(rows, dtype):
    M = random((2, rows, 3), dtype).requires_grad_()
    G = random((2, rows, 3), dtype, 1)
    (result,) = torch.autograd.grad(ops.cayley(M), M, G)
    U, V = M.detach()[:, :3], M.detach()[:, 3:]
    B = torch.linalg.inv(torch.eye(3, dtype=dtype) + U - U.mH + V.mH @ V)
    B_bar = 2 * (G[:, :3] - V.mH @ G[:, 3:])
    A_bar = -B.mH @ B_bar @ B.mH
    V_bar = -2 * G[:, 3:] @ B.mH + V @ (A_bar + A_bar.mH)
    expected = torch.cat((A_bar - A_bar.mH, V_bar), 1)
    torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-11)


def test_zero_is_the_identity():
    torch.testing.assert_close(ops.cayley(torch.zeros(2, 5, 3)), torch.eye(5, 3).expand(2, 5, 3))


def test_low_precision_and_autocast_compute_in_float32():
    M = random((4, 4), torch.bfloat16)
    assert ops.cayley(M).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = ops.cayley(M)
    assert torch.equal(cast, ops.cayley(M))


def test_compile_agrees_with_eager():
    M = random((2, 4, 3), torch.complex128)
    compiled = torch.compile(ops.cayley, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(M), ops.cayley(M))


def test_arguments_are_checked():
    with pytest.raises(TypeError, match=r"M: got torch\.int64"):
        ops.cayley(torch.eye(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="triton"):
        ops.cayley(torch.eye(2), backend="triton")


@pytest.fixture
def _with_native():
    if reason := registered["cayley"].status("native"):
        pytest.skip(reason)


@pytest.mark.usefixtures("_with_native")
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 5, 3), (2, 3, 5), (1, 18, 18), (1, 35, 35)], ids=str)
def test_native_gradcheck(shape, dtype):
    M = random(shape, dtype).requires_grad_()
    assert torch.autograd.gradcheck(lambda M: ops.cayley(M, backend="native"), M, fast_mode=M.numel() > 200)


def large(kind, channels, norm, dtype):
    """Matrices whose skew part has a given norm: spread, of rank two, or with a few large entries."""
    shape = (2, channels, channels)
    M = random(shape, dtype)
    if kind == "low rank":
        M = M[..., :1] @ random(shape, dtype, 1)[:, :1]
    if kind == "sparse":
        M *= 0.01
        M[:, 0, 1], M[:, 3, 2], M[:, -1, 0] = 1, 5, -3
    return M * (norm / torch.linalg.matrix_norm(M - M.mH, 2).amax())


@pytest.mark.usefixtures("_with_native")
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("channels", [16, 64, 100])
@pytest.mark.parametrize("kind", ["spread", "low rank", "sparse"])
@pytest.mark.parametrize("norm", [40, 140, 1000, 1e6])
def test_native_stays_orthogonal_for_large_skew_parts(kind, channels, norm, dtype):
    M = large(kind, channels, norm, dtype)
    Q = ops.cayley(M, backend="native")
    wide = torch.complex128 if dtype.is_complex else torch.float64
    values = torch.linalg.svdvals(Q.to(wide))
    assert (values - 1).abs().max() < 1e-5
    if norm <= 1000:
        torch.testing.assert_close(Q.to(wide), ops.cayley(M.to(wide), backend="reference"), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("_with_native")
@pytest.mark.parametrize("shape", [(3, 20, 20), (3, 30, 20), (3, 20, 30)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_native_leaves_what_it_cannot_invert_to_the_reference(shape, dtype):
    M = random(shape, dtype)
    M[1] *= 1e12
    Q = ops.cayley(M, backend="native")
    assert defect(Q) < 1e-5 if dtype in (torch.float32, torch.complex64) else defect(Q) < 1e-12
    torch.testing.assert_close(Q[::2], ops.cayley(M[::2], backend="native"), rtol=0, atol=0)


@pytest.mark.usefixtures("_with_native")
@pytest.mark.parametrize("shape", [(20, 16, 16), (5, 70, 70), (3, 40, 33), (1, 300, 300)], ids=str)
def test_bits_do_not_depend_on_the_number_of_threads(shape):
    M, G = random(shape, torch.complex64), random(shape, torch.complex64, 1)
    library, results = binding.library("cpu"), []
    try:
        for loop in (0, binding._torch_parallel_for()):
            library.set_parallel_for(loop)
            leaf = M.clone().requires_grad_()
            Q = ops.cayley(leaf, backend="native")
            results.append((Q.detach(), *torch.autograd.grad(Q, leaf, G)))
    finally:
        library.set_parallel_for(binding._torch_parallel_for())
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@pytest.mark.usefixtures("_with_native")
def test_native_reads_views_as_they_are_meant():
    M = random((3, 6, 6), torch.complex64)
    for view in (M.mH, M.conj(), M.transpose(0, 1)[:3], M[:, ::2, ::2], M.real, M.conj().imag, M[:, :, :4].mT):
        expected = ops.cayley(view.clone().resolve_conj(), backend="reference")
        torch.testing.assert_close(ops.cayley(view, backend="native"), expected)


@pytest.mark.usefixtures("_with_native")
def test_native_saves_the_result_alone():
    M = random((4, 8, 8), torch.complex64)
    assert testing.saved_bytes(lambda M: ops.cayley(M, backend="native"), {"M": M}) == M.nbytes


@pytest.mark.usefixtures("_with_native")
@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 5, 3), (2, 3, 5)], ids=str)
def test_native_compiles_without_graph_break(shape):
    M = random(shape, torch.complex64)
    compiled = torch.compile(lambda M: ops.cayley(M, backend="native"), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(M), ops.cayley(M, backend="reference"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 9, 6), (70, 33), (3, 40, 39)], ids=str)
def test_wide_matrices_are_the_adjoints_of_tall_ones_bit_by_bit(shape, dtype):
    M, G = (torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    M[..., 1:, :] *= 0.2
    found = []
    for tensor, cotangent in ((M, G), (M.mH.contiguous().resolve_conj(), G.mH.contiguous().resolve_conj())):
        leaf = tensor.clone().requires_grad_()
        Q = ops.cayley(leaf, backend="native")
        found.append((Q.detach(), *torch.autograd.grad(Q, leaf, cotangent)))
    for tall, wide in zip(*found, strict=True):
        assert torch.equal(tall, wide.mH.resolve_conj())


@pytest.mark.parametrize("factor", [1.0, 30.0, 1000.0])
def test_gradients_of_tall_matrices_keep_their_digits_where_the_inverse_is_small(factor):
    M, G = (torch.randn(100, 33, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    M /= 10
    M[-1] *= factor
    found = {}
    for backend, tensor in (("native", M), ("reference", M), ("exact", M.double())):
        leaf = tensor.clone().requires_grad_()
        Q = ops.cayley(leaf, backend="native" if backend == "native" else "reference")
        found[backend] = torch.autograd.grad(Q, leaf, G.to(Q))[0]
    error, of_reference = ((found[name] - found["exact"]).norm() for name in ("native", "reference"))
    assert error < 2 * of_reference
    assert error < 16 * factor**2 * torch.finfo(torch.float32).eps * found["exact"].norm()
