"""The norm of a skew matrix by Lanczos' iteration in C++ (csrc/skew_exp_linear)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastlip.kernels.common import binding

NAMES = {torch.float32: "skew_norm_float32", torch.float64: "skew_norm_float64"}


def skew_norm(A: Tensor) -> float:
    """The norm of a skew matrix on a CPU, or a little more; infinite without compiled kernels.

    Singular values that stand alone are found to rounding, others are estimated, and moved outwards by what may be
    missing: kernels/polar_linear/README.md.
    """
    if binding.missing(NAMES[A.dtype], A.device):
        return math.inf
    norm = torch.zeros(1, dtype=torch.float64)
    binding.launch(NAMES[A.dtype], A.device, A.contiguous().data_ptr(), norm.data_ptr(), len(A))
    return norm.item()
