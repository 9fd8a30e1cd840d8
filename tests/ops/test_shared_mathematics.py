"""Gram iteration, Fourier phases and space to depth: the mathematics that ops and layers share."""

from __future__ import annotations

import math

import pytest
import torch

from fastlip import ops
from fastlip.kernels.common import fourier, gram
from fastlip.kernels.common.rearrange import space_to_depth

DTYPES = [torch.float64, torch.complex128]
SHAPES = [(3, 4, 7), (2, 6, 6), (2, 3, 9, 4), (5, 1, 1)]


def parts(M):
    return (M.real, M.imag) if M.is_complex() else (M,)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gram_iteration_bounds_the_norm(dtype, shape):
    M = torch.randn(*shape, dtype=dtype)
    norms = torch.linalg.matrix_norm(M, 2)
    bound = gram.squared_norm_bound(*parts(M)).sqrt()
    assert (bound >= norms * (1 - 1e-14)).all()
    assert (bound <= norms * min(shape[-2:]) ** (1 / 128) * (1 + 1e-14)).all()
    torch.testing.assert_close(gram.norm_bound(M), bound, rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_powers_are_those_of_the_gram_matrix(dtype):
    M = torch.randn(2, 3, 5, dtype=dtype)
    G = M @ M.mH
    power = gram.GramPower.of(*gram.gram(*parts(M)))
    for step in range(4):
        expected = torch.linalg.matrix_power(G, 2**step)
        norm = torch.linalg.matrix_norm(expected)
        found = power.real if power.imaginary is None else torch.complex(power.real, power.imaginary)
        torch.testing.assert_close(found, expected / norm[:, None, None])
        torch.testing.assert_close(power.bound, norm ** (1 / 2**step))
        power = power.squared()
    chosen = power.select(torch.tensor([True, False]))
    torch.testing.assert_close(chosen.bound, power.bound[:1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradient_of_the_norm_bound(dtype, shape):
    M = torch.randn(*shape, dtype=dtype, requires_grad=True)
    assert torch.autograd.gradcheck(gram.norm_bound, M)
    (gradient,) = torch.autograd.grad(gram.norm_bound(M).sum(), M)
    (plain,) = torch.autograd.grad(gram.squared_norm_bound(*parts(M)).sqrt().sum(), M)
    torch.testing.assert_close(gradient, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_extreme_matrices(size):
    M = torch.full((2, 3, 4), size, requires_grad=True)
    bound = gram.norm_bound(M)
    bound.sum().backward()
    assert M.grad is not None
    assert M.grad.isfinite().all()
    expected, slack = torch.full((2,), size * math.sqrt(12)), 1e-2 if size == 0 else 0
    torch.testing.assert_close(bound, expected, rtol=1e-5, atol=slack)
    zeros = torch.zeros(2, 3, 3)
    assert gram.squared_norm_bound(zeros, zeros).tolist() == [0, 0]


def test_norm_bound_under_transforms():
    M = torch.randn(4, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(torch.vmap(gram.norm_bound)(M), gram.norm_bound(M))
    by_transform = torch.func.grad(lambda M: gram.norm_bound(M).sum())(M)
    leaf = M.clone().requires_grad_()
    torch.testing.assert_close(by_transform, torch.autograd.grad(gram.norm_bound(leaf).sum(), leaf)[0])


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 8), (7, 1)])
def test_phases_are_those_of_the_fft(size):
    x = torch.randn(*size, dtype=torch.float64)
    frequencies = fourier.unique_frequencies(size)
    assert len(frequencies) == fourier.count_frequencies(size)
    positions = torch.arange(size[0]), torch.arange(size[1])
    angles = fourier.plane_angles(frequencies, positions, size)
    found = torch.polar(torch.ones((), dtype=torch.float64), -angles) @ x.flatten().to(torch.complex128)
    torch.testing.assert_close(found, torch.fft.fft2(x)[frequencies[:, 0], frequencies[:, 1]])
    own = frequencies[: fourier.own_frequencies(size)]
    assert ((2 * own) % torch.tensor(size) == 0).all()


def test_phases_lose_no_digits():
    length = 2**26 + 1
    found = fourier.angles(torch.tensor([length - 1]), torch.tensor([length - 1]), length)
    assert found.item() == pytest.approx(2 * math.pi / length, rel=1e-15)


def test_kernel_spectrum_is_cached_in_two_frames():
    import sys

    weight, package, frames = torch.randn(3, 3, 3, 3), "fastlip", []
    ops.kernel_spectrum(weight, (8, 8))

    def note(frame, event, _):
        if event == "call" and package in frame.f_code.co_filename:
            frames.append(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        ops.kernel_spectrum(weight, (8, 8))
    finally:
        sys.setprofile(None)
    assert frames == ["kernel_spectrum", "is_observed"]


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (2, 3)])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("position_first", [False, True])
def test_space_to_depth(stride, groups, position_first):
    x = torch.randn(2, 4, 5, 7)
    y = space_to_depth(x, stride, groups, position_first)
    (down, across), (height, width) = stride, y.shape[-2:]
    assert (height, width) == (-(-5 // down), -(-7 // across))
    torch.testing.assert_close(y.norm(), x.norm())
    padded = torch.nn.functional.pad(x, (0, width * across - 7, 0, height * down - 5))
    parts, patch = 4 // groups, down * across
    for channel in range(4):
        for row in range(down):
            for column in range(across):
                position, inner = row * across + column, channel % parts
                within = position * parts + inner if position_first else inner * patch + position
                found = y[:, channel // parts * parts * patch + within]
                assert torch.equal(found, padded[:, channel, row::down, column::across])


def test_space_to_depth_is_pixel_unshuffle():
    x = torch.randn(2, 3, 6, 4)
    assert torch.equal(space_to_depth(x, (2, 2)), ops.pixel_unshuffle(x, 2))
    assert torch.equal(space_to_depth(x[0], (2, 2)), ops.pixel_unshuffle(x[0], 2))
