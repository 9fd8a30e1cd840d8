"""Audit, certificates and attacks: what can be proved of a model, and what can be tried against it."""

from fastlip.certification.attacks import AttackResult, attack, attack_certified
from fastlip.certification.auditing import Audit, LayerBound, audit
from fastlip.certification.bounds import Bound, lipschitz_bound
from fastlip.certification.certificates import DEFAULT_EPS, Certificate, certify

__all__ = [
    "DEFAULT_EPS",
    "AttackResult",
    "Audit",
    "Bound",
    "Certificate",
    "LayerBound",
    "attack",
    "attack_certified",
    "audit",
    "certify",
    "lipschitz_bound",
]
