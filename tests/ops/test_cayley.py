import pytest
import torch

from fastlip import ops

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
