"""Layers of one matrix per frequency sort their pairs in the transform's last stage, in training as in evaluation."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import fastlip
from fastlip import nn as lip
from fastlip.kernels.spectral_conv.api import OP
from fastlip.nn.applications import training_spectra

if OP.status("native"):
    pytest.skip(OP.status("native"), allow_module_level=True)

KINDS = {"cayley": lip.CayleyConv2d, "lot": lip.LOTConv2d, "bro": lip.BROConv2d}
# Whole and partly filled vectors, an odd channel that stays, and a stride.
SHAPES = [(16, 16, "circular", 1), (5, 36, "zeros", 1), (18, 7, "zeros", 1), (4, 8, "circular", 2)]


@pytest.fixture
def calls(monkeypatch):
    """The FFT sizes at which a layer and its MaxMin run as one."""
    seen, original = [], training_spectra.maxmin_in_training

    def record(*arguments):
        seen.append(arguments[3])
        return original(*arguments)

    monkeypatch.setattr(training_spectra, "maxmin_in_training", record)
    return seen


def pair(kind, inputs=16, outputs=16, mode="circular", stride=1, dtype=torch.float32, **options):
    torch.manual_seed(0)
    layer = KINDS[kind](inputs, outputs, 3, stride=stride, padding_mode=mode, **options).to(dtype)
    return layer, fastlip.fuse(nn.Sequential(layer, lip.MaxMin()))


def results(function, layer, x):
    leaf = x.clone().requires_grad_()
    y = function(leaf)
    weights = torch.linspace(-1, 1, y.numel(), dtype=x.dtype).reshape(y.shape)
    return (y.detach(), *torch.autograd.grad((y * weights).sum(), [leaf, *layer.parameters()]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_those_of_a_layer_and_its_activation(kind, shape, dtype, calls):
    layer, fused = pair(kind, *shape, dtype=dtype)
    for x in (torch.randn(3, shape[0], 8, 6, dtype=dtype), torch.randn(2, shape[0], 6, 10, dtype=dtype)):
        for images in (x, x.contiguous(memory_format=torch.channels_last)):
            ours = results(fused, layer, images)
            assert calls
            calls.clear()
            theirs = results(lambda leaf: lip.MaxMin()(layer(leaf)), layer, images)
            assert not calls
            for one, other in zip(ours, theirs, strict=True):
                assert torch.equal(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_channels_last_after_the_first_pair(kind, calls):
    """Whose kernels read and write vectors of channels; the gradient of x lies like x."""
    torch.manual_seed(0)
    fused = fastlip.fuse(nn.Sequential(pair(kind)[0], lip.MaxMin(), pair(kind)[0], lip.MaxMin()))
    x = torch.randn(3, 16, 8, 6, requires_grad=True)
    y = fused(x)
    assert len(calls) == 2
    assert y.is_contiguous(memory_format=torch.channels_last)
    (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert gradient.is_contiguous()


def test_nan_stays_where_it_is(calls):
    _layer, fused = pair("cayley")
    x = torch.randn(2, 16, 4, 4)
    x[0, 3, 1, 1] = torch.nan
    y = fused(x)
    assert calls
    assert y[0].isnan().all()
    assert not y[1].isnan().any()


def test_second_derivatives(calls):
    layer, fused = pair("cayley", 4, 4, dtype=torch.float64)
    layer.requires_grad_(False)
    assert torch.autograd.gradcheck(fused, [torch.randn(2, 4, 4, 4, dtype=torch.float64, requires_grad=True)])
    assert torch.autograd.gradgradcheck(fused, [torch.randn(1, 4, 3, 4, dtype=torch.float64, requires_grad=True)])
    assert calls


def test_what_follows_operations_runs_the_two_apart(calls):
    _layer, fused = pair("cayley", 4, 4)
    x = torch.randn(3, 2, 4, 4, 4)
    expected = torch.stack([fused(images) for images in x])
    assert calls
    calls.clear()
    mapped = vmap(lambda images: functional_call(fused, dict(fused.named_parameters()), (images,)))(x)
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)(x[0])
    traced = make_fx(fused, tracing_mode="symbolic", _allow_non_fake_inputs=True)(x[0])(x[0])
    assert not calls
    assert torch.allclose(mapped, expected, atol=1e-5)
    assert torch.allclose(compiled, expected[0], atol=1e-5)
    assert torch.allclose(traced, expected[0], atol=1e-5)


@pytest.mark.parametrize(("groups", "backend"), [(2, "auto"), (1, "reference")])
def test_who_does_not_take_part(groups, backend, calls):
    layer, fused = pair("cayley", groups=groups)
    layer.backend = backend  # after fuse, which sets it
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(fused(x), lip.MaxMin()(layer(x)))
    halves = fastlip.fuse(nn.Sequential(pair("cayley")[0], lip.MaxMin(pairing="halves")))
    halves(x)
    fused(x[:0])
    assert not calls


def test_a_frozen_layer_gets_no_gradient(calls):
    layer, fused = pair("cayley")
    layer.bias.requires_grad_(False)
    fused(torch.randn(2, 16, 4, 4)).sum().backward()
    assert calls
    assert layer.bias.grad is None
    assert all(p.grad is not None for name, p in layer.named_parameters() if name != "bias")
