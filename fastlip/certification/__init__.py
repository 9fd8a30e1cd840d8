"""Audit, certificates and attacks: what can be proved of a model, and what can be tried against it.

Public: ``audit`` with :class:`Audit`, :class:`LayerBound`, :class:`Bound` and the table ``lipschitz_bound``;
``certify`` with :class:`Certificate`; ``certify_outputs`` with :class:`CertifiedOutputs`, and the certificates of
other tasks that follow from it; ``certify_segmentation``; ``attack`` and ``attack_certified`` with
:class:`AttackResult`.
"""

from fastlip.certification.attacks import (
    AttackKind,
    AttackLoss,
    AttackResult,
    BrokenCertificateWarning,
    attack,
    attack_certified,
)
from fastlip.certification.auditing import Audit, LayerBound, audit
from fastlip.certification.bounds import Bound, lipschitz_bound
from fastlip.certification.certificates import (
    DEFAULT_EPS,
    Certificate,
    CertifiedOutputs,
    DetectionRates,
    DetectorCertificate,
    Interval,
    RankCertificate,
    SegmentationCertificate,
    certify,
    certify_detector,
    certify_outputs,
    certify_segmentation,
    certify_target,
    certify_top_k,
    lp_factor,
)
from fastlip.certification.input_norms import InputNorm
from fastlip.certification.rounding import RoundingModel

__all__ = [
    "DEFAULT_EPS",
    "AttackKind",
    "AttackLoss",
    "AttackResult",
    "Audit",
    "Bound",
    "BrokenCertificateWarning",
    "Certificate",
    "CertifiedOutputs",
    "DetectionRates",
    "DetectorCertificate",
    "InputNorm",
    "Interval",
    "LayerBound",
    "RankCertificate",
    "RoundingModel",
    "SegmentationCertificate",
    "attack",
    "attack_certified",
    "audit",
    "certify",
    "certify_detector",
    "certify_outputs",
    "certify_segmentation",
    "certify_target",
    "certify_top_k",
    "lipschitz_bound",
    "lp_factor",
]
