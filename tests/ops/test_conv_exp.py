"""conv_exp against the matrix of the convolution, and what truncation.py claims of the series."""

import math

import pytest
import torch

from fastlip import ops, testing
from fastlip.kernels.common.dispatch import registered
from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.kernels.common.padding import pad, same_pads
from fastlip.kernels.conv_exp import forms
from fastlip.kernels.conv_exp.truncation import degree_for, economized, largest_modulus, modulus, stable_norm, taylor

GEOMETRIES = [
    {"kernel": (3, 3), "image": (4, 5)},
    {"kernel": (3, 5), "image": (2, 3)},
    {"kernel": (3, 1), "image": (1, 1)},
    {"kernel": (3, 3), "image": (5, 4), "dilation": (2, 1)},
    {"kernel": (3, 3), "image": (3, 4), "groups": 2},
]


def skew_kernel(channels, kernel, groups=1):
    raw = torch.randn(groups, channels // groups, channels // groups, *kernel, dtype=torch.float64)
    return (raw - raw.transpose(1, 2).flip(3, 4)).flatten(0, 1) / 6


def operator(kernel, image, dilation, groups, padding_mode):
    """The matrix of the "same" padded convolution, column by column."""
    channels = kernel.shape[0]
    basis = torch.eye(channels * math.prod(image), dtype=kernel.dtype).view(-1, channels, *image)
    basis = pad(basis, same_pads(kernel.shape[2:], dilation), padding_mode)
    return torch.conv2d(basis, kernel, dilation=dilation, groups=groups).flatten(1).T


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_equals_the_series_of_the_matrix_and_the_matrix_is_skew(geometry, padding_mode):
    image, dilation = geometry["image"], geometry.get("dilation", (1, 1))
    groups = geometry.get("groups", 1)
    kernel = skew_kernel(4, geometry["kernel"], groups)
    K = operator(kernel, image, dilation, groups, padding_mode)
    torch.testing.assert_close(K.T, -K, rtol=0, atol=1e-14)
    x = torch.randn(3, 4, *image, dtype=torch.float64)
    for terms in (1, 4, 16):
        series = term = torch.eye(len(K), dtype=K.dtype)
        for t in range(1, terms + 1):
            term = term @ K / t
            series = series + term
        y = ops.conv_exp(x, kernel, terms, dilation, groups, padding_mode)
        torch.testing.assert_close(y.flatten(1), x.flatten(1) @ series.T, rtol=0, atol=1e-12)
        norm = torch.linalg.matrix_norm(K, 2).item()
        assert torch.linalg.matrix_norm(series, 2).item() <= largest_modulus(terms, norm) * (1 + 1e-12)


def test_a_kernel_that_is_not_skew_is_exponentiated_too():
    kernel, x = torch.randn(2, 2, 1, 3, dtype=torch.float64), torch.randn(1, 2, 3, 4, dtype=torch.float64)
    K = operator(kernel / 4, (3, 4), (1, 1), 1, "zeros")
    y = ops.conv_exp(x, kernel / 4, 16)
    torch.testing.assert_close(y.flatten(1), x.flatten(1) @ torch.linalg.matrix_exp(K).T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_any_polynomial_and_a_bias(backend):
    kernel, x = skew_kernel(3, (3, 3)), torch.randn(2, 3, 4, 3, dtype=torch.float64)
    K = operator(kernel, (4, 3), (1, 1), 1, "zeros")
    bias, coefficients = torch.randn(3, dtype=torch.float64), (0.9, -1.1, 0.3, 2.0)
    polynomial = sum(c * torch.linalg.matrix_power(K, t) for t, c in enumerate(coefficients))
    expected = (x.flatten(1) @ polynomial.T).view_as(x) + bias[:, None, None]
    y = ops.conv_exp(x, kernel, 3, bias=bias, coefficients=coefficients, backend=backend)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["taps", "spectrum"])
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_what_is_kept_for_the_backward(padding_mode, form, monkeypatch):
    if reason := registered["conv_exp"].status("native"):
        pytest.skip(reason)
    monkeypatch.setattr(forms, "choose", lambda *_: form)
    x, kernel = torch.randn(2, 4, 5, 6, dtype=torch.float64), skew_kernel(4, (3, 3))
    x = x.contiguous(memory_format=torch.channels_last)

    def run(recompute):
        return lambda x, kernel: ops.conv_exp(x, kernel, 5, padding_mode=padding_mode, recompute=recompute)

    tensors = {"x": x, "kernel": kernel}
    image, weights = 8 * x.numel(), 8 * kernel.numel()
    assert testing.saved_bytes(run(True), tensors) == image + weights
    assert testing.saved_bytes(run(False), tensors) == 5 * image + weights
    frozen = testing.saved_bytes(lambda x: run(False)(x, kernel), {"x": x})
    assert frozen == weights
    kept = testing.outputs_and_gradients(run(False), tensors)
    for name, value in testing.outputs_and_gradients(run(True), tensors).items():
        assert torch.equal(value, kept[name]), name


def test_the_recomputed_reference_keeps_its_input_alone():
    x, kernel = torch.randn(2, 4, 5, 6, dtype=torch.float64), skew_kernel(4, (3, 3))

    def run(recompute):
        return lambda x, kernel: ops.conv_exp(x, kernel, 5, recompute=recompute, backend="reference")

    tensors = {"x": x, "kernel": kernel}
    assert testing.saved_bytes(run(True), tensors) == 8 * (x.numel() + kernel.numel())
    assert testing.saved_bytes(run(False), tensors) > 5 * 8 * x.numel()
    kept = testing.outputs_and_gradients(run(False), tensors)
    for name, value in testing.outputs_and_gradients(run(True), tensors).items():
        assert torch.equal(value, kept[name]), name
    jacobians = [torch.func.jacrev(run(recompute))(x, kernel) for recompute in (False, True)]
    assert torch.equal(*jacobians)


@pytest.mark.parametrize(
    ("form", "padding_mode"), [("spectrum", "zeros"), ("spectrum", "circular"), ("matrices", "circular")]
)
@pytest.mark.parametrize("geometry", [g for g in GEOMETRIES if "groups" not in g], ids=str)
@pytest.mark.parametrize("terms", [1, 2, 3, 4, 5])
def test_every_form_is_the_same_function(terms, geometry, form, padding_mode, monkeypatch):
    if reason := registered["conv_exp"].status("native"):
        pytest.skip(reason)
    dilation = geometry.get("dilation", (1, 1))
    x = torch.randn(2, 4, *geometry["image"], dtype=torch.float64, requires_grad=True)
    kernel = (skew_kernel(4, geometry["kernel"]) + 0.01).requires_grad_()
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    coefficients = [0.9, 1.1, -0.4, 0.2, 0.1, 0.05][: terms + 1]
    arguments = x, kernel, terms, dilation, 1, padding_mode, bias, coefficients
    upstream = torch.randn_like(x)

    def run(**options):
        y = ops.conv_exp(*arguments, **options)
        return y, *torch.autograd.grad(y, (x, kernel, bias), upstream)

    expected = run(backend="reference")
    monkeypatch.setattr(forms, "choose", lambda *_: form)
    for recompute in (False, True):
        for value, other in zip(run(recompute=recompute, backend="native"), expected, strict=True):
            torch.testing.assert_close(value, other, rtol=1e-12, atol=1e-13)
    (attacked,) = torch.autograd.grad(ops.conv_exp(x, kernel.detach(), *arguments[2:]), x, upstream)
    torch.testing.assert_close(attacked, expected[1], rtol=1e-12, atol=1e-13)


def test_the_cheapest_form():
    def form(batch, channels, side, padding_mode, taps=(3, 3)):
        geometry = ConvGeometry(taps, padding_mode=padding_mode)
        return forms.choose((batch, channels, side, side), geometry, 5, 4)

    assert form(256, 16, 32, "zeros") == form(64, 32, 32, "zeros") == "taps"
    assert form(64, 128, 8, "zeros") == form(64, 256, 4, "zeros") == "spectrum"
    assert form(256, 16, 32, "circular") == form(64, 64, 16, "circular") == "matrices"
    assert form(16, 512, 8, "circular") == "spectrum"  # too few images for matrices of 512 channels
    assert form(64, 512, 64, "circular") == "taps"  # too large matrices
    assert form(0, 64, 8, "circular") == form(64, 64, 8, "circular", (1, 1)) == "taps"


@pytest.mark.parametrize("terms", [2, 5, 8, 12, 16])
@pytest.mark.parametrize("tolerance", [2**-24, 1e-3])
def test_economized_polynomials_stay_within_the_tolerance(terms, tolerance):
    limits = []
    for degree in range(1, terms + 1):
        coefficients, norm = economized(terms, degree, tolerance)
        limits.append(norm)
        theta = torch.linspace(-min(norm, 3), min(norm, 3), 1001, dtype=torch.float64)
        full, short = (
            sum(c * (1j * theta) ** t for t, c in enumerate(polynomial))
            for polynomial in (taylor(terms), coefficients)
        )
        assert (full - short).abs().max() <= tolerance + 1e-15
        if norm < 10:  # and hardly farther
            beyond = 1j * norm * 1.2
            error = sum(c * beyond**t for t, c in enumerate(taylor(terms)))
            assert abs(error - sum(c * beyond**t for t, c in enumerate(coefficients))) > tolerance
    assert limits == sorted(limits)
    assert degree_for(terms, limits[0], tolerance) == 1
    assert degree_for(terms, limits[-2] * 1.001, tolerance) == degree_for(terms, math.nan, tolerance) == terms


@pytest.mark.parametrize("terms", range(1, 17))
def test_the_modulus_of_the_series(terms):
    theta = torch.linspace(0, 4, 4001, dtype=torch.float64)
    series = sum((1j * theta) ** t / math.factorial(t) for t in range(terms + 1)).abs()
    for index in (0, 500, 2400, 4000):
        assert modulus(terms, theta[index].item()) == pytest.approx(series[index].item(), abs=1e-13)
        largest = largest_modulus(terms, theta[index].item())
        assert largest == pytest.approx(series[: index + 1].max().item(), abs=1e-6)
        assert largest >= series[: index + 1].max().item() - 1e-13
    limit = stable_norm(terms)
    assert (series[theta <= limit] <= 1 + 1e-13).all()
    assert modulus(terms, max(limit, 1.5) + 0.01) > 1


def test_the_stable_norms_of_the_literature():
    for terms, norm in {3: 3**0.5, 4: 8**0.5, 8: 3.3951, 12: 3.3794}.items():
        assert stable_norm(terms) == pytest.approx(norm, abs=1e-4)
    assert stable_norm(5) == stable_norm(6) == 0


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"terms": 0}, ValueError, "terms=0"),
        ({"terms": 17}, ValueError, "terms=17"),
        ({"terms": 2.0}, TypeError, "terms=2.0"),
        ({"kernel": torch.zeros(4, 4, 2, 3)}, ValueError, "kernel: got shape"),
        ({"kernel": torch.zeros(4, 2, 3, 3)}, ValueError, "groups=1"),
        ({"kernel": torch.zeros(4, 4, 3, 3, dtype=torch.int32)}, TypeError, "kernel: got torch.int32"),
        ({"x": torch.zeros(2, 3, 4, 4)}, ValueError, "x: got shape"),
        ({"dilation": (0, 1)}, ValueError, "dilation="),
        ({"padding_mode": "reflect"}, ValueError, "padding_mode='reflect'"),
        ({"bias": torch.zeros(3)}, ValueError, r"bias: got shape \(3,\), expected \(4,\)"),
        ({"coefficients": (1, 1, 1)}, ValueError, "coefficients=.*expected terms \\+ 1 = 5 numbers"),
        ({"coefficients": (1, 1, 0, 1, 1)}, ValueError, "coefficients=.*none of them 0"),
        ({"backend": "triton"}, ValueError, "backend='triton' cannot run here"),
    ],
)
def test_errors_name_the_argument(change, error, text):
    arguments = {"x": torch.zeros(2, 4, 4, 4), "kernel": torch.zeros(4, 4, 3, 3), "terms": 4}
    with pytest.raises(error, match=text):
        ops.conv_exp(**{**arguments, **change})
