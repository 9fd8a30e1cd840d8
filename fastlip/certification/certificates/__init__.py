"""Certificates: how far each image may be moved, in L2 norm, without changing its prediction."""

from fastlip.certification.certificates.result import Certificate
from fastlip.certification.certificates.run import DEFAULT_EPS, certify

__all__ = ["DEFAULT_EPS", "Certificate", "certify"]
