"""Attacks: upper bounds of robust accuracy, beside the lower bounds of :mod:`fastlip.certification.certificates`."""

from fastlip.certification.attacks.result import AttackResult, BrokenCertificateWarning
from fastlip.certification.attacks.run import KINDS, attack, attack_certified

__all__ = ["KINDS", "AttackResult", "BrokenCertificateWarning", "attack", "attack_certified"]
