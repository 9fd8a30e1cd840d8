"""1-Lipschitz layers for PyTorch: references that read like their papers, fused kernels, certificates."""

from fastlip import models, nn, ops
from fastlip.fusing import fuse, unfuse

__version__ = "0.1.0"

__all__ = ["fuse", "models", "nn", "ops", "unfuse"]
