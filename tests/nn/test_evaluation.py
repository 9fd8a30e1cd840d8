"""In evaluation fixed kernels are applied by their spectrum where that is cheaper: with the same results."""

import copy
import pickle

import pytest
import torch
from torch import nn

import fastlip
from fastlip import nn as lip
from fastlip.certification.bounds import bound_module
from fastlip.kernels.spectral_conv.api import OP
from fastlip.nn.applications import spectra

if OP.status("native"):
    pytest.skip(OP.status("native"), allow_module_level=True)

LAYERS = {
    "aol": lambda **options: lip.AOLConv2d(6, 6, 3, **options),
    "bcop": lambda **options: lip.BCOPConv2d(6, 7, 3, **options),
    "sll": lambda **options: lip.SLLConv2d(6, 6, 3, **options),
    "cpl": lambda **options: lip.CPLConv2d(6, 6, 3, inner_channels=9, **options),
}
OPTIONS = {
    "circular": {"padding_mode": "circular"},
    "zeros": {"padding_mode": "zeros"},
    "dilation": {"padding_mode": "zeros", "dilation": (2, 1)},
}
SIZES = ((4, 4), (5, 8), (1, 2), (23, 3))


def make(name, dtype=torch.float64, **options):
    layer = LAYERS[name](**options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return layer.to(dtype).eval()


@pytest.fixture
def calls(monkeypatch):
    """Applies every fixed kernel by its spectrum, and counts how often."""
    seen = []
    original = spectra.spectral_conv_fixed

    def record(*arguments, **options):
        seen.append(arguments[1].fft_size)
        return original(*arguments, **options)

    monkeypatch.setattr(spectra, "spectral_conv_fixed", record)
    monkeypatch.setattr(spectra, "is_cheaper", lambda *_: True)
    return seen


def reference(layer, x):
    return fastlip.unfuse(copy.deepcopy(layer))(x)


@pytest.mark.parametrize("batch", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_agrees_with_the_convolution(name, options, dtype, batch, calls):
    layer = make(name, dtype, **options)
    for size in SIZES:
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(batch, 6, *size, dtype=dtype).contiguous(memory_format=memory_format)
            tolerance = 64 * torch.finfo(dtype).eps
            torch.testing.assert_close(layer(x), reference(layer, x), rtol=tolerance, atol=tolerance)
    assert len(calls) == 2 * len(SIZES)


@pytest.mark.parametrize("pairing", ["adjacent", "halves"])
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_agrees_in_chains(name, pairing, calls):
    layers = make(name), lip.MaxMin(pairing), lip.AOLConv2d(7 if name == "bcop" else 6, 5, 3).double().eval()
    chain = fastlip.fuse(nn.Sequential(*layers, lip.MaxMin(pairing))).eval()
    x = torch.randn(3, 6, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(chain(x), reference(chain, x), rtol=1e-12, atol=1e-12)
    assert len(calls) == 2
    wrong = torch.randn(3, 5, 5, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match="x: got shape"):
        chain(wrong)


@torch.no_grad()
def test_zero_padding_needs_few_zeros(calls):
    for kernel_size, expected in ((3, 8), (4, 9), (5, 9)):
        layer = lip.AOLConv2d(4, 4, kernel_size, padding_mode="zeros").double().eval()
        nn.init.normal_(layer.raw_weight)
        x = torch.randn(2, 4, 7, 7, dtype=torch.float64)
        torch.testing.assert_close(layer(x), reference(layer, x), rtol=1e-12, atol=1e-12)
        assert calls.pop() == (expected, expected)


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_a_changed_parameter_is_seen(name, calls):
    layer = make(name)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    before = layer(x)
    for change in (
        lambda: next(layer.parameters()).mul_(-1.5).add_(0.1),
        lambda: layer.bias.add_(1),
        lambda: layer.load_state_dict(make(name).state_dict()),
        lambda: layer.train().eval(),
    ):
        change()
        after = layer(x)
        torch.testing.assert_close(after, reference(layer, x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(before, after)
    copied = pickle.loads(pickle.dumps(layer))
    assert copied._cache.entries == {}
    assert torch.equal(copied(x), after)


@torch.no_grad()
def test_a_write_to_the_effective_weight_does_not_reach_the_layer(calls):
    layer = make("aol")
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    y = layer(x)
    layer.weight.mul_(1.5)
    assert torch.equal(layer(x), y)


@torch.no_grad()
def test_few_spectra_are_kept(calls):
    layer = make("sll")
    for side in (3, 4, 5, 4, 6):
        layer(torch.randn(1, 6, side, side, dtype=torch.float64))
    assert [key[1] for key in layer._cache.entries if key and key[0] == "spectra"] == [(5, 5), (7, 7)]


def test_only_fixed_kernels_that_nothing_differentiates(calls):
    layer, x = make("aol"), torch.randn(2, 6, 4, 4, dtype=torch.float64)
    layer(x)  # the parameters require gradients
    with torch.no_grad():
        copy.deepcopy(layer).train()(x)
        copy.deepcopy(layer)(x[0])
        make("aol", backend="reference")(x)
        make("aol", stride=2)(x)
        make("aol", groups=2)(x)
        make("aol", padding=0)(x)
        with torch.autocast("cpu", torch.bfloat16):
            make("aol", torch.float32)(x.float())
        torch.func.vmap(layer)(x[:, None])
    layer.requires_grad_(False)
    layer(x.clone().requires_grad_()).sum().backward()
    assert calls == []
    layer(x)
    assert len(calls) == 1


def test_the_rule():
    def cheaper(channels, side, batch=64, extra=0, taps=9):
        fft_size = side + extra, side + extra
        return spectra.is_cheaper(batch, (channels, channels), (side, side), fft_size, taps, 4)

    assert not cheaper(32, 32)
    assert all(cheaper(c, s) and cheaper(c, s, extra=1) for c, s in ((64, 16), (128, 8), (256, 4)))
    assert not cheaper(256, 4, batch=1)  # the spectrum is larger than the kernel
    assert not cheaper(256, 4, taps=1)
    assert not cheaper(1024, 8)  # 256 MB
    assert not cheaper(16, 0)


@torch.no_grad()
def test_it_is_used_without_being_forced(monkeypatch):
    layer = lip.AOLConv2d(64, 64, 3).eval()
    nn.init.normal_(layer.raw_weight)
    x = torch.randn(64, 64, 4, 4)
    direct = reference(layer, x)
    monkeypatch.setattr(type(layer._application), "convolve", None)
    torch.testing.assert_close(layer(x), direct, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_certify_covers_the_rounding(name, options, calls):
    single = make(name, torch.float32, **options)
    double = copy.deepcopy(single).double()
    if isinstance(single, lip.AOLConv2d | lip.BCOPConv2d):
        double._effective()[0].copy_(single.weight)  # the same rounded weights
    x = torch.randn(8, 6, 8, 8)
    exact = reference(double, x.double())
    if isinstance(single, lip.AOLConv2d | lip.BCOPConv2d):
        exact = double._application.convolve(x.double(), double.weight, double.bias)
    y = single(x)
    bound = bound_module(single, (6, 8, 8), tuple(y.shape[1:]))
    error = (y.double() - exact).flatten(1).norm(dim=1)
    covered = (
        torch.finfo(torch.float32).eps
        / 2
        * (bound.roundings * x.flatten(1).norm(dim=1) + 2 * y.flatten(1).norm(dim=1))
    )
    assert error.max() > 0
    assert (error <= covered).all()


@pytest.mark.parametrize("name", ["aol", "sll"])
@torch.no_grad()
def test_large_layers_round_less_than_certify_allows(name):
    """At shapes that the rule picks."""
    layer = lip.AOLConv2d(128, 128, 3) if name == "aol" else lip.SLLConv2d(128, 128, 3)
    nn.init.normal_(layer.raw_weight if name == "aol" else layer.kernel)
    layer.eval()
    double = copy.deepcopy(layer).double()
    x = torch.randn(32, 128, 4, 4)
    assert spectra.fft_size_for(layer, layer._application.geometry, (128, 128), x)
    if name == "aol":
        exact = nn.functional.conv2d(
            nn.functional.pad(x.double(), (1, 1, 1, 1), "circular"), layer.weight.double(), double.bias
        )
    else:
        exact = reference(double, x.double())
    y = layer(x)
    bound = bound_module(layer, (128, 4, 4), (128, 4, 4))
    error = (y.double() - exact).flatten(1).norm(dim=1)
    assert (error <= torch.finfo(torch.float32).eps / 2 * bound.roundings * x.flatten(1).norm(dim=1)).all()


@torch.no_grad()
def test_a_single_pixel_is_a_product():
    layer = lip.AOLConv2d(5, 4, 1).double().eval()
    x = torch.randn(3, 5, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(layer(x), nn.functional.conv2d(x, layer.weight, layer.bias))


@torch.no_grad()
def test_the_second_kernel_is_folded_once(monkeypatch):
    from fastlip.nn.applications import residual

    count = []
    original = residual.folded
    monkeypatch.setattr(residual, "folded", lambda *a: count.append(1) or original(*a))
    layer = make("cpl")
    x = torch.randn(3, 6, 32, 32, dtype=torch.float64)  # enough for kernels
    for _ in range(2):
        torch.testing.assert_close(layer(x), reference(layer, x), rtol=1e-12, atol=1e-12)
    assert len(count) == 1
    layer.kernel.mul_(2)
    torch.testing.assert_close(layer(x), reference(layer, x), rtol=1e-12, atol=1e-12)
    assert len(count) == 2
