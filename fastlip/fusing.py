"""Switches every layer of a model between its fastest kernels and its pure-PyTorch reference."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from fastlip.kernels.common.literals import Backend
from fastlip.nn.chain import Chain

Model = TypeVar("Model", bound=nn.Module)


def fuse(model: Model) -> Model:
    """Lets every fastlip module of the model use the fastest kernels that support its input.

    In place, and returns the model: sets the ``backend`` of its modules to ``"auto"``, and makes each
    ``torch.nn.Sequential`` (not of a subclass) a :class:`fastlip.nn.Chain`, which runs convolution -> MaxMin pairs in
    one pass, those of ``torch.nn.Conv2d`` too. The parameters, their names, the state dict and, up to rounding, the
    results stay the same; after a fused pair images are channels-last in memory. Other modules are left alone.

    Args:
        model: any module.

    Raises:
        TypeError: model is no ``torch.nn.Module``.

    >>> model = torch.nn.Sequential(lip.AOLConv2d(3, 8, 3), lip.MaxMin())
    >>> type(fastlip.fuse(model)).__name__
    'Chain'
    """
    _set_backend(model, "auto")
    for module in model.modules():
        if type(module) is nn.Sequential:
            _retype(module, Chain, converted=True)
    return model


def unfuse(model: Model) -> Model:
    """Lets every fastlip module of the model run its pure-PyTorch reference; the inverse of :func:`fuse`.

    Args:
        model: any module.

    Raises:
        TypeError: model is no ``torch.nn.Module``.

    >>> model = fastlip.fuse(torch.nn.Sequential(lip.AOLConv2d(3, 8, 3), lip.MaxMin()))
    >>> type(fastlip.unfuse(model)).__name__, model[0].backend
    ('Sequential', 'reference')
    """
    _set_backend(model, "reference")
    for module in model.modules():
        if type(module) is Chain and module.converted:
            _retype(module, nn.Sequential, converted=False)
    return model


def _retype(module: Any, kind: type[nn.Module], *, converted: bool) -> None:
    module.__class__ = kind
    module.converted = converted


def _set_backend(model: Model, backend: Backend) -> Model:
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
