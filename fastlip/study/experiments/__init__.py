"""Experiments of Béthune et al., *Pay attention to your loss* (NeurIPS 2022, arXiv 2104.05097).

Each module has ``TITLE``, ``run(seed, **sizes)``, which returns values that JSON can hold with the checked claims
under ``"claims"``, and ``draw(found)``, which returns a matplotlib figure of them.
"""

from __future__ import annotations

import importlib
from types import ModuleType

EXPERIMENTS = {
    "temperature": "temperature",
    "pareto": "pareto",
    "signed-distance": "signed_distance",
    "two-diracs": "two_diracs",
    "random-labels": "random_labels",
}


def module_of(name: str) -> ModuleType:
    """The module of an experiment; ValueError for an unknown name."""
    if name not in EXPERIMENTS:
        raise ValueError(f"experiment={name!r}: allowed are {', '.join(map(repr, EXPERIMENTS))}")
    return importlib.import_module(f"{__name__}.{EXPERIMENTS[name]}")
