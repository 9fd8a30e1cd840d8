"""Inputs of block_conv that the agreement tests and the benchmarks run: kernels of (2k - 1) matrices."""

from __future__ import annotations

from fastlip.ops._case import Case


def _case(channels: int, kernel: int, groups: int = 1, rows: int | None = None, bench: bool = False) -> Case:
    factors = 2 * (kernel - 1)
    shapes = {
        "matrix": (groups, rows or channels, channels),
        "projectors": (groups, factors, channels, channels),
    }
    return Case(shapes, {"axes": (1, 0) * (kernel - 1)}, length=channels * (factors + 1), bench=bench)


CASES = {
    "3x3, 64 channels": _case(64, 3, bench=True),
    "3x3, 16 channels": _case(16, 3, bench=True),
    "3x3, 256 channels": _case(256, 3, bench=True),
    "3x3, one channel": _case(1, 3),
    "2x2, 17 channels": _case(17, 2),
    "5x5, 8 channels, 3 groups": _case(8, 5, groups=3),
    "3x3, 3 of 17 rows": _case(17, 3, rows=3),
    "1x1": _case(5, 1),
}
