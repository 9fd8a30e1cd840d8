import itertools

import pytest
import torch
import torch.nn.functional as F

from fastlip import ops, testing
from fastlip.kernels.common.dispatch import registered
from fastlip.kernels.common.padding import pad, same_pads
from fastlip.kernels.spectral_conv.api import (
    OP,
    fix_spectrum,
    half_plane,
    kernel_spectrum,
    per_frequency,
    spectral_conv_fixed,
    unique_frequencies,
)

SIZES = ((1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (4, 4), (5, 4), (4, 5), (7, 3), (1, 6))
KERNELS = ((1, 1), (2, 2), (3, 3), (5, 4), (7, 3))


BACKENDS = ("reference", "native")


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param != "reference" and (reason := registered["spectral_conv"].status(request.param)):
        pytest.skip(reason)
    return request.param


@pytest.fixture
def native():
    if reason := registered["spectral_conv"].status("native"):
        pytest.skip(reason)


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
def test_is_the_convolution_at_an_fft_size_and_with_zero_padding(size, kernel, dilation, groups, backend):
    weight, x, bias = random(4, 6 // groups, *kernel), random(2, 6, *size), random(4)
    pads = same_pads(kernel, dilation)
    enlarged = tuple(n + d * (k - 1) for n, d, k in zip(size, dilation, kernel, strict=True))
    for mode, fft_size in (("circular", size), ("zeros", enlarged)):
        expected = F.conv2d(pad(x, pads, mode), weight, bias, dilation=dilation, groups=groups)
        spectrum = kernel_spectrum(weight, fft_size, dilation)
        assert (spectrum[: self_conjugate(fft_size)].imag == 0).all()
        y = ops.spectral_conv(x, spectrum, bias, fft_size, groups, backend=backend)
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


def test_a_table_of_phases_made_in_inference_serves_training():
    weight, size = random(2, 2, 3, 3).requires_grad_(), (6, 11)
    with torch.inference_mode():
        spectrum = kernel_spectrum(weight, size)
    again = kernel_spectrum(weight, size)
    assert torch.equal(again, spectrum)
    again.abs().square().sum().backward()
    assert weight.grad is not None
    by_transform, _ = torch.func.vjp(lambda w: kernel_spectrum(w, (7, 11)), weight.detach())
    assert torch.equal(by_transform, kernel_spectrum(weight, (7, 11)))


def test_gradient_of_the_spectrum_is_that_of_the_design(backend):
    size, x, G = (4, 5), random(2, 3, 4, 5), random(2, 2, 4, 5)
    Q = kernel_spectrum(random(2, 3, 3, 3), size).requires_grad_()
    (result,) = torch.autograd.grad(ops.spectral_conv(x, Q, backend=backend), Q, G)
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


def test_low_precision_is_transformed_in_float32(backend):
    def convolve(x, Q):
        return ops.spectral_conv(x, Q, backend=backend)

    x, Q = random(2, 4, 6, 6, dtype=torch.float32), kernel_spectrum(random(4, 4, 3, 3).float(), (6, 6))
    for dtype in (torch.bfloat16, torch.float16):
        short = x.to(dtype).requires_grad_()
        y = convolve(short, Q)
        assert y.dtype == dtype
        assert torch.equal(y, convolve(x.to(dtype).float(), Q).to(dtype))
        assert torch.autograd.grad(y.sum(), short)[0].dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        y = convolve(x, Q)
    assert torch.equal(y, convolve(x, Q).bfloat16())


def test_layouts_single_images_and_empty_batches(backend):
    x, Q, bias = random(2, 4, 6, 6), kernel_spectrum(random(5, 4, 3, 3), (6, 6)), random(5)
    y = ops.spectral_conv(x, Q, backend=backend)
    last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(ops.spectral_conv(last, Q, backend=backend), y)
    torch.testing.assert_close(ops.spectral_conv(x[1], Q, backend=backend), y[1])
    inputs = [value.requires_grad_() for value in (x[:0], Q, bias)]
    result = ops.spectral_conv(*inputs, backend=backend)
    assert result.shape == (0, 5, 6, 6)
    for value, gradient in zip(inputs, torch.autograd.grad(result.sum(), inputs), strict=True):
        assert gradient.shape == value.shape
        assert not gradient.any()


def test_kernels_keep_the_memory_format(native):
    x, Q = random(2, 4, 6, 5), kernel_spectrum(random(5, 4, 3, 3), (6, 5))
    for memory_format in (torch.contiguous_format, torch.channels_last):
        images = x.to(memory_format=memory_format).requires_grad_()
        y = ops.spectral_conv(images, Q, backend="native")
        assert y.is_contiguous(memory_format=memory_format)
        for G in (random(2, 5, 6, 5), random(2, 5, 6, 5).to(memory_format=torch.channels_last), torch.ones(1)):
            G = G.to(y).expand_as(y)
            (gradient,) = torch.autograd.grad(y, images, G, retain_graph=True)
            assert gradient.is_contiguous(memory_format=memory_format)
            expected = torch.autograd.grad(ops.spectral_conv(images, Q, backend="reference"), images, G)[0]
            torch.testing.assert_close(gradient, expected)


def test_gradients_that_are_not_wanted_change_nothing(native):
    inputs = [random(2, 4, 6, 5), kernel_spectrum(random(5, 4, 3, 3), (6, 5)), random(5)]
    everything = [value.clone().requires_grad_() for value in inputs]
    expected = torch.autograd.grad(ops.spectral_conv(*everything, backend="native").square().sum(), everything)
    for wanted in itertools.product((False, True), repeat=3):
        if not any(wanted):
            continue
        leaves = [value.clone().requires_grad_(want) for value, want in zip(inputs, wanted, strict=True)]
        y = ops.spectral_conv(*leaves, backend="native").square().sum()
        gradients = torch.autograd.grad(y, [leaf for leaf in leaves if leaf.requires_grad])
        for gradient, value in zip(gradients, itertools.compress(expected, wanted), strict=True):
            assert torch.equal(gradient, value)


def test_views_of_the_matrices(backend):
    x, Q = random(2, 5, 4, 4), kernel_spectrum(random(5, 4, 3, 3), (4, 4))
    expected = ops.spectral_conv(x, Q.mH.clone(memory_format=torch.contiguous_format).resolve_conj())
    torch.testing.assert_close(ops.spectral_conv(x, Q.mH, backend=backend), expected)


def test_an_imaginary_part_at_self_conjugate_frequencies_has_no_effect(backend):
    size, x = (4, 5), random(2, 3, 4, 5)
    Q = torch.randn(11, 3, 3, dtype=torch.complex128).requires_grad_()
    y = ops.spectral_conv(x, Q, backend=backend)
    real = torch.cat((Q[: self_conjugate(size)].real.to(Q), Q[self_conjugate(size) :]))
    torch.testing.assert_close(ops.spectral_conv(x, real, backend=backend), y)
    (gradient,) = torch.autograd.grad(y.square().sum(), Q)
    assert gradient[: self_conjugate(size)].imag.abs().max() < 1e-12


def many(images):
    """More images than one pass takes."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, 16, 32, 32, generator=generator)
    Q = torch.randn(514, 16, 16, generator=generator, dtype=torch.complex64) / 4
    return x.requires_grad_(), Q.requires_grad_(), torch.zeros(16).requires_grad_()


def test_passes_over_a_large_batch_add_up(native):
    x, Q, bias = many(1300)
    y = ops.spectral_conv(x, Q, bias, backend="native")
    gradients = torch.autograd.grad(y, (x, Q, bias), x.detach())
    sums = [0, 0]
    for begin, end in ((0, 300), (300, 1300)):
        part = x[begin:end].detach().requires_grad_()
        part_y = ops.spectral_conv(part, Q, bias, backend="native")
        assert torch.equal(part_y, y[begin:end])
        part_gradients = torch.autograd.grad(part_y, (part, Q, bias), part.detach())
        assert torch.equal(part_gradients[0], gradients[0][begin:end])
        sums = [total + value for total, value in zip(sums, part_gradients[1:], strict=True)]
    for value, total in zip(gradients[1:], sums, strict=True):
        assert (value - total).abs().max() <= 1e-5 * total.abs().max()


def test_results_do_not_depend_on_the_number_of_threads(native):
    inputs = many(20)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y = ops.spectral_conv(*inputs, backend="native")
            results.append((y, *torch.autograd.grad(y, inputs, y.detach())))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_input_and_matrices_are_all_that_is_kept(native):
    tensors = dict(zip(("x", "Q", "bias"), many(3), strict=True))
    for fft_size, frequencies in (((32, 32), 514), ((34, 34), 580)):
        tensors["Q"] = torch.zeros(frequencies, 16, 16, dtype=torch.complex64)

        def convolve(fft_size=fft_size, **values):
            return ops.spectral_conv(**values, fft_size=fft_size, backend="native")

        kept = testing.saved_bytes(convolve, tensors)
        assert kept == 4 * tensors["x"].numel() + 8 * tensors["Q"].numel()


def test_auto_leaves_narrow_groups_to_the_reference(native):
    choose = registered["spectral_conv"].choose
    for groups, expected in ((1, "native"), (8, "reference")):
        x, Q = random(2, 16, 4, 4), kernel_spectrum(random(16, 16 // groups, 3, 3), (4, 4))
        assert choose("auto", x, Q, None, (4, 4), groups) == expected


def test_the_earlier_name_of_the_fft_size_works():
    x, Q = random(2, 4, 5, 6), kernel_spectrum(random(4, 4, 3, 3), (8, 8))
    assert torch.equal(ops.spectral_conv(x, Q, torus=(8, 8)), ops.spectral_conv(x, Q, fft_size=(8, 8)))
    with pytest.raises(ValueError, match=r"fft_size=\(4, 4\)"):
        ops.spectral_conv(x, Q, torus=(4, 4))


def test_arguments_are_checked():
    x, Q = random(2, 4, 6, 6), kernel_spectrum(random(4, 4, 3, 3), (6, 6))
    with pytest.raises(TypeError, match=r"Q: got torch\.float64"):
        ops.spectral_conv(x, Q.real)
    with pytest.raises(TypeError, match=r"x: got torch\.float64, expected torch\.float32"):
        ops.spectral_conv(x, Q.to(torch.complex64))
    with pytest.raises(ValueError, match=r"x: got shape \(6, 6\)"):
        ops.spectral_conv(x[0, 0], Q)
    with pytest.raises(ValueError, match=r"fft_size=\(5, 6\)"):
        ops.spectral_conv(x, Q, fft_size=(5, 6))
    with pytest.raises(ValueError, match=r"Q: got shape \(20, 4, 4\), expected \(25, cout, cin\)"):
        ops.spectral_conv(x, Q, fft_size=(7, 7))
    with pytest.raises(ValueError, match="groups=2"):
        ops.spectral_conv(x, Q, groups=2)
    with pytest.raises(ValueError, match="triton"):
        ops.spectral_conv(x, Q, backend="triton")


def fixed(inputs, outputs, dtype, fft_size=(4, 6)):
    if reason := OP.status("native"):
        pytest.skip(reason)
    Q = torch.randn(14, outputs, inputs, dtype=torch.promote_types(dtype, torch.complex64))
    return Q, fix_spectrum(Q, fft_size, "native")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("target", [None, torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(("inputs", "outputs"), [(6, 6), (3, 34), (34, 5)])
def test_fixed_matrices_and_what_follows_them(inputs, outputs, layout, target, dtype):
    Q, spectrum = fixed(inputs, outputs, dtype)
    x = torch.randn(3, inputs, 4, 5, dtype=dtype).to(memory_format=layout)
    x[0] = 0  # ties
    bias = torch.randn(outputs, dtype=dtype)
    bias[:2] = 1
    residual = torch.randn(3, outputs, 4, 5, dtype=dtype)
    plain = ops.spectral_conv(x, Q, bias, (4, 6), backend="native")
    for subtrahend, z in ((None, plain), (residual, residual - plain)):
        for activation, expected in (("none", z), ("relu", z.relu()), ("maxmin", ops.maxmin(z))):
            y = spectral_conv_fixed(x, spectrum, bias, subtrahend, activation, target)
            assert torch.equal(y, expected)
            assert y.is_contiguous(memory_format=target or layout)
    y = spectral_conv_fixed(x, spectrum, bias, residual, factor=-3.0)
    expected = residual + 3 * ops.spectral_conv(x, Q, None, (4, 6), backend="native") - bias[:, None, None]
    tolerance = 16 * torch.finfo(dtype).eps * expected.abs().max().item()
    torch.testing.assert_close(y, expected, rtol=0, atol=tolerance)


def test_fixed_matrices_as_an_operator():
    _, spectrum = fixed(4, 5, torch.float32)
    x, tests = torch.randn(2, 4, 4, 4), ["test_schema", "test_faketensor"]
    operator = torch.ops.fastlip.spectral_conv_fixed.default
    for last in (False, True):
        arguments = x, spectrum.panels, None, None, 5, [4, 6], "maxmin", last, 0.5, "native"
        torch.library.opcheck(operator, arguments, test_utils=tests)
