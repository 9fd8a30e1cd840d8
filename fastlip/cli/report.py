"""The files of ``fastlip certify``: certificate.json, radii.csv, curve.png, and broken.pt where there is cause."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastlip import plotting
from fastlip._files import write_json, write_text
from fastlip.certification.attacks import AttackResult
from fastlip.certification.certificates import Certificate

CERTIFICATE, RADII, CURVE, BROKEN = FILES = ("certificate.json", "radii.csv", "curve.png", "broken.pt")
COLUMNS = ("index", "label", "prediction", "margin", "radius", "attack_distance")


def write_report(
    folder: Path, figures: dict[str, Any], certificate: Certificate, attack: AttackResult | None, title: str
) -> list[str]:
    """Writes the files, removes those of an earlier report that this one lacks; returns a note on each left out."""
    write_json(folder / CERTIFICATE, figures)
    write_text(folder / RADII, radii_csv(certificate, attack))
    reason = plotting.missing()
    if reason:
        (folder / CURVE).unlink(missing_ok=True)
    else:
        plotting.plot_curves(folder / CURVE, certificate, attack, title)
    if attack is not None and len(attack.broken):
        attack.save_broken(folder / BROKEN)
    else:
        (folder / BROKEN).unlink(missing_ok=True)
    return [f"{CURVE} left out: {reason}"] if reason else []


def radii_csv(certificate: Certificate, attack: AttackResult | None) -> str:
    """A line for each sample. attack_distance: inf where the attack failed, empty where there was none."""
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
    """What the command prints of an attack; ``name`` writes a radius."""
    how = f"(at most; {attack.kind}, {attack.steps} steps, restarts: {attack.restarts})"
    lines = [f"attacked at {name(eps):<7} {share:8.2%}   {how}" for eps, share in attack.robust_accuracy.items()]
    certified = int((certificate.radii > 0).sum())
    return [*lines, f"attacked within their certified radii: {len(attack.broken)} of {certified} images broken"]
