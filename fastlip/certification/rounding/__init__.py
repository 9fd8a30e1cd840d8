"""Bounds of rounding errors: of each module in the worst case, and of a network, for an image and those near it."""

from fastlip.certification.rounding.exact import EXACT, exact_twin
from fastlip.certification.rounding.following import FOLLOWERS, MODELS, Rounded, check_model_name, norms
from fastlip.certification.rounding.rules import worst_case
from fastlip.certification.rounding.terms import Rounding, Unit

__all__ = [
    "EXACT",
    "FOLLOWERS",
    "MODELS",
    "Rounded",
    "Rounding",
    "Unit",
    "check_model_name",
    "exact_twin",
    "norms",
    "worst_case",
]
