"""The networks by name: every module of ``fastlip.models`` that has a ``MODEL`` is one."""

from __future__ import annotations

import fnmatch
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from fastlip.models.literals import ModelName
from fastlip.models.model import Model
from fastlip.models.plain import plain_twin

PLAIN = "plain_"


def _discovered() -> dict[str, Model]:
    """The networks by name, in alphabetical order."""
    folder = Path(__file__).parent
    names = (info.name for info in pkgutil.iter_modules([str(folder)]) if info.name != "catalog")
    modules = (importlib.import_module(f"fastlip.models.{name}") for name in names)
    models = [module.MODEL for module in modules if hasattr(module, "MODEL")]
    return {model.name: model for model in sorted(models, key=lambda model: model.name)}


MODELS: Mapping[str, Model] = _discovered()


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of the networks that :func:`create_model` builds, in alphabetical order.

    A name that begins with ``plain_`` is that of a twin of torch's layers, without a constraint
    (:func:`fastlip.models.plain_twin`).

    Args:
        pattern: with the wildcards of a shell, such as ``"*bro*"``.

    Example:
        >>> fastlip.models.list_models("*bro*")
        ['bro_net', 'plain_bro_net']
    """
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
        raise ValueError(f"name={name!r}: allowed are {', '.join(map(repr, list_models()))}")
    return MODELS[name.removeprefix(PLAIN)]


def create_model(name: ModelName, **options: Any) -> nn.Module:
    """Builds the network of this name.

    Args:
        name: one of :func:`list_models`.
        **options: those of the function of the same name, such as ``size``, ``num_classes`` and ``image_size``; for
            a twin those of the network whose twin it is.

    Raises:
        ValueError: no network has this name, or an option that is not allowed.

    Example:
        >>> model = fastlip.models.create_model("bro_net", size="XS", image_size=8)
        >>> model(torch.rand(2, 3, 8, 8)).shape
        torch.Size([2, 10])
    """
    model = model_named(name).build(**options)
    return plain_twin(model) if name.startswith(PLAIN) else model
