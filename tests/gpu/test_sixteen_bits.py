"""Triton's kernels on images in bfloat16 and float16: tests/gpu/test_interpreter.py runs this file.

Images, weights and gradients are small integers, so that every product and sum of the convolutions is exact, in
sixteen bits too: kernels must agree with float64 bit by bit, but for the rounding of each result. Spectral
convolutions are not exact: they must be what float32 computes, rounded once.
"""

import itertools

import pytest
import torch

import fastlip
from fastlip import nn as lip
from fastlip import ops, testing
from fastlip.kernels.common.fourier import count_frequencies

triton = pytest.importorskip("triton", minversion="3.6")

ACTIVE = triton.knobs.runtime.interpret
pytestmark = pytest.mark.skipif(not ACTIVE, reason="runs in the process that tests/gpu/test_interpreter.py starts")
if ACTIVE:
    from fastlip.kernels.conv_chain.triton_kernels import Passes
DTYPES = [torch.bfloat16, torch.float16]
CHAINS = {
    "adjacent": ((3, 4, 6), (5, 4), {}),
    "halves, odd channels": ((2, 5, 7), (3, 4), {"pairing": "halves"}),
    "none, zeros": ((3, 4), (4, 3), {"pairing": "none", "padding_mode": "zeros"}),
}


def integers(*shape, most=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-most, most + 1, shape, generator=generator).double()


def outputs_and_gradients(function, tensors, gradient, dtype):
    """Of a function of these tensors in a type: by name, in float64."""
    leaves = {name: value.to(dtype).requires_grad_() for name, value in tensors.items()}
    y = function(**leaves)
    found = torch.autograd.grad(y, list(leaves.values()), gradient.to(dtype))
    assert {y.dtype, *(one.dtype for one in found)} == {dtype}
    return {"y": y.detach(), **dict(zip(leaves, found, strict=True))}


def check(function, tensors, gradient, dtype):
    ours = outputs_and_gradients(lambda **leaves: function("triton", **leaves), tensors, gradient, dtype)
    expected = outputs_and_gradients(
        lambda **leaves: function("reference", **leaves), tensors, gradient, torch.double
    )
    assert max(value.abs().max() for value in expected.values()) > 4
    for name, value in expected.items():
        assert torch.equal(ours[name], value.to(dtype)), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CHAINS)
def test_conv_chain(name, dtype):
    channels, size, options = CHAINS[name]
    tensors = {"x": integers(2, channels[0], *size)}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(channels)):
        tensors[f"weight{i}"] = integers(outputs, inputs, 3, 3, seed=i + 1)
        tensors[f"bias{i}"] = integers(outputs, most=3, seed=i + 5)

    def function(backend, x, **others):
        weights, biases = ([value for key, value in others.items() if key.startswith(one)] for one in ("w", "b"))
        return ops.conv_chain(x, weights, biases, **options, backend=backend)

    check(function, tensors, integers(2, channels[-1], *size, seed=9), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("pairing", "padding_mode"), [("none", "zeros"), ("halves", "circular")])
def test_sdp_residual(pairing, padding_mode, dtype):
    tensors = {"x": integers(1, 4, 3, 4), "weight": integers(5, 4, 3, 3, seed=1), "bias": integers(5, seed=2)}
    tensors["scale"] = torch.tensor([1.0, 0.5, 2, 1, 0.5], dtype=torch.float64)

    def function(backend, **leaves):
        return ops.sdp_residual(**leaves, pairing=pairing, padding_mode=padding_mode, backend=backend)

    check(function, tensors, integers(1, 4, 3, 4, seed=9), dtype)


def test_a_sum_over_many_pixels_is_rounded_once():
    """Of 1024 ones: in bfloat16 it would stay at 256."""
    x, weight = torch.zeros(1, 2, 32, 32, dtype=torch.bfloat16), torch.zeros(2, 2, 1, 1, dtype=torch.bfloat16)
    bias = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    y = ops.conv_chain(x, [weight], [bias], backend="triton")
    (gradient,) = torch.autograd.grad(y.sum(), bias)
    assert torch.equal(gradient, torch.full((2,), 1024.0, dtype=torch.bfloat16))


@pytest.mark.parametrize("name", ["AOLConv2d", "SLLConv2d"])
def test_under_autocast_the_passes_run_in_its_type_and_weights_keep_theirs(name, monkeypatch):
    seen, original = [], Passes.activate
    monkeypatch.setattr(Passes, "activate", lambda self, z, *rest: seen.append(z.dtype) or original(self, z, *rest))
    layer = getattr(lip, name)
    model = fastlip.fuse(torch.nn.Sequential(layer(8, 8, 3), lip.MaxMin(), layer(8, 8, 3), lip.MaxMin())).train()
    x = torch.randn(4, 8, 24, 24)
    x = (x if name == "AOLConv2d" else x.bfloat16()).requires_grad_()
    results = []
    for fused in (True, False):
        model = model if fused else fastlip.unfuse(model)
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
            assert y.dtype == torch.bfloat16
        gradients = torch.autograd.grad(y.float().square().sum(), [x, *model.parameters()])
        assert {gradient.dtype for gradient in gradients[1:]} == {torch.float32}
        results.append([y.detach().float(), *(gradient.float() for gradient in gradients)])
    assert set(seen) == {torch.bfloat16}
    for ours, expected in zip(*results, strict=True):
        # Pairs whose numbers are equal up to a rounding may be sorted differently: some of the gradient moves.
        assert (ours - expected).norm() < 0.06 * expected.norm()
    with torch.no_grad():
        exact = model(x.float())
    assert (results[0][0] - exact).norm() < 0.01 * exact.norm()


def test_under_autocast_what_the_passes_cannot_do_is_torchs():
    """Zeros that differ before and after the image, and an x of float32 for a residual."""
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.conv_chain(torch.ones(1, 2, 4, 4), [torch.ones(2, 2, 2, 2)], padding_mode="zeros")
        z = ops.sdp_residual(torch.ones(1, 2, 4, 4), torch.ones(2, 2, 3, 3), None, torch.ones(2))
    assert (y.dtype, y[0, 0, 0, 0].item(), y[0, 0, 3, 3].item()) == (torch.bfloat16, 8, 2)
    assert z.dtype == torch.float32


def test_tensors_of_two_types_are_refused():
    x, weight = torch.zeros(1, 2, 4, 4, dtype=torch.bfloat16), torch.zeros(2, 2, 3, 3)
    reason = testing.op("conv_chain").why_not("triton", x, [weight], [], [], [], "none")
    assert "one dtype for all tensors, of float32, float64, float16, bfloat16, not" in reason


@pytest.fixture(params=["matrix", "planes", "fft"])
def transforms(request, monkeypatch):
    """How images are transformed: by one matrix, by rows and columns on the chip, by torch.fft."""
    assert testing.op("spectral_conv").status("triton") == ""
    module = testing.op("spectral_conv").modules["triton"]
    if request.param != "matrix":
        monkeypatch.setattr(module.tables, "SMALL", 0)
    if request.param == "fft":
        monkeypatch.setattr(module.planes, "fits", lambda fft_size, dtype: False)
    return request.param


def assert_rounded_once(found, expected, terms):
    """Found is expected, of a sum computed in float32, rounded to found's type; the interpreter cuts off bfloat16."""
    eps = torch.finfo(found.dtype).eps / (1 if found.dtype == torch.bfloat16 else 2)
    allowed = eps * expected.abs() + 4 * terms**0.5 * torch.finfo(torch.float32).eps * expected.abs().max()
    wide = torch.complex128 if found.dtype.is_complex else torch.double
    assert ((found.to(wide) - expected).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("fft_size", "groups", "last"), [((2, 4), 1, True), ((3, 3), 2, False)], ids=str)
def test_spectral_conv(fft_size, groups, last, dtype, transforms):
    generator = torch.Generator().manual_seed(0)
    frequencies = count_frequencies(fft_size)
    x, y_gradient = (torch.randn(5, 4, 2, 3, generator=generator).to(dtype) for _ in range(2))
    parts = (torch.randn(frequencies, 4, 4 // groups, generator=generator) for _ in range(2))
    Q, bias = torch.complex(*parts), torch.randn(4, generator=generator)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    results = []
    for backend, wide in (("triton", False), ("reference", True)):
        leaves = (x.double(), Q.to(torch.complex128), bias.double()) if wide else (x, Q, bias)
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        y = ops.spectral_conv(*leaves, fft_size, groups, backend=backend)
        results.append([y.detach(), *torch.autograd.grad(y, leaves, y_gradient.to(y.dtype))])
    assert [result.dtype for result in results[0]] == [dtype, dtype, torch.complex64, torch.float32]
    assert results[0][0].is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    for ours, expected in zip(*results, strict=True):
        assert_rounded_once(ours, expected, 60)


def test_what_is_not_rounded_once_is_found():
    expected = torch.randn(100, dtype=torch.double)
    assert_rounded_once(expected.bfloat16(), expected, 1)
    with pytest.raises(AssertionError):
        assert_rounded_once((expected * 1.02).bfloat16(), expected, 1)
    with pytest.raises(AssertionError):
        assert_rounded_once((expected * 1.002).half(), expected, 1)
