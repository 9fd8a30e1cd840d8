"""Deployment: a model as a module of torch alone, or in a file for onnxruntime, torch.export or torch.load."""

from fastlip.deployment.exported import ExportedFile, export
from fastlip.deployment.formats import FORMATS, Format

__all__ = ["FORMATS", "ExportedFile", "Format", "export"]
