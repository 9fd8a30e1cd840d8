"""polar in CUDA C++ (on_cuda.py)."""

from __future__ import annotations

from fastlip.ops import _native
from fastlip.ops.polar.on_cuda import polar_backward, polar_forward, supports

_native.require()

__all__ = ["polar_backward", "polar_forward", "supports"]
