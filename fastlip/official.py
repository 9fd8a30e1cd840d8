"""Published checkpoints of the comparison paper's ConvNet as fastlip models that compute the same function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlip.kernels.common.literals import Backend
from fastlip.models import LipConvNet, lip_conv_net
from fastlip.models.literals import OfficialMethodName, Size
from fastlip.nn.soc import norm_bound

_EPSILON = 1e-6  # the published code adds it to AOL's and SLL's row sums, SLL's q and CPL's sigma^2
_POWER_STEPS = 100  # in evaluation of CPL
_SOC_NORM = 3.37  # up to this norm SOC's 12 terms do not expand
_BLOCKS = 5

Entries = dict[str, Tensor]


def load_official(
    state_dict: Mapping[str, Tensor], method: OfficialMethodName, image_size: int = 32, num_classes: int = 10
) -> LipConvNet:
    """Returns the model of a published ConvNet checkpoint, which computes the same function, in evaluation mode.

    The checkpoints are those of Prach, Brau, Buttazzo, Lampert, *1-Lipschitz Layers Compared* (CVPR 2024). Width
    and layers per block are read from the state dict. The model has its dtype.

    The model keeps the published function, even where the published code guarantees less than fastlip's layers:

    - AOL and SLL add 1e-6 to their row sums, which is the option ``epsilon`` of these layers.
    - CPL's scale comes from 100 power steps, which approach sigma from below. It is computed here from the stored
      vector, or read from entries ``rescaling/<layer>`` if the mapping has them, and frozen (``freeze_scale``). The
      audit reports the cost; ``layer.freeze_scale(0)`` returns to the safe scale.
    - Cayley's alpha depends on the image size in the published code, but not here. It is converted for
      ``image_size``, which must be that of training.
    - LOT keeps the published ridge and ten Newton steps. BCOP has the exact polar factor, to which the published
      iteration has converged. SOC keeps 12 terms, and the scale that the stored power vectors give.

    Args:
        state_dict: weights under the published names (``FirstConv``, ``Block1.0`` ... ``ClassificationHead.0``).
        method: one of ``"aol"``, ``"bcop"``, ``"cayley"``, ``"cpl"``, ``"lot"``, ``"sll"``, ``"soc"``.
        image_size: side of the training images in pixels; each of the five blocks halves it, so that it must be a
            multiple of 32; default 32.
        num_classes: number of outputs; default 10.

    Returns:
        A :class:`fastlip.models.LipConvNet`: (n, 3, image_size, image_size) -> (n, num_classes).

    Raises:
        ValueError: an unknown method; entries that are missing, unexpected or of another shape, by name; an image
            size that the published network does not take.
        TypeError: a state_dict that is none, such as the name of a file.

    Example:
        >>> names = "FirstConv", *(f"Block{i}.0" for i in range(1, 6)), "ClassificationHead.0"
        >>> weights = {}
        >>> for name, c, k in zip(names, (4, 4, 8, 16, 32, 64, 128), (1, 3, 3, 3, 3, 1, 1)):
        ...     weights |= {f"{name}.weight": torch.randn(c, c, k, k), f"{name}.bias": torch.zeros(c)}
        >>> fastlip.load_official(weights, "aol")(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    _check_method(method)
    if image_size < 1 or image_size % 2**_BLOCKS:
        raise ValueError(f"image_size={image_size}: expected a multiple of {2**_BLOCKS}")
    if not isinstance(state_dict, Mapping):
        kind = type(state_dict).__name__
        raise TypeError(f"state_dict: got {kind}, expected a dict of tensors, such as torch.load(file) gives")
    layers = _group(state_dict)
    width, layers_per_block = read_sizes(state_dict)
    model = published_conv_net(
        method, num_classes=num_classes, image_size=image_size, width=width, layers_per_block=layers_per_block
    )
    model = model.to(next(iter(state_dict.values())).dtype)
    convert, _ = _METHODS[method]
    names = _names(model, layers_per_block, image_size)
    _compare("layers", set(layers), set(names))
    with torch.no_grad():
        for name, (module, side) in names.items():
            try:
                converted = convert(layers[name], module, side)
            except KeyError as error:
                raise ValueError(f"state_dict: {name} has no entry {error}, which {method!r} needs") from None
            _load(name, module, converted)
    return model.eval()


def published_conv_net(
    method: OfficialMethodName,
    size: Size = "XS",
    num_classes: int = 10,
    image_size: int = 32,
    in_channels: int = 3,
    width: int | None = None,
    layers_per_block: int = 5,
    *,
    backend: Backend = "auto",
) -> LipConvNet:
    """``lip_conv_net`` with the layer options with which :func:`load_official` keeps the published function."""
    _check_method(method)
    _, options = _METHODS[method]
    sizes = num_classes, image_size, in_channels, width, layers_per_block
    return lip_conv_net(method, size, *sizes, backend=backend, **options)


def read_sizes(state_dict: Mapping[str, Tensor]) -> tuple[int, int]:
    """Width and layers per block of a published ConvNet's state dict; ValueError for any other mapping."""
    bias = state_dict.get("FirstConv.bias")
    if bias is None:
        raise ValueError("state_dict: got no entry 'FirstConv.bias', expected a published ConvNet's state dict")
    return torch.as_tensor(bias).numel(), sum(name.startswith("Block1.") for name in _group(state_dict))


def _check_method(method: OfficialMethodName) -> None:
    if method not in _METHODS:
        raise ValueError(f"method={method!r}: allowed are {', '.join(map(repr, METHODS))}")


def _group(state_dict: Mapping[str, Tensor]) -> dict[str, Entries]:
    """Entries by layer: {"Block1.0": {"weight": ...}}, with AOL's and BCOP's parametrized weights as ``weight``."""
    layers: dict[str, Entries] = {}
    for key, value in state_dict.items():
        if key.startswith("rescaling/"):
            layer, entry = key.removeprefix("rescaling/"), "scale"
        else:
            layer, _, entry = key.replace("parametrizations.weight.original", "weight").rpartition(".")
        layers.setdefault(layer, {})[entry] = torch.as_tensor(value)
    return layers


def _names(model: LipConvNet, layers_per_block: int, image_size: int) -> dict[str, tuple[nn.Module, int]]:
    """For each published name, the module that takes its place, and the side of its images."""
    head = model.get_submodule("head")
    # The published network flattens before a dense head, which stands second in its sequence.
    head_name = "ClassificationHead.0" if hasattr(head, "kernel_size") else "ClassificationHead.1"
    names = {"FirstConv": (model.get_submodule("stem.0"), image_size)}
    for block in range(1, _BLOCKS + 1):
        for layer in range(layers_per_block):
            module = model.get_submodule(f"block{block}.{2 * layer}")
            names[f"Block{block}.{2 * layer}"] = module, image_size // 2 ** (block - 1)
    return {**names, head_name: (head, 1)}


def _load(name: str, module: nn.Module, entries: Entries) -> None:
    """Copies converted entries into the module's parameters and buffers of the same names."""
    own = module.state_dict()
    _compare(f"{name}: entries", set(entries), set(own))
    for key, value in entries.items():
        if value.shape != own[key].shape:
            raise ValueError(f"{name}.{key}: got shape {tuple(value.shape)}, expected {tuple(own[key].shape)}")
    module.load_state_dict(entries)


def _compare(what: str, got: set[str], expected: set[str]) -> None:
    if got != expected:
        raise ValueError(
            f"state_dict: {what} do not fit; missing {sorted(expected - got)}, left over {sorted(got - expected)}"
        )


def _rename(**names: str) -> Callable[[Entries, nn.Module, int], Entries]:
    def convert(entries: Entries, module: nn.Module, side: int) -> Entries:
        return {names.get(key, key): value for key, value in entries.items()}

    return convert


def _sll(entries: Entries, module: nn.Module, side: int) -> Entries:
    converted = dict(entries)
    q = converted.pop("q")
    return {**converted, "psi": (q.abs() + _EPSILON).log()}


def _cpl(entries: Entries, module: nn.Module, side: int) -> Entries:
    kernel, u = entries["kernel"], entries["u"]
    scale = entries["scale"] if "scale" in entries else _published_scale(kernel.double(), u.double())
    return {"kernel": kernel, "bias": entries["bias"], "fixed_scale": scale.to(kernel.dtype).reshape(1)}


def _published_scale(kernel: Tensor, u: Tensor) -> Tensor:
    """2 / (sigma^2 + 1e-6) with sigma = <K u, v> after power steps from the stored vector."""
    padding = kernel.shape[-1] // 2
    v = u
    for _ in range(_POWER_STEPS):
        v = _unit(F.conv2d(u, kernel, padding=padding))
        u = _unit(F.conv_transpose2d(v, kernel, padding=padding))
    sigma = (F.conv2d(u, kernel, padding=padding) * v).sum()
    return 2 / (sigma.square() + _EPSILON)


def _unit(image: Tensor) -> Tensor:
    return image / torch.linalg.vector_norm(image).clamp_min(1e-12)


def _cayley(entries: Entries, module: nn.Module, side: int) -> Entries:
    alpha = entries["alpha"].reshape(1)
    converted = {"raw_weight": entries["weight"], "bias": entries["bias"], "alpha": alpha}
    if entries["weight"].dim() == 4:
        # The published alpha scales W^ / |W^|, with the norm over an unweighted half spectrum; here it scales
        # W^ / |W|, with the norm over the taps.
        weight = entries["weight"].double()
        spectrum = torch.fft.fft2(_wrap(weight, side))[..., : side // 2 + 1]
        ratio = weight.norm() / torch.linalg.vector_norm(spectrum)
        converted["alpha"] = (alpha.double() * ratio).to(alpha.dtype)
    return converted


def _wrap(weight: Tensor, side: int) -> Tensor:
    """The kernel, wrapped to this FFT size, which may be smaller than the kernel."""
    image = weight.new_zeros(*weight.shape[:2], side, side)
    for y in range(weight.shape[2]):
        for x in range(weight.shape[3]):
            image[:, :, y % side, x % side] += weight[:, :, y, x]
    return image


def _bcop(entries: Entries, module: nn.Module, side: int) -> Entries:
    if "weight" in entries:
        return {"raw_weight": entries["weight"], "bias": entries["bias"]}
    matrices, mask = entries["param_matrices"], entries["mask"]
    rank = matrices.shape[-1] // 2
    expected = (torch.arange(matrices.shape[-1], device=mask.device) < rank).to(mask).expand_as(mask)
    if not torch.equal(mask, expected):
        raise ValueError(f"mask: got projectors of another rank than {rank} = channels // 2")
    return {"raw_matrices": matrices[None], "bias": entries["bias"]}


def _soc(entries: Entries, module: nn.Module, side: int) -> Entries:
    K = entries["random_conv_filter"]
    L = (K - K.transpose(0, 1).flip(2, 3)) / 2
    norms = [(L * entries[f"u{i}"] * entries[f"v{i}"]).sum() for i in range(1, 5)]
    L = L * (entries["correction"] / torch.stack(norms).min())
    bound = norm_bound(L[None]).item()
    if bound > _SOC_NORM:
        raise ValueError(
            f"random_conv_filter: its norm may be {bound:.2f}, where 12 terms expand; at most {_SOC_NORM}"
        )
    return {"raw_weight": L, "bias": entries["bias"]}


_Convert = Callable[[Entries, nn.Module, int], Entries]
_METHODS: dict[OfficialMethodName, tuple[_Convert, dict[str, Any]]] = {
    "aol": (_rename(weight="raw_weight"), {"epsilon": _EPSILON}),
    "bcop": (_bcop, {}),
    "cayley": (_cayley, {}),
    "cpl": (_cpl, {"padding_mode": "zeros", "training_sigma": "bound"}),
    "lot": (_rename(weight="raw_weight"), {"padding_mode": "zeros", "ridge": 1e-4, "steps": 10}),
    "sll": (_sll, {"padding_mode": "zeros", "epsilon": _EPSILON}),
    "soc": (_soc, {"padding_mode": "zeros", "terms": 5, "eval_terms": 12, "max_norm": _SOC_NORM}),
}
METHODS: tuple[OfficialMethodName, ...] = get_args(OfficialMethodName)
