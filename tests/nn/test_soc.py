"""SOC beside what test_layers.py and test_theorems.py ask of every layer."""

import math

import pytest
import torch
import torch.nn.functional as F
from layer_catalog import jacobians, perturb

from fastlip import testing
from fastlip.kernels.common.gram import norm_bound as matrix_bound
from fastlip.kernels.conv_exp.truncation import largest_modulus
from fastlip.nn import SOCConv2d, SOCLinear
from fastlip.nn.soc import norm_bound, skew


def jacobian(layer, shape):
    return jacobians(layer, torch.randn(1, *shape, dtype=torch.float64))[0]


def saturated(layer):
    """The layer with a kernel far beyond its norm's limit."""
    with torch.no_grad():
        layer.raw_weight.normal_(std=10)
    return layer


@pytest.mark.parametrize("shape", [(1, 4, 3, 3), (2, 3, 1, 5), (1, 1, 5, 5), (3, 2, 7, 7)], ids=str)
def test_the_bound_of_the_norm_holds_for_every_image(shape):
    groups, channels, *taps = shape
    kernel = skew(torch.randn(groups, channels, channels, *taps, dtype=torch.float64))
    bound = norm_bound(kernel)
    for size in (8, 31):
        values = torch.linalg.svdvals(torch.fft.fft2(kernel, s=(size, size)).permute(0, 3, 4, 1, 2))
        assert (values.amax((1, 2, 3)) <= bound).all()
    matrices = torch.linalg.matrix_norm(kernel.flatten(2), 2) * math.sqrt(math.prod(taps))
    assert (bound <= matrices * channels ** (1 / 128) * (1 + 1e-12)).all()


def test_the_bound_of_the_norm_is_finite_at_0_and_differentiable():
    zero = torch.zeros(1, 2, 2, 3, 3, requires_grad=True)
    norm_bound(zero).sum().backward()
    assert zero.grad.isfinite().all()
    kernel = torch.randn(2, 3, 3, 1, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm_bound, kernel, fast_mode=True)
    for factor in (1e-30, 1e30):
        large = norm_bound(kernel.detach().float() * factor) / factor
        torch.testing.assert_close(large.double(), norm_bound(kernel.detach()), rtol=1e-5, atol=0)


def test_the_bound_of_matrices_and_what_it_keeps():
    matrices = torch.randn(2, 3, 5, 4, dtype=torch.complex128)
    values = torch.linalg.svdvals(matrices)[..., 0]
    bounds = matrix_bound(matrices)
    assert (bounds >= values).all()
    assert (bounds <= values * 5 ** (1 / 128) * (1 + 1e-12)).all()
    K = torch.randn(3, 5, 7)
    assert testing.saved_bytes(matrix_bound, {"M": K}) == 4 * (K.numel() + 3)


EVALUATIONS = [
    ({"in_channels": 3}, (2, 5, 4)),
    ({"in_channels": 3, "kernel_size": (3, 5), "dilation": (2, 1)}, (2, 3, 2)),
    ({"in_channels": 4, "groups": 2, "stride": (1, 2)}, (3, 4, 7)),
    ({"in_channels": 66, "dilation": (1, 2)}, (16, 5, 4)),
    ({"in_channels": 128, "groups": 2, "kernel_size": (1, 3)}, (17, 2, 3)),
    ({"in_channels": 160, "out_channels": 8}, (20, 4, 4)),
]


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize("norm", [0.05, 0.5, 2.0])
@pytest.mark.parametrize(("options", "images"), EVALUATIONS, ids=str)
def test_evaluation_is_the_series_by_other_means(options, images, norm, padding_mode):
    options = {"out_channels": options["in_channels"], "kernel_size": 3, "terms": 5, "eval_terms": 12, **options}
    layer = SOCConv2d(**options, padding_mode=padding_mode, dtype=torch.float64)
    with torch.no_grad():
        layer.bias.normal_()
        layer.raw_weight *= norm / norm_bound(skew(layer.raw_weight.unflatten(0, (layer.groups, -1)))).max()
    x = torch.randn(images[0], options["in_channels"], *images[1:], dtype=torch.float64)
    series = layer.eval()(x)  # parameters that may be asked for gradients: only the kernel itself is kept
    assert set(layer._cache.entries) <= {()}
    layer.requires_grad_(False)
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 5e-6)):
        y = layer.to(dtype)(x.to(dtype))
        torch.testing.assert_close(y.double(), series, rtol=0, atol=tolerance * x.abs().max().item() * 5)
        assert y.shape == series.shape
        contexts = set(layer._cache.entries)
        image = (images[1], -(-images[2] // layer.stride[1]))
        assert bool({image, ("spectra", image)} & contexts) == (padding_mode == "circular")
        if padding_mode == "zeros" and dtype == torch.float32:
            assert layer._application.degree(layer, image) < 12
            wide = layer.width == 160 and not testing.op("spectral_conv").status("native")
            assert (("spectra", (5, 5)) in contexts) == wide


@pytest.mark.parametrize("channels", [3, 64])
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_evaluation_keeps_the_bound_and_has_input_gradients(channels, padding_mode):
    layer = SOCConv2d(channels, channels, 3, terms=5, eval_terms=12, padding_mode=padding_mode, dtype=torch.float64)
    layer.eval().requires_grad_(False)
    x = torch.randn(16, channels, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x, fast_mode=True)
    columns = layer(torch.eye(channels * 4, dtype=torch.float64).view(-1, channels, 2, 2)) - layer.bias[:, None, None]
    largest = torch.linalg.matrix_norm(columns.flatten(1), 2).item()
    assert largest <= layer.lipschitz_bound((channels, 2, 2)) * (1 + 1e-12)
    assert largest >= 1 - 1e-6


def test_large_spectra_are_not_kept():
    layer = SOCConv2d(256, 256, 3, padding_mode="circular").eval().requires_grad_(False)
    assert layer._application.runs_per_frequency(layer, (16, 32))
    assert not layer._application.runs_per_frequency(layer, (16, 33))
    assert not layer._application.runs_per_frequency(layer, (0, 4))


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_recompute_changes_memory_alone(padding_mode):
    x = torch.randn(4, 8, 9, 9).contiguous(memory_format=torch.channels_last)
    layers = [SOCConv2d(8, 8, 3, terms=5, padding_mode=padding_mode, recompute=r) for r in (False, True)]
    layers[1].load_state_dict(layers[0].state_dict())
    gradients = []
    for layer in layers:
        layer(x).square().sum().backward()
        gradients.append([p.grad for p in layer.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
    kept = [testing.bytes_kept(lambda layer=layer: layer(x)) for layer in layers]
    assert kept[0] - kept[1] >= 4 * 4 * x.numel()  # as the reference pads circularly, it keeps the frames too


def test_dense_layers_are_orthogonal_to_rounding():
    matrix = perturb(SOCLinear(256, 256)).weight.detach().double()
    assert (torch.linalg.svdvals(matrix) - 1).abs().max() < 5e-7
    layer = SOCConv2d(6, 6, 1, groups=2)
    x = torch.randn(2, 6, 3, 3)
    blocks = [torch.linalg.matrix_exp(skew(K[None])[0, ..., 0, 0]) for K in layer.raw_weight.detach().chunk(2)]
    expected = F.conv2d(x, torch.cat(blocks)[:, :, None, None], groups=2)
    torch.testing.assert_close(layer(x).detach(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize("terms", [1, 3, 4, 5, 6, 7, 8, 12])
def test_every_number_of_terms_keeps_the_bound(terms, padding_mode):
    layer = saturated(SOCConv2d(2, 2, (1, 3), terms=terms, padding_mode=padding_mode, dtype=torch.float64))
    largest = torch.linalg.matrix_norm(jacobian(layer, (2, 1, 9)), 2).item()
    assert largest <= 1 + 1e-12
    assert largest <= layer.lipschitz_bound((2, 1, 9)) * (1 + 1e-12)


def test_without_the_gain_five_terms_would_exceed_1():
    layer = SOCConv2d(2, 2, 3, terms=5, dtype=torch.float64)
    assert 1.004 < largest_modulus(5, layer.max_norm) < 1.005
    with torch.no_grad():
        layer.raw_weight.zero_()
        layer.raw_weight[0, 1, 1, 1] = 5.0  # a rotation, limited to 0.8 sqrt(9) / sqrt(9)
    largest = torch.linalg.matrix_norm(jacobian(layer, (2, 3, 3)), 2).item()
    assert largest == pytest.approx(largest_modulus(5, 0.8) / largest_modulus(5, 2.4), rel=1e-3)


def test_training_and_evaluation_agree_unless_asked_otherwise():
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    layer = saturated(SOCConv2d(3, 3, 3, dtype=torch.float64))
    torch.testing.assert_close(layer(x), layer.eval()(x), rtol=0, atol=0)
    paper = SOCConv2d(3, 3, 3, terms=5, eval_terms=12, dtype=torch.float64)
    paper.load_state_dict(layer.state_dict())
    training, evaluation = paper(x), paper.eval()(x)
    assert (training - evaluation).abs().max() > 1e-4
    twelve = SOCConv2d(3, 3, 3, terms=12, dtype=torch.float64)
    twelve.load_state_dict(layer.state_dict())
    torch.testing.assert_close(evaluation, twelve(x), rtol=0, atol=0)


@pytest.mark.parametrize("geometry", [{}, {"dilation": 2}, {"groups": 2}, {"stride": 2}], ids=str)
@pytest.mark.parametrize("image", [(4, 6), (5, 3), (1, 1), (2, 2)], ids=str)
def test_the_series_converges_to_the_spectral_form(geometry, image):
    series = SOCConv2d(4, 4, 3, padding_mode="circular", terms=16, dtype=torch.float64, **geometry)
    spectral = SOCConv2d(4, 4, 3, exponential="spectral", terms=16, dtype=torch.float64, **geometry)
    spectral.load_state_dict(saturated(series).state_dict())
    x = torch.randn(2, 4, *image, dtype=torch.float64)
    remainder = series.max_norm**17 / math.factorial(17) * x.norm().item()
    torch.testing.assert_close(series(x), spectral(x), rtol=0, atol=remainder)


def test_zero_padding_is_orthogonal_up_to_the_remainder():
    layer = saturated(SOCConv2d(3, 3, 3, terms=16, dtype=torch.float64))
    values = torch.linalg.svdvals(jacobian(layer, (3, 4, 5)))
    assert values.min() >= 1 - 1e-7


def test_kernels_below_the_limit_are_left_as_they_are():
    layer = SOCConv2d(4, 4, 3, dtype=torch.float64)
    K = layer.raw_weight.detach()
    torch.testing.assert_close(layer._effective()[0], skew(K[None])[0], rtol=0, atol=0)
    (kernel,) = saturated(layer)._effective()
    assert norm_bound(kernel[None]).item() == pytest.approx(2.4, rel=1e-6)


@pytest.mark.parametrize("features", [(4, 4), (3, 5), (6, 3), (1, 1)], ids=str)
def test_the_dense_layer_and_the_1x1_kernel_are_the_matrix_exponential(features):
    layer = perturb(SOCLinear(*features, dtype=torch.float64))
    raw = layer.raw_weight.detach()
    expected = torch.linalg.matrix_exp((raw - raw.T) / 2)[: features[1], : features[0]]
    torch.testing.assert_close(layer.weight.detach(), expected, rtol=0, atol=1e-12)
    convolution = SOCConv2d(*features, 1, dtype=torch.float64)
    with torch.no_grad():
        convolution.raw_weight.copy_(raw[:, :, None, None])
    x = torch.randn(2, features[0], 3, 2, dtype=torch.float64)
    torch.testing.assert_close(convolution(x), torch.einsum("oi,nihw->nohw", expected, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("exponential", ["series", "spectral"])
def test_gradients(exponential):
    layer = perturb(SOCConv2d(3, 2, 3, padding_mode="circular", exponential=exponential, dtype=torch.float64))

    def run(raw, x):
        return torch.func.functional_call(layer, {"raw_weight": raw}, (x,))

    x = torch.randn(1, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (layer.raw_weight.detach().requires_grad_(), x), fast_mode=True)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"kernel_size": 2}, r"kernel_size=\(2, 2\)"),
        ({"kernel_size": (3, 4)}, r"kernel_size=\(3, 4\)"),
        ({"padding": 0}, "padding=0"),
        ({"padding": "valid"}, "padding='valid'"),
        ({"exponential": "exact"}, "exponential='exact'"),
        ({"exponential": "spectral", "padding_mode": "zeros"}, "padding_mode='zeros': allowed is 'circular'"),
        ({"terms": 0}, "terms=0"),
        ({"eval_terms": 17}, "eval_terms=17"),
        ({"max_norm": -1.0}, "max_norm=-1.0"),
        ({"max_norm": math.nan}, "max_norm=nan"),
    ],
)
def test_what_is_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        SOCConv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, **arguments})


def test_padding_that_equals_same_is_accepted():
    assert SOCConv2d(4, 4, (3, 5), padding=(1, 2))._application.geometry.pads == (2, 2, 1, 1)
