"""Export: a model of ``torch.nn`` layers that computes what a fastlip model computes, and needs no fastlip.

The audit knows the plain modules of ``plain/``, and the export compares what the audit follows: the names here are
imported when they are first used, so that neither needs the other to be imported first.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastlip.exporting.models import FOURIER, export
    from fastlip.exporting.rules import Target, exported

__all__ = ["FOURIER", "Target", "export", "exported"]

_MODULE_OF = {"FOURIER": "models", "Target": "rules", "export": "models", "exported": "rules"}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"fastlip.exporting.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'fastlip.exporting' has no attribute {name!r}")
