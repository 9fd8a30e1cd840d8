"""The bound against the exact norm of the dense matrix of the convolution, in float64."""

import math
import random

import pytest
import torch
import torch.nn.functional as F

from fastlip import ops
from fastlip.kernels.common.padding import pad
from fastlip.kernels.spectral_norm import reference


def dense_norm(weight, image_size, stride, pads, dilation, groups, padding_mode):
    """The exact norm: the convolution of every unit image, and an SVD."""
    channels = weight.shape[1] * groups
    units = torch.eye(channels * math.prod(image_size), dtype=torch.float64).view(-1, channels, *image_size)
    padded = pad(units, pads, padding_mode)
    return torch.linalg.matrix_norm(F.conv2d(padded, weight, None, stride, 0, dilation, groups).flatten(1), 2)


def random_configuration(seed):
    choose = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    groups = choose.choice((1, 1, 1, 2))
    cin, cout = groups * choose.randint(1, 3), groups * choose.randint(1, 3)
    kernel_size = choose.randint(1, 4), choose.randint(1, 4)
    dilation = choose.randint(1, 2), choose.randint(1, 2)
    stride = choose.choice((1, 1, 2, 3)), choose.choice((1, 1, 2, 3))
    mode = choose.choice(("circular", "zeros"))
    reach = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
    pads, image_size = [], []
    for total in reversed(reach):
        if choose.random() < 0.5:
            pads += [total // 2, total - total // 2]
        else:
            least = choose.randint(0, total)
            most = total - least if mode == "circular" else total + 2
            pads += [least, choose.randint(0, most)]
    for total, added in zip(reach, (sum(pads[2:]), sum(pads[:2])), strict=True):
        image_size.append(max(choose.randint(1, 7), total + 1 - added))
    weight = torch.randn(cout, cin // groups, *kernel_size, generator=generator, dtype=torch.float64)
    return weight, tuple(image_size), stride, tuple(pads), dilation, groups, mode


def check_configuration(seed):
    configuration = random_configuration(seed)
    exact = dense_norm(*configuration)
    bound = ops.spectral_norm(*configuration)
    assert bound >= exact
    weight, image_size, stride, pads, dilation, _, mode = configuration
    same = all(
        sum(added) == d * (k - 1)
        for added, d, k in zip((pads[2:], pads[:2]), dilation, weight.shape[2:], strict=True)
    )
    if mode == "circular" and same and not any(n % s for n, s in zip(image_size, stride, strict=True)):
        assert bound <= exact * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(100))
def test_at_least_the_exact_norm(seed):
    check_configuration(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 600))
def test_at_least_the_exact_norm_at_length(seed):
    check_configuration(seed)


def test_gram_iteration_is_within_one_percent(monkeypatch):
    for seed in range(20):
        configuration = random_configuration(seed)
        exact = ops.spectral_norm(*configuration)
        monkeypatch.setattr(reference, "EXACT_COST", 0)
        bound = ops.spectral_norm(*configuration)
        monkeypatch.undo()
        assert exact * (1 - 1e-12) <= bound <= exact * 1.01


@pytest.mark.parametrize("scale", [0.0, 1e-200, 1.0, 1e200])
@pytest.mark.parametrize("cost", [0, reference.EXACT_COST])
def test_scales_without_overflow(monkeypatch, scale, cost):
    monkeypatch.setattr(reference, "EXACT_COST", cost)
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    unit = ops.spectral_norm(weight, (5, 5), pads=(1, 1, 1, 1))
    assert math.isclose(ops.spectral_norm(scale * weight, (5, 5), pads=(1, 1, 1, 1)), scale * unit, rel_tol=1e-12)
    assert math.isclose(
        ops.spectral_norm(scale * weight.flatten(1)),
        scale * torch.linalg.matrix_norm(weight.flatten(1), 2),
        rel_tol=1e-12 if cost else 0.01,
    )


def test_zero_padding_needs_the_larger_torus():
    weight = torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64).view(1, 1, 1, 3)
    exact = dense_norm(weight, (1, 2), (1, 1), (2, 2, 0, 0), (1, 1), 1, "zeros")
    assert ops.spectral_norm(weight, (1, 2), pads=(2, 2, 0, 0), padding_mode="zeros") >= exact
    assert ops.spectral_norm(weight, (1, 2), pads=(1, 1, 0, 0)) < exact


def test_outputs_that_repeat_raise_the_bound():
    weight = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    assert ops.spectral_norm(weight, (3, 3), pads=(3, 3, 0, 0)) >= math.sqrt(3)


def test_sixteen_bit_weights_are_read_exactly():
    weight = torch.randn(3, 3, 3, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    bound = ops.spectral_norm(weight, (4, 4), pads=(1, 1, 1, 1))
    assert bound.dtype == torch.float64
    assert bound == ops.spectral_norm(weight.double(), (4, 4), pads=(1, 1, 1, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"padding_mode": "reflect"}, "padding_mode='reflect': allowed are 'circular', 'zeros'"),
        ({"image_size": None}, "image_size=None"),
        ({"image_size": (0, 4)}, "image_size"),
        ({"stride": (0, 1)}, "stride"),
        ({"dilation": (1, 0)}, "dilation"),
        ({"pads": (-1, 0, 0, 0)}, "pads"),
        ({"groups": 3}, "groups=3"),
        ({"weight": torch.ones(2, 2, 2)}, "two, four or five dimensions"),
        ({"weight": torch.full((2, 2, 1, 1), math.nan)}, "NaN or Inf"),
        ({"backend": "native"}, "no native kernel"),
    ],
)
def test_errors_name_the_argument(change, message):
    arguments = {"weight": torch.ones(2, 2, 3, 3), "image_size": (4, 4), **change}
    with pytest.raises(ValueError, match=message):
        ops.spectral_norm(**arguments)
