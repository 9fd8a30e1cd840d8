import pytest
import torch

from fastlip import ops, testing
from fastlip.kernels.spectral_conv.api import kernel_spectrum, own_frequencies
from fastlip.kernels.spectral_exp.api import OP, kernel_exp

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def require(backend):
    if backend != "reference" and (reason := OP.status(backend)):
        pytest.skip(reason)


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
    torch._dynamo.reset()
    leaf = K.clone().requires_grad_()
    torch.compile(loss, backend="aot_eager", fullgraph=True)(leaf, G).backward()
    torch.testing.assert_close(leaf.grad, eager)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match=r"K_hat: got shape \(2, 3\)"):
        ops.spectral_exp(torch.ones(2, 3))
    with pytest.raises(TypeError, match="K_hat"):
        ops.spectral_exp(torch.ones(2, 2, dtype=torch.int64))


def kernel(dtype=torch.float64, groups=1, norm=0.5):
    weight = torch.randn(4, 4 // groups, 3, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return norm * weight


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 1), (2, 2)], ids=str)
@pytest.mark.parametrize(("dilation", "groups"), [((1, 1), 1), ((2, 1), 2)])
def test_the_exponential_of_a_kernel_is_that_of_its_spectrum(size, dilation, groups, backend):
    require(backend)
    weight = kernel(groups=groups).requires_grad_()
    spectrum = kernel_spectrum(weight, size, dilation)
    expected = ops.spectral_exp(spectrum.unflatten(1, (groups, -1)), backend="reference").flatten(1, 2)
    E = kernel_exp(weight, size, dilation, groups, backend=backend)
    torch.testing.assert_close(E, expected, rtol=1e-12, atol=1e-12)
    own = own_frequencies(size)
    assert (E[:own].imag == 0).all()
    G = torch.randn(E.shape, dtype=E.dtype, generator=torch.Generator().manual_seed(1))
    G[:own].imag = 0  # what spectral_conv gives
    torch.testing.assert_close(*(torch.autograd.grad(value, weight, G)[0] for value in (E, expected)))


def test_native_keeps_the_kernel_alone():
    require("native")
    weight = kernel(torch.float32).requires_grad_()
    assert testing.bytes_kept(lambda: kernel_exp(weight, (6, 6), backend="native")) == 4 * 4 * 9 * 4


def test_the_exponential_of_a_kernel_as_an_operator():
    require("native")
    packet = torch.ops.fastlip
    weight, options = kernel(torch.float32).requires_grad_(), ([5, 4], [1, 1], 1, "native")
    E = packet.kernel_exp_forward(weight, *options)
    tests = ["test_schema", "test_faketensor", "test_autograd_registration"]
    torch.library.opcheck(packet.kernel_exp_forward.default, (weight, *options), test_utils=tests)
    torch.library.opcheck(
        packet.kernel_exp_backward.default, (E.detach(), weight.detach(), *options), test_utils=tests
    )
    compiled = torch.compile(lambda w: kernel_exp(w, (5, 4)).abs().sum(), backend="aot_eager", fullgraph=True)
    compiled(weight).backward()
    expected = torch.autograd.grad(kernel_exp(weight, (5, 4)).abs().sum(), weight)[0]
    torch.testing.assert_close(weight.grad, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("norm", [0.1, 0.59, 2.4, 9.0, 30.0])
def test_native_is_unitary_and_accurate_at_every_norm(dtype, norm):
    require("native")
    K = skew((40, 24, 24), dtype)
    K = K * (norm / torch.linalg.matrix_norm(K, 2))[:, None, None]
    E = ops.spectral_exp(K, backend="native")
    wide = torch.promote_types(dtype, torch.float64)
    assert (torch.linalg.svdvals(E.to(wide)) - 1).abs().max() < 4e-6
    exact = torch.linalg.matrix_exp(K.to(wide))
    assert (E.to(wide) - exact).abs().max() < 4e-6


def test_the_kernels_argument_is_checked():
    with pytest.raises(TypeError, match=r"kernel: got torch\.bfloat16"):
        kernel_exp(kernel(torch.bfloat16), (4, 4))
    with pytest.raises(ValueError, match=r"kernel: got shape \(4, 4, 3, 3\), .* groups=2"):
        kernel_exp(kernel(), (4, 4), groups=2)


@pytest.mark.parametrize(("channels", "decomposed"), [(127, 0), (128, 1)])
def test_large_norms_go_on_in_double_precision_or_wide_ones_by_eigenvectors(channels, decomposed, monkeypatch):
    require("native")
    calls = []
    original = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda H: calls.append(H.dtype) or original(H))
    K = skew((1, channels, channels), torch.float32) * (5 / (8 * channels) ** 0.5)  # of norm 5
    leaf = K.clone().requires_grad_()
    E = ops.spectral_exp(leaf, backend="native")
    assert calls == [torch.complex64] * decomposed
    G = torch.randn(K.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(E, leaf, G)
    exact = K.double().requires_grad_()
    (expected,) = torch.autograd.grad(torch.linalg.matrix_exp((exact - exact.mT) / 2), exact, G.double())
    torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=1e-4)
