"""Readers for the authors' checkpoints of LiResNet and BRONet, and an audit of their constants."""

from fastlip.published.loading import load_published
from fastlip.published.report import PublishedAudit, PublishedLayer, audit_published

__all__ = ["PublishedAudit", "PublishedLayer", "audit_published", "load_published"]
