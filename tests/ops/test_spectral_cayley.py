import pytest
import torch

from fastlip import ops, testing
from fastlip.kernels.spectral_cayley.api import OP, OPERATOR


def require(backend):
    if backend == "native" and (reason := OP.status(backend)):
        pytest.skip(reason)


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def composed(weight, fft_size, dilation, groups):
    spectrum = ops.kernel_spectrum(weight, fft_size, dilation).unflatten(1, (groups, -1))
    return ops.cayley(spectrum, backend="reference").flatten(1, 2)


@pytest.mark.parametrize("backend", ["auto", "reference", "native"])
@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("shape", [(4, 4), (6, 2), (4, 8)], ids=["square", "tall", "wide"])
@pytest.mark.parametrize(("dilation", "groups"), [((1, 1), 1), ((2, 1), 2)])
def test_is_the_cayley_transform_of_the_spectrum(shape, size, dilation, groups, backend):
    require(backend)
    weight = random(shape[0], shape[1] // groups, 3, 3).requires_grad_()
    expected = composed(weight, size, dilation, groups)
    Q = ops.spectral_cayley(weight, size, dilation, groups, backend=backend)
    torch.testing.assert_close(Q, expected, rtol=1e-11, atol=1e-11)
    assert (Q[: ops.own_frequencies(size)].imag == 0).all()
    G = random(*Q.shape, dtype=Q.dtype, seed=1)
    gradients = (torch.autograd.grad(value, weight, G)[0] for value in (Q, expected))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (2, 4)], ids=["square", "tall", "wide"])
def test_second_derivatives_are_those_of_the_reference(shape):
    require("native")
    weight = random(*shape, 2, 2).requires_grad_()

    def norm_of_gradient(backend):
        Q = ops.spectral_cayley(weight, (3, 4), backend=backend)
        (gradient,) = torch.autograd.grad(Q.abs().pow(4).sum() + Q.real.sum(), weight, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), weight)[0]

    torch.testing.assert_close(norm_of_gradient("native"), norm_of_gradient("reference"), rtol=1e-8, atol=1e-8)


def test_native_keeps_the_weight_and_one_matrix_per_frequency():
    require("native")
    frequencies, taps = (36 + 4) // 2, 4 * 4 * 9 * 4
    weight = random(4, 4, 3, 3, dtype=torch.float32).requires_grad_()
    kept = testing.bytes_kept(lambda: ops.spectral_cayley(weight, (6, 6), backend="native"))
    assert kept == frequencies * 16 * 8 + taps
    tall = random(8, 2, 3, 3, dtype=torch.float32).requires_grad_()
    kept = testing.bytes_kept(lambda: ops.spectral_cayley(tall, (6, 6), backend="native"))
    assert kept == frequencies * 4 * 8 + taps


@pytest.mark.parametrize("shape", [(4, 4), (2, 4)], ids=["square", "wide"])
def test_as_an_operator(shape):
    require("native")
    packet = torch.ops.fastlip
    weight, options = random(*shape, 3, 3, dtype=torch.float32).requires_grad_(), ([5, 4], [1, 1], 1, "native")
    Q, B = packet.spectral_cayley_forward(weight, *options)
    tests = ["test_schema", "test_faketensor", "test_autograd_registration"]
    torch.library.opcheck(packet.spectral_cayley_forward.default, (weight, *options), test_utils=tests)
    saved = (Q.detach(), None) if B.numel() == 0 else (None, B.detach())
    arguments = (torch.randn_like(Q), weight.detach(), *saved, *options)
    torch.library.opcheck(packet.spectral_cayley_backward.default, arguments, test_utils=tests)

    def loss(w):
        return torch.view_as_real(ops.spectral_cayley(w, (5, 4))).sin().sum()

    torch._dynamo.reset()
    torch.compile(loss, backend="aot_eager", fullgraph=True)(weight).backward()
    torch.testing.assert_close(weight.grad, torch.autograd.grad(loss(weight), weight)[0])


def test_the_operator_takes_what_was_checked():
    weight = random(4, 2, 3, 3)
    expected = ops.spectral_cayley(weight, (4, 4), (1, 1), 2)
    assert torch.equal(OPERATOR(weight, (4, 4), (1, 1), 2, "auto"), expected)


def test_arguments_are_checked():
    with pytest.raises(TypeError, match=r"weight: got torch\.complex64"):
        ops.spectral_cayley(torch.ones(2, 2, 3, 3, dtype=torch.complex64), (4, 4))
    with pytest.raises(TypeError, match="weight: got list"):
        ops.spectral_cayley([1.0], (4, 4))
    for shape, groups in (((2, 3, 3), 1), ((2, 0, 3, 3), 1), ((3, 2, 3, 3), 2)):
        with pytest.raises(ValueError, match=r"weight: got shape .*groups="):
            ops.spectral_cayley(torch.ones(shape), (4, 4), groups=groups)
    with pytest.raises(ValueError, match="backend='fast'"):
        ops.spectral_cayley(torch.ones(2, 2, 3, 3), (4, 4), backend="fast")
