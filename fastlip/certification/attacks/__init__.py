"""Attacks: upper bounds of robust accuracy, where :mod:`fastlip.certification.certificates` has lower bounds."""

from fastlip.certification.attacks.objective import AttackLoss
from fastlip.certification.attacks.options import AttackKind
from fastlip.certification.attacks.result import AttackResult, BrokenCertificateWarning
from fastlip.certification.attacks.run import KINDS, attack, attack_certified

__all__ = [
    "KINDS",
    "AttackKind",
    "AttackLoss",
    "AttackResult",
    "BrokenCertificateWarning",
    "attack",
    "attack_certified",
]
