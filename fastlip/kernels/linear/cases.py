"""Vectors and matrices for the agreement tests and the benchmarks.

Length: sums of n products, or over the vectors for the gradient of the matrix.
"""

from __future__ import annotations

from fastlip.kernels.common.case import Case


def _case(rows: tuple[int, ...], m: int, n: int, bias: bool = True, layout: str = "contiguous", bench: bool = False):
    shapes = {"x": (*rows, n), "weight": (m, n), **({"bias": (m,)} if bias else {})}
    return Case(shapes, {}, max(m, n, *rows, 1), layout, bench)


CASES = {
    "one": _case((), 1, 1),
    "small": _case((3,), 5, 7),
    "ragged": _case((2, 13), 33, 70, bias=False),
    "strided": _case((9,), 40, 65, layout="strided"),
    "long": _case((600,), 17, 230),
    "no_vectors": _case((0,), 4, 4),
    "dense_256": _case((256,), 256, 256, bench=True),
    "dense_1024": _case((256,), 1024, 1024, bench=True),
}
