"""A factor, a constant image and a learnt mixture: networks of another Lipschitz constant, and residual blocks."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, fx, nn

from fastlip._names import lists_keywords
from fastlip.kernels.common.checks import boolean
from fastlip.kernels.common.literals import Device, Sides
from fastlip.nn._recorded import WholeModule
from fastlip.nn.arguments import make_parameter, one_of, pair, positive_int, require_floating
from fastlip.nn.base import at_least_float32

Gate = Literal["sigmoid", "clamp"]
GATES: tuple[Gate, ...] = get_args(Gate)


class Scale(WholeModule):
    r"""Multiplies by a positive number: y = L x. Its Lipschitz constant is L.

    After a 1-Lipschitz network it gives a network of constant L; with L < 1 a strict contraction, as invertible
    residual networks need (Behrmann et al., *Invertible Residual Networks*, ICML 2019). A learnt constant is
    L = exp(s), which stays positive.

    Args:
        lipschitz: L, or where the learnt L starts; default 1.0.
        learnable: whether L is learnt; default False.
        device: of the parameter; default None: torch's default device.
        dtype: of the parameter; default None: torch's default dtype.

    Shapes: any to the same. Parameter: ``log_scale`` (1) if learnable.

    Raises:
        ValueError: lipschitz is not a positive finite number.
        TypeError: lipschitz is no number; integers x.

    >>> lip.Scale(5.0)(torch.tensor([1.0, -2.0]))
    tensor([  5., -10.])
    >>> fastlip.audit(torch.nn.Sequential(lip.AOLLinear(3, 3), lip.Scale(0.9)), (3,)).bound <= 0.9 * (1 + 1e-6)
    True
    """

    log_scale: nn.Parameter | None

    def __init__(
        self,
        lipschitz: float = 1.0,
        learnable: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if isinstance(lipschitz, bool) or not isinstance(lipschitz, (int, float)):
            raise TypeError(f"lipschitz={lipschitz!r}: expected a number, got {type(lipschitz).__name__}")
        if not 0 < lipschitz < math.inf:
            raise ValueError(f"lipschitz={lipschitz}: expected a positive finite number")
        self.lipschitz = float(lipschitz)
        self.log_scale = make_parameter((1,), device, dtype) if boolean("learnable", learnable) else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A learnt L starts at ``lipschitz``."""
        if self.log_scale is not None:
            nn.init.constant_(self.log_scale, math.log(self.lipschitz))

    def constant(self) -> float:
        """L as it is now, by the parameter in float64."""
        if self.log_scale is None:
            return self.lipschitz
        return self.log_scale.detach().double().exp().item()

    def factor(self) -> Tensor | float:
        """L as training differentiates it: (1,) if it is learnt."""
        return self.lipschitz if self.log_scale is None else at_least_float32(self.log_scale).exp()

    def forward(self, x: Tensor) -> Tensor:
        """L x."""
        require_floating(x)
        factor = self.factor()
        return x * (factor.to(x.dtype) if isinstance(factor, Tensor) else factor)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.lipschitz}, learnable={self.log_scale is not None}"


class PositionBias(WholeModule):
    """Adds a learnt image that is the same for all samples: a translation, 1-Lipschitz.

    Layers that treat all pixels alike, such as shifts and circular convolutions, learn from it where a pixel is
    (*LipNeXt*, arXiv 2601.18513).

    Args:
        image_size: height and width of the images.
        channels: 1 adds the same numbers to all channels; otherwise the number of channels; default 1.
        device: of the parameter; default None: torch's default device.
        dtype: of the parameter; default None: torch's default dtype.

    Shapes: (n, c, h, w) or (c, h, w) to the same. Parameter: ``bias`` (channels, h, w), 0 at the start.

    Raises:
        ValueError: an argument below 1, or images of another size.
        TypeError: an argument that is no int or pair of ints; integers x.

    >>> lip.PositionBias(4)(torch.zeros(1, 3, 4, 4)).shape
    torch.Size([1, 3, 4, 4])
    """

    def __init__(self, image_size: Sides, channels: int = 1, device: Device = None, dtype: torch.dtype | None = None):
        super().__init__()
        shape = positive_int("channels", channels), *pair("image_size", image_size)
        self.bias = make_parameter(shape, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Bias 0."""
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """X plus the image."""
        channels, *image = self.bias.shape
        fits = x.dim() in (3, 4) and list(x.shape[-2:]) == image and channels in (1, x.shape[-3])
        if not fits:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected images that {tuple(self.bias.shape)} fits")
        require_floating(x)
        return x + self.bias.to(x.dtype)

    def extra_repr(self) -> str:
        """The arguments."""
        channels, *image = self.bias.shape
        return f"{tuple(image)}, channels={channels}"


class LipschitzResidual(nn.Module):
    r"""A residual block by a learnt convex mixture, y = (1 - a) x + a f(x) with a number a between 0 and 1.

    .. math:: L \le (1 - a) + a \, L_f \le \max(1, L_f)

    For a 1-Lipschitz f it is 1-Lipschitz, as a sum x + f(x) is not. ``fastlip.audit`` follows both branches.

    Args:
        module: f, whose output has the shape of its input.
        initial: where a starts, between 0 and 1, both exclusive; default 0.5.
        gate: ``"sigmoid"`` (default): a = 1 / (1 + exp(-g)); ``"clamp"``: a = min(max(g, 0), 1), which reaches 0 and
            1 and beyond them learns no more.
        device: of the parameter; default None: torch's default device.
        dtype: of the parameter; default None: torch's default dtype.

    Shapes: those of f. Parameter: ``gate_value`` (1), the number g.

    Raises:
        ValueError: initial or gate is not allowed, or f changes the shape.
        TypeError: module is no ``torch.nn.Module``; integers x.

    >>> block = lip.LipschitzResidual(torch.nn.Sequential(lip.AOLConv2d(4, 4, 3), lip.MaxMin()))
    >>> fastlip.audit(block, (4, 8, 8)).bound <= 1 + 1e-6
    True
    """

    # a, given to a copy in another dtype, where the gate would give another number.
    _supplied: Tensor | None = None

    @lists_keywords
    def __init__(
        self,
        module: nn.Module,
        initial: float = 0.5,
        gate: Gate = "sigmoid",
        device: Device = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"module: got {type(module).__name__}, expected a torch.nn.Module")
        if not 0 < initial < 1:
            raise ValueError(f"initial={initial!r}: expected a number between 0 and 1, both exclusive")
        self.module = module
        self.initial = float(initial)
        self.gate: Gate = one_of("gate", gate, GATES)
        self.gate_value = make_parameter((1,), device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A = ``initial``; f stays as it is."""
        start = math.log(self.initial / (1 - self.initial)) if self.gate == "sigmoid" else self.initial
        nn.init.constant_(self.gate_value, start)

    def mixture(self) -> Tensor:
        """(1,): a, in at least float32."""
        if self._supplied is not None:
            return self._supplied
        value = self.gate_value
        if type(value) is not fx.Proxy:  # which has no dtype
            value = at_least_float32(value)
        return value.sigmoid() if self.gate == "sigmoid" else value.clamp(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(1 - a) x + a f(x)."""
        require_floating(x)
        y = self.module(x)
        if not isinstance(x, fx.Proxy) and x.shape[1:] != y.shape[1:]:
            raise ValueError(f"module: its output has shape {tuple(y.shape)}, expected that of x, {tuple(x.shape)}")
        share = self.mixture()
        return (1 - share).to(x.dtype) * x + share.to(x.dtype) * y

    def extra_repr(self) -> str:
        """The arguments."""
        return f"initial={self.initial}, gate={self.gate!r}"
