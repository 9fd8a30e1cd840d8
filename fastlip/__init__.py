"""1-Lipschitz layers for PyTorch: references that read like their papers, fused kernels, certificates."""

from __future__ import annotations

import importlib
from typing import Any

from fastlip import losses, models, nn, ops
from fastlip.attacks import attack
from fastlip.auditing import audit
from fastlip.certificates import certify
from fastlip.diagnosis import doctor
from fastlip.exporting import export
from fastlip.freezing import freeze, unfreeze
from fastlip.fusing import fuse, unfuse
from fastlip.official import load_official

__version__ = "0.1.0"

__all__ = [
    "attack",
    "audit",
    "certify",
    "doctor",
    "export",
    "freeze",
    "fuse",
    "load_official",
    "losses",
    "models",
    "nn",
    "ops",
    "unfreeze",
    "unfuse",
]


def __getattr__(name: str) -> Any:
    """``fastlip.data`` and ``fastlip.hub``, which layers do not need, are imported when they are first asked for."""
    if name in ("data", "hub"):
        return importlib.import_module(f"fastlip.{name}")
    raise AttributeError(f"module 'fastlip' has no attribute {name!r}")
