"""Three spatial dimensions: geometry, frequencies and the reference of every op that takes volumes."""

import itertools
import math

import pytest
import torch
from torch import nn

from fastlip import ops
from fastlip.kernels.common.fourier import count_frequencies, own_frequencies, unique_frequencies
from fastlip.kernels.common.geometry import ConvGeometry, from_numbers
from fastlip.kernels.sdp_residual.reference import adjoint

double = {"dtype": torch.float64}
SIZES = [(3, 4, 5), (2, 2, 2), (1, 3, 1), (4, 1, 2), (5, 4, 3), (1, 1, 1), (3, 3, 6)]


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), **double)


def jacobian(function, shape):
    entries = torch.eye(math.prod(shape), **double).view(-1, *shape)
    return function(entries).flatten(1).T


@pytest.mark.parametrize("size", SIZES)
def test_one_of_each_pair_of_conjugate_frequencies(size):
    frequencies = unique_frequencies(size).tolist()
    own = own_frequencies(size)
    assert len(frequencies) == count_frequencies(size)
    conjugates = [[-k % side for k, side in zip(one, size, strict=True)] for one in frequencies]
    assert [one == other for one, other in zip(frequencies, conjugates, strict=True)] == [
        index < own for index in range(len(frequencies))
    ]
    assert len({*map(tuple, frequencies), *map(tuple, conjugates)}) == math.prod(size)


@pytest.mark.parametrize("dilation", [(1, 1, 1), (1, 2, 1)])
@pytest.mark.parametrize("size", SIZES)
def test_a_spectrum_is_the_circular_convolution(size, dilation):
    weight, x, bias = random(4, 3, 3, 2, 3), random(2, 6, *size), random(4)
    geometry = ConvGeometry.like(weight, dilation, 2, "circular")
    Q = ops.kernel_spectrum(weight, size, dilation)
    assert not Q[: own_frequencies(size)].imag.any()
    y = ops.spectral_conv(x, Q, bias, size, 2)
    torch.testing.assert_close(y, geometry.convolve(x, weight, bias))
    torch.testing.assert_close(ops.spectral_conv(x[0], Q, bias, size, 2), y[0])
    assert ops.spectral_conv(x[:0], Q, bias, size, 2).shape == (0, 4, *size)


@pytest.mark.parametrize("size", [(3, 4, 5), (2, 3, 2)])
@pytest.mark.parametrize("mode", ["circular", "zeros"])
def test_the_bound_of_a_convolution(mode, size):
    geometries = itertools.product(
        [(1, 1, 1), (2, 1, 1), (1, 2, 3)], [(1, 1, 1), (1, 2, 1)], [(3, 3, 3), (1, 3, 2), (2, 1, 1)]
    )
    for stride, dilation, kernel in geometries:
        weight = random(4, 2, *kernel)
        geometry = ConvGeometry(kernel, stride, None, dilation, 2, mode)
        matrix = jacobian(lambda x, g=geometry, w=weight: g.convolve(x, w), (4, *size))
        assert matrix.shape[0] == 4 * math.prod(geometry.output_size(size))
        exact = torch.linalg.matrix_norm(matrix, 2).item()
        bound = ops.spectral_norm(weight, size, stride, geometry.pads, dilation, 2, mode).item()
        assert exact * (1 - 1e-12) <= bound <= 2.5 * exact
        if mode == "circular" and not any(side % step for side, step in zip(size, stride, strict=True)):
            assert bound == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("mode", ["circular", "zeros"])
def test_the_residual_map_has_the_exact_adjoint(mode):
    x, weight, bias, scale = random(2, 4, 3, 4, 5), random(6, 2, 3, 2, 3), random(6), random(6).abs()
    geometry = ConvGeometry.like(weight, (1, 1, 2), 2, mode)
    assert from_numbers(geometry.numbers) == (geometry,)
    hidden = random(2, 6, 3, 4, 5)
    product = (geometry.convolve(x, weight) * hidden).sum()
    torch.testing.assert_close((x * adjoint(hidden, weight, geometry)).sum(), product)
    y = ops.sdp_residual(x, weight, bias, scale, (1, 1, 2), 2, mode, pairing="adjacent")
    inner = geometry.convolve(x, weight, bias).relu()
    plain = x - adjoint(scale[:, None, None, None] * inner, weight, geometry)
    torch.testing.assert_close(y, ops.maxmin(plain, "adjacent", 1))


@pytest.mark.parametrize("op", [ops.spectral_cayley, ops.spectral_polar])
def test_matrices_per_frequency_are_orthogonal(op):
    for shape in ((4, 4, 3, 3, 3), (4, 2, 1, 2, 3), (6, 2, 2, 1, 1)):
        groups = 2 if shape[0] == 6 else 1
        weight = random(*shape).requires_grad_()
        Q = op(weight, (3, 2, 4), groups=groups).unflatten(1, (groups, -1))
        smaller = min(Q.shape[-2:])
        gram = Q.mH @ Q if Q.shape[-1] == smaller else Q @ Q.mH
        torch.testing.assert_close(gram, torch.eye(smaller, dtype=gram.dtype).expand_as(gram))
        assert torch.autograd.gradcheck(
            lambda w, groups=groups: torch.view_as_real(op(w, (3, 2, 4), (1, 2, 1), groups)), weight, fast_mode=True
        )


@pytest.mark.parametrize("backend", ["native", "triton"])
def test_a_backend_named_for_volumes_is_refused(backend):
    x, weight, size = random(1, 2, 3, 4, 5), random(2, 2, 3, 3, 3), (3, 4, 5)
    spectrum = ops.kernel_spectrum(weight, size)
    for call in (
        lambda: ops.sdp_residual(x, weight, None, torch.ones(2, **double), backend=backend),
        lambda: ops.spectral_conv(x, spectrum, None, size, backend=backend),
    ):
        with pytest.raises(ValueError, match=f"backend='{backend}' cannot run here"):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w, x: ops.spectral_norm(w, (4, 4)), "image_size="),
        (lambda w, x: ops.spectral_norm(w, (4, 4, 4), (1, 1)), "stride="),
        (lambda w, x: ops.spectral_norm(w, (4, 4, 4), pads=(1, 1, 1, 1)), "pads="),
        (lambda w, x: ops.spectral_cayley(w, (4, 4)), "fft_size="),
        (lambda w, x: ops.spectral_polar(w, (4, 4, 4), (1, 1)), "dilation="),
        (lambda w, x: ops.sdp_residual(x, w, None, torch.ones(2), (1, 1)), "dilation="),
        (lambda w, x: ops.sdp_residual(x[0, 0], w, None, torch.ones(2)), "x: got shape"),
        (lambda w, x: ops.spectral_conv(x, ops.kernel_spectrum(w, (4, 4, 4)), None, (3, 4, 4)), "fft_size="),
    ],
)
def test_sizes_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call(torch.randn(2, 2, 3, 3, 3), torch.randn(1, 2, 4, 4, 4))


def test_geometry_of_conv3d():
    for options in (
        {"padding": (1, 0, 2), "stride": (1, 2, 1), "groups": 2},
        {"padding": "same", "dilation": (1, 2, 1)},
        {"padding": (0, 1, 1), "padding_mode": "circular"},
        {"padding": "valid"},
    ):
        module = nn.Conv3d(2, 4, (1, 3, 2) if options["padding"] == (0, 1, 1) else 3, **options, **double)
        x = random(1, 2, 4, 5, 6)
        geometry = ConvGeometry.of_module(module)
        torch.testing.assert_close(geometry.convolve(x, module.weight, module.bias), module(x))
        assert geometry.output_size((4, 5, 6)) == tuple(module(x).shape[2:])
    padded = ConvGeometry((3, 1, 5), padding_mode="circular").pad(torch.arange(4.0).view(1, 1, 2, 1, 2))
    assert padded[0, 0, :, 0].tolist() == [[2.0, 3, 2, 3, 2, 3], [0.0, 1, 0, 1, 0, 1]] * 2
