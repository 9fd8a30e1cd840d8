"""Weights of the inputs: networks whose Lipschitz constant and radii are in a weighted norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastlip.kernels.common.literals import Device
from fastlip.nn._recorded import WholeModule
from fastlip.nn.arguments import require_floating


class InputWeights(WholeModule):
    r"""Multiplies each input by a fixed positive number: y = w (x - c), entry by entry.

    .. math:: \|x\|_w = \sqrt{\textstyle\sum_i w_i^2 x_i^2}, \qquad
              |f(w \odot x) - f(w \odot z)| \le L \, \|x - z\|_w

    As the first layer it sets the norm of the inputs: after it an L-Lipschitz network f has the constant L in the
    weighted norm, whatever the units of the features. ``fastlip.audit``, ``certify``, ``attack`` and ``export`` find
    it there, measure perturbations in this norm, and name it. Only what gives samples another shape may come before
    it, such as ``Flatten``. Anywhere else it is a diagonal matrix: its constant is its largest weight.

    With w = 1 / scale and c = mean of each feature it standardises. The centre changes no distance. Both are buffers
    in the state dict. No weight is learnt: training would change the norm in which the result is measured.

    Args:
        weights: w, positive: a number, or one for each feature, (d,). Dimensions of 1 are repeated: (channels, 1, 1)
            has one for each channel of an image.
        center: c in the units of the inputs, a number or of a shape that ``weights`` may have; default None is 0.
        device: of the buffers; default None: torch's default device.
        dtype: of the buffers; default None is torch's default dtype, whatever that of ``weights``.

    Shapes: (n, \*shape) or \*shape to the same; ``weights`` has the rank of \*shape, and sides that are equal or 1.
    Buffers: ``weights``, and ``center`` if it was given.

    Raises:
        ValueError: a weight that is not positive, or not finite, or below the normal numbers of the dtype; weights
            that require a gradient; a center that is not finite; inputs of another shape.
        TypeError: weights or a center that are no numbers; integers x.

    >>> ages_and_incomes = torch.tensor([[20.0, 40_000.0], [40.0, 10_000.0]])
    >>> lip.InputWeights([0.1, 0.0001], center=[30.0, 20_000.0])(ages_and_incomes)
    tensor([[-1.,  2.],
            [ 1., -1.]])
    """

    weights: Tensor
    center: Tensor | None

    def __init__(
        self,
        weights: float | Sequence[Any] | Tensor,
        center: float | Sequence[Any] | Tensor | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        kind = dtype or torch.get_default_dtype()
        found = _numbers("weights", weights, kind)
        check_weights("weights", found)
        middle = None if center is None else _numbers("center", center, kind)
        if middle is not None and not middle.isfinite().all():
            raise ValueError("center: it contains NaN or Inf")
        self.register_buffer("weights", found.to(device))
        self.register_buffer("center", None if middle is None else middle.to(device))

    def forward(self, x: Tensor) -> Tensor:
        """W (x - c), in the dtype of x."""
        require_floating(x)
        if not isinstance(x, fx.Proxy):
            self._check_shape(x)
        moved = x if self.center is None else x - self.center
        return (moved * self.weights).to(x.dtype)

    def _check_shape(self, x: Tensor) -> None:
        """Raises ValueError unless each of the buffers has the rank of a sample, or none, and sides that fit."""
        for name, values in (("weights", self.weights), ("center", self.center)):
            if values is None or not values.dim():
                continue
            sample = x.shape[x.dim() - values.dim() :]
            # Under torch.compile with sides that vary, ``side in (1, length)`` would be false.
            fits = all([side == 1 or side == length for side, length in zip(values.shape, sample, strict=False)])
            if x.dim() - values.dim() not in (0, 1) or not fits:
                raise ValueError(
                    f"x: got shape {tuple(x.shape)}, expected samples that the {name} of shape {tuple(values.shape)} "
                    "fit: of the same rank, with sides that are equal to theirs or where theirs are 1"
                )

    def extra_repr(self) -> str:
        """The range of the weights."""
        text = f"{tuple(self.weights.shape)}"
        if not self.weights.is_meta:
            text += f", from {self.weights.amin().item():.4g} to {self.weights.amax().item():.4g}"
        return text if self.center is None else f"{text}, centred"


def check_weights(name: str, weights: Tensor) -> None:
    """Raises ValueError unless weights are positive normal numbers of their dtype, and nothing trains them."""
    if weights.requires_grad or isinstance(weights, nn.Parameter):
        raise ValueError(
            f"{name}: they require a gradient, expected fixed numbers such as weights.detach(), because training"
            " would change the norm in which radii are measured"
        )
    smallest = torch.finfo(weights.dtype).tiny
    wrong = ~((weights >= smallest) & weights.isfinite())
    if not weights.numel() or wrong.any():
        got = f"{weights[wrong].flatten()[0].item():g}" if weights.numel() else "none"
        raise ValueError(
            f"{name}: got {got}, expected positive finite numbers of at least {smallest:.3g} ({weights.dtype})"
        )


def _numbers(name: str, values: Any, dtype: torch.dtype) -> Tensor:
    """The values as a tensor of a floating-point dtype, a copy."""
    if isinstance(values, Tensor) and values.requires_grad:
        check_weights(name, values)
    try:
        found = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        found = None
    if found is None or found.is_complex() or found.dtype == torch.bool:
        kind = type(values).__name__ if found is None else str(found.dtype)
        raise TypeError(f"{name}: got {kind}, expected a number, a sequence of numbers or a tensor")
    return found.detach().to(dtype, copy=True).contiguous()
