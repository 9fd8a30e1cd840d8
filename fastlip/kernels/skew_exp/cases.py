"""Named inputs for the agreement tests and the benchmarks. Length: the number of products in one entry."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlip.kernels.common.case import Case


class _Scaled(Case):
    """The norm of (K - Kᵀ) / 2 is about 1.4 times the option, which the op does not see."""

    def make(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
        """Standard normal, scaled."""
        tensors = super().make(dtype, device, seed)
        return {"K": tensors["K"] * (self.options["scale"] * self.shapes["K"][-1] ** -0.5)}

    def arguments(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """K alone."""
        return tensors


def _case(*shape: int, scale: float = 0.3, bench: bool = False) -> Case:
    return _Scaled({"K": shape}, {"scale": scale}, 20 * shape[-1], bench=bench)


CASES = {
    "one number": _case(1, 1),
    "rotations": _case(7, 2, 2),
    "17": _case(17, 17),
    "batch": _case(3, 5, 5),
    "empty batch": _case(0, 4, 4),
    "zero": _case(4, 4, scale=0.0),
    "large angles": _case(2, 9, 9, scale=5.0),
    "XS, 256": _case(256, 256, scale=0.1, bench=True),
    "S, 512": _case(512, 512, scale=0.1, bench=True),
    "S, 1024": _case(1024, 1024, scale=0.1, bench=True),
}
