"""Lipschitz bounds of single modules: the table, and the rules that fill it."""

from fastlip.certification.bounds import layers, pools, resampling, torch_layers  # noqa: F401  (they register rules)
from fastlip.certification.bounds.finding import BoundRule, bound_module, rule_of
from fastlip.certification.bounds.table import Bound, lipschitz_bound

__all__ = ["Bound", "BoundRule", "bound_module", "lipschitz_bound", "rule_of"]
