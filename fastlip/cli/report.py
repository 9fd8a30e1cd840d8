"""The report of ``fastlip certify``: certificate, radii, curve, and the images whose certificates were broken."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

from fastlip import plotting
from fastlip._files import write_json, write_text
from fastlip.certification.attacks import AttackResult
from fastlip.certification.certificates import Certificate
from fastlip.training.run_folder import Report

COLUMNS = ("index", "label", "prediction", "margin", "radius", "attack_distance")


def write_report(
    report: Report, figures: dict[str, Any], certificate: Certificate, attack: AttackResult | None, title: str
) -> list[str]:
    """Writes the files and removes those of an earlier report that this one lacks; returns notes on missing files."""
    write_json(report.certificate, figures)
    write_text(report.radii, radii_csv(certificate, attack))
    reason = plotting.missing()
    if reason:
        report.curve.unlink(missing_ok=True)
    else:
        plotting.plot_curves(report.curve, certificate, attack, title)
    if attack is not None and len(attack.broken):
        attack.save_broken(report.broken)
    else:
        report.broken.unlink(missing_ok=True)
    return [f"{report.curve.name} left out: {reason}"] if reason else []


def radii_csv(certificate: Certificate, attack: AttackResult | None) -> str:
    """A line for each sample. attack_distance is inf where the attack failed, and empty where there was none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    distances = [0.0] * certificate.n if attack is None else attack.distances.tolist()
    columns = (certificate.labels, certificate.predictions, certificate.margins, certificate.radii)
    for index, row in enumerate(zip(*(column.tolist() for column in columns), distances, strict=True)):
        *values, distance = row
        writer.writerow([index, *values, distance if distance > 0 else ""])
    return text.getvalue()


def attack_lines(attack: AttackResult, certificate: Certificate, name: Callable[[float], str]) -> list[str]:
    """The lines that the command prints on an attack; ``name(eps)`` is the text of a radius."""
    how = f"(at most; {attack.kind}, {attack.steps} steps, restarts: {attack.restarts})"
    lines = [f"attacked at {name(eps):<7} {share:8.2%}   {how}" for eps, share in attack.robust_accuracy.items()]
    certified = int((certificate.radii > 0).sum())
    return [*lines, f"attacked within their certified radii: {len(attack.broken)} of {certified} images broken"]
