"""1-Lipschitz layers for PyTorch: references that read like their papers, fused kernels, certificates.

A name is imported when it is first used, so that ``fastlip --help`` needs no torch. If torch is imported already, the
operators ``torch.ops.fastlip`` are registered at once; ``import fastlip.ops`` registers them in any case.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from fastlip import _moved

if TYPE_CHECKING:
    from fastlip import conformal, data, hub, losses, metrics, models, nn, ops, optim
    from fastlip.certification import (
        AttackResult,
        Audit,
        Certificate,
        attack,
        audit,
        certify,
        certify_detector,
        certify_outputs,
        certify_segmentation,
        certify_target,
        certify_top_k,
    )
    from fastlip.converting import Conversion, convert
    from fastlip.deployment import ExportedFile, export
    from fastlip.diagnosis import doctor
    from fastlip.freezing import freeze, unfreeze
    from fastlip.fusing import fuse, unfuse
    from fastlip.inverting import Inverse, invert_residual
    from fastlip.official import load_official
    from fastlip.published import PublishedAudit, PublishedLayer, audit_published, load_published

__version__ = "0.1.0"

__all__ = [
    "AttackResult",
    "Audit",
    "Certificate",
    "Conversion",
    "ExportedFile",
    "Inverse",
    "PublishedAudit",
    "PublishedLayer",
    "attack",
    "audit",
    "audit_published",
    "certify",
    "certify_detector",
    "certify_outputs",
    "certify_segmentation",
    "certify_target",
    "certify_top_k",
    "conformal",
    "convert",
    "data",
    "doctor",
    "export",
    "freeze",
    "fuse",
    "hub",
    "invert_residual",
    "load_official",
    "load_published",
    "losses",
    "metrics",
    "models",
    "nn",
    "ops",
    "optim",
    "unfreeze",
    "unfuse",
]

# The module of each name that is not a module itself.
_MODULE_OF = {
    "AttackResult": "certification.attacks",
    "Audit": "certification.auditing",
    "Certificate": "certification.certificates",
    "Conversion": "converting",
    "ExportedFile": "deployment",
    "Inverse": "inverting",
    "PublishedAudit": "published",
    "PublishedLayer": "published",
    "attack": "certification.attacks",
    "audit": "certification.auditing",
    "audit_published": "published",
    "certify": "certification.certificates",
    "certify_detector": "certification.certificates",
    "certify_outputs": "certification.certificates",
    "certify_segmentation": "certification.certificates",
    "certify_target": "certification.certificates",
    "certify_top_k": "certification.certificates",
    "convert": "converting",
    "doctor": "diagnosis",
    "export": "deployment",
    "freeze": "freezing",
    "fuse": "fusing",
    "invert_residual": "inverting",
    "load_official": "official",
    "load_published": "published",
    "unfreeze": "freezing",
    "unfuse": "fusing",
}


def __getattr__(name: str) -> Any:
    """Imports a public name or a module of the package, which has it from then on."""
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(f"fastlip.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value
    module = f"fastlip.{name}"
    try:
        if not name.startswith("__"):
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
    from fastlip._hints import hint

    raise AttributeError(f"module 'fastlip' has no attribute {name!r}{hint(name, __all__)}")


def __dir__() -> list[str]:
    return list(__all__)


_moved.keep_old_paths()
if "torch" in sys.modules:
    importlib.import_module("fastlip.ops")
