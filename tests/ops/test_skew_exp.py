"""skew_exp beyond agreement: orthogonality, the gradient for large angles, what is kept, errors."""

import math

import pytest
import torch

from fastlip import ops, testing
from fastlip.kernels.skew_exp import on_device

BACKENDS = ("reference", "native")


@pytest.mark.parametrize("backend", BACKENDS)
def test_takes_the_skew_part(backend):
    K = torch.randn(2, 5, 5, dtype=torch.float64)
    expected = torch.linalg.matrix_exp((K - K.mT) / 2)
    torch.testing.assert_close(ops.skew_exp(K, backend=backend), expected, rtol=0, atol=1e-13)
    assert ops.skew_exp(K.bfloat16(), backend=backend).dtype == torch.float32


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
@pytest.mark.parametrize("size", [1, 9, 200])
def test_is_orthogonal_to_rounding(size, scale, backend):
    Q = ops.skew_exp(torch.randn(size, size) * scale / size**0.5, backend=backend)
    defect = (Q.double().T @ Q.double() - torch.eye(size, dtype=torch.float64)).abs().max()
    assert defect < 20 * torch.finfo(torch.float32).eps
    assert torch.linalg.slogdet(Q.double())[0] == 1


@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0, 3.0, 30.0])
def test_the_gradient_is_that_of_the_matrix_exponential(scale):
    K = torch.randn(3, 6, 6, dtype=torch.float64) * scale
    if scale == 0.01:
        K[1], K[2] = 0, torch.nan  # every matrix is its own

    def gradient(backend, K):
        return testing.outputs_and_gradients(lambda K: ops.skew_exp(K, backend=backend), {"K": K})["gradient of K"]

    if scale == 0.01:
        assert gradient("native", K[2]).isnan().all()
        K = K[:2]
    torch.testing.assert_close(gradient("native", K), gradient("reference", K), rtol=1e-11, atol=1e-12)


def test_four_matrices_are_kept():
    K = torch.randn(8, 8)
    assert testing.saved_bytes(lambda K: ops.skew_exp(K, backend="native"), {"K": K}) == 4 * 4 * 64


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("angle", [1e-3, 0.01, 0.04, 0.06, 0.5, 0.6, 2.0, 50.0])
def test_rotations_are_turned_by_their_angle(angle, dtype, backend):
    """Near every norm at which the number of squarings changes; the derivative for the angle is the next rotation."""
    K = torch.zeros(1, 2, 2, dtype=dtype)
    K[0, 0, 1] = -2 * angle
    K.requires_grad_()
    Q = ops.skew_exp(K, backend=backend)
    c, s = math.cos(angle), math.sin(angle)
    expected = torch.tensor([[[c, -s], [s, c]]], dtype=dtype)
    tolerance = 8 * (1 + angle) * torch.finfo(dtype).eps
    torch.testing.assert_close(Q.detach(), expected, rtol=0, atol=tolerance)
    (gradient,) = torch.autograd.grad(Q, K, torch.tensor([[[1.0, 0.0], [0.0, 0.0]]], dtype=dtype))
    # K_12 = -2 angle gives the derivative of the cosine a half, and a half of that is each entry's of the skew part.
    torch.testing.assert_close(gradient[0, 0, 1].item(), s / 2, rtol=0, atol=2 * tolerance)


def test_a_matrix_that_is_not_finite_gives_no_numbers():
    assert ops.skew_exp(torch.full((1, 8, 8), math.nan), backend="native").isnan().all()
    K = torch.zeros(8, 8)
    K[0, 1] = math.inf
    assert not ops.skew_exp(K, backend="native").isfinite().all()


@pytest.mark.parametrize(("size", "expected"), [(3, "reference"), (4, "native")])
def test_auto_leaves_the_smallest_matrices_to_the_reference(size, expected):
    assert testing.op("skew_exp").choose("auto", torch.zeros(size, size)) == expected


def test_transforms_run_the_reference():
    K, G = torch.randn(2, 3, 4, 4, dtype=torch.float64)

    def loss(matrix, weight):
        return (ops.skew_exp(matrix) * weight).sum()

    expected = torch.func.grad(loss)(K, G)
    torch.testing.assert_close(torch.vmap(torch.func.grad(loss))(K, G), expected)


@pytest.mark.parametrize(
    ("K", "error", "text"),
    [
        (torch.zeros(2, 3), ValueError, r"K: got shape \(2, 3\), expected square"),
        (torch.zeros(3), ValueError, r"K: got shape \(3,\)"),
        (torch.zeros(2, 2, dtype=torch.complex64), TypeError, "K: got torch.complex64, expected a real"),
        (torch.zeros(2, 2, dtype=torch.int32), TypeError, "K: got torch.int32"),
    ],
)
def test_errors_name_the_argument(K, error, text):
    with pytest.raises(error, match=text):
        ops.skew_exp(K)


@pytest.mark.parametrize(("size", "scale"), [(1, 1.0), (3, 0.0), (3, 1.0), (8, 5.0), (5, 40.0)])
def test_what_gpus_run_is_the_exponential_and_its_adjoint(size, scale):
    K = scale * torch.randn(2, size, size, dtype=torch.float64)
    A = ((K - K.mT) / 2).requires_grad_()
    E = torch.linalg.matrix_exp(A)
    G = torch.randn_like(E)
    (gradient,) = torch.autograd.grad(E, A, G)
    expected = (gradient - gradient.mT) / 2
    A, E = A.detach(), E.detach()
    torch.testing.assert_close(on_device.exponential(A), E, rtol=0, atol=1e-12)
    torch.testing.assert_close(on_device.adjoint(G @ E.mT, A), expected, rtol=1e-11, atol=1e-11)
