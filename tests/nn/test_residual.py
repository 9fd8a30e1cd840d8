"""SLL and CPL beyond what every layer keeps: the scale, its bound, and the shapes around the residual map."""

import math
from functools import partial

import pytest
import torch
from layer_catalog import KERNELS, jacobians, perturb

from fastlip import nn as lip
from fastlip import ops, testing
from fastlip.kernels.spectral_conv.api import kernel_spectrum
from fastlip.nn._sigma import frequencies, squared_norm_bound
from fastlip.nn.applications.residual import residual_bound, safe_scale

CONVOLUTIONS = (lip.SLLConv2d, lip.CPLConv2d)
LAYERS = (*CONVOLUTIONS, lip.SLLLinear, lip.CPLLinear)
# Small images run the references, unless kernels are asked for by name.
BACKENDS = [{}, *KERNELS]
CASES = [(cls, options) for cls in LAYERS for options in (BACKENDS if cls in CONVOLUTIONS else [{}])]
every_case = pytest.mark.parametrize(("cls", "options"), CASES)
every_backend = pytest.mark.parametrize("options", BACKENDS, ids=str)


def convolution_matrix(weight, size, padding_mode):
    """The exact matrix of the same-padded convolution on images of this size."""
    layer = lip.AOLConv2d(weight.shape[1], weight.shape[0], weight.shape[2:], padding_mode=padding_mode, bias=False)
    images = torch.eye(weight.shape[1] * math.prod(size), dtype=weight.dtype).view(-1, weight.shape[1], *size)
    return layer._application.convolve(images, weight).flatten(1)


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize("size", [(1, 1), (4, 3), (7, 8)])
@pytest.mark.parametrize("kernel", [1, 2, 3, (3, 5)])
def test_sigma_of_cpl_is_an_upper_bound_and_close(kernel, size, padding_mode):
    layer = lip.CPLConv2d(4, 4, kernel, padding_mode=padding_mode, dtype=torch.float64)
    sigma = (2 / layer._parametrize(*size)[0][0]).sqrt()
    norm = torch.linalg.matrix_norm(convolution_matrix(layer.kernel.detach(), size, padding_mode), 2)
    assert sigma >= norm
    if padding_mode == "circular":
        assert sigma <= norm * 4 ** (1 / 128) * 1.001


@pytest.mark.parametrize("kernel_size", [2, 3, 5])
def test_sampling_frequencies_loses_no_bound(kernel_size):
    samples, factor = frequencies(10**6, kernel_size, 1, "zeros")
    assert samples < 100
    for _ in range(3):
        weight = torch.randn(3, 3, kernel_size, 1, dtype=torch.float64)
        sampled = squared_norm_bound(weight, (samples, 1), 1) * factor
        fine = squared_norm_bound(weight, (8 * samples + 1, 1), 1)
        assert fine <= sampled <= fine * 1.01


def test_the_gradient_of_the_norm_bound():
    for shape, groups in (((4, 2, 1, 3), 2), ((2, 5, 1, 1), 1)):
        weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda w, g=groups: squared_norm_bound(w, (1, 4), g), (weight,))


def test_the_bound_of_a_norm_needs_no_scale():
    weight = torch.randn(4, 4, 3, 3)
    plain = squared_norm_bound(weight, (4, 4), 1)
    for factor in (1e-12, 1e12):
        torch.testing.assert_close(squared_norm_bound(weight * factor, (4, 4), 1), plain * factor**2)


@every_case
def test_zero_weights_give_the_identity(cls, options):
    layer = cls(3, 3, *([3] if cls in CONVOLUTIONS else []), **options)
    x = torch.randn(2, 3, 4, 3)
    with torch.no_grad():
        layer.kernel.zero_()
    assert torch.equal(layer(x), x)


@every_case
@pytest.mark.parametrize("size", [1e-25, 1e-12, 1e-6, 1e10])
def test_weights_of_any_size_give_finite_gradients(cls, options, size):
    layer = cls(4, 4, *([3] if cls in CONVOLUTIONS else []), **options)
    with torch.no_grad():
        layer.kernel.mul_(size)
    layer(torch.randn(2, 4, 4, 4)).square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())


def test_one_zero_row_contributes_nothing():
    layer = lip.SLLLinear(4, 4)
    x = torch.randn(3, 4)
    with torch.no_grad():
        layer.kernel[1] = 0
        layer.bias[1] = 5.0
    (scale,) = layer._effective()
    assert scale[1] == 0
    assert scale.count_nonzero() == 3
    layer(x).sum().backward()
    assert layer.kernel.grad.isfinite().all()


def test_the_gram_is_that_of_output_channels():
    """With the Gram over input channels this kernel's Jacobian has norm 199."""
    layer = lip.SLLLinear(2, 2, dtype=torch.float64)
    with torch.no_grad():
        layer.kernel.copy_(torch.tensor([[10.0, 0.0], [10.0, 0.1]], dtype=torch.float64))
        layer.bias.fill_(100.0)
    (jacobian,) = jacobians(layer, torch.zeros(1, 2, dtype=torch.float64))
    assert torch.linalg.matrix_norm(jacobian, 2) <= 1 + 1e-9
    T = 2 / layer._effective()[0]
    torch.testing.assert_close(T, torch.tensor([200.0, 200.01], dtype=torch.float64), rtol=1e-12, atol=0)


def test_psi_changes_the_scale_and_keeps_the_bound():
    layer = lip.SLLLinear(5, 5, dtype=torch.float64)
    before = layer._effective()[0]
    with torch.no_grad():
        layer.psi.copy_(torch.linspace(-3, 3, 5))
        layer.bias.fill_(100.0)  # every unit active
    assert not torch.allclose(layer._effective()[0], before)
    (jacobian,) = jacobians(layer, torch.zeros(1, 5, dtype=torch.float64))
    assert torch.linalg.matrix_norm(jacobian, 2) <= 1 + 1e-9


@every_case
def test_a_scale_above_2_over_sigma_squared_shows_in_the_bound(cls, options):
    arguments, shape = ((4, 4, 3), (4, 5, 5)) if cls in CONVOLUTIONS else ((4, 4), (4,))
    layer = cls(*arguments, dtype=torch.float64, **options)
    with torch.no_grad():
        layer.bias.fill_(100.0)
    parametrize = layer._parametrize
    layer._parametrize = lambda *context: (parametrize(*context)[0] * 1.5,)
    (jacobian,) = jacobians(layer, torch.zeros(1, *shape, dtype=torch.float64))
    norm = torch.linalg.matrix_norm(jacobian, 2)
    bound = layer.lipschitz_bound(shape)
    assert bound >= norm
    if cls is lip.CPLLinear:
        assert bound > 1.5
        assert bound == pytest.approx(float(norm), rel=1e-6)


@pytest.mark.parametrize(("cls", "options"), [case for case in CASES if case[0] in (lip.CPLConv2d, lip.CPLLinear)])
def test_a_frozen_scale_is_used_and_audited(cls, options):
    arguments, x = ((3, 3, 3), torch.randn(2, 3, 4, 4)) if cls is lip.CPLConv2d else ((3, 3), torch.randn(2, 3))
    layer = cls(*arguments, **options).eval()
    own = layer(x)
    layer.freeze_scale(7.0)
    expected = ops.sdp_residual(x, layer.kernel, layer.bias, torch.full((3,), 7.0), **options)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)
    other = cls(*arguments, **options).eval()
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
    layer.freeze_scale(1e4)
    assert layer.lipschitz_bound(tuple(x.shape[1:])) > 2
    layer.freeze_scale(0.0)
    assert torch.equal(layer(x), own)
    with pytest.raises(ValueError, match="scale=-1"):
        layer.freeze_scale(-1)


@every_backend
@pytest.mark.parametrize("cls", CONVOLUTIONS)
def test_fewer_and_more_channels_are_padded_and_truncated(cls, options):
    x = torch.randn(2, 4, 3, 3)
    wide = cls(4, 6, 3, **options)
    if cls is lip.CPLConv2d:
        padded = torch.cat((x, torch.zeros(2, 2, 3, 3)), 1)
        expected = ops.sdp_residual(padded, wide.kernel, wide.bias, wide._effective(3, 3)[0], **options)
        assert torch.equal(wide(x), expected)
    narrow, square = cls(4, 2, 3, **options), cls(4, 4, 3, **options)
    narrow.load_state_dict(square.state_dict())
    assert torch.equal(narrow(x), square(x)[:, :2])


@pytest.mark.parametrize("cls", CONVOLUTIONS)
@pytest.mark.parametrize("options", [*BACKENDS, {"groups": 2}], ids=str)
def test_a_stride_keeps_the_subsampled_image(cls, options):
    layer = cls(4, 4, 3, stride=2, **options)
    x = torch.randn(2, 4, 5, 6)
    with torch.no_grad():
        layer.kernel.zero_()
    assert torch.equal(layer(x), x[:, :, ::2, ::2])
    assert layer.width == 16
    wide = cls(4, 16, 3, stride=2, **options)
    with torch.no_grad():
        wide.kernel.zero_()
    torch.testing.assert_close(wide(x).norm(), x.norm())


@every_backend
@pytest.mark.parametrize("cls", CONVOLUTIONS)
def test_groups_have_scales_of_their_own(cls, options):
    layer = perturb(cls(4, 4, 3, groups=2))
    halves = [cls(2, 2, 3, **options), cls(2, 2, 3, **options)]
    x = torch.randn(2, 4, 4, 4)
    for index, half in enumerate(halves):
        half.load_state_dict(
            {
                key: value if value.dim() and len(value) == 1 else value.chunk(2)[index]
                for key, value in layer.state_dict().items()
            }
        )
    expected = torch.cat([half(part) for half, part in zip(halves, x.chunk(2, 1), strict=True)], 1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cls", CONVOLUTIONS)
@pytest.mark.parametrize("padding", [0, 1, "valid", (1, 1)])
def test_only_same_padding_is_allowed(cls, padding):
    with pytest.raises(ValueError, match=r"padding=.*allowed is 'same'"):
        cls(4, 4, 3, padding=padding)


@pytest.mark.parametrize("cls", CONVOLUTIONS)
def test_inner_channels_must_divide_into_groups(cls):
    with pytest.raises(ValueError, match="inner_channels=3: expected a multiple of groups=2"):
        cls(4, 4, 3, groups=2, inner_channels=3)
    with pytest.raises(ValueError, match="inner_channels=0"):
        cls(4, 4, 3, inner_channels=0)


def test_the_scale_is_rounded_down_for_its_dtype():
    for stored in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        denominator = torch.rand(1000, dtype=torch.float32) + 0.5
        assert (safe_scale(denominator, stored).to(stored).double() <= 2 / denominator.double()).all()
    assert safe_scale(torch.zeros(1), torch.float32) == 0


def test_the_residual_bound_is_attained():
    """Against the worst mask, for weights that are not each other's adjoint."""
    assert residual_bound(math.sqrt(2.0), 0.0) == pytest.approx(1.0, abs=1e-15)
    assert residual_bound(2.0, 0.0) == pytest.approx(3.0)  # 1 - 2 * 2
    first, second = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64) * 1e-2
    second += 0.1 * first
    norms = torch.linalg.matrix_norm
    bound = residual_bound(float(norms(first, 2) * 0.1**0.5), float(norms(second - 0.1 * first, 2) / 0.1**0.5))
    for code in range(8):
        mask = torch.tensor([code >> bit & 1 for bit in range(3)], dtype=torch.float64)
        assert norms(torch.eye(4, dtype=torch.float64) - second.T @ (mask[:, None] * first), 2) <= bound


@pytest.mark.parametrize(
    ("kernel", "size", "padding_mode"), [(3, 32, "zeros"), (3, 4, "zeros"), (3, 6, "circular"), (1, 5, "zeros")]
)
def test_power_iteration_drives_training_and_the_bound_evaluation(kernel, size, padding_mode):
    options = {"padding_mode": padding_mode, "dtype": torch.float64}
    layer = lip.CPLConv2d(8, 8, kernel, training_sigma="power", **options)
    bounded = lip.CPLConv2d(8, 8, kernel, **options)
    bounded.load_state_dict(layer.state_dict(), strict=False)
    with torch.no_grad():
        for _ in range(60):
            (power,) = layer._effective(size, size)
    (bound,) = bounded._effective(size, size)
    # The FFT size of the power iteration misses a little of sigma, and the bound is a little above it.
    torch.testing.assert_close(power, bound, rtol=0.1, atol=0)
    (evaluated,) = layer.eval()._effective(size, size)
    assert torch.equal(evaluated, bounded.eval()._effective(size, size)[0])


def test_the_power_vector_is_state_and_follows_the_kernel():
    layer = lip.CPLConv2d(4, 4, 3, training_sigma="power", groups=2)
    x = torch.randn(2, 4, 8, 8)
    before = layer.power_vector.clone()
    layer(x)
    assert not torch.equal(layer.power_vector, before)
    again = lip.CPLConv2d(4, 4, 3, training_sigma="power", groups=2)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))
    kept = layer.eval().power_vector.clone()
    layer(x)
    assert torch.equal(layer.power_vector, kept)


def test_power_gradient_is_that_of_the_largest_singular_value():
    layer = lip.CPLConv2d(3, 3, 3, training_sigma="power", padding_mode="circular", dtype=torch.float64)
    side = 8
    for _ in range(300):
        (scale,) = layer._effective(side, side)
    (gradient,) = torch.autograd.grad(scale[0], layer.kernel)
    spectrum = kernel_spectrum(layer.kernel, (side, side))
    sigma = torch.linalg.svdvals(spectrum).max()
    (expected,) = torch.autograd.grad(2 / sigma**2, layer.kernel)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)


def test_unknown_training_sigma_is_named():
    with pytest.raises(ValueError, match="training_sigma='svd'"):
        lip.CPLConv2d(4, 4, 3, training_sigma="svd")


@pytest.mark.parametrize("cls", CONVOLUTIONS)
@pytest.mark.parametrize(("kernel", "inner", "again"), [(3, 64, True), (3, 65, False), (5, 64, False), (1, 65, True)])
def test_few_channels_keep_their_inputs_alone(cls, kernel, inner, again):
    """On a CPU, with 3 x 3 kernels and in training, where nothing else is asked for; the gradients are the same."""
    torch.manual_seed(0)
    x = torch.randn(16, 64, 16, 16).contiguous(memory_format=torch.channels_last)
    make = partial(cls, 64, 64, kernel, inner_channels=inner)
    layers = {choice: perturb(make(recompute=choice)) for choice in (None, False)}
    layers[None].load_state_dict(layers[False].state_dict())
    kept, gradients = {}, {}
    for choice, layer in layers.items():
        layer(x).square().sum().backward()
        gradients[choice] = [p.grad for p in layer.parameters()]
        kept[choice] = testing.bytes_kept(lambda layer=layer: layer(x))
    for one, other in zip(*gradients.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
    hidden = x.element_size() * x.numel() * inner // 64
    assert kept[False] - kept[None] == (hidden if again else 0)
    if kernel > 1:  # in evaluation nothing is computed twice
        images = x.clone().requires_grad_()
        kept = [testing.bytes_kept(lambda layer=layer: layer.eval()(images)) for layer in layers.values()]
        assert kept[0] == kept[1]
