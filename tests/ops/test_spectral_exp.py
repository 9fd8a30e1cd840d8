import pytest
import torch

from fastlip import ops

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def skew(shape, dtype, seed=0):
    K = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    return K - K.mH


def repeated_eigenvalues(dtype):
    blocks = torch.zeros(4, 4, dtype=dtype)
    blocks[0, 1], blocks[2, 3] = 1, 1
    return torch.stack([torch.zeros_like(blocks), blocks - blocks.mH, 3 * (blocks - blocks.mH)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 5, 5), (1, 1), (0, 3, 3)], ids=str)
def test_is_the_matrix_exponential(shape, dtype):
    K = skew(shape, dtype)
    E = ops.spectral_exp(K)
    assert E.dtype == dtype
    expected = torch.linalg.matrix_exp(K.to(torch.promote_types(dtype, torch.float64))).to(dtype)
    tolerance = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(E, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_unitary_for_large_arguments(dtype):
    E = ops.spectral_exp(100 * skew((3, 9, 9), dtype))
    defect = (E @ E.mH - torch.eye(9, dtype=dtype)).abs().max()
    assert defect < 30 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_gradcheck(dtype):
    assert torch.autograd.gradcheck(ops.spectral_exp, skew((2, 4, 4), dtype).requires_grad_())
    assert torch.autograd.gradcheck(ops.spectral_exp, repeated_eigenvalues(dtype).requires_grad_())


def test_takes_the_skew_hermitian_part():
    K = torch.randn(3, 3, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ops.spectral_exp(K), torch.linalg.matrix_exp((K - K.mH) / 2))


def test_transforms_and_compile_agree_with_eager():
    K = skew((3, 4, 4), torch.float64)
    G = torch.randn(3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def loss(matrix, weight):
        return (ops.spectral_exp(matrix) * weight).sum()

    eager = torch.func.grad(loss)(K, G)
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(K, G), eager)
    leaf = K.clone().requires_grad_()
    torch.compile(loss, backend="aot_eager", fullgraph=True)(leaf, G).backward()
    torch.testing.assert_close(leaf.grad, eager)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"K_hat: got shape \(2, 3\)"):
        ops.spectral_exp(torch.ones(2, 3))
    with pytest.raises(TypeError, match="K_hat"):
        ops.spectral_exp(torch.ones(2, 2, dtype=torch.int64))
