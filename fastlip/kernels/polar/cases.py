"""Matrices for the agreement tests and the benchmarks.

Length: products of n terms each, of complex numbers two parts each, and a random square matrix loses about n of
its digits' accuracy to its condition.
"""

from __future__ import annotations

import torch

from fastlip.kernels.common.case import Case

DTYPES = (torch.float64, torch.float32, torch.complex128, torch.complex64)


def _case(*shape: int, layout: str = "contiguous", bench: bool = False) -> Case:
    return Case({"V": shape}, {}, (4 * max(shape[-2:])) ** 2, layout, bench)


CASES = {
    "c3": _case(2, 2, 3, 3),
    "c1": _case(3, 1, 1),
    "c17": _case(2, 17, 17),
    "one_column": _case(2, 4, 1),
    "one_row": _case(2, 1, 4),
    "tall": _case(3, 5, 3),
    "wide_33_63": _case(33, 63),
    "tall_64_17_strided": _case(1, 64, 17, layout="strided"),
    "empty_batch": _case(0, 4, 4),
    "bcop_c32": _case(5, 32, 32, bench=True),
    "dense_64": _case(64, 64, bench=True),
    "lot_c16_s16": _case(130, 16, 16, bench=True),
}
