"""Cayley and LOT: what is theirs alone. What all layers share is in test_theorems and test_layers."""

import math

import pytest
import torch
import torch.nn.functional as F
from layer_catalog import perturb, singular_values

from fastlip import ops
from fastlip.nn import CayleyConv2d, CayleyLinear, LOTConv2d, LOTLinear, SOCConv2d

both = pytest.mark.parametrize("cls", [CayleyConv2d, LOTConv2d])
PUBLISHED = {"ridge": 1e-4, "steps": 10}


def published_spectrum(weight, size):
    """The papers' phase * conj(rfft2(W)), for odd kernels on images that are not smaller."""
    shift = -(weight.shape[-1] - 1) // 2
    angle = sum(
        torch.meshgrid(
            torch.fft.fftfreq(size, dtype=torch.float64),
            torch.fft.rfftfreq(size, dtype=torch.float64),
            indexing="ij",
        )
    )
    phase = torch.polar(torch.ones_like(angle), 2 * math.pi * shift * angle)
    return (phase * torch.fft.rfft2(weight, s=(size, size)).conj()).permute(2, 3, 0, 1)


def apply_per_frequency(Q, x):
    Y = torch.einsum("yxoi,biyx->boyx", Q, torch.fft.rfft2(x))
    return torch.fft.irfft2(Y, s=x.shape[-2:])


@pytest.mark.parametrize("kernel", [3, 5])
def test_cayley_is_the_published_function_up_to_the_meaning_of_alpha(kernel):
    layer = perturb(CayleyConv2d(4, 4, kernel, dtype=torch.float64))
    x, size = torch.randn(2, 4, 6, 6, dtype=torch.float64), 6
    spectrum = published_spectrum(layer.raw_weight, size)
    alpha = layer.alpha * spectrum.norm() / layer.raw_weight.norm()
    M = alpha * spectrum / spectrum.norm()
    A, identity = M - M.mH, torch.eye(4, dtype=M.dtype)
    Q = torch.linalg.solve(identity + A, identity - A)
    expected = apply_per_frequency(Q, x) + layer.bias.view(-1, 1, 1)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_lot_with_ridge_and_steps_is_the_published_function(kernel):
    layer = perturb(LOTConv2d(4, 4, kernel, padding_mode="zeros", **PUBLISHED, dtype=torch.float64))
    x, reach = torch.randn(2, 4, 6, 6, dtype=torch.float64), kernel // 2
    V = published_spectrum(layer.raw_weight, 6 + 2 * reach)
    identity = torch.eye(4, dtype=V.dtype)
    S = V @ V.mH + 1e-4 * identity
    nu = S.abs().square().sum((-2, -1), keepdim=True).sqrt() + 1e-4
    Y, Z = S / nu, identity
    for _ in range(10):
        T = 0.5 * (3 * identity - Z @ Y)
        Y, Z = Y @ T, T @ Z
    y = apply_per_frequency(Z @ V / nu.sqrt(), F.pad(x, (reach,) * 4))
    expected = y[..., reach : 6 + reach, reach : 6 + reach] + layer.bias.view(-1, 1, 1)
    torch.testing.assert_close(layer(x), expected)


def test_lot_takes_both_ridge_and_steps_or_neither():
    for options in ({"ridge": 1e-4}, {"steps": 10}, {"ridge": 0.0, "steps": 10}, {"ridge": 1e-4, "steps": 0}):
        for cls, arguments in ((LOTConv2d, (4, 4, 3)), (LOTLinear, (4, 4))):
            with pytest.raises(ValueError, match=r"ridge=|steps="):
                cls(*arguments, **options)


def test_cayley_starts_with_alpha_at_the_norm_of_the_weight_and_ignores_its_scale():
    for layer, x in (
        (CayleyConv2d(4, 6, 3, groups=2), torch.randn(2, 4, 5, 5)),
        (CayleyLinear(4, 6), torch.randn(2, 4)),
    ):
        assert layer.alpha.item() == pytest.approx(layer.raw_weight.norm().item())
        expected = layer(x)
        with torch.no_grad():
            layer.raw_weight.mul_(7)
        torch.testing.assert_close(layer(x), expected)


def test_a_zero_weight_is_the_identity_of_cayley():
    layer = CayleyConv2d(4, 4, 3)
    with torch.no_grad():
        layer.raw_weight.zero_()
    x = torch.randn(2, 4, 5, 5)
    y = layer(x)
    torch.testing.assert_close(y, x)
    y.square().sum().backward()
    assert layer.raw_weight.grad.isfinite().all()


@both
def test_gradients(cls):
    for options, size in (({}, (4, 3)), ({"padding_mode": "zeros"}, (3, 2)), ({"stride": 2}, (3, 4))):
        layer = perturb(cls(2, 3, 3, dtype=torch.float64, **options))
        names, values = zip(*layer.named_parameters(), strict=True)
        x = torch.randn(2, 2, *size, dtype=torch.float64, requires_grad=True)

        def run(x, *values, layer=layer, names=names):
            return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))

        assert torch.autograd.gradcheck(run, (x, *values), fast_mode=True)


def singular_kernels():
    vanishing = torch.randn(4, 4, 3, 3)
    vanishing[:, :, 1, 1] -= vanishing.sum((2, 3))  # zero at frequency 0
    rank_one = torch.randn(4, 1, 1, 1) * torch.randn(1, 4, 3, 3)
    dead_channel = torch.randn(4, 4, 3, 3)
    dead_channel[2] = 0
    return {"vanishing": vanishing, "rank_one": rank_one, "dead": dead_channel, "zero": torch.zeros(4, 4, 3, 3)}


@pytest.mark.parametrize("name", list(singular_kernels()))
@pytest.mark.parametrize("padding_mode", ["circular", "zeros"])
def test_lot_with_a_singular_spectrum_is_orthogonal_with_finite_gradients(name, padding_mode):
    kernel = singular_kernels()[name]
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        layer = LOTConv2d(4, 4, 3, padding_mode=padding_mode, dtype=dtype)
        with torch.no_grad():
            layer.raw_weight.copy_(kernel)
        largest, smallest = singular_values(layer, (4, 5, 4), dtype)
        assert largest <= 1 + tolerance
        if padding_mode == "circular":
            assert smallest >= 1 - tolerance
        layer(torch.randn(2, 4, 5, 4, dtype=dtype)).pow(3).sum().backward()
        assert layer.raw_weight.grad.isfinite().all()


@both
@pytest.mark.parametrize("stride", [2, (1, 3)])
@pytest.mark.parametrize("padding_mode", ["circular", "zeros"])
def test_a_stride_is_a_convolution_of_patches(cls, stride, padding_mode):
    layer = perturb(cls(2, 6, 5, stride=stride, padding_mode=padding_mode, groups=2, dtype=torch.float64))
    sh, sw = layer.stride
    taps = -(-5 // sh), -(-5 // sw)
    assert layer.raw_weight.shape == (6, sh * sw, *taps)
    plain = cls(2 * sh * sw, 6, taps, padding_mode=padding_mode, groups=2, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 2, 5, 7, dtype=torch.float64)
    padded = F.pad(x, (0, -7 % sw, 0, -5 % sh))
    n, c, h, w = padded.shape
    patches = padded.view(n, c, h // sh, sh, w // sw, sw).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    torch.testing.assert_close(layer(x), plain(patches))


@both
def test_zero_padding_is_a_crop_of_the_larger_torus(cls):
    layer = perturb(cls(3, 3, (3, 4), dilation=(2, 1), padding_mode="zeros", dtype=torch.float64))
    circular = cls(3, 3, (3, 4), dilation=(2, 1), dtype=torch.float64)
    circular.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), circular(F.pad(x, (1, 2, 2, 2)))[..., 2:7, 1:7])


@both
def test_one_tap_is_one_matrix_without_a_transform(cls, monkeypatch):
    monkeypatch.setattr(torch.fft, "rfft2", None)
    layer = cls(4, 6, 1, groups=2)
    x = torch.randn(2, 4, 5, 5)
    (Q,) = layer._parametrize()
    assert Q.shape == (6, 2, 1, 1)
    torch.testing.assert_close(layer(x), F.conv2d(x, Q, layer.bias, groups=2))


@both
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"padding": 0}, "padding=0: allowed are 'same'"),
        ({"padding": "valid"}, "padding='valid': allowed are 'same'"),
        ({"padding": 2, "padding_mode": "zeros"}, "padding=2: allowed are 'same'"),
        ({"stride": 2, "dilation": 2}, r"dilation=\(2, 2\): allowed is 1"),
    ],
)
def test_what_breaks_the_construction_is_refused(cls, arguments, text):
    with pytest.raises(ValueError, match=text):
        cls(4, 4, 3, **arguments)


@both
def test_padding_that_equals_same_is_taken(cls):
    assert cls(4, 4, 3, padding=1)(torch.zeros(1, 4, 5, 5)).shape == (1, 4, 5, 5)
    assert cls(4, 4, 1, padding=0)(torch.zeros(1, 4, 5, 5)).shape == (1, 4, 5, 5)


@both
def test_sixteen_bit_parameters_keep_a_float32_spectrum(cls):
    layer = perturb(cls(4, 4, 3)).to(torch.bfloat16).eval()
    (Q,) = layer._effective(5, 5)
    assert Q.dtype == torch.complex64
    assert layer.lipschitz_bound((4, 5, 5)) <= 1 + 1e-5


@both
def test_wide_layers_in_single_precision(cls):
    layer = perturb(cls(64, 48, 3), scale=3.0)
    assert layer.lipschitz_bound((64, 4, 4)) <= 1 + 1e-6
    images = torch.randn(2, 48, 4, 4)
    x = torch.zeros(2, 64, 4, 4, requires_grad=True)
    (back,) = torch.autograd.grad(layer(x), x, images)
    torch.testing.assert_close(back.norm(), images.norm(), rtol=1e-5, atol=0)  # orthonormal rows


@both
def test_the_spectrum_is_computed_once_per_image_size(cls, monkeypatch):
    layer, calls, x = cls(4, 4, 3).eval(), [], torch.randn(1, 4, 6, 6)
    original = layer._parametrize
    monkeypatch.setattr(layer, "_parametrize", lambda *fft_size: calls.append(fft_size) or original(*fft_size))
    with torch.no_grad():
        for image in (x, x, x[..., :5], x, x[..., :5]):
            layer(image)
    assert calls == [(6, 6), (6, 5)]


def test_linear_layers_are_the_ops_on_their_weight():
    x = torch.randn(3, 4)
    for cls, op in ((CayleyLinear, ops.cayley), (LOTLinear, ops.polar)):
        layer = perturb(cls(4, 6))
        W = layer.raw_weight
        expected = op(layer.alpha * W / W.norm() if cls is CayleyLinear else W)
        torch.testing.assert_close(layer.weight, expected)
        torch.testing.assert_close(layer(x), F.linear(x, expected, layer.bias))


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("channels", "groups", "side"), [((6, 6), 1, 8), ((40, 40), 1, 5), ((6, 12), 3, 4)])
def test_cayley_is_real_where_the_frequency_is_its_own_conjugate(channels, groups, side, backend):
    layer = CayleyConv2d(*channels, 3, groups=groups, backend=backend)
    (Q,) = layer._effective(side, side)
    own = (2 - side % 2) ** 2
    assert (Q[:own].imag == 0).all()
    assert (Q[own:].imag != 0).any()


TRAINED = {
    "cayley": lambda channels: CayleyConv2d(channels, channels, 3),
    "lot": lambda channels: LOTConv2d(channels, channels, 3),
    "soc": lambda channels: SOCConv2d(channels, channels, 3, exponential="spectral"),
}


def trained(layer, side, steps, batch=4):
    """The layer after so many steps of Adam towards a random convolution."""
    target = torch.nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(steps):
        x = torch.randn(batch, layer.in_channels, side, side)
        optimizer.zero_grad()
        (layer(x) - 3 * target(x).detach()).square().mean().backward()
        optimizer.step()
    return layer


def deviation(layer, side):
    """How far the singular values of the matrices that run are from 1."""
    with torch.no_grad():
        (Q,) = layer._effective(side, side)
    return (torch.linalg.svdvals(Q.to(torch.complex128)) - 1).abs().max().item()


def check_after_training(name, channels, side):
    torch.manual_seed(0)
    layer = TRAINED[name](channels)
    start = layer.raw_weight.detach().clone()
    trained(layer, side, 100)
    assert (layer.raw_weight - start).norm() > 0.5 * start.norm()
    assert deviation(layer, side) <= 1e-5
    assert deviation(layer.eval(), side + 1) <= 1e-5


@pytest.mark.parametrize("name", TRAINED)
def test_singular_values_stay_at_1_in_single_precision_after_100_steps(name):
    check_after_training(name, 8, 6)
    torch.manual_seed(0)
    largest, smallest = singular_values(trained(TRAINED[name](4), 5, 100), (4, 5, 5), torch.float32)
    assert 1 - 1e-5 <= smallest <= largest <= 1 + 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "side"), [(32, 32), (128, 8), (256, 4)])
@pytest.mark.parametrize("name", TRAINED)
def test_wide_layers_stay_orthogonal_after_100_steps(name, channels, side):
    check_after_training(name, channels, side)


@pytest.mark.parametrize("cls", [CayleyConv2d, LOTConv2d])
def test_one_tap_and_many_channels_are_a_dense_layer(cls):
    """In channels-last format, which stays; what autograd and its transforms see is the same as of ``conv2d``."""
    torch.manual_seed(0)
    layer = perturb(cls(128, 160, 1))
    x = torch.randn(4, 128, 3, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    y, expected = layer(x), F.conv2d(x, layer._effective()[0], layer.bias)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    assert layer(x.detach().contiguous()).is_contiguous()
    gradients = [torch.autograd.grad(z.square().sum(), (x, layer.bias)) for z in (y, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    mapped = torch.func.vmap(layer)(x.detach()[:, None])
    torch.testing.assert_close(mapped[:, 0], expected.detach(), rtol=1e-5, atol=1e-5)
    grouped = cls(256, 256, 1, groups=2)
    images = torch.randn(2, 256, 3, 2).contiguous(memory_format=torch.channels_last)
    expected = F.conv2d(images, grouped._effective()[0], grouped.bias, groups=2)
    torch.testing.assert_close(grouped(images), expected, rtol=1e-5, atol=1e-5)
