"""In training kernels are applied by their spectrum where that is cheaper: with the same results and gradients."""

import copy

import pytest
import torch
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.kernels.spectral_conv.api import OP
from fastlip.nn.applications import spectra, training_spectra
from fastlip.testing import bytes_kept

if OP.status("native"):
    pytest.skip(OP.status("native"), allow_module_level=True)

LAYERS = {
    "aol": lambda **options: lip.AOLConv2d(6, 5, 3, **options),
    "aoc": lambda **options: lip.AOCConv2d(6, 5, 3, **options),
    "bcop": lambda **options: lip.BCOPConv2d(6, 7, 3, **options),
    "sll": lambda **options: lip.SLLConv2d(6, 5, 3, **options),
    "cpl": lambda **options: lip.CPLConv2d(6, 6, 3, inner_channels=9, **options),
    "even": lambda **options: lip.AOLConv2d(6, 5, (2, 4), **options),
}
OPTIONS = {
    "circular": {"padding_mode": "circular"},
    "zeros": {"padding_mode": "zeros"},
    "dilation": {"padding_mode": "zeros", "dilation": (2, 1)},
}
PRODUCTS = {"sll": 2, "cpl": 2}
SIZES = ((4, 4), (5, 8), (1, 2), (13, 3))


def make(name, dtype=torch.float64, **options):
    if name == "aoc":
        options.pop("dilation", None)
    layer = LAYERS[name](**options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return layer.to(dtype).train()


@pytest.fixture
def calls(monkeypatch):
    """Applies every kernel by its spectrum, and lists the FFT sizes at which training does."""
    seen = []
    original = training_spectra.apply_in_training

    def record(*arguments):
        seen.append(arguments[3])
        return original(*arguments)

    monkeypatch.setattr(training_spectra, "apply_in_training", record)
    monkeypatch.setattr(spectra, "is_cheaper", lambda *_: True)
    return seen


def gradients(module, x, weights):
    """The output, and the gradients of the input and of all parameters."""
    x = x.clone().requires_grad_()
    y = module(x)
    return y, *torch.autograd.grad((y * weights).sum(), (x, *module.parameters()))


def assert_same(module, reference, x, tolerance):
    weights = torch.randn(reference(x).shape, dtype=x.dtype)
    for found, expected in zip(gradients(module, x, weights), gradients(reference, x, weights), strict=True):
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", LAYERS)
def test_agrees_with_the_convolution(name, options, dtype, calls):
    layer = make(name, dtype, **options)
    reference = copy.deepcopy(layer)
    reference.backend = "reference"
    for size in SIZES:
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(3, 6, *size, dtype=dtype).contiguous(memory_format=memory_format)
            assert_same(layer, reference, x, 2000 * torch.finfo(dtype).eps)
    assert len(calls) == 2 * len(SIZES) * PRODUCTS.get(name, 1)


@pytest.mark.parametrize("pairing", ["adjacent", "halves"])
@pytest.mark.parametrize("name", LAYERS)
def test_agrees_in_chains(name, pairing, calls):
    first = make(name)
    model = nn.Sequential(first, lip.MaxMin(pairing), lip.AOLConv2d(first.out_channels, 5, 3).double().train())
    x = torch.randn(3, 6, 5, 4, dtype=torch.float64)
    reference = copy.deepcopy(model)
    for layer in reference:
        layer.backend = "reference"
    assert_same(fastlip.fuse(model), reference, x, 1e-10)
    assert len(calls) == 1 + PRODUCTS.get(name, 1)


@pytest.mark.parametrize("name", ["aol", "sll"])
def test_the_backward_can_be_differentiated(name, calls):
    layer = make(name)
    x = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)
    assert torch.autograd.gradgradcheck(layer, x)
    assert calls


def test_where_it_is_not_used(calls):
    x = torch.randn(3, 6, 6, 6)
    make("aol", torch.float32, backend="reference")(x)
    make("aol", torch.float32, stride=2)(x)
    make("aol", torch.float32, groups=1, padding=0)(x)
    make("aol", torch.float32)(x[0])
    with torch.autocast("cpu", torch.bfloat16):
        make("aol", torch.float32)(x)
    with torch.device("meta"):
        lip.AOLConv2d(6, 6, 3).train()(torch.empty(3, 6, 6, 6))
    torch.func.vmap(make("aol", torch.float32))(x[:, None])
    make("sll", torch.float32, recompute=True)(x)
    lip.SLLConv2d(6, 6, (2, 3)).train()(x)
    make("aol", torch.float32).eval()(x)
    assert calls == []
    make("aol", torch.float32)(x)
    assert len(calls) == 1


def test_the_rule():
    def cheaper(channels, side, batch=64, extra=0):
        size = side + extra, side + extra
        return spectra.is_cheaper(batch, (channels, channels), (side, side), size, 9, 4, True)

    assert not any(cheaper(c, s) for c, s in ((16, 32), (32, 32), (32, 16)))
    assert all(cheaper(c, s) and cheaper(c, s, extra=1) for c, s in ((64, 16), (128, 8), (256, 4)))
    assert not cheaper(256, 4, batch=1)  # the spectrum and its gradient cost more than the convolution
    assert not cheaper(64, 16, batch=8)


def test_it_is_used_without_being_forced(monkeypatch):
    layer = lip.AOLConv2d(64, 64, 3).train()
    x = torch.randn(64, 64, 4, 4)
    reference = copy.deepcopy(layer)
    reference.backend = "reference"
    direct = reference(x)
    monkeypatch.setattr(type(layer._application), "convolve", None)
    torch.testing.assert_close(layer(x), direct, rtol=1e-5, atol=1e-5)


def test_the_spectrum_is_not_kept():
    """Only the image and the kernel, which others keep already: a spectrum has 40/9 of the kernel's bytes here."""
    x, kernel = torch.randn(2, 8, 4, 4, requires_grad=True), torch.randn(8, 8, 3, 3, requires_grad=True)
    OP.status("native")
    kept = bytes_kept(lambda: training_spectra.apply_in_training(x, kernel, None, (4, 4), (1, 1)), (x, kernel))
    assert kept == 0
