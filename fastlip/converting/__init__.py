"""Conversion of any traceable module to a 1-Lipschitz one: :func:`fastlip.convert`."""

from fastlip.converting.converter import convert
from fastlip.converting.report import Conversion, Step

__all__ = ["Conversion", "Step", "convert"]
