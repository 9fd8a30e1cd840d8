"""Attacks: upper bounds of robust accuracy, beside the lower bounds of :mod:`fastlip.certificates`."""

from fastlip.attacks.result import AttackResult, BrokenCertificateWarning
from fastlip.attacks.run import KINDS, attack, attack_certified

__all__ = ["KINDS", "AttackResult", "BrokenCertificateWarning", "attack", "attack_certified"]
