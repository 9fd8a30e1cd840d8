"""Bounds of rounding errors: of each module in the worst case, and of a network, for an image and those near it."""

from fastlip.certification.rounding import layers, sandwich, torch_layers  # noqa: F401  (they register rules)
from fastlip.certification.rounding.exact import EXACT, exact_twin
from fastlip.certification.rounding.following import FOLLOWERS, MODELS, Rounded, RoundingModel, check_model_name
from fastlip.certification.rounding.rules import worst_case
from fastlip.certification.rounding.terms import Rounding, Unit

__all__ = [
    "EXACT",
    "FOLLOWERS",
    "MODELS",
    "Rounded",
    "Rounding",
    "RoundingModel",
    "Unit",
    "check_model_name",
    "exact_twin",
    "worst_case",
]
