"""The bound of rounding errors of Winograd's F(2, 3), which outputs in evaluation come from."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastlip.certification.rounding import sums
from fastlip.certification.rounding import winograd as bounds
from fastlip.certification.rounding.terms import Unit, norms_of, sum_of_products
from fastlip.kernels.common import binding, winograd
from fastlip.kernels.common.geometry import ConvGeometry

FLOAT32 = Unit.of(torch.float32)
MODES = ("zeros", "circular")
SIDES = [(1, 1), (2, 2), (3, 3), (5, 8), (7, 7)]


def bound(kernel, mode, sides, unit=FLOAT32):
    geometry = ConvGeometry((3, 3), padding_mode=mode)
    return bounds.small_tiles(unit, kernel.double(), geometry, (kernel.shape[0], *sides), 0.0)


def kernels():
    torch.manual_seed(0)
    orthogonal = torch.zeros(16, 16, 3, 3)
    orthogonal[:, :, 1, 2] = torch.linalg.qr(torch.randn(16, 16))[0]
    moved = torch.zeros(16, 16, 3, 3)
    for i in range(16):
        moved[i, i, i % 3, i // 6] = 1
    return {"random": torch.randn(16, 16, 3, 3), "orthogonal": orthogonal, "translations": moved}


def last(x):
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("sides", SIDES, ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", kernels())
def test_the_kernels_errors_are_within_the_bound(name, mode, sides):
    if binding.missing(winograd.KERNELS[2], torch.device("cpu")):
        pytest.skip("the kernels are not built")
    kernel = kernels()[name]
    limit, geometry = bound(kernel, mode, sides), ConvGeometry((3, 3), padding_mode=mode)
    for scale in (1.0, 1e-30, 1e30):
        # Neighbours that almost cancel: their differences are small, and their rounding errors are not.
        x = torch.randn(8, 16, 1, 1) * (1 + 1e-3 * torch.randn(8, 16, *sides)) * scale
        y = winograd.convolve(last(x), kernel, geometry, sides, tile=2)
        truth = F.conv2d(
            F.pad(x.double(), (1, 1, 1, 1), "circular" if mode == "circular" else "constant"), kernel.double()
        )
        error = (y - truth).flatten(1).norm(dim=1)
        size = x.double().flatten(1).norm(dim=1)
        assert (size <= limit.largest).all()
        assert (error <= limit.relative * size + limit.constant).all()


@pytest.mark.parametrize("sides", SIDES, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_errors_of_the_size_that_is_assumed_add_up_to_less(mode, sides):
    """The sum over the 16 products with an error matrix E_p of norm e_p in place of each rounding, as an operator.

    Its norm is at most the bound's, and not far below it for aligned errors.
    """
    torch.manual_seed(0)
    A, B = torch.kron(bounds._A, bounds._A), torch.kron(bounds._B, bounds._B)
    errors = torch.rand(16, dtype=torch.float64)
    height, width = sides
    rows, columns = -(-height // 2), -(-width // 2)
    meeting = [3 if mode == "circular" and side % 2 else 2 for side in sides]
    limit = bounds._products(errors) * math.sqrt(math.prod(meeting))
    # One channel, for which an error is a number of either sign; all signs of many draws.
    largest = 0.0
    for _ in range(200):
        signs = errors * (torch.randint(2, (16,)).double() * 2 - 1)
        tile = (A.T * signs) @ B.T  # (4 results, 16 pixels)
        operator = torch.zeros(height * width, height * width, dtype=torch.float64)
        for q, j in torch.cartesian_prod(torch.arange(4), torch.arange(16)).tolist():
            for r, c in torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).tolist():
                y, x = 2 * r + q // 2, 2 * c + q % 2
                v, u = 2 * r - 1 + j // 4, 2 * c - 1 + j % 4
                if y >= height or x >= width:
                    continue
                if mode == "circular":
                    v, u = v % height, u % width
                if 0 <= v < height and 0 <= u < width:
                    operator[y * width + x, v * width + u] += tile[q, j]
        largest = max(largest, torch.linalg.matrix_norm(operator, 2).item())
    assert largest <= limit
    assert largest >= limit / 12


@pytest.mark.parametrize(("name", "factor"), [("random", 1), ("orthogonal", 1.5), ("translations", 3)])
def test_it_is_about_that_of_the_sums_of_taps(name, factor):
    """Below it where all taps have entries: then the sums of taps are nine times as long."""
    kernel = kernels()[name].double()
    norms = norms_of(kernel.flatten(1)[None], 9)
    direct = sum_of_products(FLOAT32, norms, 9 * 16, 9, 16 * 64)
    assert bound(kernel, "circular", (8, 8)).relative < factor * direct.relative


def test_certificates_count_both_ways(monkeypatch):
    geometry, kernel = ConvGeometry((3, 3)), kernels()["random"]
    small = ConvGeometry((3, 3)), torch.randn(4, 4, 3, 3)
    assert bounds.may_run(kernel, geometry)
    assert not bounds.may_run(small[1], small[0])
    assert not bounds.may_run(torch.randn(16, 16, 5, 5), ConvGeometry((5, 5)))
    assert not bounds.may_run(kernel, ConvGeometry((3, 3), stride=(2, 2)))
    assert not bounds.may_run(kernel, ConvGeometry((3, 3), dilation=(2, 2)))
    monkeypatch.setattr(bounds, "small_tiles", lambda *_: bounds.Rounding(relative=7.0))
    assert sums.convolution(FLOAT32, kernel, 0.0, geometry, (16, 8, 8)).relative == 7.0


def test_what_cannot_run_by_small_tiles_does_not():
    """Where certificates leave them out, no batch is large enough."""
    for channels in range(1, 40):
        kernel, geometry = torch.empty(channels, channels, 3, 3), ConvGeometry((3, 3))
        image = last(torch.empty(1, channels, 8, 8)).expand(1 << 20, -1, -1, -1)
        taken = winograd.takes(image, geometry, (8, 8), channels, channels, winograd.EVALUATION)
        assert not taken or bounds.may_run(kernel, geometry)
