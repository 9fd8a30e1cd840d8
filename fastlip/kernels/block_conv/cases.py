"""Inputs of block_conv that the agreement tests and the benchmarks run."""

from __future__ import annotations

from fastlip.kernels.common.case import Case


def _case(
    channels: int,
    axes: tuple[int, ...],
    groups: tuple[int, ...] = (1,),
    rows: int | None = None,
    taps: tuple[int, ...] = (),
    bench: bool = False,
) -> Case:
    shapes = {
        "matrix": (*groups, *taps, channels if rows is None else rows, channels),
        "projectors": (*groups, len(axes), channels, channels),
    }
    return Case(shapes, {"axes": axes}, length=channels * (len(axes) + 1), bench=bench)


CASES = {
    "3x3, 64 channels": _case(64, (1, 0, 1, 0), bench=True),
    "3x3, 16 channels": _case(16, (1, 0, 1, 0), bench=True),
    "3x3, 256 channels": _case(256, (1, 0, 1, 0), bench=True),
    "2x2 to 4x4, 64 channels": _case(64, (1, 0, 1, 0), rows=128, taps=(2, 2), bench=True),
    "3x3, one channel": _case(1, (1, 0, 1, 0)),
    "2x2, 17 channels": _case(17, (1, 0)),
    "5x5, 8 channels, 3 groups": _case(8, (1, 0) * 4, groups=(3,)),
    "3x3, 3 of 17 rows": _case(17, (1, 0, 1, 0), rows=3),
    "1x1": _case(5, ()),
    "2x3 to 3x5, 5 rows, 3 channels, two batch dimensions": _case(3, (1, 1, 0), (2, 2), rows=5, taps=(2, 3)),
    "4x1, no batch dimension": _case(3, (0, 0, 0), groups=()),
    "empty batch": _case(3, (0, 1), groups=(0,)),
    "no rows": _case(3, (0, 1), rows=0),
}
