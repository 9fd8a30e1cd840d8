import itertools

import pytest
import torch
import torch.nn.functional as F

from fastlip import ops
from fastlip.ops._padding import pad, same_pads
from fastlip.ops.spectral_conv import half_plane, kernel_spectrum, per_frequency, unique_frequencies

SIZES = ((1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (4, 4), (5, 4), (4, 5), (7, 3), (1, 6))
KERNELS = ((1, 1), (2, 2), (3, 3), (5, 4), (7, 3))


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype)


def self_conjugate(size):
    return (2 - size[0] % 2) * (2 - size[1] % 2)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_unique_frequencies_are_one_of_each_pair_self_conjugate_first(size):
    listed = [tuple(pair) for pair in unique_frequencies(size).tolist()]
    conjugate = [((-y) % size[0], (-x) % size[1]) for y, x in listed]
    own = self_conjugate(size)
    assert listed[:own] == conjugate[:own]
    assert not set(listed[own:]) & set(conjugate[own:])
    assert set(listed) | set(conjugate) == set(itertools.product(range(size[0]), range(size[1])))
    assert len(listed) == (size[0] * size[1] + own) // 2


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize(("dilation", "groups"), [((1, 1), 1), ((2, 3), 1), ((1, 1), 2)], ids=str)
def test_is_the_convolution_on_a_torus_and_with_zero_padding(size, kernel, dilation, groups):
    weight, x, bias = random(4, 6 // groups, *kernel), random(2, 6, *size), random(4)
    pads = same_pads(kernel, dilation)
    enlarged = tuple(n + d * (k - 1) for n, d, k in zip(size, dilation, kernel, strict=True))
    for mode, torus in (("circular", size), ("zeros", enlarged)):
        expected = F.conv2d(pad(x, pads, mode), weight, bias, dilation=dilation, groups=groups)
        spectrum = kernel_spectrum(weight, torus, dilation)
        assert (spectrum[: self_conjugate(torus)].imag == 0).all()
        y = ops.spectral_conv(x, spectrum, bias, torus, groups)
        torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_half_plane_is_rfft2(size):
    image = random(3, *size)
    taps = image.unsqueeze(0).flip(-2, -1)  # as large as the image: every frequency is free
    centred = [-(n - 1 - (n - 1) // 2) for n in size]
    expected = torch.fft.rfft2(image.roll(centred, (-2, -1))).flatten(1).mT
    torch.testing.assert_close(half_plane(kernel_spectrum(taps, size), size)[:, 0], expected)


@pytest.mark.parametrize("size", [(4, 4), (5, 3)], ids=str)
def test_gradients(size):
    x, weight, bias = (random(*shape).requires_grad_() for shape in ((2, 2, *size), (3, 2, 3, 2), (3,)))

    def convolve(x, weight, bias):
        return ops.spectral_conv(x, kernel_spectrum(weight, size), bias)

    assert torch.autograd.gradcheck(convolve, (x, weight, bias), fast_mode=True)


def test_gradient_of_the_spectrum_is_that_of_the_design():
    size, x, G = (4, 5), random(2, 3, 4, 5), random(2, 2, 4, 5)
    Q = kernel_spectrum(random(2, 3, 3, 3), size).requires_grad_()
    (result,) = torch.autograd.grad(ops.spectral_conv(x, Q), Q, G)
    y, f = unique_frequencies(size).unbind(1)
    X, Y = (torch.fft.fft2(image, norm="ortho")[..., y, f].permute(2, 1, 0) for image in (x, G))
    weights = torch.full((len(y), 1, 1), 2.0)
    weights[: self_conjugate(size)] = 1
    expected = weights * (Y @ X.mH)
    own = self_conjugate(size)
    torch.testing.assert_close(result[own:], expected[own:])
    torch.testing.assert_close(result[:own].real, expected[:own].real)


def test_per_frequency_takes_real_matrices_where_frequencies_are_their_own_conjugate():
    for size in ((1, 1), (2, 2), (4, 5)):
        seen = []
        V = kernel_spectrum(random(2, 2, 3, 3), size)
        result = per_frequency(lambda M, seen=seen: seen.append((len(M), M.dtype)) or 2 * M, V, size)
        own = self_conjugate(size)
        assert seen == [(own, torch.float64), (len(V) - own, torch.complex128)]
        torch.testing.assert_close(result, 2 * V)


def test_low_precision_is_transformed_in_float32():
    x, Q = random(2, 4, 6, 6, dtype=torch.float32), kernel_spectrum(random(4, 4, 3, 3).float(), (6, 6))
    for dtype in (torch.bfloat16, torch.float16):
        y = ops.spectral_conv(x.to(dtype), Q)
        assert y.dtype == dtype
        assert torch.equal(y, ops.spectral_conv(x.to(dtype).float(), Q).to(dtype))
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.spectral_conv(x, Q)
    assert torch.equal(y, ops.spectral_conv(x, Q).bfloat16())


def test_layouts_single_images_and_empty_batches():
    x, Q = random(2, 4, 6, 6), kernel_spectrum(random(5, 4, 3, 3), (6, 6))
    y = ops.spectral_conv(x, Q)
    torch.testing.assert_close(ops.spectral_conv(x.to(memory_format=torch.channels_last), Q), y)
    torch.testing.assert_close(ops.spectral_conv(x[1], Q), y[1])
    empty = x[:0].requires_grad_()
    result = ops.spectral_conv(empty, Q)
    assert result.shape == (0, 5, 6, 6)
    assert torch.autograd.grad(result.sum(), empty)[0].shape == empty.shape


def test_arguments_are_checked():
    x, Q = random(2, 4, 6, 6), kernel_spectrum(random(4, 4, 3, 3), (6, 6))
    with pytest.raises(TypeError, match=r"Q: got torch\.float64"):
        ops.spectral_conv(x, Q.real)
    with pytest.raises(TypeError, match=r"x: got torch\.float64, expected torch\.float32"):
        ops.spectral_conv(x, Q.to(torch.complex64))
    with pytest.raises(ValueError, match=r"x: got shape \(6, 6\)"):
        ops.spectral_conv(x[0, 0], Q)
    with pytest.raises(ValueError, match=r"torus=\(5, 6\)"):
        ops.spectral_conv(x, Q, torus=(5, 6))
    with pytest.raises(ValueError, match=r"Q: got shape \(20, 4, 4\), expected \(25, cout, cin\)"):
        ops.spectral_conv(x, Q, torus=(7, 7))
    with pytest.raises(ValueError, match="groups=2"):
        ops.spectral_conv(x, Q, groups=2)
    with pytest.raises(ValueError, match="triton"):
        ops.spectral_conv(x, Q, backend="triton")
