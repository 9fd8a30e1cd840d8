"""A sequence of modules that runs its convolution -> MaxMin pairs fused."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from fastlip import ops
from fastlip.kernels.common.literals import PaddingMode
from fastlip.kernels.common.padding import same_pads
from fastlip.kernels.conv_chain.api import OP as CONV_CHAIN
from fastlip.nn._calls import is_untouched
from fastlip.nn._conv import KernelConv2d
from fastlip.nn._orthogonal import OrthogonalConv2d, PerFrequencyConv2d
from fastlip.nn._residual import ResidualConv2d
from fastlip.nn.activations import MaxMin
from fastlip.nn.soc import SOCConv2d

_FUSED_BACKENDS = ("auto", "native")
# The forward that each kind is fused for, as this package wrote it.
_FORWARDS = {
    kind: kind.forward for kind in (nn.Conv2d, KernelConv2d, ResidualConv2d, OrthogonalConv2d, SOCConv2d, MaxMin)
}


class Chain(nn.Sequential):
    """``torch.nn.Sequential``, with every convolution -> MaxMin pair in one pass after the convolution.

    Recognises ``torch.nn.Conv2d`` and the fastlip layers with one kernel (AOL, BCOP, ...) at stride 1, with one
    group and padding that keeps the image's size, the residual layers (SLL, CPL), and in evaluation the layers
    applied per frequency (Cayley, LOT, circular SOC), each followed by :class:`MaxMin` over the channels.
    Everything else runs module by module; so does a pair whose call anything has touched (a hook, also one of all
    modules, a ``forward`` or another method replaced on the instance, a parametrization, a subclass of another
    package with methods of its own), with ``backend="reference"``, or where no kernel runs the chain (another device
    or dtype, autocast). Results are those of ``Sequential`` to rounding, in channels-last memory format after a
    fused pair.

    ``fastlip.fuse`` makes every ``torch.nn.Sequential`` of a model a Chain, and ``fastlip.unfuse`` undoes it.
    """

    # Whether fuse made it of a torch.nn.Sequential.
    converted = False

    def forward(self, x: Tensor) -> Tensor:
        """The modules of the sequence, one after the other."""
        if isinstance(x, fx.Proxy):
            return super().forward(x)
        modules: list[Any] = list(self)
        position = 0
        while position < len(modules):
            following = modules[position + 1] if position + 1 < len(modules) else None
            if x.dim() == 4 and (style := _style(modules[position], following)):
                run = _run_of(style, modules, position)
                x = _fused(run, style, x)
                position += len(run)
            elif x.dim() == 4 and _is_residual_pair(modules[position], following):
                x = modules[position].forward(x, modules[position + 1].pairing)
                position += 2
            elif _is_per_frequency_pair(modules[position], following) and (torus := modules[position].torus_for(x)):
                x = _by_spectrum(modules[position], x, torus, modules[position + 1].pairing)
                position += 2
            else:
                x = modules[position](x)
                position += 1
        return x


class Style(NamedTuple):
    """What the pairs of one run have in common."""

    padding_mode: PaddingMode
    dilation: tuple[int, int]
    pairing: str


def _style(convolution: Any, activation: Any) -> Style | None:
    """How a pair takes part in a run; None if it does not."""
    if not _is_activation(activation) or not _is_fusable(convolution, (nn.Conv2d, KernelConv2d)):
        return None
    if tuple(convolution.stride) != (1, 1) or convolution.groups != 1 or not _keeps_size(convolution):
        return None
    down, across = convolution.dilation
    return Style(convolution.padding_mode, (down, across), activation.pairing)


def _is_residual_pair(layer: Any, activation: Any) -> bool:
    return _is_fusable(layer, (ResidualConv2d,)) and _is_activation(activation)


def _is_per_frequency_pair(layer: Any, activation: Any) -> bool:
    return _is_fusable(layer, (OrthogonalConv2d, SOCConv2d)) and _is_activation(activation)


def _is_activation(module: Any) -> bool:
    return type(module) is MaxMin and module.dim in (1, -3) and _is_fusable(module, (MaxMin,))


def _is_fusable(module: Any, kinds: tuple[type, ...]) -> bool:
    """Whether the module is of these kinds, its call is theirs and untouched, and no other backend is asked for."""
    if getattr(module, "backend", "auto") not in _FUSED_BACKENDS:
        return False
    return any(isinstance(module, kind) and is_untouched(module, kind, _FORWARDS[kind]) for kind in kinds)


def _keeps_size(convolution: nn.Conv2d | KernelConv2d) -> bool:
    left, right, top, bottom = pads = same_pads(convolution.kernel_size, convolution.dilation)
    symmetric = (left, top) == (right, bottom)
    if isinstance(convolution, KernelConv2d):
        return convolution.pads == pads and (symmetric or convolution.padding_mode == "circular")
    if convolution.padding_mode not in ("zeros", "circular"):
        return False
    return symmetric and convolution.padding in ("same", (top, left))


def _run_of(style: Style, modules: list[Any], position: int) -> list[Any]:
    """The modules of as many pairs of one style as follow each other."""
    end = position + 2
    while end + 1 < len(modules) and _style(modules[end], modules[end + 1]) == style:
        end += 2
    return modules[position:end]


def _fused(run: list[Any], style: Style, x: Tensor) -> Tensor:
    while run:
        if torus := _torus_for(run[0], x):
            x = _by_spectrum(run[0], x, torus, style.pairing)
            run = run[2:]
        else:
            count = 2
            while count < len(run) and not _torus_for(run[count], x):
                count += 2
            x = _chained(run[:count], style, x)
            run = run[count:]
    return x


def _by_spectrum(layer: KernelConv2d | PerFrequencyConv2d, x: Tensor, torus: tuple[int, int], pairing: str) -> Tensor:
    layer.check_input(x)
    return layer.apply_spectrum(x, torus, pairing)


def _torus_for(convolution: nn.Conv2d | KernelConv2d, x: Tensor) -> tuple[int, int] | None:
    return convolution.torus_for(x) if isinstance(convolution, KernelConv2d) else None


def _chained(run: list[Any], style: Style, x: Tensor) -> Tensor:
    convolutions = run[::2]
    biases = [convolution.bias for convolution in convolutions]
    # Before the weights, which cost a parametrization: a chain that cannot run leaves that to its modules.
    if x.shape[1] == convolutions[0].in_channels and _kernels_run(x, biases, style):
        weights, scales = _factors(convolutions)
        return ops.conv_chain(x, weights, biases, scales, *style)
    for module in run:
        x = module(x)
    return x


def _kernels_run(x: Tensor, biases: list[Tensor | None], style: Style) -> bool:
    return CONV_CHAIN.choose("auto", x, [], biases, [], [], style.pairing) != "reference"


def _factors(convolutions: list[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Every kernel as W diag(s), or every kernel as it is and no scales."""
    factors = [c.factors() if isinstance(c, KernelConv2d) else (c.weight, None) for c in convolutions]
    scales = [scale for _, scale in factors if scale is not None]
    if len(scales) == len(convolutions):
        return [weight for weight, _ in factors], scales
    return [weight if scale is None else weight * scale[:, None, None] for weight, scale in factors], []
