"""spectral_cayley by cayley's kernels in C++, next to which its functions stand (kernels/cayley/native.py)."""

from fastlip.kernels.cayley.native import spectral_cayley_backward, spectral_cayley_forward
from fastlip.kernels.cayley.native import supports_taps as supports

__all__ = ["KERNELS", "spectral_cayley_backward", "spectral_cayley_forward", "supports"]

KERNELS = "cayley_"
