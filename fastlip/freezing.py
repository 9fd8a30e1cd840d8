"""Freezing: evaluation weights that are trusted without a look at the parameters."""

from __future__ import annotations

from types import TracebackType

from torch import nn

from fastlip.nn.base import LipschitzLayer


class Frozen:
    """Result of :func:`freeze`: as a context manager it gives the model, and undoes the freeze at the end."""

    def __init__(self, model: nn.Module, layers: list[LipschitzLayer]):
        self.model = model
        self._layers = layers

    def __enter__(self) -> nn.Module:
        return self.model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for layer in self._layers:
            _set(layer, False)


def freeze(model: nn.Module) -> Frozen:
    """Lets the fastlip layers of a model keep their effective weights without a look at the parameters.

    In evaluation every call of a layer compares a fingerprint of its parameters with that of the weights it has kept,
    so that no change is missed. That reads all parameters. Between ``freeze`` and ``unfreeze`` it is left out, for
    loops over small batches::

        with fastlip.freeze(model.eval()), torch.no_grad():
            for x in stream:
                y = model(x)

    The weights are computed in the first call after ``freeze``, for each image size where they depend on it. Until
    the end of the freeze, writes to parameters are not seen, except to the biases of layers other than SLL, CPL and
    Sandwich. The freeze ends with ``fastlip.unfreeze(model)``, with the ``with`` block, and with ``train()``,
    ``eval()``, ``load_state_dict()`` and ``to()``, for the layers that these reach. Assigned attributes, such as
    options, take effect as always. Copies and pickles are not frozen. ``fastlip.audit``, ``certify``, ``attack`` and
    ``export`` compute from the parameters, and the frozen model then uses the weights of these parameters.

    A frozen layer still computes from its parameters where gradients of them can be asked for: use
    ``torch.no_grad()``, ``torch.inference_mode()`` or ``model.requires_grad_(False)``.

    Args:
        model: any module in eval mode.

    Returns:
        A context manager, which need not be used.

    Raises:
        TypeError: model is no ``torch.nn.Module``.
        ValueError: a fastlip layer is in training mode.

    >>> model = torch.nn.Sequential(lip.CayleyLinear(4, 4)).eval()
    >>> with fastlip.freeze(model), torch.no_grad():
    ...     model(torch.rand(2, 4)).shape
    torch.Size([2, 4])
    """
    layers = _layers(model)
    for name, module in model.named_modules():
        if isinstance(module, LipschitzLayer) and module.training:
            raise ValueError(f"model: {name or 'model'!r} is in training mode; call model.eval() first")
    newly = [layer for layer in layers if not layer._cache.frozen]
    for layer in newly:
        _set(layer, True)
    return Frozen(model, newly)


def unfreeze(model: nn.Module) -> nn.Module:
    """Ends a :func:`freeze`: weights follow the parameters again. In place, and returns the model.

    Args:
        model: the module that was frozen.

    >>> model = lip.CayleyLinear(4, 4).eval()
    >>> _ = fastlip.freeze(model)
    >>> fastlip.unfreeze(model) is model
    True
    """
    for layer in _layers(model):
        _set(layer, False)
    return model


def _layers(model: nn.Module) -> list[LipschitzLayer]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    return [module for module in model.modules() if isinstance(module, LipschitzLayer)]


def _set(layer: LipschitzLayer, frozen: bool) -> None:
    # What was computed of other parameters must not be trusted.
    layer._cache.clear()
    layer._cache.frozen = frozen
