"""Winograd's convolutions: within the bound of their rounding errors, and in evaluation with small tiles alone."""

import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fastlip
from fastlip.kernels.common import binding, winograd
from fastlip.kernels.common.geometry import NO_PADS, ConvGeometry
from fastlip.kernels.conv_chain.native import Passes

ROOT = Path(__file__).resolve().parents[2]
BEST = torch.backends.cpu.get_cpu_capability()
LESSER = {"AVX512": ("avx2", "default"), "AVX2": ("default",)}.get(BEST, ())
MODES = ("zeros", "circular")
GEOMETRY = partial(ConvGeometry, (3, 3))
# (images, inputs, outputs, height, width): whole tiles, parts of tiles, images smaller than a tile, one channel, more
# channels than a group has, and so many tiles that sums run in several blocks.
SHAPES = [
    (2, 16, 16, 8, 8),
    (3, 3, 5, 7, 6),
    (1, 1, 1, 1, 1),
    (2, 33, 17, 9, 4),
    (2, 70, 40, 5, 13),
    (1, 4, 130, 2, 3),
    (40, 8, 24, 12, 8),
]
# The points of F(2, 3) and F(4, 3) but infinity.
POINTS = {2: (0, 1, -1), 4: (0, 0.75, -0.75, 1.5, -1.5)}
UNIT = torch.finfo(torch.float32).eps / 2


def matrices(tile):
    """A (p, tile), G (p, 3) and B (p, p) of y = Aᵀ((G g) ∘ (Bᵀ d)), p = tile + 2, by Lagrange's interpolation."""
    points = torch.tensor(POINTS[tile], dtype=torch.float64)
    powers = points[:, None] ** torch.arange(tile + 2)
    infinity = torch.eye(tile + 2, dtype=torch.float64)
    values = torch.cat([powers, infinity[-1:]])
    distances = points[:, None] - points
    factors = torch.cat([1 / distances.where(distances != 0, 1).prod(1), torch.ones(1, dtype=torch.float64)])
    A = torch.cat([powers[:, :tile], infinity[-1:, 2:]])
    G = torch.cat([powers[:, :3], infinity[-1:, tile - 1 :]]) * factors[:, None]
    return A, G, torch.linalg.inv(values) / factors


@pytest.fixture(autouse=True)
def kernels():
    if binding.missing(winograd.KERNELS[2], torch.device("cpu")):
        pytest.skip("the kernels are not built")


def inputs(shape, mode, seed=0):
    n, cin, cout, height, width = shape
    torch.manual_seed(seed)
    x, gradient = torch.randn(n, cin, height, width), torch.randn(n, cout, height, width)
    weight, bias = torch.randn(cout, cin, 3, 3), torch.randn(cout)
    geometry = GEOMETRY(padding_mode=mode)
    return x, gradient, weight, bias, geometry


def last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


def padded(x, mode):
    return F.pad(x, (1, 1, 1, 1), mode="circular" if mode == "circular" else "constant")


def patches(x, mode, size, tile=4):
    """All patches, (n, c, tiles, tiles, tile + 2, tile + 2), of an image that zeros fill up to whole tiles."""
    height, width = (-(-side // tile) * tile + 2 for side in size)
    whole = padded(x, mode)
    whole = F.pad(whole, (0, width - whole.shape[3], 0, height - whole.shape[2]))
    return whole.unfold(2, tile + 2, tile).unfold(3, tile + 2, tile)


def tiles(x):
    """All tiles of 4 × 4 pixels, (n, c, tiles, tiles, 4, 4)."""
    height, width = (-(-side // 4) * 4 for side in x.shape[2:])
    return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2])).unfold(2, 4, 4).unfold(3, 4, 4)


def together(found, size):
    """The image of tiles (n, c, tiles, tiles, tile, tile), cut to its size."""
    n, c, rows, columns, tile = found.shape[:5]
    return found.movedim(4, 3).reshape(n, c, tile * rows, tile * columns)[:, :, : size[0], : size[1]]


def both(matrix, x):
    """The matrix applied along the last two axes."""
    return matrix @ x @ matrix.mT


def largest_error(x, weight, mode, bias=0.0, tile=4):
    """A bound of each result's error: the sums of moduli, times the roundings of a product on its way."""
    A, G, B = matrices(tile)
    size = x.shape[2:]
    moduli = both(B.mT.abs(), patches(x.double().abs(), mode, size, tile))
    kernel = both(G, weight.double()).abs()
    products = torch.einsum("ocij,nctuij->notuij", kernel, moduli)
    # For each of the two transforms 10 or 6, the kernel's, and those of the sums.
    roundings = weight.shape[1] + {2: 12, 4: 24}[tile]
    return roundings * 1.01 * UNIT * together(both(A.mT.abs(), products), size) + 2 * UNIT * bias


def largest_gradient_error(x, gradient, mode):
    """The same of the gradient of the kernel, which is a sum over all tiles."""
    A, G, B = matrices(4)
    moduli = both(B.mT.abs(), patches(x.double().abs(), mode, gradient.shape[2:]))
    others = both(A.abs(), tiles(gradient.double().abs()))
    products = torch.einsum("nctuij,notuij->ocij", moduli, others)
    # A sum over the tiles of a block, blocks, and copies.
    count = x.shape[0] * moduli.shape[2] * moduli.shape[3]
    return (count + 24) * 1.01 * UNIT * both(G.mT.abs(), products)


@pytest.mark.parametrize("tile", winograd.KERNELS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_results_are_within_their_rounding_errors(shape, mode, tile):
    x, _, weight, bias, geometry = inputs(shape, mode)
    image = last(padded(x, mode) if mode == "circular" else x)
    y = winograd.convolve(image, weight, geometry, (shape[3], shape[4]), winograd.Finish(bias), tile)
    truth = F.conv2d(padded(x, mode).double(), weight.double(), bias.double())
    assert y.shape == truth.shape
    assert y.is_contiguous(memory_format=torch.channels_last)
    error = (y - truth).abs()
    assert (error <= largest_error(x, weight, mode, truth.abs() + bias.abs().max(), tile)).all()
    # The kernel reads the other side of a circular image by itself.
    assert torch.equal(
        y, winograd.convolve(last(x), weight, geometry, (shape[3], shape[4]), winograd.Finish(bias), tile)
    )


@pytest.mark.parametrize("activation", ["none", "relu", "adjacent"])
@pytest.mark.parametrize("tile", winograd.KERNELS)
@pytest.mark.parametrize("shape", [(2, 16, 48, 7, 6), (1, 3, 5, 4, 9), (3, 20, 16, 5, 5)])
def test_what_follows_a_convolution_has_the_bits_of_separate_passes(shape, tile, activation):
    x, residual, weight, bias, geometry = inputs(shape, "zeros")
    image, size, channels = last(x), (shape[3], shape[4]), shape[2]
    z = winograd.convolve(image, weight, geometry, size, tile=tile)
    finish = winograd.Finish(bias, None, 1.0, 1.0, activation)
    expected = {"none": lambda z: z, "relu": F.relu, "adjacent": fastlip.ops.maxmin}[activation]
    y = winograd.convolve(image, weight, geometry, size, finish, tile)
    assert torch.equal(y, expected(z + bias[:, None, None]))
    finish = winograd.Finish(None, last(residual), 1.0, -1.0, activation)
    assert torch.equal(winograd.convolve(image, weight, geometry, size, finish, tile), expected(residual - z))
    if activation == "adjacent" and channels % winograd.PAIRED == 0:
        _, _, wanted = Passes().activate(z.clone(), bias, None, activation, NO_PADS, True)
        bits = torch.full_like(wanted, 255)
        again = winograd.convolve(
            image, weight, geometry, size, winograd.Finish(bias, None, 1, 1, activation, bits), tile
        )
        assert torch.equal(bits, wanted)
        assert torch.equal(again, y)


def test_a_nan_stays_in_what_follows():
    x, _, weight, _, geometry = inputs((1, 16, 16, 4, 4), "zeros")
    x[0, 0, 0, 0] = float("nan")
    for activation in ("relu", "adjacent"):
        y = winograd.convolve(last(x), weight, geometry, (4, 4), winograd.Finish(activation=activation), 2)
        assert y[0, :, 0, 0].isnan().all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_within_their_rounding_errors(shape, mode):
    x, gradient, weight, _, geometry = inputs(shape, mode, 1)
    exact, kernel = x.double().requires_grad_(), weight.double().requires_grad_()
    F.conv2d(padded(exact, mode), kernel).backward(gradient.double())
    extended = last(padded(gradient, mode) if mode == "circular" else gradient)
    of_x, of_weight = winograd.gradients(last(x), extended, weight, geometry, True, True)
    flipped = weight.flip(2, 3).transpose(0, 1)
    assert ((of_x - exact.grad).abs() <= largest_error(gradient, flipped, mode)).all()
    bound = largest_gradient_error(gradient, x, mode).flip(2, 3).transpose(0, 1)
    assert ((of_weight - kernel.grad).abs() <= bound).all()
    # The same gradient by the other role, where the image and not the gradient has the halo.
    image = last(padded(x, mode) if mode == "circular" else x)
    directly = winograd.kernel_gradient(image, last(gradient), geometry)
    assert ((directly - kernel.grad).abs() <= largest_gradient_error(x, gradient, mode)).all()
    y, again = winograd.convolve_and_differentiate(image, last(gradient), weight, geometry, (shape[3], shape[4]))
    assert torch.equal(again, directly)
    assert torch.equal(y, winograd.convolve(image, weight, geometry, (shape[3], shape[4])))


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_one_gradient_alone_has_the_same_bits(needs):
    x, gradient, weight, _, geometry = inputs(SHAPES[1], "zeros")
    whole = winograd.gradients(last(x), last(gradient), weight, geometry, True, True)
    found = winograd.gradients(last(x), last(gradient), weight, geometry, *needs)
    for one, other, needed in zip(found, whole, needs, strict=True):
        assert torch.equal(one, other) if needed else one is None
    assert winograd.gradients(last(x), last(gradient), weight, geometry, False, False) == (None, None)


@pytest.mark.parametrize(("tile", "factor"), [(2, 1.5), (4, 4)])
def test_errors_are_those_of_a_few_sums_of_taps(tile, factor):
    x, _, weight, _, geometry = inputs((8, 64, 64, 16, 16), "zeros")
    truth = F.conv2d(x.double(), weight.double(), padding=1)
    ours = (winograd.convolve(last(x), weight, geometry, (16, 16), tile=tile) - truth).square().mean().sqrt()
    theirs = (F.conv2d(x, weight, padding=1) - truth).square().mean().sqrt()
    assert ours <= factor * theirs


def test_counts_of_operations():
    geometry = GEOMETRY()

    def takes(n, channels, side, **others):
        image = last(torch.empty(n, channels, side, side))
        return winograd.takes(image, GEOMETRY(**others), (side, side), channels, 32)

    assert takes(64, 32, 32)
    assert takes(256, 16, 32)
    assert not takes(1, 32, 4)
    assert not takes(256, 3, 32)
    assert not takes(0, 32, 32)
    assert not takes(64, 32, 32, dilation=(2, 2))
    assert not winograd.takes(torch.empty(64, 32, 32, 32).double(), geometry, (32, 32), 32, 32)
    wide = ConvGeometry((5, 5))
    assert not winograd.takes(torch.empty(64, 32, 32, 32), wide, (32, 32), 32, 32)


def test_bits_do_not_depend_on_the_number_of_threads():
    x, gradient, weight, _, geometry = inputs((9, 20, 35, 17, 12), "zeros")
    before, found = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(winograd.gradients(last(x), last(gradient), weight, geometry, True, True))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert torch.equal(other[0], found[0][0])
        assert torch.equal(other[1], found[0][1])


@pytest.mark.parametrize("instruction_set", LESSER)
def test_other_instruction_sets(instruction_set):
    if find_spec(f"fastlip._native_{instruction_set}") is None:
        pytest.skip(f"the {instruction_set} kernels are not built: FASTLIP_ISA=all pip install -e .")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "within", __file__]
    environment = os.environ | {"ATEN_CPU_CAPABILITY": instruction_set, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert process.returncode == 0, process.stdout + process.stderr
    assert f"{3 * len(MODES) * len(SHAPES)} passed" in process.stdout
