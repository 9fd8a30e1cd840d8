"""Certificates: how far inputs may be moved, in L2 norm, and what of the outputs is then still certain."""

from fastlip.certification.certificates.detection import DetectionRates, DetectorCertificate, certify_detector
from fastlip.certification.certificates.outputs import CertifiedOutputs, Interval, certify_outputs
from fastlip.certification.certificates.pixels import SegmentationCertificate, certify_segmentation
from fastlip.certification.certificates.ranks import RankCertificate, certify_target, certify_top_k
from fastlip.certification.certificates.result import Certificate
from fastlip.certification.certificates.run import DEFAULT_EPS, certify
from fastlip.certification.norms import lp_factor

__all__ = [
    "DEFAULT_EPS",
    "Certificate",
    "CertifiedOutputs",
    "DetectionRates",
    "DetectorCertificate",
    "Interval",
    "RankCertificate",
    "SegmentationCertificate",
    "certify",
    "certify_detector",
    "certify_outputs",
    "certify_segmentation",
    "certify_target",
    "certify_top_k",
    "lp_factor",
]
