"""Optimisers for layers whose parameter is an orthogonal matrix (``parametrization="manifold"``)."""

from fastlip.optim.groups import manifold_groups, orthogonality_errors, retract_
from fastlip.optim.manifold import ManifoldOptimizer

__all__ = ["ManifoldOptimizer", "manifold_groups", "orthogonality_errors", "retract_"]
