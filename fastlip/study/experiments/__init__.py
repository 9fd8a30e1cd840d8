"""Experiments of Béthune et al., *Pay attention to your loss* (NeurIPS 2022, arXiv 2104.05097).

Each module has ``TITLE``; ``run(seed, **sizes)``, which returns plain values with the claims that it checks under
``"claims"``; and ``draw(found)``, a matplotlib figure of them.
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
    """The module of an experiment; ValueError for a name that is not known."""
    if name not in EXPERIMENTS:
        raise ValueError(f"experiment={name!r}: allowed are {', '.join(map(repr, EXPERIMENTS))}")
    return importlib.import_module(f"{__name__}.{EXPERIMENTS[name]}")
