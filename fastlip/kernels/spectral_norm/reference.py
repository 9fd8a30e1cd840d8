"""The norm of a convolution: the largest singular value over the frequencies of its FFT size (Sedghi et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from functools import lru_cache
from operator import floordiv

import torch
from torch import Tensor

from fastlip.kernels.common.fourier import angles
from fastlip.kernels.common.gate import is_observed
from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.kernels.common.gram import GramPower
from fastlip.kernels.common.threads import one_thread

# Eigenvalues of n Hermitian c x c matrices cost about n c^3 times 3 ns; beyond this, Gram iteration.
EXACT_COST = 1_000_000_000
GRAM_STEPS = 9  # the bound of a c x c matrix is at most c^(1 / 2^(steps + 2)) too large: 0.4 % at c = 4096
_CLOSE = 1e-9  # Gram iteration stops where its bounds meet
_CHUNK = 1 << 23  # complex numbers held at once


def matrix_norm(weight: Tensor) -> Tensor:
    """The largest singular value of a (m, n) matrix."""
    if weight.numel() == 0:
        return weight.new_zeros(())
    scale = weight.abs().amax()
    largest = _largest_singular_value(
        weight[None] / torch.where(scale > 0, scale, 1), exact=is_cheap(1, min(weight.shape))
    )
    return scale * largest * _inflation(weight.shape[0], weight.shape[1])


def convolution_norm(weight: Tensor, image_size: tuple[int, ...], geometry: ConvGeometry) -> Tensor:
    """The largest singular value over groups and frequencies, strides by aliasing (polyphase).

    A kernel of one tap has the same matrix at each frequency, whatever the stride.
    """
    if weight.numel() == 0:
        return weight.new_zeros(())
    groups = geometry.groups
    sides, steps, repeats = _transform(geometry, tuple(image_size))
    scale = weight.abs().amax()
    grouped = (weight / torch.where(scale > 0, scale, 1)).unflatten(0, (groups, -1))
    cout, cin = grouped.shape[1], grouped.shape[2] * math.prod(steps)
    *outer, last = map(floordiv, sides, steps)
    exact = is_cheap(groups * math.prod(outer) * (last // 2 + 1), min(cout, cin))
    largest = weight.new_zeros(())
    with one_thread() if exact else nullcontext():
        for matrices in transfer_matrices(grouped, sides, steps, geometry.dilation):
            largest = torch.maximum(largest, _largest_singular_value(matrices, exact))
    return scale * largest * math.sqrt(repeats) * _inflation(cout, cin + geometry.taps)


@lru_cache(maxsize=1024)
def _transform(geometry: ConvGeometry, image_size: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The FFT size, the stride along each axis at this size, and how often an output can repeat.

    With circular padding the norm at stride 1 bounds that at a stride which does not divide the image's side.
    """
    sides, steps, repeats = geometry.fft_size(image_size), list(geometry.stride), 1
    for axis, (side, padded) in enumerate(zip(sides, geometry.padded_size(image_size), strict=True)):
        often = -(-(padded - geometry.halo[axis]) // side)
        if geometry.padding_mode == "circular" and often > 1:
            steps[axis], repeats = 1, repeats * often
        elif side % steps[axis]:
            steps[axis] = 1
    if geometry.taps == 1:
        return (1,) * geometry.axes, (1,) * geometry.axes, repeats
    return sides, tuple(steps), repeats


def transfer_matrices(
    weight: Tensor, sides: tuple[int, ...], strides: tuple[int, ...], dilation: tuple[int, ...]
) -> Iterator[Tensor]:
    """The matrices of half of the frequencies, in chunks of (n, cout, cin * stride_h * stride_w).

    weight is (groups, cout, cin, kh, kw), or of volumes (groups, cout, cin, kd, kh, kw). A stride adds up frequencies
    that differ by side / stride: they stand side by side in one matrix, divided by the square root of their number.
    Taps wrap where they exceed the FFT size.
    """
    if len(sides) == 3:
        # The taps along the depth at each frequency (and its aliases, as channels): kernels of images.
        planes = _phases(sides[0], weight.shape[3], dilation[0]).view(strides[0], sides[0] // strides[0], -1)
        for part in planes.split(1, dim=1):
            kernels = torch.einsum("goizyx,rz->goiryx", weight.to(part.dtype), part[:, 0]) / math.sqrt(strides[0])
            yield from transfer_matrices(kernels.flatten(2, 3), sides[1:], strides[1:], dilation[1:])
        return
    (height, width), (step_h, step_w) = sides, strides
    groups, cout, cin = weight.shape[:3]
    phases = _phases if is_observed() else _kept_phases
    rows = phases(height, weight.shape[3], dilation[0]).view(step_h, height // step_h, -1)
    columns = phases(width, weight.shape[4], dilation[1]).view(step_w, width // step_w, -1)
    columns = columns[:, : width // step_w // 2 + 1]
    per_row = groups * cout * cin * columns.shape[0] * columns.shape[1] * step_h
    horizontal = torch.einsum("goiyx,skx->goiysk", weight.to(columns.dtype), columns)
    for part in rows.split(max(1, _CHUNK // per_row), dim=1):
        matrices = torch.einsum("goiysk,tly->glkoits", horizontal, part)
        yield matrices.reshape(-1, cout, cin * step_h * step_w) / math.sqrt(step_h * step_w)


def _phases(side: int, kernel_size: int, dilation: int) -> Tensor:
    """exp(2 pi i k tau / side) for every frequency k and tap tau."""
    with torch.inference_mode(False):
        frequencies, taps = torch.arange(side, device="cpu"), torch.arange(kernel_size, device="cpu")
        found = angles(frequencies, dilation * taps, side)
        return torch.polar(torch.ones((), dtype=torch.float64, device="cpu"), found)


_kept_phases = lru_cache(maxsize=64)(_phases)


def _largest_singular_value(matrices: Tensor, exact: bool) -> Tensor:
    """The largest over a batch (n, rows, columns), by the smaller of the two Gram matrices.

    Eigenvalues are computed only of those whose cheap bound exceeds what was found so far.
    """
    if matrices.shape[1] > matrices.shape[2]:
        matrices = matrices.mT
    gram = matrices @ matrices.mH
    if not exact:
        return gram_iteration(gram).clamp_min(0).sqrt()
    bound, order = _cheap_bound(gram).sort(descending=True)
    largest = bound.new_zeros(())
    for at in range(0, len(order), step := 1 + len(order) // 8):
        if bound[at] <= largest:
            break
        chosen = gram[order[at : at + step]]
        largest = torch.maximum(largest, torch.linalg.eigvalsh(chosen)[:, -1].amax())
    return largest.sqrt()


def _cheap_bound(gram: Tensor) -> Tensor:
    """Row sums, and m + |G - m|_F with m the mean eigenvalue: sharp for nearly orthogonal layers."""
    mean = gram.diagonal(dim1=-2, dim2=-1).real.mean(-1)
    centred = gram - torch.diag_embed(mean[:, None].expand(gram.shape[:2]).to(gram.dtype))
    return torch.minimum(gram.abs().sum(-1).amax(-1), mean + torch.linalg.matrix_norm(centred))


def gram_iteration(gram: Tensor) -> Tensor:
    """The largest of the bounds |G^(2^t)|_F^(1 / 2^t) of a batch of G >= 0, t up to ``GRAM_STEPS``.

    The same norm divided by c^(1 / 2^(t + 1)) is a lower bound, as is the mean eigenvalue: matrices that cannot be
    the largest are dropped on the way.
    """
    size = gram.shape[-1]
    bound = _cheap_bound(gram)
    lower = gram.diagonal(dim1=-2, dim2=-1).real.mean(-1).amax()
    power = GramPower.of(gram.real, gram.imag) if gram.is_complex() else GramPower.of(gram)
    while True:
        bound = torch.minimum(bound, power.bound)
        lower = torch.maximum(lower, power.bound.amax() / size ** (1 / 2 ** (power.step + 1)))
        if power.step == GRAM_STEPS or bound.amax() <= lower * (1 + _CLOSE):
            return bound.amax()
        keep = bound >= bound.amax().minimum(lower)
        bound, power = bound[keep], power.select(keep).squared()


def is_cheap(count: int, size: int) -> bool:
    """Whether the eigenvalues of ``count`` matrices of this size are computed, and not bounded by Gram iteration."""
    return count * size**3 <= EXACT_COST


def _inflation(rows: int, length: int) -> float:
    """Covers rounding: entries are sums of ``length`` terms, and the errors of a whole row may add up."""
    return 1 + 8 * min(rows, length) * (rows + length) * torch.finfo(torch.float64).eps
