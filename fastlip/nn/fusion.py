"""A layer and the activation after it as one: what a layer's ``fused`` returns, and how runs of them are applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastlip import ops
from fastlip.kernels.common.channels_last import NAMES, too_small
from fastlip.kernels.common.geometry import ConvGeometry
from fastlip.kernels.common.literals import Backend, PaddingMode, PairingOrNone
from fastlip.kernels.conv_chain.api import OP as CONV_CHAIN
from fastlip.kernels.conv_chain.api import runs_under_autocast
from fastlip.nn._calls import are_untouched
from fastlip.nn.activations import MaxMin
from fastlip.nn.base import LipschitzLayer

_FUSED_BACKENDS = ("auto", "native")


class Style(NamedTuple):
    """The settings that the pairs of one run of ``ops.conv_chain`` share."""

    padding_mode: PaddingMode
    dilation: tuple[int, int]
    pairing: PairingOrNone


@dataclass(frozen=True)
class Fusion:
    """How a layer and the activation after it run as one.

    Args:
        plan: for images x, what ``run`` needs to know; a false value where the pair does not run by itself, and None
            in place of the function if it never does.
        run: applies layer and activation to x, given what ``plan`` returned for it.
        link: the pair as a part of a run of convolutions; None if it cannot be one.
    """

    plan: Callable[[Tensor], Any] | None
    run: Callable[[Tensor, Any], Tensor]
    link: Link | None = None


@dataclass(frozen=True)
class Link:
    """A convolution with MaxMin as a part of a run: pairs of one style run in one call of ``ops.conv_chain``."""

    style: Style
    geometry: ConvGeometry
    inputs: int
    outputs: int
    bias: Tensor | None
    backend: Backend
    training: bool
    # The kernel, or W and the factors of its input channels, which may be None.
    factors: Callable[[], tuple[Any, ...]]


def fusion_of(module: nn.Module, activation: nn.Module) -> Fusion | None:
    """The module's own answer for itself and the activation after it; for ``torch.nn.Conv2d`` it is given here.

    None unless the activation is a MaxMin over channels, calling both computes what their classes say and nothing
    else, and their kernels may be fused.
    """
    if type(activation) is not MaxMin or activation.dim not in (1, -3) or activation.backend not in _FUSED_BACKENDS:
        return None
    kind = LipschitzLayer if isinstance(module, LipschitzLayer) else nn.Conv2d
    if not (isinstance(module, kind) and are_untouched((activation, MaxMin), (module, kind))):
        return None
    if not isinstance(module, LipschitzLayer):
        return _plain_convolution(module, activation)
    return module._application.fused(module, activation) if module.backend in _FUSED_BACKENDS else None


def style_of(geometry: ConvGeometry, pairing: PairingOrNone = "none") -> Style | None:
    """The style of a convolution of this geometry; None where ``ops.conv_chain`` does not have its padding."""
    # The compiler traces what is kept as if it were not, and warns of it.
    return (_find_style if torch.compiler.is_compiling() else _kept_style)(geometry, pairing)


def _find_style(geometry: ConvGeometry, pairing: PairingOrNone) -> Style | None:
    if geometry.axes != 2:
        return None
    symmetric = geometry.symmetric
    if geometry.stride != (1, 1) or geometry.groups != 1 or not geometry.keeps_size:
        return None
    if not symmetric and geometry.padding_mode != "circular":
        return None
    return Style(geometry.padding_mode, (geometry.dilation[0], geometry.dilation[1]), pairing)


_kept_style = lru_cache(maxsize=256)(_find_style)


def _plain_convolution(module: Any, activation: MaxMin) -> Fusion | None:
    if module.padding_mode not in ("zeros", "circular"):
        return None
    geometry = ConvGeometry.of_module(module)
    style = style_of(geometry, activation.pairing)
    if style is None or geometry.pads[0] != geometry.pads[1] or geometry.pads[2] != geometry.pads[3]:
        return None
    link = Link(
        style,
        geometry,
        module.in_channels,
        module.out_channels,
        module.bias,
        "auto",
        module.training,
        lambda: (module.weight,),
    )
    return Fusion(None, _never, link)


def _never(x: Tensor, plan: Any) -> Tensor:
    raise NotImplementedError("a pair without a plan runs in a chain")


def run_links(links: Sequence[Link], x: Tensor) -> Tensor | None:
    """A run of pairs by ``ops.conv_chain``; None where no kernel runs it, or it is cheaper without."""
    # Before the weights, which cost a parametrization: a run that no kernel takes leaves that to its modules.
    if x.shape[1] != links[0].inputs:
        return None
    biases: list[Tensor | None] = []
    native, matrices, exact, outputs = True, True, False, 0
    for link in links:
        exact = exact or not link.training
        biases.append(link.bias)
        outputs += link.outputs
        native = native and link.backend == "native"  # by name, at any size
        matrices = matrices and link.geometry.kernel_size == (1, 1)
    if not (native or matrices) and too_small(x, outputs, links[0].geometry):
        return None
    # On usual images of a CPU the op's own question is enough: its reference is right as well.
    usual = type(x) is Tensor and x.is_cpu and x.dtype in NAMES and not native
    usual = usual and not (torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())
    if not usual and not _a_kernel_runs(x, biases, links[0].style.pairing, native):
        return None
    weights, scales = _factors(links)
    for tensor in (*weights, *biases):
        if tensor is not None and usual and tensor.dtype != x.dtype:
            return None
    backend: Backend = "native" if native else "auto"
    return ops.conv_chain(x, weights, biases, scales, *links[0].style, exact=exact, backend=backend)


def _a_kernel_runs(x: Tensor, biases: list[Tensor | None], pairing: PairingOrNone, native: bool) -> bool:
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
        return runs_under_autocast(x, "native" if native else "auto")
    for name in ("native",) if native else CONV_CHAIN.backends:
        if not CONV_CHAIN.why_not(name, x, [], biases, [], [], pairing):
            return True
    return False


def _factors(links: Sequence[Link]) -> tuple[list[Tensor], list[Tensor]]:
    """Every kernel as W diag(s), or every kernel as it is and no scales."""
    kernels: list[Tensor] = []
    scales: dict[int, Tensor] = {}
    for position, link in enumerate(links):
        kernel, *scale = link.factors()
        kernels.append(kernel)
        if scale and scale[0] is not None:
            scales[position] = scale[0]
    if len(scales) == len(kernels):
        return kernels, list(scales.values())
    for position, scale in scales.items():
        kernels[position] = kernels[position] * scale[:, None, None]
    return kernels, []
