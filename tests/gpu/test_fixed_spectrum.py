"""Evaluation by kept matrices in Triton: tests/gpu/test_interpreter.py runs this file."""

import copy

import pytest
import torch
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip import ops
from fastlip.kernels.common.fourier import count_frequencies
from fastlip.kernels.spectral_conv.api import OP, fix_spectrum, spectral_conv_fixed
from fastlip.nn.applications import spectra

triton = pytest.importorskip("triton", minversion="3.6")
pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="runs in the process that tests/gpu/test_interpreter.py starts"
)

# Images, FFT size, channels.
SHAPES = {"padded": ((2, 3), (2, 4), (3, 6)), "odd": ((3, 3), (3, 3), (4, 5))}
# How they are transformed: by one matrix, by rows and columns on the chip (float32), by torch.fft.
PATHS = ("matrix", "planes", "fft")
LAST, FIRST = torch.channels_last, torch.contiguous_format


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def problem(name, dtype):
    image, fft_size, (inputs, outputs) = SHAPES[name]
    shape = count_frequencies(fft_size), outputs, inputs
    Q = torch.complex(random(*shape), random(*shape, seed=1)).to(torch.promote_types(dtype, torch.complex64))
    x, bias = random(2, inputs, *image, seed=2), random(outputs, seed=3)
    x[0], bias[:2] = 0, 1  # ties
    return [tensor.to(dtype) for tensor in (x, bias, random(2, outputs, *image, seed=4))], Q, fft_size


def check(y, expected, length):
    assert y.shape == expected.shape
    error = (y.double() - expected).abs().max()
    assert error <= 4 * length**0.5 * torch.finfo(y.dtype).eps * expected.abs().max()


def expected_of(x, Q, bias, fft_size, residual, activation, factor):
    wide = torch.complex128
    z = factor * ops.spectral_conv(x.double(), Q.to(wide), None, fft_size, backend="reference")
    z = z if bias is None else z + bias.double()[:, None, None]
    z = z if residual is None else residual.double() - z
    return {"none": z, "relu": z.relu(), "maxmin": ops.maxmin(z, backend="reference")}[activation]


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    assert OP.status("triton") == ""
    module = OP.modules["triton"]
    if request.param != "matrix":
        monkeypatch.setattr(module.tables, "SMALL", 0)
    if request.param == "fft":
        monkeypatch.setattr(module.planes, "fits", lambda fft_size, dtype: False)
    return request.param


@pytest.mark.parametrize("activation", ["none", "relu", "maxmin"])
@pytest.mark.parametrize("name", SHAPES)
def test_what_follows_a_fixed_convolution(name, activation, path):
    for dtype in (torch.float32, torch.float64):
        (x, bias, residual), Q, fft_size = problem(name, dtype)
        spectrum = fix_spectrum(Q, fft_size, "triton")
        for source, target, after, factor in ((FIRST, LAST, None, 1.0), (LAST, None, residual, -0.75)):
            x = x.contiguous(memory_format=source)
            y = spectral_conv_fixed(x, spectrum, bias, after, activation, target, factor)
            length = fft_size[0] * fft_size[1] * x.shape[1]
            check(y, expected_of(x, Q, bias, fft_size, after, activation, factor), length)
            assert y.is_contiguous(memory_format=target or source)


def test_nothing_and_what_is_no_number():
    (x, bias, _), Q, fft_size = problem("odd", torch.float32)
    spectrum = fix_spectrum(Q, fft_size, "triton")
    assert spectral_conv_fixed(x[:0], spectrum, bias).shape == (0, 5, 3, 3)
    x[1, 2, 1, 1] = float("nan")
    y = spectral_conv_fixed(x, spectrum, bias, activation="maxmin")
    assert y[1].isnan().all()
    assert y[0].isfinite().all()


def test_imaginary_parts_of_real_frequencies_have_no_effect():
    (x, bias, _), Q, fft_size = problem("padded", torch.float64)
    y = spectral_conv_fixed(x, fix_spectrum(Q, fft_size, "triton"), bias)
    Q[:4] = Q[:4].real.to(Q.dtype)
    assert torch.equal(y, spectral_conv_fixed(x, fix_spectrum(Q, fft_size, "triton"), bias))


LAYERS = {
    "cayley": lambda **options: lip.CayleyConv2d(4, 4, 3, padding_mode="zeros", **options),
    "lot": lambda **options: lip.LOTConv2d(2, 2, 3, **options),
    "bro": lambda **options: lip.BROConv2d(4, 4, 3, **options),
    "sandwich": lambda **options: lip.SandwichConv2d(2, 2, 3, **options),
}


@pytest.fixture
def activations(monkeypatch):
    """What follows each convolution by kept matrices, and the backend of these."""
    seen, original = [], spectra.spectral_conv_fixed

    def record(x, spectrum, bias, residual, activation, memory_format):
        seen.append((spectrum.backend, activation))
        return original(x, spectrum, bias, residual, activation, memory_format)

    monkeypatch.setattr(spectra, "spectral_conv_fixed", record)
    monkeypatch.setattr(spectra, "kernels_for", lambda layer, tensor: "triton")  # as on a GPU
    return seen


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_frozen_layers_evaluate_by_kept_matrices(name, activations):
    sequential = nn.Sequential(LAYERS[name](), lip.MaxMin()).eval()
    x = random(2, sequential[0].in_channels, 3, 3, dtype=torch.float32)
    expected = fastlip.unfuse(copy.deepcopy(sequential).double())(x.double())
    fused = fastlip.fuse(sequential)
    with fastlip.freeze(fused):
        results = [fused(x), fused(x)]
        assert [key[0] for key in fused[0]._cache.entries] == ["spectra"]
    assert torch.equal(*results)
    assert (results[0] - expected).abs().max() < 2e-5
    assert activations == [("triton", "none" if name == "sandwich" else "maxmin")] * 2


@torch.no_grad()
def test_the_kernels_are_those_of_the_device_and_of_the_backend():
    x, parameters = torch.randn(1, 4, 3, 3), {"padding_mode": "circular"}
    for backend, expected in (("auto", "native"), ("native", "native"), ("triton", "triton"), ("reference", None)):
        layer = lip.CayleyConv2d(4, 4, 3, backend=backend, **parameters).eval()
        layer(x)
        kept = [value[0] for key, (_, value) in layer._cache.entries.items() if key[0] == "spectra"]
        assert [spectrum.backend for spectrum in kept] == ([] if expected is None else [expected])
