"""Which tensors kernels may read, asked before any address is taken.

Kernels read numbers by their address and write others, unseen by whatever follows torch's own operations. Where
something follows them, or a tensor has no numbers of its own at its address, the reference runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from fastlip.kernels.common.compiled import constant
from fastlip.kernels.common.geometry import ConvGeometry

# Looked up once: each call of an op asks them.
_transforms_are_active = torch._C._are_functorch_transforms_active
_tracing_state = torch._C._get_tracing_state
# Batched, sparse, on meta, wrapped by a transform: torch's own list of what has no numbers at its address.
_is_wrapper = torch._C._dispatch_isTensorSubclassLike
_STAND_INS = "Batched", "FuncTorchGradWrapper", "Functionalize"

_TENSORS = frozenset((Tensor, Parameter))
_FREED = "its storage was freed"
_NO_TENSORS = frozenset((str, int, bool, float, type(None), ConvGeometry))


def refusal(arguments: Iterable[Any]) -> str:
    """Why no kernel may take these arguments (tensors, lists of them, others); empty if one may."""
    if _transforms_are_active():
        return "inside torch.func transforms only the reference runs"
    if _tracing_state() is not None:
        return (
            "torch.jit.trace follows torch's own operators only: trace with backend='reference' or 'auto', "
            "or a copy made by fastlip.export"
        )
    if forward_ad._current_level >= 0:
        return _refuse_tensors(arguments, [])
    first = None
    for given in arguments:
        for argument in given if type(given) is list else (given,):
            kind = type(argument)
            if kind in _TENSORS:
                # One by one only where something is out of the ordinary; on other devices launches cost much more.
                if _is_wrapper(argument) or (first is not None and not (first.is_cpu and argument.is_cpu)):
                    return _refuse_tensors(arguments, [])
                first = argument
            elif kind not in _NO_TENSORS:
                return _refuse_tensors(arguments, [])
    return ""


def check_devices(name: str, arguments: Iterable[Any]) -> None:
    """ValueError for a tensor without memory and for two devices, where torch's convolutions would read anything."""
    kinds: dict[torch.device, None] = {}
    for argument in arguments:
        for tensor in argument if isinstance(argument, (list, tuple)) else (argument,):
            if isinstance(tensor, Tensor):
                kinds[tensor.device] = None
                if type(tensor) in _TENSORS and not _is_wrapper(tensor) and _is_freed(tensor):
                    raise ValueError(f"{name}: a tensor of shape {tuple(tensor.shape)} has no memory: {_FREED}")
    if len(kinds) > 1:
        raise ValueError(f"{name}: got tensors on {' and '.join(map(str, kinds))}, expected all on one device")


def is_recorded() -> bool:
    """Whether torch.jit.trace records: an autograd.Function would be a call of Python in its program."""
    return _tracing_state() is not None


def is_transformed() -> bool:
    """Whether a torch.func transform or forward-mode AD is active, for which an autograd.Function has no rules."""
    return _transforms_are_active() or forward_ad._current_level >= 0


def is_onnx() -> bool:
    """Whether torch.onnx.export is running: it has no kernels, and lacks some operators that references use."""
    return (torch.compiler.is_compiling() or is_recorded()) and _is_in_onnx_export()


@constant
def _is_in_onnx_export() -> bool:
    return torch.onnx.is_in_onnx_export()


def is_observed() -> bool:
    """Whether something follows torch's operations: a compiler, a mode, a torch.func transform, a trace, forward AD.

    What is kept between calls is not used then, nor while a CUDA graph is captured, whose memory is its own.
    """
    return torch.compiler.is_compiling() or (
        (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
        or torch._C._len_torch_dispatch_stack() > 0
        or _transforms_are_active()
        or _tracing_state() is not None
        or forward_ad._current_level >= 0
    )


def is_only_captured() -> bool:
    """Whether a CUDA graph is captured, and nothing else follows torch's operations.

    What was kept before may be used then, if it need not be compared with anything.
    """
    if not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()):
        return False
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or _transforms_are_active()
        or _tracing_state() is not None
        or forward_ad._current_level >= 0
    )


def _refuse_tensors(arguments: Iterable[Any], devices: list[Any]) -> str:
    """As refusal, of the tensors alone; devices has what was seen before: whether on the CPU, or which device."""
    for argument in arguments:
        kind = type(argument)
        if kind in _NO_TENSORS:
            continue
        if kind is list or kind is tuple:
            if reason := _refuse_tensors(argument, devices):
                return reason
        elif kind in _TENSORS or isinstance(argument, Tensor):
            usual = kind in _TENSORS and argument.layout is torch.strided and not _is_wrapper(argument)
            if not usual and (reason := _refuse_unusual(argument)):
                return reason
            if forward_ad._current_level >= 0 and forward_ad.unpack_dual(argument).tangent is not None:
                return "forward-mode AD differentiates the reference only"
            device = True if argument.is_cpu else argument.device
            if devices and devices[0] != device:
                return f"tensors on {_name(devices[0])} and on {_name(device)}: all must be on one device"
            devices.append(device)
    return ""


def _name(device: Any) -> str:
    return "cpu" if device is True else str(device)


def _refuse_unusual(tensor: Tensor) -> str:
    """Why kernels cannot read a subclass, or a tensor that torch says has no numbers of its own."""
    kind = type(tensor)
    if kind not in _TENSORS and _dispatch_of(kind) is not _dispatch_of(Tensor):
        return "" if _has_fakes(kind) else f"{kind.__name__} decides itself what operators do with it"
    if tensor.layout is not torch.strided:
        return f"no kernel for layout {tensor.layout}"
    keys = str(torch._C._dispatch_keys(tensor))  # not all of them have a name in Python
    if not any(name in keys for name in _STAND_INS):
        return ""  # on meta, for which backends have no kernels; or a dispatch mode is active
    return "the tensor stands for a batch, or for another tensor: only the reference runs"


def _dispatch_of(kind: type) -> Any:
    return getattr(kind, "__torch_dispatch__", None)


def _has_fakes(kind: type) -> bool:
    """Whether tensors of this kind stand for others in a trace, where registered operators have their fakes."""
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    return issubclass(kind, (FakeTensor, FunctionalTensor))


def _is_freed(tensor: Tensor) -> bool:
    if tensor.layout is not torch.strided or tensor._is_zerotensor():
        return False
    return tensor.numel() > 0 and not tensor.is_meta and not tensor.data_ptr()


def materialized(operator: str, argument: Any) -> Any:
    """A tensor (or a list of them) with numbers as they are at its address, no sign or conjugation left to be done.

    ValueError for a tensor whose memory was given back.
    """
    if isinstance(argument, (list, tuple)):
        has_tensors = any(isinstance(item, Tensor) for item in argument)
        return [materialized(operator, item) for item in argument] if has_tensors else argument
    if not isinstance(argument, Tensor):
        return argument
    if argument.layout is not torch.strided:
        raise ValueError(f"fastlip::{operator}: no kernel for layout {argument.layout}")
    if argument._is_zerotensor():
        return torch.zeros(argument.shape, dtype=argument.dtype, device=argument.device)
    if _is_freed(argument):
        raise ValueError(f"fastlip::{operator}: a tensor of shape {tuple(argument.shape)} has no memory: {_FREED}")
    return argument.resolve_conj().resolve_neg()
