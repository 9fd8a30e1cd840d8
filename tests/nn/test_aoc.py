"""AOC beside what test_layers.py and test_theorems.py ask of every layer: all singular values, transposed form."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from layer_catalog import perturb
from torch import nn

import fastlip
from fastlip.nn import AOCConv2d, AOCConvTranspose2d

CLOSE = 1e-5  # of fp32 kernels of a few channels
CHANNELS = ((1, 1), (1, 2), (2, 1), (2, 2), (4, 4), (4, 8), (8, 4), (4, 16), (4, 36), (16, 4))
KERNELS, STRIDES, DILATIONS, GROUPS = (1, 2, 3, 4, 5), (1, 2, 3, 4), (1, 2, 3), (1, 2, 4)


def basis_of(shape):
    return torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)


def singular_values(layer, shape):
    """All singular values, in float64, of the operator of the layer's kernel on images of this shape."""
    weight, basis = layer.weight.detach().double(), basis_of(shape)
    if isinstance(layer, AOCConv2d):
        image = layer._application.convolve(basis, weight)
    else:
        geometry = layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation
        image = F.conv_transpose2d(basis, weight, None, *geometry)
    return torch.linalg.svdvals(image.flatten(1))


def is_possible(kernel_size, stride, dilation):
    return kernel_size >= stride and math.gcd(stride, dilation) == 1


def check_circular(channels, kernel_size, stride, dilation, groups, **options):
    arguments = {"stride": stride, "dilation": dilation, "groups": groups, **options}
    if not is_possible(kernel_size, stride, dilation):
        with pytest.raises(ValueError, match="stride="):
            AOCConv2d(*channels, kernel_size, **arguments)
        return
    layer = perturb(AOCConv2d(*channels, kernel_size, **arguments))
    values = singular_values(layer, (channels[0], 2 * stride, stride))
    worst = (values - 1).abs().max().item()
    assert worst <= CLOSE, (channels, kernel_size, arguments, worst)


def check_zeros(channels, kernel_size, stride, dilation, groups, padding):
    arguments = {"stride": stride, "dilation": dilation, "groups": groups, "padding": padding}
    layer = perturb(AOCConv2d(*channels, kernel_size, padding_mode="zeros", **arguments))
    shape = (channels[0], 5, 4)
    if min(shape[1:]) + 2 * (padding if isinstance(padding, int) else 0) <= dilation * (kernel_size - 1):
        return
    largest = singular_values(layer, shape).max().item()
    assert largest <= 1 + CLOSE, (channels, kernel_size, arguments, largest)
    assert 1 + 1e-6 >= layer.lipschitz_bound(shape) >= largest * (1 - 1e-12)


def configurations():
    return itertools.product(KERNELS, STRIDES, DILATIONS, GROUPS)


@pytest.mark.parametrize("kernel_size", KERNELS)
@pytest.mark.parametrize("stride", STRIDES)
def test_all_singular_values_are_1_with_circular_padding(kernel_size, stride):
    # Each kernel and stride meets every number of channels, and these every dilation and number of groups.
    for index, channels in enumerate(CHANNELS):
        dilation, groups = DILATIONS[index % 3], GROUPS[(index + kernel_size) % 3]
        groups = math.gcd(groups, *channels)
        check_circular(channels, kernel_size, stride, dilation, groups)


@pytest.mark.slow
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
def test_all_singular_values_are_1_with_circular_padding_everywhere(channels):
    for kernel_size, stride, dilation, groups in configurations():
        if all(c % groups == 0 for c in channels):
            check_circular(channels, kernel_size, stride, dilation, groups)


@pytest.mark.parametrize("kernel_size", KERNELS)
def test_zero_padding_keeps_the_bound(kernel_size):
    for stride in STRIDES[:kernel_size]:
        for index, padding in enumerate(("same", "valid", 1, 3)):
            channels = CHANNELS[4 + (index + stride) % 4]
            dilation = (1, 3)[index % 2] if stride != 3 else (1, 2)[index % 2]
            check_zeros(channels, kernel_size, stride, dilation, (1, 2)[index // 2], padding)


@pytest.mark.slow
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
def test_zero_padding_keeps_the_bound_everywhere(channels):
    for (kernel_size, stride, dilation, groups), padding in itertools.product(configurations(), ("same", "valid", 3)):
        if is_possible(kernel_size, stride, dilation) and all(c % groups == 0 for c in channels):
            check_zeros(channels, kernel_size, stride, dilation, groups, padding)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "dilation", "image"),
    [
        ((3, 4), (1, 2), (2, 3), (5, 4)),
        ((5, 2), (4, 1), 1, (8, 3)),
        ((2, 7), 2, (1, 3), (4, 2)),
        (3, (3, 1), 2, (3, 1)),
    ],
)
def test_axes_differ(kernel_size, stride, dilation, image):
    for channels in ((4, 4), (2, 9), (9, 2)):
        layer = perturb(AOCConv2d(*channels, kernel_size, stride, dilation=dilation))
        values = singular_values(layer, (channels[0], *image))
        torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=CLOSE)


def test_float64_is_orthogonal_to_rounding():
    for channels, stride in (((5, 5), 1), ((3, 12), 2), ((3, 13), 2), ((3, 7), 2)):
        layer = perturb(AOCConv2d(*channels, 4, stride, dtype=torch.float64))
        values = singular_values(layer, (channels[0], 4, 6))
        torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=1e-12)


def test_many_channels_in_single_precision():
    layer = perturb(AOCConv2d(64, 128, 4, 2))
    assert layer.lipschitz_bound((64, 6, 6)) <= 1 + CLOSE
    values = singular_values(layer, (64, 4, 4))
    torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=CLOSE)


def test_less_circular_padding_keeps_the_bound():
    for padding, image in (("valid", (6, 7)), (1, (4, 6))):
        layer = perturb(AOCConv2d(4, 4, 4, 2, padding))
        assert singular_values(layer, (4, *image)).max() <= 1 + CLOSE
        x = torch.zeros(1, 4, *image)
        assert layer(x).shape == nn.Conv2d(4, 4, 4, 2, padding)(x).shape


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"kernel_size": 2, "stride": 3}, r"kernel_size=\(2, 2\): expected at least stride=\(3, 3\)"),
        ({"kernel_size": (3, 1), "stride": 2}, r"kernel_size=\(3, 1\): expected at least"),
        ({"kernel_size": 4, "stride": 4, "dilation": 6}, r"dilation=\(6, 6\): expected no common divisor"),
        ({"kernel_size": 3, "stride": (1, 2), "dilation": (3, 2)}, r"dilation=\(3, 2\): expected no common divisor"),
    ],
)
@pytest.mark.parametrize("cls", [AOCConv2d, AOCConvTranspose2d])
def test_what_has_no_bound_is_refused(cls, arguments, text):
    with pytest.raises(ValueError, match=text):
        cls(4, 4, **arguments)


def test_sides_that_the_stride_does_not_divide_are_refused_where_windows_wrap():
    layer = AOCConv2d(2, 4, 3, (2, 1))
    assert layer(torch.zeros(1, 2, 4, 3)).shape == (1, 4, 2, 3)
    with pytest.raises(ValueError, match="expected sides that stride="):
        layer(torch.zeros(1, 2, 5, 4))
    assert AOCConv2d(2, 4, 3, 2, padding_mode="zeros")(torch.zeros(1, 2, 5, 3)).shape == (1, 4, 3, 2)
    with pytest.raises(ValueError, match="circular padding repeats"):
        AOCConv2d(2, 4, 3, 2, 2)


def test_windows_that_wrap_over_such_a_side_would_break_the_bound():
    # What the refusal is for: the same operator on 5 x 5 pixels.
    layer = perturb(AOCConv2d(2, 2, 3, 2))
    weight = layer.weight.detach().double()
    values = torch.linalg.svdvals(layer._application.convolve(basis_of((2, 5, 5)), weight).flatten(1))
    assert values.max() > 1 + 1e-3


@pytest.mark.parametrize(("kernel_size", "channels"), [(3, 8), (5, 4), (3, 1), (1, 5)])
def test_starts_at_the_dirac_kernel(kernel_size, channels):
    layer = AOCConv2d(channels, channels, kernel_size)
    expected = nn.init.dirac_(torch.empty(channels, channels, kernel_size, kernel_size))
    torch.testing.assert_close(layer.weight, expected, rtol=0, atol=1e-6)


def test_is_a_drop_in_conv2d():
    ours = AOCConv2d(6, 4, 3, 2, 1, groups=2, padding_mode="zeros", dtype=torch.float64)
    theirs = nn.Conv2d(6, 4, 3, 2, 1, groups=2, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight.copy_(perturb(ours).weight)
        theirs.bias.copy_(ours.bias)
    x = torch.randn(2, 6, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("cls", [AOCConv2d, AOCConvTranspose2d])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_gradients_of_all_parameters(cls, backend):
    layer = perturb(cls(2, 4, (3, 4), 2, groups=2, dtype=torch.float64, backend=backend))
    names, values = zip(*layer.named_parameters(), strict=True)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)

    def function(*parameters):
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, tuple(p.detach().requires_grad_() for p in values), fast_mode=True)


TRANSPOSED = [
    {"kernel_size": 2, "stride": 2},
    {"kernel_size": 4, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    {"kernel_size": (3, 5), "stride": (1, 3), "padding": (2, 0), "output_padding": (0, 2), "groups": 2},
    {"kernel_size": 3, "stride": 2, "dilation": 3, "output_padding": 2, "bias": False},
    {"kernel_size": 1},
]


def copied(ours, arguments):
    """torch.nn.ConvTranspose2d with the effective weight of ours."""
    theirs = nn.ConvTranspose2d(ours.in_channels, ours.out_channels, **arguments).to(ours.raw_matrix.dtype)
    with torch.no_grad():
        theirs.weight.copy_(ours.weight)
        if ours.bias is not None:
            theirs.bias.copy_(ours.bias)
    return theirs


@pytest.mark.parametrize("arguments", TRANSPOSED, ids=str)
@pytest.mark.parametrize("channels", [(4, 4), (2, 8), (8, 2)], ids=str)
def test_transposed_is_a_drop_in(arguments, channels):
    ours = perturb(AOCConvTranspose2d(*channels, dtype=torch.float64, **arguments))
    theirs = copied(ours, arguments)
    assert ours.weight.shape == theirs.weight.shape
    x = torch.randn(2, channels[0], 4, 3, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-13)
    torch.testing.assert_close(ours.eval()(x[0]), theirs(x[0]), rtol=0, atol=1e-13)
    assert ours(x[:0]).shape == theirs(x[:0]).shape
    bound, largest = ours.lipschitz_bound(x.shape[1:]), singular_values(ours, x.shape[1:]).max()
    assert 1 + 1e-12 >= bound >= largest * (1 - 1e-12)


def check_transposed(channels, kernel_size, stride, dilation, groups):
    layer = perturb(AOCConvTranspose2d(*channels, kernel_size, stride, dilation=dilation, groups=groups))
    values = singular_values(layer, (channels[0], 3, 2))
    assert values.max() <= 1 + CLOSE
    if channels[0] <= channels[1] * stride**2 or (kernel_size == stride and dilation == 1):
        assert values.min() >= 1 - CLOSE, (channels, kernel_size, stride, dilation, groups)


@pytest.mark.parametrize("kernel_size", KERNELS)
def test_transposed_keeps_the_norm(kernel_size):
    for stride, (index, channels) in itertools.product(STRIDES[:kernel_size], enumerate(CHANNELS)):
        groups = math.gcd(GROUPS[(index + stride) % 3], *channels)
        check_transposed(channels, kernel_size, stride, 1 + stride * (index % 2), groups)


@pytest.mark.slow
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
def test_transposed_keeps_the_norm_everywhere(channels):
    for kernel_size, stride, dilation, groups in configurations():
        if is_possible(kernel_size, stride, dilation) and all(c % groups == 0 for c in channels):
            check_transposed(channels, kernel_size, stride, dilation, groups)


def test_transposed_is_the_adjoint_of_the_convolution_of_its_weight():
    layer = perturb(AOCConvTranspose2d(3, 5, 4, 2, 1, bias=False, dtype=torch.float64))
    x, y = torch.randn(1, 3, 4, 3, dtype=torch.float64), torch.randn(1, 5, 8, 6, dtype=torch.float64)
    forward = F.conv2d(y, layer.weight, None, 2, 1)
    torch.testing.assert_close((layer(x) * y).sum(), (x * forward).sum())


def test_an_output_size_as_torch_takes_it():
    ours = perturb(AOCConvTranspose2d(2, 2, 3, 3, 1, dtype=torch.float64))
    theirs, x = copied(ours, {"kernel_size": 3, "stride": 3, "padding": 1}), torch.randn(1, 2, 4, 4).double()
    for size in ((10, 12), (1, 2, 11, 10)):
        expected = theirs(x, output_size=list(size[-2:]))
        torch.testing.assert_close(ours(x, output_size=list(size)), expected, rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match=r"output_size=\(13, 10\): least \(10, 10\); output_padding=\(3, 0\)"):
        ours(x, output_size=(13, 10))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"output_padding": 2, "stride": 2}, r"output_padding=\(2, 2\): expected at least 0 and less than"),
        ({"padding_mode": "circular"}, "padding_mode='circular': allowed is 'zeros'"),
        ({"groups": 3}, "groups=3: expected a divisor"),
        ({"padding": -1}, "padding=-1: expected at least 0"),
    ],
)
def test_transposed_names_what_it_refuses(arguments, text):
    with pytest.raises(ValueError, match=text):
        AOCConvTranspose2d(4, 4, 3, **arguments)
    with pytest.raises(ValueError, match="x: got shape"):
        AOCConvTranspose2d(4, 4, 3)(torch.zeros(1, 3, 4, 4))


def test_transposed_state_cache_audit_and_export():
    layer = perturb(AOCConvTranspose2d(4, 3, 4, 2, 1)).eval()
    x = torch.randn(2, 4, 5, 6)
    with torch.no_grad():
        expected = layer(x)
        other = AOCConvTranspose2d(4, 3, 4, 2, 1).eval()
        other(x)
        other.load_state_dict(layer.state_dict())
        assert torch.equal(other(x), expected)
        assert other._effective()[0] is other._effective()[0]
    assert set(layer.state_dict()) == {"raw_matrix", "raw_bases", "bias"}
    bound = fastlip.audit(layer, (4, 5, 6)).bound
    assert 0.9 < bound <= 1 + 1e-6
    plain = fastlip.export(layer)
    assert type(plain) is nn.ConvTranspose2d
    torch.testing.assert_close(plain(x), expected)
    assert fastlip.audit(plain, (4, 5, 6)).bound == pytest.approx(bound, rel=1e-6)
    torch._dynamo.reset()
    compiled = torch.compile(layer.train(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)


def test_transposed_trains_and_keeps_the_norm():
    layer = AOCConvTranspose2d(4, 2, 3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    x = torch.randn(8, 4, 3, 3)
    for _ in range(3):
        optimizer.zero_grad()
        (layer(x) * torch.linspace(0, 1, 7)).square().sum().backward()
        optimizer.step()
        assert all(p.grad.isfinite().all() and p.grad.any() for p in layer.parameters())
    values = singular_values(layer, (4, 3, 3))
    torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=CLOSE)
    assert "4, 2, kernel_size=(3, 3)" in repr(layer)


def test_wide_layers_are_orthogonal_to_rounding():
    """Their projectors come from tall matrices of 160 columns, whose float32 transform is 20 roundings off."""
    layer = perturb(AOCConv2d(320, 320, 3)).eval()
    assert layer.lipschitz_bound((320, 4, 4)) < 1 + 2e-6
