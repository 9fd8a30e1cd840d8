"""What the agreement tests cannot say of gram_rowsum: bound, edge cases, determinism, memory."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastlip import testing
from fastlip.kernels.common.case import Case
from fastlip.kernels.common.dispatch import registered
from fastlip.ops import gram_rowsum

BACKENDS = ("reference", "native")
KERNELS = [(), (1, 1), (2, 2), (3, 3), (5, 5), (3, 2), (1, 4)]


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param != "reference" and (reason := registered["gram_rowsum"].status(request.param)):
        pytest.skip(reason)
    return request.param


@pytest.fixture
def native():
    if reason := registered["gram_rowsum"].status("native"):
        pytest.skip(reason)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def convolution_matrix(weight, side, circular, stride=1, dilation=1):
    """The dense matrix of the convolution on a side x side image."""
    cin = weight.shape[1]
    basis = torch.eye(cin * side * side, dtype=weight.dtype).view(-1, cin, side, side)
    reach = [dilation * (k - 1) for k in weight.shape[2:]]
    padding = (reach[1], reach[1], reach[0], reach[0])
    if circular:
        index = [torch.arange(-reach[d], side) % side for d in (0, 1)]
        basis = basis[..., index[0], :][..., index[1]]
    else:
        basis = torch.nn.functional.pad(basis, padding)
    return torch.nn.functional.conv2d(basis, weight, stride=stride, dilation=dilation).flatten(1).T


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("kernel", [k for k in KERNELS if k])
@pytest.mark.parametrize("with_psi", [False, True])
def test_bounds_the_spectral_norm(kernel, circular, with_psi, backend):
    weight = normal(4, 3, *kernel)
    psi = normal(3, seed=1) if with_psi else None
    sigma = torch.linalg.matrix_norm(convolution_matrix(weight, 6, circular), 2)
    assert sigma**2 <= gram_rowsum(weight, psi, backend=backend).max() * (1 + 1e-12)


@pytest.mark.parametrize(("stride", "dilation"), [(2, 1), (1, 2), (2, 2)])
def test_bounds_every_stride_and_dilation(stride, dilation, backend):
    weight = normal(3, 3, 3, 3)
    matrix = convolution_matrix(weight, 7, False, stride, dilation)
    assert torch.linalg.matrix_norm(matrix, 2) ** 2 <= gram_rowsum(weight, backend=backend).max()


def test_rescaled_weight_has_norm_one_in_its_own_metric(backend):
    """For P = W r^{-1/2}, the weights q = r^{1/2} certify exactly 1."""
    weight = normal(6, 5, 3, 3)
    r = gram_rowsum(weight, backend=backend)
    certificate = gram_rowsum(weight * r.rsqrt().view(1, -1, 1, 1), r.log() / 2, backend=backend)
    torch.testing.assert_close(certificate, torch.ones_like(r), rtol=1e-13, atol=0)


def test_output_gram_bounds_the_adjoint(backend):
    weight = normal(3, 7, 3, 3)
    sigma = torch.linalg.matrix_norm(convolution_matrix(weight, 5, True), 2)
    assert sigma**2 <= gram_rowsum(weight.transpose(0, 1), backend=backend).max()


def test_dense_is_the_row_sum_of_the_gram_matrix(backend):
    weight = normal(5, 40)
    expected = (weight.T @ weight).abs().sum(1)
    torch.testing.assert_close(gram_rowsum(weight, backend=backend), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("channels", [4, 36])
def test_groups_equal_a_loop(channels, backend):
    weight, psi = normal(6, channels, 2, 3), normal(3 * channels, seed=1)
    parts = [gram_rowsum(w, p, backend="reference") for w, p in zip(weight.chunk(3), psi.chunk(3), strict=True)]
    torch.testing.assert_close(gram_rowsum(weight, psi, 3, backend=backend), torch.cat(parts), rtol=1e-13, atol=0)


def gradients(weight, psi, backend, cotangent=None, groups=1):
    leaves = [t.detach().requires_grad_() for t in (weight, psi) if t is not None]
    r = gram_rowsum(*leaves, groups=groups, backend=backend) if psi is not None else None
    r = gram_rowsum(leaves[0], groups=groups, backend=backend) if r is None else r
    return r.detach(), *torch.autograd.grad(r, leaves, torch.ones_like(r) if cotangent is None else cotangent)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_overflowing_weights_of_orthogonal_channels(dtype, backend):
    """Dirac: v is 0 off the diagonal, where exp overflows; neither value nor gradient may notice."""
    weight = torch.nn.init.dirac_(torch.empty(40, 40, 3, 3, dtype=dtype))
    psi = torch.linspace(-2000, 2000, 40, dtype=dtype)
    r, weight_gradient, psi_gradient = gradients(weight, psi, backend)
    assert torch.equal(r, torch.ones(40, dtype=dtype))
    assert torch.equal(weight_gradient, 2 * weight)
    assert torch.equal(psi_gradient, torch.zeros(40, dtype=dtype))


def test_sign_of_zero_is_zero(backend):
    """Two channels that do not overlap: no gradient flows from one to the other."""
    weight = torch.zeros(1, 2, 3, 3, dtype=torch.float64)
    weight[0, 0, 1, 1] = weight[0, 1, 1, 1] = 1.0
    weight = torch.cat((weight, weight * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1)))
    _, gradient = gradients(weight, None, backend)
    assert torch.equal(gradient, 2 * weight)


@pytest.mark.parametrize("with_psi", [False, True])
def test_zero_channel(with_psi, backend):
    weight = normal(4, 35, 3, 3)
    weight[:, 33] = 0
    r, *found = gradients(weight, normal(35, seed=1) if with_psi else None, backend)
    assert r[33] == 0
    assert r[:33].min() > 0
    assert torch.equal(found[0][:, 33], torch.zeros(4, 3, 3, dtype=torch.float64))
    assert all(gradient.isfinite().all() for gradient in found)


def test_nan_is_not_swallowed(backend):
    weight = normal(3, 34, 3, 3)
    weight[0, 2, 0, 0] = float("nan")
    r = gram_rowsum(weight, normal(34), backend=backend)
    assert r.isnan().all()


def test_alone_in_its_group_psi_has_no_effect(backend):
    _, _, gradient = gradients(normal(8, 1, 3, 3), normal(8), backend, normal(8, seed=2), groups=8)
    assert torch.equal(gradient, torch.zeros(8, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, backend):
    weight = normal(5, 6, 3, 3).to(dtype).requires_grad_()
    r = gram_rowsum(weight, backend=backend)
    assert r.dtype == torch.float32
    assert torch.equal(r, gram_rowsum(weight.float(), backend=backend))
    r.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == dtype


def test_autocast_does_not_lower_the_precision(backend):
    weight = normal(5, 6, 3, 3, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gram_rowsum(weight, backend=backend)
    assert torch.equal(inside, gram_rowsum(weight, backend=backend))


@pytest.mark.parametrize("transposed", [False, True])
def test_gradient_keeps_the_layout(transposed, native):
    weight = normal(6, 5, 3, 3).transpose(0, 1) if transposed else normal(5, 6, 3, 3)
    _, gradient = gradients(weight, None, "native")
    assert gradient.stride() == weight.stride()


@pytest.mark.parametrize("with_psi", [False, True])
@pytest.mark.parametrize("shape", [(150, 140, 3, 3), (50, 140, 3, 3), (260, 270)])
def test_bits_do_not_depend_on_the_number_of_threads(shape, with_psi, native):
    weight = normal(*shape, dtype=torch.float32)
    psi = normal(shape[1], seed=1, dtype=torch.float32) if with_psi else None
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(gradients(weight, psi, "native", normal(shape[1], seed=2, dtype=torch.float32)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_saves_two_bits_per_kept_offset(native):
    """W, and for 64 channels: one full tile of 25 offsets and two of 13, each with 32 rows of 2 x 4 bytes."""
    tensors = Case({"weight": (64, 64, 3, 3)}).make(torch.float32)
    saved = testing.saved_bytes(lambda weight: gram_rowsum(weight, backend="native"), tensors)
    assert saved == 64 * 64 * 9 * 4 + (25 + 13 + 13) * 32 * 8


def test_the_second_derivative_is_that_of_the_reference(native):
    found = []
    for backend in ("native", "reference"):
        weight = normal(3, 4, 3, 3).requires_grad_()
        (gradient,) = torch.autograd.grad(gram_rowsum(weight, backend=backend).sum(), weight, create_graph=True)
        found += torch.autograd.grad(gradient.square().sum(), weight)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((torch.zeros(3, dtype=torch.int64),), TypeError, "weight: got torch.int64"),
        ((torch.zeros(3),), ValueError, r"weight: got shape \(3,\)"),
        ((torch.zeros(3, 2, 0, 1),), ValueError, "none of them empty"),
        ((torch.zeros(3, 2), None, 2), ValueError, "groups=2: allowed are the divisors of cout=3"),
        ((torch.zeros(4, 2), None, 0), ValueError, "groups=0"),
        ((torch.zeros(4, 2), torch.zeros(2), 2), ValueError, r"psi: got shape \(2,\), expected \(4,\)"),
        ((torch.zeros(4, 2), [0.0, 0.0]), TypeError, "psi: got list"),
    ],
)
def test_refuses(arguments, error, text):
    with pytest.raises(error, match=text):
        gram_rowsum(*arguments)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=st.integers(1, 3),
    rows=st.integers(0, 4),
    columns=st.integers(0, 40),
    kernel=st.lists(st.integers(1, 4), max_size=3),
    with_psi=st.booleans(),
    seed=st.integers(0, 999),
)
def test_native_agrees_at_any_shape(groups, rows, columns, kernel, with_psi, seed, native):
    weight = normal(groups * rows, columns, *kernel, seed=seed)
    psi = normal(groups * columns, seed=seed + 1) if with_psi else None
    r = gram_rowsum(weight, psi, groups, backend="native")
    expected = gram_rowsum(weight, psi, groups, backend="reference")
    torch.testing.assert_close(r, expected, rtol=1e-12, atol=0)
