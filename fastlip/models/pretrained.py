"""Trained networks that come with the package: weights and a card for each, in the folder ``weights``."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastlip import _names
from fastlip.models.literals import PretrainedName

FOLDER = Path(__file__).parent / "weights"
_DTYPE = torch.float16  # of the files


@dataclass(frozen=True)
class ModelCard:
    """Facts about a trained network: data, training, and the certificate of the weights in the file.

    Attributes:
        name: the name for :func:`create_model`, such as ``"cayley_xs.mnist"``: method, size and data set.
        network: the function that builds the network.
        options: the arguments of that function.
        parameters: the number of parameters.
        bounds: the least and largest value of the images. Radii and eps are in the same units.
        data: the data set on which it was trained.
        trained_on: the number of training images.
        certified_on: the images of which the figures are, in words.
        n: the number of these images.
        recipe: optimiser, learning rate, loss, batch size, epochs and seed.
        command: the command that trains it again.
        accuracy: share of the images that are classified correctly.
        cra: certified robust accuracy for each L2 radius eps.
        lipschitz: the audited bound of the Lipschitz constant by which the certificate divides.
        sha256: the hash of the file of the weights.
        versions: the versions of fastlip and torch with which it was made.

    Example:
        >>> card = fastlip.models.model_card("cayley_xs.mnist")
        >>> card.data, card.options["image_size"], card.lipschitz <= 1 + 1e-5
        ('mnist', 28, True)
    """

    name: str
    network: str
    options: dict[str, Any]
    parameters: int
    bounds: tuple[float, float]
    data: str
    trained_on: int
    certified_on: str
    n: int
    recipe: dict[str, Any]
    command: str
    accuracy: float = 0.0
    cra: dict[float, float] = field(default_factory=dict)
    lipschitz: float = 0.0
    sha256: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """The shape (c, h, w) of one image."""
        return self.options["in_channels"], self.options["image_size"], self.options["image_size"]

    def to_dict(self) -> dict[str, Any]:
        """The card as values that JSON can hold."""
        cra = {str(eps): share for eps, share in self.cra.items()}
        return {**dataclasses.asdict(self), "bounds": list(self.bounds), "cra": cra}

    def __str__(self) -> str:
        shape, (low, high) = ", ".join(map(str, self.input_shape)), self.bounds
        lines = {
            "network": f"{self.network}, {self.parameters:,} parameters",
            "input": f"(n, {shape}), values in [{low:g}, {high:g}]",
            "trained on": f"{self.trained_on:,} images of {self.data}",
            "recipe": ", ".join(f"{name} {value}" for name, value in self.recipe.items()),
            "certified on": self.certified_on,
            "accuracy": f"{self.accuracy:.2%}",
            **{f"CRA({eps:.4g})": f"{share:.2%}" for eps, share in self.cra.items()},
            "Lipschitz bound": f"{self.lipschitz:.7f} (audited)",
            "made by": self.command,
        }
        return "\n".join([self.name, *(f"{name:<16} {value}" for name, value in lines.items())])


def pretrained_names(pattern: str = "*") -> list[str]:
    """The names of the trained networks, in alphabetical order."""
    return fnmatch.filter(sorted(path.stem for path in FOLDER.glob("*.json")), pattern)


def model_card(name: PretrainedName) -> ModelCard:
    """Returns the card of a trained network.

    Args:
        name: one of ``list_models(pretrained=True)``.

    Raises:
        ValueError: no trained network has this name.

    Example:
        >>> fastlip.models.model_card("cayley_xs.mnist").command
        'python tools/pretrain.py mnist --path FOLDER --methods cayley'
    """
    if name not in pretrained_names():
        raise ValueError(f"name={name!r}: {_names.allowed(name, pretrained_names(), 'list_models(pretrained=True)')}")
    values = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    values["bounds"] = tuple(values["bounds"])
    values["cra"] = {float(eps): share for eps, share in values["cra"].items()}
    return ModelCard(**values)


def load_weights(model: nn.Module, card: ModelCard, folder: Path = FOLDER) -> nn.Module:
    """Puts the weights of the card's file into a network, and returns it in evaluation mode.

    Nothing in the file can run code, and the file must be the one of which the card has the figures.

    Args:
        model: the network that ``card.options`` builds.
        card: its card.
        folder: the folder of the file.

    Raises:
        ValueError: the file is missing or damaged.
    """
    path = folder / f"{card.name}.pt"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; install the package again")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != card.sha256:
        raise ValueError(f"{path}: it is not the file of its card (another SHA-256); install the package again")
    model.load_state_dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    return model.eval()


def write(model: nn.Module, card: ModelCard, folder: Path = FOLDER) -> ModelCard:
    """Writes the weights, rounded to 16 bits, and the card with their hash, which it returns."""
    state = {
        name: value.to(_DTYPE) if value.is_floating_point() else value for name, value in model.state_dict().items()
    }
    file = io.BytesIO()
    torch.save(state, file)
    card = dataclasses.replace(card, sha256=hashlib.sha256(file.getvalue()).hexdigest())
    (folder / f"{card.name}.pt").write_bytes(file.getvalue())
    (folder / f"{card.name}.json").write_text(json.dumps(card.to_dict(), indent=2) + "\n", encoding="utf-8")
    return card
