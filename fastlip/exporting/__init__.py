"""Export: a model of ``torch.nn`` layers that computes what a fastlip model computes, and needs no fastlip."""

from fastlip.exporting.models import export
from fastlip.exporting.rules import FOURIER, Fourier, Target, exported

__all__ = ["FOURIER", "Fourier", "Target", "export", "exported"]
