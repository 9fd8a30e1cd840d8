"""Export: a model of ``torch.nn`` layers that computes what a fastlip model computes, and needs no fastlip."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from fastlip import _plain as plain
from fastlip import nn as lip
from fastlip.auditing import check_finite, evaluating
from fastlip.nn._base import MatrixLinear, at_least_float32
from fastlip.nn._conv import KernelConv2d, LipschitzConv2d
from fastlip.nn._orthogonal import OrthogonalConv2d
from fastlip.nn._residual import ResidualConv2d, ResidualLinear
from fastlip.ops.spectral_conv import half_plane

FOURIER = ("fft", "matrices")


@dataclass(frozen=True)
class Target:
    """What a rule may ask: the layer's name, its input's shape without batch (None if unknown), ``fourier``."""

    name: str
    input_shape: tuple[int, ...] | None
    fourier: str = "fft"

    def image(self, stride: tuple[int, int] = (1, 1)) -> tuple[int, int] | None:
        """(h, w) after a stride, None if unknown."""
        if self.input_shape is None or len(self.input_shape) < 3:
            return None
        height, width = (-(-side // step) for side, step in zip(self.input_shape[-2:], stride, strict=True))
        return height, width

    def require_image(self, layer: nn.Module, stride: tuple[int, int] = (1, 1)) -> tuple[int, int]:
        """The same; ValueError if unknown."""
        image = self.image(stride)
        if image is None:
            raise ValueError(
                f"input_shape=None: layer {self.name!r} ({type(layer).__name__}) depends on the image size; "
                "expected the shape of one sample, such as (3, 32, 32)"
            )
        return image


def export(model: nn.Module, input_shape: tuple[int, ...] | None = None, *, fourier: str = "fft") -> nn.Module:
    r"""A copy of the model, in eval mode, whose fastlip modules became ``torch.nn`` layers of the same function.

    ``torch.nn.Conv2d`` (AOC, AOL, BCOP, one-tap kernels), ``ConvTranspose2d`` (AOC), ``Linear`` (all matrices),
    ``ZeroPad``, ``PixelUnshuffle`` and ``Sequential`` where they agree exactly. What torch.nn has no layer for
    (residual layers, convolution exponentials, spectral convolutions, sorting activations, paddings that Conv2d
    lacks) becomes a ``torch.fx.GraphModule`` that holds its tensors and its code, which calls torch only. Modules
    of other packages are copied as they are.

    The result runs, is copied and moved without fastlip, and so does ``torch.load(file, weights_only=False)`` of
    what ``torch.save(plain, file)`` wrote; ``torch.export`` and ONNX take it. Weights are those that eval mode
    uses, constants now: training the result further would lose the Lipschitz bound. ``fastlip.audit`` and
    ``fastlip.certify`` take it too, and measure its own weights: the bound is that of the original, up to rounding
    (AOL: 1e-6, where the original's Gram certificate was the smaller bound).

    Args:
        model: any module; fastlip layers are found at any depth. It is left as it was.
        input_shape: of one sample, such as (3, 32, 32); None: the ``input_shape`` that the model carries, as those
            of ``fastlip.models`` do. Spectral layers (Cayley, LOT, spectral SOC) and CPL convolutions compute a
            different function for each image size: they are exported for the sizes that they have then, the
            spectral ones refuse others.
        fourier: ``"fft"``, or ``"matrices"``: spectral layers transform by products with real matrices: slower
            for large images, but ONNX has them.

    Raises:
        TypeError: a module of fastlip, or a subclass with a forward of its own, that no rule knows.
        ValueError: NaN or Inf in a weight; a layer that depends on the image size without an input_shape; one
            that is called on several sizes.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: got {type(model).__name__}, expected a torch.nn.Module")
    if fourier not in FOURIER:
        raise ValueError(f"fourier={fourier!r}: allowed are {', '.join(map(repr, FOURIER))}")
    model = getattr(model, "_orig_mod", model)  # torch.compile
    check_finite(model)
    if input_shape is None:
        input_shape = getattr(model, "input_shape", None)
    with evaluating(model), torch.no_grad():
        shapes = {} if input_shape is None else _input_shapes(model, tuple(input_shape))
        memo: dict[int, Any] = {}
        # Children first: a container of ours is rebuilt from its converted children.
        for name, module in reversed(list(model.named_modules())):
            if _is_ours(module):
                memo[id(module)] = _convert(module, Target(name or "model", shapes.get(id(module)), fourier), memo)
        return copy.deepcopy(model, memo).eval()


def _is_ours(module: nn.Module) -> bool:
    return any(base.__module__.startswith("fastlip.") for base in type(module).__mro__)


def _convert(module: nn.Module, target: Target, memo: dict[int, Any]) -> nn.Module:
    if isinstance(module, nn.Sequential) and type(module).forward in (nn.Sequential.forward, lip.Chain.forward):
        return nn.Sequential(
            OrderedDict((name, copy.deepcopy(child, memo)) for name, child in module.named_children())
        )
    known = next((base for base in type(module).__mro__ if base in exported.registry and base is not object), None)
    hooks = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    if known is None or hooks or not _has_our_forward(module):
        raise TypeError(
            f"model: no rule exports {target.name} ({type(module).__name__}): register one for its type with "
            "fastlip.exporting.exported, and remove its hooks"
        )
    return exported(module, target)


def _has_our_forward(module: nn.Module) -> bool:
    definer = next(base for base in type(module).__mro__ if "forward" in vars(base))
    return definer in exported.registry or definer.__module__.startswith("fastlip.")


def _input_shapes(model: nn.Module, input_shape: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    """The shape, without batch, of what each module of ours gets."""
    shapes: dict[int, tuple[int, ...]] = {}

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        shape = tuple(arguments[0].shape[1:])
        if shapes.setdefault(id(module), shape) != shape and isinstance(module, LipschitzConv2d):
            raise ValueError(
                f"model: {type(module).__name__} is called on inputs of {shapes[id(module)]} and of {shape}: "
                "exported layers have one size"
            )

    parameter = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    handles = [module.register_forward_pre_hook(note) for module in model.modules() if _is_ours(module)]
    try:
        model(torch.zeros(1, *input_shape, dtype=parameter.dtype, device=parameter.device))
    finally:
        for handle in handles:
            handle.remove()
    return shapes


@singledispatch
def exported(module: nn.Module, target: Target) -> nn.Module:
    """The torch.nn form of a fastlip module in eval mode.

    A new layer extends it with ``@exported.register(MyLayer)``; layers that give one kernel or one matrix as
    ``weight`` (``KernelConv2d``, ``MatrixLinear``) need not.
    """
    raise TypeError(f"no rule exports {type(module).__name__}")


def _register(*types: type[nn.Module]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for module_type in types:
            exported.register(module_type)(function)
        return function

    return decorate


def _chain(*modules: nn.Module | None) -> nn.Module:
    """What is left, one after the other."""
    present = [module for module in modules if module is not None]
    return present[0] if len(present) == 1 else nn.Sequential(*present)


def _with_tensors(layer: Any, weight: Tensor, bias: Tensor | None) -> Any:
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    rows, columns = weight.shape
    return _with_tensors(nn.Linear(columns, rows, bias is not None, device="meta"), weight, bias)


def _convolution(layer: LipschitzConv2d, weight: Tensor, target: Target) -> nn.Module:
    """nn.Conv2d where its padding is the layer's, for every image or for that of the target."""
    left, right, top, bottom = layer.pads
    image = target.image() or (max(top, bottom), max(left, right))
    circular = layer.padding_mode == "circular" and any(layer.pads)
    symmetric = left == right and top == bottom
    # "same" of nn.Conv2d puts the odd element where this package does; with zeros it warns.
    same = circular and layer.stride == (1, 1) and layer.padding == "same"
    wraps = circular and (max(top, bottom) > image[0] or max(left, right) > image[1])
    if wraps or not (symmetric or same):
        geometry = {name: getattr(layer, name) for name in ("stride", "pads", "dilation", "groups", "padding_mode")}
        tensors = {"weight": weight, "bias": layer.bias}
        return plain.freeze(plain.Convolution(tensors, **geometry, image=target.image()))
    plain_layer = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # pyright: ignore[reportArgumentType]
        layer.stride,
        (top, left) if symmetric else "same",
        layer.dilation,
        layer.groups,
        layer.bias is not None,
        "circular" if circular else "zeros",
        device="meta",
    )
    return _with_tensors(plain_layer, weight, layer.bias)


def _one_tap(layer: LipschitzConv2d, weight: Tensor) -> nn.Conv2d:
    """A 1 x 1 convolution of patches."""
    cout, cin = weight.shape[:2]
    convolution = nn.Conv2d(
        cin * layer.groups, cout, 1, groups=layer.groups, bias=layer.bias is not None, device="meta"
    )
    return _with_tensors(convolution, weight, layer.bias)


def _patches(layer: LipschitzConv2d, position_first: bool = False) -> nn.Module | None:
    if layer.stride == (1, 1):
        return None
    groups = layer.groups if position_first else 1
    return plain.freeze(plain.Patches(stride=layer.stride, groups=groups, position_first=position_first))


def _widen(layer: LipschitzConv2d, width: int) -> nn.Module | None:
    """Zero channels up to the width, in each group, after the patches."""
    missing = (width - layer.in_channels * layer.stride[0] * layer.stride[1]) // layer.groups
    if missing == 0:
        return None
    if layer.groups == 1:
        return nn.ZeroPad3d((0, 0, 0, 0, 0, missing))
    return plain.freeze(plain.PadGroups(groups=layer.groups, missing=missing))


def _truncate(layer: LipschitzConv2d, width: int) -> nn.Module | None:
    if width == layer.out_channels:
        return None
    kept, groups = layer.out_channels // layer.groups, layer.groups
    # In groups, channels are the last but two dimensions of (group, channel, h, w) too.
    return plain.freeze(plain.FirstEntries(count=kept, dim=-3, groups=groups))


def _spectral(layer: LipschitzConv2d, Q: Tensor, torus: tuple[int, int], bias: Tensor | None, target: Target) -> Any:
    matrices = half_plane(Q, torus).unflatten(1, (layer.groups, -1))
    return plain.freeze(
        plain.SpectralConvolution(
            {"spectrum": torch.view_as_real(matrices.resolve_conj()), "bias": bias},
            image=target.require_image(layer, layer.stride),
            torus=torus,
            groups=layer.groups,
            fourier=target.fourier,
        )
    )


@exported.register
def _transposed(layer: lip.AOCConvTranspose2d, target: Target) -> nn.Module:
    plain_layer = nn.ConvTranspose2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.output_padding,
        layer.groups,
        layer.bias is not None,
        layer.dilation,  # pyright: ignore[reportArgumentType]
        device="meta",
    )
    return _with_tensors(plain_layer, layer.weight, layer.bias)


@exported.register
def _kernel_layer(layer: KernelConv2d, target: Target) -> nn.Module:
    return _convolution(layer, layer.weight, target)


@exported.register
def _matrix_layer(layer: MatrixLinear, target: Target) -> nn.Module:
    return _linear(layer.weight, layer.bias)


@exported.register
def _orthogonal_layer(layer: OrthogonalConv2d, target: Target) -> nn.Module:
    if layer.taps == (1, 1):
        return _chain(_patches(layer), _one_tap(layer, layer.effective()[0]))
    torus = layer.torus(*target.require_image(layer, layer.stride))
    (Q,) = layer.effective(*torus)
    return _chain(_patches(layer), _spectral(layer, Q, (torus[0], torus[1]), layer.bias, target))


@exported.register
def _residual_layer(layer: ResidualConv2d, target: Target) -> nn.Module:
    image = target.image(layer.stride)
    context = layer.context(target.require_image(layer, layer.stride)) if _depends_on_size(layer) else ()
    (scale,) = layer.effective(*context)
    tensors = {"kernel": layer.kernel, "bias": layer.bias, "scale": scale}
    geometry = {name: getattr(layer, name) for name in ("pads", "dilation", "groups", "padding_mode")}
    residual = plain.freeze(plain.ResidualConvolution(tensors, **geometry, image=image))
    before = _patches(layer, position_first=True), _widen(layer, layer.width)
    return _chain(*before, residual, _truncate(layer, layer.width))


def _depends_on_size(layer: ResidualConv2d) -> bool:
    return layer.context((1, 1)) != ()


@exported.register
def _dense_residual_layer(layer: ResidualLinear, target: Target) -> nn.Module:
    (scale,) = layer.effective()
    residual = plain.freeze(plain.ResidualDense({"kernel": layer.kernel, "bias": layer.bias, "scale": scale}))
    missing = layer.width - layer.in_features
    before = nn.ZeroPad1d((0, missing)) if missing else None
    after = plain.FirstEntries(count=layer.out_features, dim=-1, groups=1)
    return _chain(before, residual, plain.freeze(after) if layer.width > layer.out_features else None)


@exported.register
def _exponential_layer(layer: lip.SOCConv2d, target: Target) -> nn.Module:
    if layer.kernel_size == (1, 1):
        return _chain(_patches(layer), _one_tap(layer, layer.effective()[0]))
    bias = layer.bias
    if bias is not None and layer.width > layer.out_channels:  # truncated away again, within each group
        rows = bias.unflatten(0, (layer.groups, -1))
        bias = nn.functional.pad(rows, (0, layer.width // layer.groups - rows.shape[1])).flatten()
    before = _patches(layer), _widen(layer, layer.width)
    after = _truncate(layer, layer.width)
    if layer.exponential == "spectral":
        size = target.require_image(layer, layer.stride)
        (Q,) = layer.effective(*size)
        return _chain(*before, _spectral(layer, Q, size, bias, target), after)
    (kernel,) = layer.effective()
    geometry = {name: getattr(layer, name) for name in ("pads", "dilation", "groups", "padding_mode")}
    series = {"terms": layer.eval_terms, "gain": layer.gain(layer.eval_terms)}
    exponential = plain.Exponential(
        {"kernel": kernel, "bias": bias}, **geometry, **series, image=target.image(layer.stride)
    )
    return _chain(*before, plain.freeze(exponential), after)


@exported.register
def _maxmin(module: lip.MaxMin, target: Target) -> nn.Module:
    return plain.freeze(plain.SortPairs(pairing=module.pairing, dim=module.dim))


@exported.register
def _group_sort(module: lip.GroupSort, target: Target) -> nn.Module:
    return plain.freeze(plain.SortGroups(group_size=module.group_size, dim=module.dim))


@exported.register
def _absolute(module: lip.Abs, target: Target) -> nn.Module:
    return plain.freeze(plain.Absolute())


@exported.register
def _reflections(module: lip.HouseHolder, target: Target) -> nn.Module:
    if target.input_shape is None:
        raise ValueError(f"input_shape=None: layer {target.name!r} (HouseHolder) needs the rank of its input")
    theta = at_least_float32(module.theta)
    table = torch.stack((theta.cos(), theta.sin(), (theta / 2).cos(), (theta / 2).sin())).to(module.theta.dtype)
    options = {"channels": module.channels, "pairing": module.pairing, "dim": module.dim}
    return plain.freeze(plain.Reflection({"table": table}, **options, rank=1 + len(target.input_shape)))


@exported.register
def _channel_pad(module: lip.ZeroChannelPad, target: Target) -> nn.Module:
    shape: tuple[int, ...] = target.input_shape or ()
    paddings = {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d}
    kind = paddings.get(len(shape))
    if kind is None:
        return plain.freeze(plain.PadChannels(channels=module.channels))
    return kind((*(0, 0) * (len(shape) - 1), 0, module.channels - shape[-len(shape)]))


@exported.register
def _first_channels(module: lip.FirstChannels, target: Target) -> nn.Module:
    return plain.freeze(plain.FirstEntries(count=module.channels, dim=1, groups=1))


@exported.register
def _pixel_unshuffle(module: lip.PixelUnshuffle, target: Target) -> nn.Module:
    factor, image = module.downscale_factor, target.image()
    if image is None:
        return plain.freeze(plain.Patches(stride=(factor, factor), groups=1, position_first=False))
    bottom, right = (-side % factor for side in image)
    padding = nn.ZeroPad2d((0, right, 0, bottom)) if bottom or right else None
    return _chain(padding, nn.PixelUnshuffle(factor))


@exported.register
def _average(module: lip.ScaledAvgPool2d, target: Target) -> nn.Module:
    return plain.freeze(plain.ScaledPool(kernel_size=module.kernel_size))


@exported.register
def _norm_pool(module: lip.L2NormPool2d, target: Target) -> nn.Module:
    return plain.freeze(plain.NormPool(kernel_size=module.kernel_size))
