"""Weights for the agreement tests and the benchmarks, and the same algebra in pure PyTorch.

Length: the sum over (o, τ) that makes one v, and the sum over (j, δ) that makes one r.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from fastlip.kernels.common.case import Case

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


class _Transposed(Case):
    """The weight is W.transpose(0, 1), as SLL layers pass it: the Gram operator over output channels."""

    def make(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
        """Standard normal tensors."""
        tensors = super().make(dtype, device, seed)
        tensors["weight"] = tensors["weight"].transpose(0, 1).contiguous().transpose(0, 1)
        return tensors


def _case(
    cout: int,
    cin: int,
    *kernel: int,
    psi: bool = False,
    groups: int = 1,
    layout: str = "contiguous",
    bench: bool = False,
) -> Case:
    shapes: dict[str, tuple[int, ...]] = {"weight": (cout, cin // groups, *kernel)}
    if psi:
        shapes["psi"] = (cin,)
    offsets = math.prod(2 * k - 1 for k in kernel)
    length = max(1, cout // groups * math.prod(kernel) + cin // groups * offsets)
    options = {} if groups == 1 else {"groups": groups}
    if layout == "transposed":
        return _Transposed(shapes, options, length, bench=bench)
    return Case(shapes, options, length, layout, bench)


def _square(channels: int, kernel: int, psi: bool = False) -> Case:
    return _case(channels, channels, kernel, kernel, psi=psi, bench=True)


CASES = {
    "c1_k3": _case(1, 1, 3, 3),
    "c3_k3_psi": _case(3, 3, 3, 3, psi=True),
    "c17_k3": _case(17, 17, 3, 3),
    "c17_k3_psi_transposed": _case(17, 17, 3, 3, psi=True, layout="transposed"),
    "c63_k3_psi": _case(63, 63, 3, 3, psi=True),
    "wide_c40_100_k3": _case(40, 100, 3, 3),
    "tall_c100_40_k3_channels_last": _case(100, 40, 3, 3, psi=True, layout="channels_last"),
    "k1": _case(6, 5, 1, 1, psi=True),
    "k2": _case(5, 7, 2, 2),
    "k5": _case(4, 3, 5, 5, psi=True),
    "c33_k5": _case(20, 33, 5, 5),
    "k2x3": _case(5, 4, 2, 3, psi=True),
    "two_tiles_k1x2": _case(4, 35, 1, 2, psi=True),
    "k3x1_strided": _case(5, 4, 3, 1, layout="strided"),
    "k1d": _case(6, 7, 5, psi=True),
    "k3d": _case(4, 5, 2, 3, 2),
    "groups": _case(12, 15, 3, 3, psi=True, groups=3),
    "groups_of_35": _case(70, 70, 3, 3, groups=2),
    "depthwise": _case(8, 8, 3, 3, psi=True, groups=8),
    "dense": _case(9, 11, psi=True),
    "dense_transposed": _case(11, 9, psi=True, layout="transposed"),
    "dense_129": _case(130, 129, psi=True),
    "dense_300_transposed": _case(257, 300, layout="transposed"),
    "no_outputs": _case(0, 4, 3, 3, psi=True),
    "no_inputs": _case(4, 0, 3, 3),
    "conv_16_k3": _square(16, 3),
    "conv_32_k3": _square(32, 3),
    "conv_64_k3": _square(64, 3),
    "conv_64_k3_psi": _square(64, 3, psi=True),
    "conv_128_k3": _square(128, 3),
    "conv_256_k3": _square(256, 3),
    "conv_512_k3": _square(512, 3),
    "conv_64_k5": _square(64, 5),
    "conv_128_k1": _square(128, 1),
    "dense_128": _case(128, 128, bench=True),
    "dense_512": _case(512, 512, bench=True),
}


def by_half_offsets(weight: Tensor, psi: Tensor | None = None, groups: int = 1) -> Tensor:
    """The same algebra in PyTorch: half the offsets, overlapping taps only, one batched product per offset."""
    per_group = weight.unflatten(0, (groups, -1))[(...,) + (None,) * (4 - weight.dim())]
    kernel = per_group.shape[3:]
    ranges = [range(1 - k, k) for k in kernel]
    half = list(itertools.product(*ranges))[math.prod(map(len, ranges)) // 2 :]
    sums = weight.new_zeros(())
    for offset in half:
        ahead = per_group[(..., *(slice(max(0, d), k + min(0, d)) for d, k in zip(offset, kernel, strict=True)))]
        shifted = per_group[(..., *(slice(max(0, -d), k - max(0, d)) for d, k in zip(offset, kernel, strict=True)))]
        left = shifted.transpose(1, 2).flatten(2)  # [g, i, (o τ)]
        v = (left @ ahead.transpose(1, 2).flatten(2).transpose(1, 2)).abs()
        sums = sums + (v + v.transpose(1, 2) if any(offset) else v)
    if psi is None:
        return sums.sum(2).flatten()
    psi = psi.view(groups, -1)
    return (sums * (psi[:, None, :] - psi[:, :, None]).exp()).sum(2).flatten()


def _six_sums(taps: Tensor) -> list[Tensor]:
    outer = taps[0] + taps[2]
    return [outer + taps[1], outer - taps[1], taps[0], taps[2], taps[0] - taps[2], taps[1]]


def _own_lags(row: list[Tensor]) -> list[Tensor]:
    """The lags -2 to 2 of a row of taps with itself, from four products."""
    plus, minus = row[0].T @ row[0], row[1].T @ row[1]
    last, middle = row[2].T @ row[3], row[4].T @ row[5]
    odd, skew = (plus - minus) / 4, (middle - middle.T) / 2
    return [last.T, odd - skew, (plus + minus) / 2 - last - last.T, odd + skew, last]


def _other_lags(a: list[Tensor], b: list[Tensor]) -> list[Tensor]:
    """The lags of one row of taps with another, from six products."""
    plus, minus, last, first = a[0].T @ b[0], a[1].T @ b[1], a[2].T @ b[3], a[3].T @ b[2]
    odd, skew = (plus - minus) / 4, (a[4].T @ b[5] - a[5].T @ b[4]) / 2
    return [first, odd - skew, (plus + minus) / 2 - last - first, odd + skew, last]


def by_points(weight: Tensor, psi: Tensor | None = None, groups: int = 1) -> Tensor:
    """The products of csrc/gram_rowsum/points.h in PyTorch, for 3 x 3 kernels; others by half the offsets."""
    if weight.shape[2:] != (3, 3) or groups != 1:
        return by_half_offsets(weight, psi, groups)
    plus, minus, first, last, difference, middle = [_six_sums(row) for row in _six_sums(weight.permute(2, 3, 0, 1))]
    own = [_own_lags(row) for row in (plus, minus)]
    down, skew = _other_lags(first, last), _other_lags(difference, middle)
    up, skew = [lag.T for lag in reversed(down)], [a - b.T for a, b in zip(skew, reversed(skew), strict=True)]
    sums = weight.new_zeros(())
    for x in range(5):
        odd = (own[0][x] - own[1][x]) / 4
        for lag in (
            up[x],
            down[x],
            odd + skew[x] / 2,
            odd - skew[x] / 2,
            (own[0][x] + own[1][x]) / 2 - down[x] - up[x],
        ):
            sums = sums + lag.abs()
    if psi is None:
        return sums.sum(1)
    return (sums * (psi - psi[:, None]).exp()).sum(1)


BASELINES = {"half_offsets": by_half_offsets, "by_points": by_points}
