"""Named inputs for the agreement tests and the benchmarks. Nothing is rounded: length 1."""

import torch

from fastlip.kernels.common.case import Case

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def _case(*shape: int, factor: int = 2, layout: str = "channels_last", bench: bool = False) -> Case:
    return Case({"x": shape}, {"factor": factor}, layout=layout, bench=bench)


CASES = {
    "one": _case(1, 1, 2, 2),
    "channels": _case(2, 17, 4, 6),
    "contiguous": _case(2, 3, 4, 6, layout="contiguous"),
    "strided": _case(2, 3, 4, 6, layout="strided"),
    "factor 1": _case(2, 3, 4, 5, factor=1),
    "factor 3": _case(2, 5, 3, 6, factor=3),
    "empty batch": _case(0, 3, 4, 4),
    "network 16": _case(256, 8, 32, 32, bench=True),
    "network 64": _case(256, 32, 8, 8, bench=True),
}
