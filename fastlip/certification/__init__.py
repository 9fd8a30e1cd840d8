"""Audit, certificates and attacks: what can be proved of a model, and what can be tried against it.

Public: ``audit`` with :class:`Audit`, :class:`LayerBound`, :class:`Bound` and the table ``lipschitz_bound``;
``certify`` with :class:`Certificate`; ``attack`` and ``attack_certified`` with :class:`AttackResult`.
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
from fastlip.certification.certificates import DEFAULT_EPS, Certificate, certify
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
    "LayerBound",
    "RoundingModel",
    "attack",
    "attack_certified",
    "audit",
    "certify",
    "lipschitz_bound",
]
