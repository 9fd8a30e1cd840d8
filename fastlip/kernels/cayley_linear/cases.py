"""Vectors and matrices for the agreement tests and the benchmarks.

Length: products of n terms each, one after another.
"""

from __future__ import annotations

from fastlip.kernels.common.case import Case


def _case(rows: tuple[int, ...], n: int, layout: str = "contiguous", bench: bool = False) -> Case:
    return Case({"x": (*rows, n), "M": (n, n)}, {}, (4 * n) ** 2, layout, bench)


CASES = {
    "random": _case((3,), 9),
    "random_many": _case((70,), 9),
    "one": _case((), 1),
    "c17": _case((4,), 17),
    "strided": _case((2, 3), 33, layout="strided"),
    "no_vectors": _case((0,), 4),
    "dense_128": _case((400,), 128, bench=True),
    "dense_256": _case((64,), 256, bench=True),
    "dense_1024": _case((256,), 1024, bench=True),
}
