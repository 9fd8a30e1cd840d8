"""Layers that run Winograd's convolutions: in training, and in evaluation with small tiles alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

import fastlip
from fastlip import nn as lip
from fastlip.certification.rounding.rules import worst_case
from fastlip.certification.rounding.terms import Unit
from fastlip.kernels.common import binding, winograd
from fastlip.kernels.common import channels_last as images
from fastlip.kernels.common.geometry import NO_PADS, ConvGeometry

MODES = ("zeros", "circular")


@pytest.fixture(autouse=True)
def kernels():
    if binding.missing(winograd.KERNELS[2], torch.device("cpu")):
        pytest.skip("the kernels are not built")


def last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


def calls(monkeypatch):
    """The tiles of all calls from here on."""
    found = []

    def watched(tile, kernel):
        return lambda *arguments: (found.append(tile), kernel(*arguments))

    for tile, name in winograd.KERNELS.items():
        monkeypatch.setitem(binding.CPU, name, watched(tile, binding.CPU[name]))
    return found


LAYERS = {
    "AOL": lambda: lip.AOLConv2d(32, 32, 3, padding=1),
    "SLL": lambda: lip.SLLConv2d(32, 32, 3),
    "SOC": lambda: lip.SOCConv2d(32, 32, 3, padding=1),
}


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_evaluation_uses_the_small_tiles_alone(name, fuse, monkeypatch):
    torch.manual_seed(0)
    layer, x = LAYERS[name](), torch.randn(16, 32, 16, 16)
    model = torch.nn.Sequential(layer, lip.MaxMin())
    model = fastlip.fuse(model) if fuse else model
    found = calls(monkeypatch)
    model.eval()
    with torch.no_grad():
        model(x)
    model(x.requires_grad_())
    fastlip.certify(nn_of(layer), [(x[:2].detach(), torch.zeros(2, dtype=torch.long))])
    assert set(found) <= {2}
    assert found or (name == "AOL" and not fuse)  # one layer alone is torch's convolution
    found.clear()
    model.train()
    model(x).sum().backward()
    assert 4 in found


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_autocast_trains_in_its_own_type_without_it(name, fuse, monkeypatch):
    torch.manual_seed(0)
    layer = LAYERS[name]()
    model = torch.nn.Sequential(layer, lip.MaxMin())
    model = fastlip.fuse(model) if fuse else model
    x, found = torch.randn(16, 32, 16, 16), calls(monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        layer.backend = "reference"
        expected = model(x)
    assert not found
    assert y.dtype == expected.dtype
    assert torch.equal(y, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_traces_with_sizes_that_are_no_numbers(name):
    layer, x = LAYERS[name](), torch.randn(16, 32, 16, 16)
    traced = make_fx(layer, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x)
    y, expected = traced(x), layer(x)
    assert (y - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", LAYERS)
def test_another_resolution_and_loaded_weights(name, monkeypatch):
    torch.manual_seed(0)
    layer, other = LAYERS[name](), LAYERS[name]()
    layer.train()(torch.randn(16, 32, 16, 16))
    layer.load_state_dict(other.state_dict())
    other.backend = "reference"
    found = calls(monkeypatch)
    for size in ((16, 16), (20, 13)):
        x = torch.randn(16, 32, *size)
        y, expected = layer(x), other(x)
        assert found
        assert (y - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_an_evaluation_that_records_gradients_has_the_bits_of_one_that_does_not(name, fuse):
    torch.manual_seed(0)
    model = torch.nn.Sequential(LAYERS[name](), lip.MaxMin()).eval()
    model = fastlip.fuse(model) if fuse else model
    x = last(torch.randn(16, 32, 16, 16))
    recorded = model(x.requires_grad_())
    with torch.no_grad():
        assert torch.equal(recorded, model(x))
    recorded.sum().backward()
    assert x.grad is not None


def nn_of(layer):
    return torch.nn.Sequential(layer, torch.nn.Flatten(), lip.AOLLinear(32 * 16 * 16, 4)).eval()


@pytest.mark.parametrize("mode", MODES)
def test_fused_layers_agree_with_the_reference(mode):
    torch.manual_seed(0)
    x = torch.randn(16, 32, 12, 10)
    weight, bias, scale = torch.randn(32, 32, 3, 3) / 17, torch.randn(32), torch.rand(32)
    kernel = (weight - weight.transpose(0, 1).flip(2, 3)) / 2
    functions = {
        "conv_chain": lambda b, x, w: fastlip.ops.conv_chain(
            x, [w, w], [bias.to(x), None], pairing="none", padding_mode=mode, backend=b
        ),
        "sdp_residual": lambda b, x, w: fastlip.ops.sdp_residual(
            x, w, bias.to(x).abs() + 20, scale.to(x), padding_mode=mode, backend=b
        ),
        "conv_exp": lambda b, x, w: fastlip.ops.conv_exp(
            x, w - w.transpose(0, 1).flip(2, 3), 3, padding_mode=mode, backend=b
        ),
    }
    assert winograd.takes(last(x), ConvGeometry((3, 3)), (12, 10), 32, 32)
    for name, function in functions.items():
        results = []
        for backend, dtype in (("native", torch.float32), ("reference", torch.float64)):
            leaves = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (x, kernel)]
            y = function(backend, *leaves)
            results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
        for ours, truth in zip(*results, strict=True):
            error = (ours - truth).abs().max() / truth.abs().max()
            assert error <= 4 * torch.finfo(torch.float32).eps * (9 * 32 * 3) ** 0.5, name


def test_a_circular_image_has_its_halo_or_none(monkeypatch):
    torch.manual_seed(0)
    x, weight = torch.randn(16, 32, 16, 16), torch.randn(32, 32, 3, 3)
    geometry, size = ConvGeometry((3, 3), padding_mode="circular"), (16, 16)
    extended = images.with_halo(last(x), images.halo_of(geometry))
    found = calls(monkeypatch)
    for training, tile in ((True, 4), (False, 2)):
        assert images.tile_for(x, weight, geometry, size, training) == tile
        assert images.halo_for(geometry, tile) == NO_PADS
        y = winograd.convolve(extended, weight, geometry, size, tile=tile)
        assert torch.equal(y, images.convolve(last(x), weight, geometry, tile=tile))
        assert found == [tile, tile]
        found.clear()
        assert torch.allclose(y, F.conv2d(F.pad(x, (1, 1, 1, 1), "circular"), weight), atol=1e-3)
    assert images.tile_for(x.double(), weight.double(), geometry, size, True) is None
    assert images.halo_for(geometry, None) == (1, 1, 1, 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [lip.SLLConv2d, lip.SOCConv2d, lip.CPLConv2d])
def test_layers_are_within_the_errors_that_certificates_count(kind, mode, monkeypatch):
    torch.manual_seed(0)
    layer = kind(32, 32, 3, padding_mode=mode, **({"padding": 1} if kind is lip.SOCConv2d else {})).eval()
    x, found = torch.randn(16, 32, 15, 16), calls(monkeypatch)
    with torch.no_grad():
        y, exact = layer(x), copy.deepcopy(layer).double()(x.double())
    # A circular exponential is one matrix for each frequency.
    assert set(found) == (set() if (kind, mode) == (lip.SOCConv2d, "circular") else {2})
    (row,) = fastlip.audit(torch.nn.Sequential(layer), (32, 15, 16)).layers
    own = worst_case(layer, row, (32, 15, 16), (32, 15, 16), Unit.of(torch.float32))
    error, size = (y - exact).flatten(1).norm(dim=1), x.double().flatten(1).norm(dim=1)
    # In double precision the scale is computed anew: it differs by a few roundings.
    assert (
        error <= (own.relative + 2e-6) * size + own.constant + own.output * y.double().flatten(1).norm(dim=1)
    ).all()
