"""Times training and evaluation steps of a method's network next to the same network of plain convolutions."""

from fastlip.benchmarking.contest import CONTESTANTS, DisagreementError, Row, Setting, run, why_not
from fastlip.benchmarking.networks import MaximumMinimum, perturb, plain
from fastlip.benchmarking.timing import keep_pages

__all__ = [
    "CONTESTANTS",
    "DisagreementError",
    "MaximumMinimum",
    "Row",
    "Setting",
    "keep_pages",
    "perturb",
    "plain",
    "run",
    "why_not",
]
