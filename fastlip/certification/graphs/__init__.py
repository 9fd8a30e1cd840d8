"""Modules that branch, for the audit: their forward as ``torch.fx`` traces it, cut where a single value is left.

A batch of samples is followed along the trace: shapes are known, the number of samples stays open. Children are not
traced but called, so that each is audited by itself. Between two cuts lies a :class:`Branch`, whose Lipschitz bound
follows its graph: a sum adds the bounds of its terms, a concatenation takes the root of the sum of their squares, a
constant factor multiplies, and for a function that only moves entries the copies of each entry are counted.
"""

from fastlip.certification.graphs.branch import Branch
from fastlip.certification.graphs.cutting import Part, parts_of
from fastlip.certification.graphs.functions import UnknownError
from fastlip.certification.graphs.growth import Growth
from fastlip.certification.graphs.tracing import Traced, graph_of, known

__all__ = ["Branch", "Growth", "Part", "Traced", "UnknownError", "graph_of", "known", "parts_of"]
