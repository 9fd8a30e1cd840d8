"""Model cards: the network, its training and its certificate, for people and for programs."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

import fastlip
from fastlip.certification.certificates import Certificate
from fastlip.data import Data
from fastlip.models import TITLES
from fastlip.models.catalog import PLAIN
from fastlip.models.literals import MethodName
from fastlip.training.markdown import markdown
from fastlip.training.recipe import Recipe
from fastlip.training.run_folder import CHECKPOINT, RunFolder

# The entries of a certificate that fit on a card: not the figures of single images.
_CERTIFIED = ("split", "images", "accuracy", "cra", "joint_cra", "lipschitz", "rounding", "rounding_model")


def make_card(
    model: nn.Module,
    recipe: Recipe,
    data: Mapping[str, Any],
    figures: Mapping[str, Any] | None = None,
    imported: str = "",
) -> dict[str, Any]:
    """Returns the card of a model as values that JSON can hold.

    Args:
        model: in evaluation mode.
        recipe: how it was trained.
        data: description of its data in the checkpoint (:func:`fastlip.training.checkpoint.describe`).
        figures: its certificate (``fastlip certify --json``); None: the card has an audit only.
        imported: name of the file that the weights come from, if they were not trained here.
    """
    audit = figures["audit"] if figures else fastlip.audit(model, tuple(data["shape"])).to_dict(cost=False)
    return {
        "model": {
            "network": recipe.model,
            "method": recipe.method,
            "size": recipe.size,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "imported": imported,
        },
        "input": {
            "data": data["name"],
            "shape": list(data["shape"]),
            "divisor": data["divisor"],
            "mean": list(data["mean"]) if recipe.center else [],
            "classes": data["class_count"],
        },
        "certificate": {name: figures[name] for name in _CERTIFIED} if figures else {},
        "audit": audit,
        "recipe": {} if imported else recipe.to_dict(),
        "versions": {
            "fastlip": fastlip.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
    }


def describe_certificate(
    certificate: Certificate, method: MethodName, data: Data, split: Literal["test", "train"]
) -> dict[str, Any]:
    """Returns a certificate with its data and method, as values that JSON can hold."""
    about = {"data": data.name, "split": split, "images": certificate.n, "divisor": data.divisor}
    return {**about, "method": method, **certificate.to_dict()}


def put_card(folder: RunFolder, card: dict[str, Any]) -> None:
    """Writes the card into a run's checkpoint, and next to it as card.json and README.md."""
    folder.write_card(card, card_text(card))


def card_text(card: Mapping[str, Any]) -> str:
    """The card in Markdown."""
    model, images, audit = card["model"], card["input"], card["audit"]
    norm = audit.get("norm", "l2").replace("l2", "L2")  # audits of earlier versions do not name it
    plain = model["network"].startswith(PLAIN)
    method = model["network"] if plain else TITLES[model["method"]]
    shape = ", ".join(map(str, images["shape"]))
    centred = f" - {images['mean']}" if images["mean"] else ""
    lines = [
        f"# {method} {model['size']} on {markdown(images['data'])}",
        "",
        f"{model['network']} of {'unconstrained' if plain else method} layers, {model['parameters']:,} parameters,"
        " Lipschitz constant at most"
        f" {audit['bound']:.7f} (audited{'' if norm == 'L2' else f', {norm} norm of the inputs'}).",
        "",
        f"- input: (n, {shape}), stored value / {images['divisor']:g}{centred}",
        f"- output: scores of {images['classes']} classes",
        f'- load: `fastlip.hub.load("{CHECKPOINT}")`',
        "- versions: " + ", ".join(f"{name} {version}" for name, version in card["versions"].items()),
    ]
    if model["imported"]:
        lines.append(f"- weights imported from {markdown(model['imported'])}")
    lines += ["", "## Certificate", "", *_certificate_lines(card["certificate"], norm)]
    lines += ["", "## Audit", "", "| layer | type | bound | tight | how |", "|---|---|---|---|---|"]
    for layer in audit["layers"]:
        name, kind = markdown(layer["name"]), markdown(layer["kind"])
        tight = "exact" if layer["exact"] else "bound"
        lines.append(f"| {name} | {kind} | {layer['bound']:.7f} | {tight} | {layer['how']} |")
    if card["recipe"]:
        lines += ["", "## Recipe", "", "```json", json.dumps(card["recipe"], indent=2), "```"]
    return "\n".join([*lines, ""])


def _certificate_lines(certificate: Mapping[str, Any], norm: str) -> list[str]:
    if not certificate:
        return ["There is none yet. `fastlip certify` computes one on the images that the network is for."]
    lines = [
        f"On {certificate['images']} {certificate['split']} images; {norm} radii on the scale of the input.",
        "",
        "| accuracy | " + " | ".join(f"CRA at {float(eps):.4g}" for eps in certificate["cra"]) + " |",
        "|---" * (1 + len(certificate["cra"])) + "|",
    ]
    shares = (certificate["accuracy"], *certificate["cra"].values())
    return [*lines, "| " + " | ".join(f"{share:.2%}" for share in shares) + " |"]
