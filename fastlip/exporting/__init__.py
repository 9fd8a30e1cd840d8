"""Export: a model of ``torch.nn`` layers that computes what a fastlip model computes, and needs no fastlip."""

from fastlip.exporting import layers, others  # noqa: F401  (they register their rules)
from fastlip.exporting.models import FOURIER, export
from fastlip.exporting.rules import Target, exported

__all__ = ["FOURIER", "Target", "export", "exported"]
