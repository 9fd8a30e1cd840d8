"""The networks by name: every module of ``fastlip.models`` that has a ``MODEL`` is one."""

from __future__ import annotations

import fnmatch
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from fastlip.kernels.common.checks import boolean
from fastlip.models.literals import ModelName, PretrainedName
from fastlip.models.model import Model
from fastlip.models.plain import plain_twin
from fastlip.models.pretrained import load_weights, model_card, pretrained_names

PLAIN = "plain_"


def _discovered() -> dict[str, Model]:
    """The networks by name, in alphabetical order."""
    folder = Path(__file__).parent
    names = (info.name for info in pkgutil.iter_modules([str(folder)]) if info.name != "catalog")
    modules = (importlib.import_module(f"fastlip.models.{name}") for name in names)
    models = [module.MODEL for module in modules if hasattr(module, "MODEL")]
    return {model.name: model for model in sorted(models, key=lambda model: model.name)}


MODELS: Mapping[str, Model] = _discovered()


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Returns the names of the networks that :func:`create_model` builds, in alphabetical order.

    A name that begins with ``plain_`` is that of a twin of torch's layers, without a constraint
    (:func:`fastlip.models.plain_twin`).

    Args:
        pattern: with the wildcards of a shell, such as ``"*bro*"``; default ``"*"``.
        pretrained: whether to list the networks that come with trained weights instead; default False.

    Raises:
        TypeError: a pattern that is no text.

    Example:
        >>> fastlip.models.list_models("*bro*")
        ['bro_net', 'plain_bro_net']
        >>> fastlip.models.list_models("cayley*", pretrained=True)
        ['cayley_xs.digits', 'cayley_xs.mnist']
    """
    if not isinstance(pattern, str):
        raise TypeError(f"pattern={pattern!r}: expected a str, got {type(pattern).__name__}")
    if boolean("pretrained", pretrained):
        return pretrained_names(pattern)
    twins = [f"{PLAIN}{name}" for name, model in MODELS.items() if model.twin]
    return fnmatch.filter(sorted([*MODELS, *twins]), pattern)


def model_named(name: str) -> Model:
    """The network of this name, or of which it is the twin.

    Args:
        name: one of :func:`list_models`.

    Raises:
        ValueError: no network has this name.
    """
    if name not in list_models():
        raise ValueError(
            f"name={name!r}: allowed are {', '.join(map(repr, list_models()))}, and the trained networks of "
            "list_models(pretrained=True)"
        )
    return MODELS[name.removeprefix(PLAIN)]


def create_model(name: ModelName | PretrainedName, *, pretrained: bool = False, **options: Any) -> nn.Module:
    """Builds the network of this name.

    Trained networks come with the package, so that no download is needed. They take images (n, c, h, w) with values
    in [0, 1], and :func:`fastlip.models.model_card` has their accuracy, certificate and recipe.

    Args:
        name: one of :func:`list_models`, or of ``list_models(pretrained=True)``.
        pretrained: whether the network has trained weights and is in evaluation mode; default False gives it new
            weights in training mode.
        **options: those of the function of the same name, such as ``size``, ``num_classes`` and ``image_size``; for
            a twin those of the network whose twin it is. With trained weights only ``backend`` may be given.

    Raises:
        ValueError: no network has this name, none is trained under it, or an option that is not allowed.

    Example:
        >>> model = fastlip.models.create_model("bro_net", size="XS", image_size=8)
        >>> model(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 10])
        >>> model = fastlip.models.create_model("cayley_xs.mnist", pretrained=True)
        >>> model(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    if boolean("pretrained", pretrained) or name in pretrained_names():
        return _trained(name, pretrained, options)
    model = model_named(name).build(**options)
    return plain_twin(model) if name.startswith(PLAIN) else model


def _trained(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """The network of a card, with its weights or with new ones."""
    card = model_card(cast(PretrainedName, name))
    if pretrained and (other := sorted({*options} - {"backend"})):
        raise ValueError(
            f"{other[0]}={options[other[0]]!r}: {name!r} is trained for {other[0]}={card.options.get(other[0])!r}; "
            "with pretrained=True only backend may be given"
        )
    model = MODELS[card.network].build(**{**card.options, **options})
    return load_weights(model, card) if pretrained else model
