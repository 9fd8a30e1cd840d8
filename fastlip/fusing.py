"""Switches every layer of a model between its fastest kernels and its pure-PyTorch reference."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def fuse(model: Model) -> Model:
    """Lets every fastlip module of the model use the fastest kernels that support its input.

    Changes the ``backend`` attribute of its modules in place to ``"auto"`` and returns the model: the parameters,
    their names, the state dict and, up to rounding, the results stay the same. Modules of other packages are left
    alone. Raises TypeError unless model is a ``torch.nn.Module``.
    """
    return _set_backend(model, "auto")


def unfuse(model: Model) -> Model:
    """Lets every fastlip module of the model run its pure-PyTorch reference; the inverse of :func:`fuse`."""
    return _set_backend(model, "reference")


def _set_backend(model: Model, backend: str) -> Model:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    for module in model.modules():
        if _is_ours(module) and hasattr(module, "backend"):
            # By name, because torch types every attribute of a module as a tensor or a module.
            setattr(module, "backend", backend)  # noqa: B010
    return model


def _is_ours(module: nn.Module) -> bool:
    # A user's subclass of one of our layers counts.
    return any(base.__module__.startswith("fastlip.") for base in type(module).__mro__)
