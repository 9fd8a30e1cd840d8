"""Cayley layers train without their matrices' own gradient where images are fewer than channels."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import fastlip
from fastlip import nn as lip
from fastlip.kernels.spectral_cayley.api import OP
from fastlip.nn.applications import training_cayley

if OP.status("native"):
    pytest.skip(OP.status("native"), allow_module_level=True)

# Whole and partly filled vectors, kernels without a centre, dilation, and a stride.
LAYERS = {
    "square": (16, 16, 3, {}),
    "odd": (7, 7, (3, 5), {"padding_mode": "zeros"}),
    "partly": (37, 37, 3, {"padding_mode": "zeros"}),
    "even": (6, 6, 2, {}),
    "even_high": (6, 6, (4, 3), {"padding_mode": "zeros"}),
    "dilated": (6, 6, 3, {"dilation": 2}),
    "strided": (4, 16, 4, {"stride": 2}),
    "residual": (8, 8, 3, {"quasi_residual": True}),
    "no_bias": (8, 8, 3, {"bias": False}),
}


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """The FFT sizes at which layers train so: here with any number of channels."""
    seen, original = [], training_cayley.cayley_in_training

    def record(*arguments):
        seen.append(arguments[3])
        return original(*arguments)

    monkeypatch.setattr(training_cayley, "cayley_in_training", record)
    monkeypatch.setattr(training_cayley, "_LEAST", 1)
    return seen


def pair(name, dtype=torch.float64):
    torch.manual_seed(0)
    inputs, outputs, kernel_size, options = LAYERS[name]
    layer = lip.CayleyConv2d(inputs, outputs, kernel_size, **options).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    return layer, fastlip.fuse(nn.Sequential(layer, lip.MaxMin()))


def results(function, layer, x):
    leaf = x.clone().requires_grad_()
    y = function(leaf)
    weights = torch.linspace(-1, 1, y.numel(), dtype=x.dtype).reshape(y.shape)
    return (y.detach(), *torch.autograd.grad((y * weights).sum(), [leaf, *layer.parameters()]))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.float64, 1e-14)])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_the_matrices(name, dtype, tolerance, calls):
    layer, fused = pair(name, dtype)
    x = torch.randn(3, layer.in_channels, 8, 6, dtype=dtype)
    for images in (x, x.contiguous(memory_format=torch.channels_last), x[:1]):
        ours = results(fused, layer, images)
        assert calls
        calls.clear()
        theirs = results(lambda leaf: lip.MaxMin()(layer(leaf)), layer, images)
        assert not calls
        assert torch.equal(ours[0], theirs[0])
        for one, other in zip(ours[1:], theirs[1:], strict=True):
            assert (one - other).norm() <= tolerance * other.norm()


def test_images_of_several_passes_add_up(calls):
    """32 MiB of spectra are one pass."""
    layer, fused = pair("square")
    x = torch.randn(16, 16, 130, 130, dtype=torch.float64)
    ours = results(fused, layer, x)
    assert calls
    theirs = results(lambda leaf: lip.MaxMin()(layer(leaf)), layer, x)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= 1e-11 * other.norm()


@pytest.mark.parametrize("name", ["square", "even"])
def test_derivatives_of_any_order(name, calls):
    layer, fused = pair(name)
    x = torch.randn(1, layer.in_channels, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: fused(x), [x, *layer.parameters()], fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x, *_: fused(x), [x, *layer.parameters()], fast_mode=True)
    assert calls


@pytest.mark.parametrize("frozen", ["raw_weight", "bias", "alpha"])
def test_what_is_frozen_gets_no_gradient(frozen, calls):
    layer, fused = pair("square")
    x = torch.randn(2, 16, 4, 4, dtype=torch.float64)
    expected = dict(zip(["y", "x", *dict(layer.named_parameters())], results(fused, layer, x), strict=True))
    calls.clear()
    getattr(layer, frozen).requires_grad_(False)
    y = fused(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=x.dtype).reshape(y.shape)
    (y * weights).sum().backward()
    assert bool(calls) == (frozen != "raw_weight")
    for name, parameter in layer.named_parameters():
        if name == frozen:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-10, atol=1e-12)


def test_who_does_not_take_part(calls, monkeypatch):
    layer, fused = pair("square")
    x = torch.randn(17, 16, 4, 4, dtype=torch.float64)
    fused(x)  # more images than channels
    with torch.no_grad():
        fused(x[:2])
    fused.eval()(x[:2])
    fused.train()
    monkeypatch.setattr(training_cayley, "_LEAST", 17)
    fused(x[:2])
    monkeypatch.setattr(training_cayley, "_LEAST", 1)
    for channels in ((16, 12), (12, 16)):
        fastlip.fuse(nn.Sequential(lip.CayleyConv2d(*channels, 3), lip.MaxMin()))(torch.randn(2, channels[0], 4, 4))
    assert not calls
    fused(x[:2])
    assert calls
    calls.clear()
    parametrize.register_parametrization(layer, "raw_weight", nn.Identity())
    fused(x[:2])
    assert not calls


def test_nan_stays_where_it_is(calls):
    layer, fused = pair("square")
    x = torch.randn(2, 16, 4, 4, dtype=torch.float64)
    x[0, 3, 1, 1] = torch.nan
    y = fused(x)
    assert calls
    assert y[0].isnan().all()
    assert not y[1].isnan().any()
    y.sum().backward()
    assert layer.raw_weight.grad.isnan().any()


def test_other_sizes_and_other_states_have_weights_of_their_own(calls):
    """Nothing is kept from step to step."""
    layer, fused = pair("square")
    other = pair("square")[0]
    with torch.no_grad():
        other.raw_weight.normal_()
    for step in range(2):
        for sides in ((4, 4), (6, 5)):
            x = torch.randn(2, 16, *sides, dtype=torch.float64)
            ours, theirs = results(fused, layer, x), results(lambda leaf: lip.MaxMin()(layer(leaf)), layer, x)
            for one, given in zip(ours, theirs, strict=True):
                assert (one - given).norm() <= 1e-13 * given.norm()
        if step == 0:
            layer.load_state_dict(other.state_dict())
    assert calls == [(4, 4), (6, 5), (4, 4), (6, 5)]


def test_bits_of_images_do_not_depend_on_the_number_of_threads(calls):
    """Those of the kernel's gradient may: its taps are a product of torch's."""
    layer, fused = pair("partly", torch.float32)
    x, threads = torch.randn(6, 37, 9, 8), torch.get_num_threads()
    found = []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        try:
            found.append(results(fused, layer, x))
        finally:
            torch.set_num_threads(threads)
    assert len(calls) == 3
    for other in found[1:]:
        assert torch.equal(found[0][0], other[0])
        assert torch.equal(found[0][1], other[1])


def test_autocast_and_programs_run_the_matrices(calls):
    _layer, fused = pair("square", torch.float32)
    x = torch.randn(2, 16, 4, 4)
    expected = fused(x)
    assert calls
    calls.clear()
    with torch.autocast("cpu", torch.bfloat16):
        lowered = fused(x)
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)(x)
    mapped = torch.func.vmap(fused)(x[None])[0]
    assert not calls
    torch.testing.assert_close(lowered.float(), expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mapped, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("instruction_set", ["default", "avx2"])
def test_other_instruction_sets(instruction_set):
    if find_spec(f"fastlip._native_{instruction_set}") is None:
        pytest.skip(f"the {instruction_set} kernels are not built: FASTLIP_ISA=all pip install -e .")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "those_of_the_matrices",
        __file__,
    ]
    environment = os.environ | {"ATEN_CPU_CAPABILITY": instruction_set, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert process.returncode == 0, process.stdout + process.stderr
    assert f"{2 * len(LAYERS)} passed" in process.stdout
