"""Modules that branch, for the audit: their forward as ``torch.fx`` traces it, cut where a single value is left.

A batch of samples is followed beside it: shapes are known, the number of samples stays open. Children are not traced
but called, so that each is audited by itself. Between two cuts lies a :class:`Branch`, whose Lipschitz bound follows
its graph: a sum adds the bounds of its terms, a concatenation takes the root of their
squares, a constant factor multiplies, and what only moves entries is counted entry by entry.
"""

from fastlip._graphs.branch import Branch
from fastlip._graphs.cutting import Part, parts_of
from fastlip._graphs.functions import UnknownError
from fastlip._graphs.tracing import Traced, graph_of, known

__all__ = ["Branch", "Part", "Traced", "UnknownError", "graph_of", "known", "parts_of"]
