"""ConvGeometry against torch.nn.Conv1d and Conv2d, and against convolutions by index."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from fastlip.kernels.common.geometry import NO_PADS, ConvGeometry, fast_length, from_numbers

KERNELS = [(1, 1), (3, 3), (2, 4), (5, 2)]
PAIRS = list(product(KERNELS, [(1, 1), (2, 3)]))


@pytest.mark.parametrize(("kernel", "dilation"), PAIRS)
@pytest.mark.parametrize("stride", [(1, 1), (2, 3)])
@pytest.mark.parametrize("padding", [0, 1, (2, 1)])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_a_conv2d_of_any_padding(kernel, dilation, stride, padding, mode):
    module = nn.Conv2d(2, 4, kernel, stride, padding, dilation, groups=2, padding_mode=mode, bias=False).double()
    geometry = ConvGeometry.of_module(module)
    x = torch.randn(1, 2, 13, 17, dtype=torch.float64)
    y = module(x)
    assert geometry.output_size((13, 17)) == tuple(y.shape[-2:])
    torch.testing.assert_close(by_geometry(geometry, x, module.weight), y)
    assert (geometry.groups, geometry.padding_mode, geometry.kernel_size) == (2, mode, kernel)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize(("kernel", "dilation"), PAIRS)
@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_named_paddings(kernel, dilation, mode, padding):
    module = nn.Conv2d(2, 3, kernel, 1, padding, dilation, padding_mode=mode, bias=False).double()
    geometry = ConvGeometry.of_module(module)
    x = torch.randn(1, 2, 13, 17, dtype=torch.float64)
    torch.testing.assert_close(by_geometry(geometry, x, module.weight), module(x))
    assert geometry.keeps_size == (padding == "same" or kernel == (1, 1))
    if padding == "same":
        assert geometry == ConvGeometry.like(module.weight, dilation, 1, mode)
        assert geometry.output_size((13, 17)) == (13, 17)


@pytest.mark.parametrize(
    ("padding", "mode", "stride"),
    [(0, "zeros", 1), (0, "zeros", 2), (2, "zeros", 2), (2, "circular", 1), (2, "circular", 2), ("same", "zeros", 1)],
)
def test_a_conv1d_is_a_convolution_of_one_row(padding, mode, stride):
    module = nn.Conv1d(2, 3, 4, stride, padding, dilation=2, padding_mode=mode, bias=False).double()
    geometry = ConvGeometry.of_module(module)
    x = torch.randn(1, 2, 19, dtype=torch.float64)
    y = by_geometry(geometry, x[:, :, None], module.weight[:, :, None])
    torch.testing.assert_close(y[:, :, 0], module(x))
    assert geometry.output_size((1, 19)) == (1, module(x).shape[-1])


def test_derived_values():
    geometry = ConvGeometry((3, 4), dilation=(2, 1))
    assert geometry.pads == geometry.same_pads == (1, 2, 2, 2)
    assert geometry.opposite_pads == (2, 1, 2, 2)
    assert (geometry.halo, geometry.taps, geometry.keeps_size, geometry.symmetric) == ((4, 3), 12, True, False)
    valid = ConvGeometry((3, 4), pads=NO_PADS)
    assert (valid.keeps_size, valid.symmetric) == (False, True)
    assert valid.padded_size((8, 9)) == (8, 9)
    assert hash(valid) == hash(ConvGeometry((3, 4), pads=NO_PADS))
    assert valid != ConvGeometry((3, 4))


@pytest.mark.parametrize(("kernel", "dilation"), PAIRS)
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_a_circular_convolution_of_the_fft_size_contains_it(kernel, dilation, mode):
    weight, x = (torch.randn(*shape, dtype=torch.float64) for shape in ((2, 2, *kernel), (1, 2, 6, 7)))
    geometry = ConvGeometry.like(weight, dilation, 1, mode)
    for size in (geometry.fft_size((6, 7)), geometry.fast_fft_size((6, 7)), geometry.embedded_size((6, 7))):
        embedded = nn.functional.pad(x, (0, size[1] - 7, 0, size[0] - 6))
        circular = ConvGeometry(kernel, pads=geometry.pads, dilation=dilation, padding_mode="circular")
        y = by_geometry(circular, embedded, weight)[..., :6, :7]
        torch.testing.assert_close(y, by_geometry(geometry, x, weight))


def test_fft_sizes():
    assert ConvGeometry((3, 3)).fft_size((8, 9)) == (9, 10)
    assert ConvGeometry((3, 3)).embedded_size((8, 9)) == (10, 11)
    assert ConvGeometry((3, 3), padding_mode="circular").fft_size((8, 9)) == (8, 9)
    assert ConvGeometry((3, 3), stride=(2, 2)).fft_size((8, 9)) == (10, 10)
    assert ConvGeometry((3, 3), stride=(3, 3), pads=NO_PADS, padding_mode="circular").fft_size((8, 9)) == (9, 9)
    assert ConvGeometry((3, 3), pads=(9, 9, 9, 9)).fft_size((8, 9)) == (10, 11), "windows in the padding need no room"
    assert ConvGeometry((3, 3)).fast_fft_size((18, 22)) == (20, 24)
    assert ConvGeometry((3, 3), padding_mode="circular").fast_fft_size((19, 23)) == (19, 23)
    assert [fast_length(length) for length in (1, 17, 19, 37, 46)] == [1, 17, 20, 39, 48]


def test_numbers_are_the_whole_value():
    found = [ConvGeometry((3, 2), (2, 1), (0, 1, 2, 3), (1, 2), 4, mode) for mode in ("zeros", "circular")]
    assert from_numbers(tuple(number for geometry in found for number in geometry.numbers)) == tuple(found)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_compiled(mode, dynamic):
    def function(x, weight):
        geometry = ConvGeometry.like(weight, (2, 1), 1, mode)
        size = geometry.fast_fft_size((6, 7)) + geometry.output_size((6, 7))
        return by_geometry(geometry, x, weight) * sum(size)

    x, weight = torch.randn(2, 3, 6, 7), torch.randn(4, 3, 3, 2)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    torch.testing.assert_close(compiled(x, weight), function(x, weight))


def test_options_that_are_not_allowed_are_named():
    weight = torch.zeros(2, 2, 3, 3)
    for dilation in ((1,), (0, 1), (1, 2, 3)):
        with pytest.raises(ValueError, match=r"dilation=.*at least 1"):
            ConvGeometry.like(weight, dilation)
    with pytest.raises(ValueError, match=r"padding_mode='reflect': allowed are 'zeros', 'circular'"):
        ConvGeometry.like(weight, padding_mode="reflect")
    assert ConvGeometry.like(weight, [2, 1]) == ConvGeometry.like(weight, (2, 1))


def by_geometry(geometry, x, weight):
    return nn.functional.conv2d(geometry.pad(x), weight, None, geometry.stride, 0, geometry.dilation, geometry.groups)
