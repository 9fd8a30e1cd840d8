"""What a program asks of a GPU, observed on fake CUDA tensors: launches, bytes, and waits of the host.

    with watch.gpu() as device:          # tensors made here are on a CUDA device that computes nothing
        step()                           # warm-up
        with device.counting() as counts:
            step()
    counts.launches, counts.bytes, counts.waits

A fastlip operator runs its kernel's own Python code; the launch itself is noted (Triton's with all its arguments).
Needs ``fake_cuda.load()`` before torch is imported.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from inventory import cuda_kernels, kept_tensors, nbytes, operators, tensors
from operations import FREE, WAITS
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastlip
from fastlip.kernels.common import binding, gate, triton_launch
from fastlip.kernels.common import capture as graphs
from fastlip.kernels.common import gpu as limits

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = str(Path(fastlip.__file__).parent)
DEVICE = torch.device("cuda", 0)

# What a capture cannot have, besides waits: memory of the host that is not pinned.
UPLOAD = "upload"


class HostWaitError(RuntimeError):
    """The host waits for the device, or a captured stream is given memory of the host."""


@dataclass
class Launch:
    """A Triton kernel as it would have been launched."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    num_warps: int
    where: str


@dataclass
class Counts:
    """Launches and bytes by operation, waits by place, and Triton's launches one by one.

    ``chained`` are the convolutions that an operator calls: torch counts them as its own. ``by_place`` counts
    launches by what ``where()`` says, if it is given.
    """

    by_name: Counter[str] = field(default_factory=Counter)
    bytes_by_name: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)
    triton: list[Launch] = field(default_factory=list)
    chained: int = 0
    by_place: Counter[tuple[str, str]] = field(default_factory=Counter)
    where: Callable[[], str] | None = None

    @property
    def launches(self) -> int:
        return sum(self.by_name.values())

    @property
    def bytes(self) -> int:
        return sum(self.bytes_by_name.values())

    def note(self, name: str, size: int, count: int = 1) -> None:
        self.by_name[name] += count
        self.bytes_by_name[name] += size
        if self.where is not None:
            self.by_place[self.where(), name] += count


class Device(TorchDispatchMode):
    """The mode that observes; above it nothing, below it torch's fake tensors."""

    def __init__(self, *, strict: bool) -> None:
        super().__init__()
        self.strict = strict
        self.capturing = False
        self.tables: set[str] = set()
        self.counts = Counts()
        self._inside: list[str] = []
        self._kernels = {id(operator.packet): operator for operator in operators()}

    @contextlib.contextmanager
    def counting(self, where: Callable[[], str] | None = None) -> Iterator[Counts]:
        """Counts of what runs within."""
        outer, self.counts = self.counts, Counts(where=where)
        try:
            yield self.counts
        finally:
            self.counts = outer

    @contextlib.contextmanager
    def capture(self) -> Iterator[Counts]:
        """As a CUDA graph is captured: waits and uploads raise, and no table may be kept that is made within."""
        before, strict = kept_tensors(), self.strict
        self.capturing = self.strict = True
        try:
            with self.counting() as counts:
                yield counts
        finally:
            self.capturing, self.strict = False, strict
        known = {id(tensor) for kept in before.values() for tensor in kept}
        if made := [name for name, kept in kept_tensors().items() if not {*map(id, kept)} <= known]:
            raise HostWaitError(f"tables kept from a capture, whose memory is the graph's: {', '.join(made)}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (operator := self._kernels.get(id(func))) is not None:
            self._inside.append(operator.name)
            try:
                with self:
                    return operator.run(*args)
            finally:
                self._inside.pop()
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "prim":
            return func(*args, **kwargs)
        if self._inside:  # below autograd, composite operations arrive whole
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        if (waits := self._waits(name, args, kwargs)) is not None:
            self._wait(waits)
        if name in ("_local_scalar_dense", "is_nonzero") and isinstance(args[0], FakeTensor):
            return False if name == "is_nonzero" else _number(args[0].dtype)
        # Fake tensors do not know it.
        result = None if name == "_fused_sgd_" else func(*args, **kwargs)
        if name.rstrip("_") not in FREE and any(tensor.is_cuda for tensor in tensors((args, kwargs, result))):
            gradients = sum(args[-1]) if name == "convolution_backward" else 1  # each by a kernel of its own
            self.counts.note(name, sum(map(nbytes, tensors((args, kwargs, result)))), gradients)
            if "convolution" in name and self._inside and self._inside[-1].startswith("conv_chain"):
                self.counts.chained += 1
        return result

    def captured(self, step: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """In place of ``capture.captured``: a replay is one launch."""
        with self.capture():
            result = step()
        return lambda: self.counts.note("graph", 0), result

    def is_capturing(self) -> bool:
        """In place of ``torch.cuda.is_current_stream_capturing``."""
        return self.capturing

    def launch_triton(
        self, kernel: Any, grid: Any, device: Any, *arguments: Any, num_warps: int = 4, **constants: Any
    ) -> None:
        """In place of ``triton_launch.launch``."""
        given = tensors(arguments)
        distinct = {tensor.data_ptr(): tensor for tensor in given}
        self.counts.note(f"triton:{kernel.__name__}", sum(map(nbytes, distinct.values())))
        self.counts.triton.append(Launch(kernel, tuple(grid), arguments, constants, num_warps, place()))

    def launch_native(self, name: str, device: torch.device, *arguments: Any) -> None:
        """In place of ``binding.launch``."""
        size = sum(_sizes.get(argument, 0) for argument in arguments if isinstance(argument, int))
        self.counts.note(f"cuda:{name}", size)

    def synchronize(self, *_: Any) -> None:
        """In place of ``torch.cuda.synchronize``, and of what waits as it does."""
        self._wait("torch.cuda.synchronize")

    def note_table(self, make: Any, *arguments: Any) -> torch.Tensor:
        """In place of making a table while torch.compile traces, which makes it on a device that is there."""
        self.tables.add(make.__name__)
        return torch.empty(0)

    def _waits(self, name: str, args: Any, kwargs: Any) -> str | None:
        on_device = any(tensor.is_cuda for tensor in tensors((args, kwargs)))
        if on_device and name in WAITS:
            return name
        if name.startswith("index") and any(index.dtype is torch.bool for index in tensors(args[1])):
            return "choice by a mask"
        target = kwargs.get("device")
        if name in ("_to_copy", "copy_", "_copy_from") and target is not None:
            if on_device and torch.device(target).type == "cpu":
                return "copy to the host"
            if not on_device and torch.device(target).type == "cuda" and args[0].device.type == "cpu":
                return UPLOAD
        if name == "copy_" and len(args) > 1 and isinstance(args[1], Tensor) and args[0].device != args[1].device:
            return UPLOAD if args[0].is_cuda else "copy to the host"
        return None

    def _wait(self, what: str) -> None:
        if what == UPLOAD and not self.capturing:
            self.counts.uploads[place()] += 1
            return
        self.counts.waits[f"{what} at {place()}"] += 1
        if self.strict:
            raise HostWaitError(f"{what} at {place()}")


def _number(dtype: torch.dtype) -> float | int | complex:
    """What is read of a number that nobody computed: no flag is raised, and a norm is one."""
    if dtype is torch.bool:
        return False
    return 1.0 if dtype.is_floating_point else (1 + 0j if dtype.is_complex else 1)


def place() -> str:
    """The innermost line of the package on the stack, or of whoever called torch."""
    stack = traceback.extract_stack()
    own = [frame for frame in stack if frame.filename.startswith(PACKAGE)]
    outer = [frame for frame in stack if "/torch/" not in frame.filename and "/gpu/watch.py" not in frame.filename]
    frame = (own or outer or stack)[-1]
    name = frame.filename.removeprefix(f"{ROOT}/")
    return f"{name}:{frame.lineno}"


_FAKE = FakeTensorMode(allow_non_fake_inputs=True)
_sizes: dict[int, int] = {}


def _address(tensor: Tensor) -> int:
    """Different for each storage, aligned as torch's memory is; for the wrapped part of a fake tensor too."""
    address = (tensor.untyped_storage()._cdata << 8) + tensor.storage_offset() * tensor.element_size()
    _sizes[address] = nbytes(tensor)
    return address


def _numbers(tensor: Tensor) -> Any:
    """In place of ``tolist``, which fake tensors refuse."""
    return [_numbers(part) for part in tensor.unbind()] if tensor.dim() else tensor.item()


@contextlib.contextmanager
def gpu(
    *,
    compiling: bool = False,
    strict: bool = False,
    extension: bool = True,
    shared: int = 227 * 1024,
    capability: tuple[int, int] = (9, 0),
) -> Iterator[Device]:
    """A CUDA device that computes nothing, on which new tensors are made.

    Args:
        compiling: for torch.compile, which brings modes of its own: nothing is counted, and tensors are made on the
            device only where they are told so.
        strict: whether a wait of the host raises :class:`HostWaitError` rather than being counted.
        extension: whether the CUDA extension is there, or only Triton.
        shared: bytes of shared memory that a block can have.
        capability: the device's compute capability.
    """
    device = Device(strict=strict)
    tables = importlib.import_module("fastlip.kernels.spectral_conv.tables")
    kernels, missing = cuda_kernels() if extension else frozenset(), binding.missing
    properties = SimpleNamespace(
        name="fake GPU",
        major=capability[0],
        minor=capability[1],
        shared_memory_per_block=48 * 1024,
        shared_memory_per_block_optin=shared,
        multi_processor_count=132,
        total_memory=80 << 30,
        L2_cache_size=50 << 20,
    )

    @torch.compiler.assume_constant_result
    def missing_here(kernel: str, where: torch.device) -> str:
        if where.type != "cuda":
            return missing(kernel, where)
        return "" if kernel in kernels else f"there is no CUDA kernel {kernel}"

    replaced = [
        mock.patch.object(binding, "missing", missing_here),
        mock.patch.object(torch.cuda, "get_device_properties", return_value=properties),
        mock.patch.object(binding, "launch", device.launch_native),
        mock.patch.object(triton_launch, "launch", device.launch_triton),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", device.is_capturing),
        mock.patch.object(torch.cuda, "synchronize", device.synchronize),
        mock.patch.object(torch.cuda, "empty_cache", device.synchronize),
        mock.patch.object(graphs, "on_side_stream", contextlib.nullcontext),
        mock.patch.object(graphs, "captured", device.captured),
        mock.patch.object(FakeTensor, "data_ptr", _address, create=True),
        mock.patch.object(FakeTensor, "tolist", _numbers, create=True),
        *([mock.patch.object(tables, "_keep", device.note_table)] if compiling else _looks(device)),
        *(() if compiling else _patched("is_observed", gate.is_observed, device.is_capturing)),
        *(() if compiling else _patched("is_only_captured", gate.is_only_captured, device.is_capturing)),
        # What fastlip.nn._cache asks in place of is_observed: the modes of this device follow nothing.
        *(() if compiling else _patched("_dispatch_modes", torch._C._len_torch_dispatch_stack, int)),
        *(() if compiling else [mock.patch.object(torch.cuda, "is_initialized", device.is_capturing)]),
    ]
    with contextlib.ExitStack() as stack:
        for asked in (limits.shared_memory, limits.capability, limits.too_old):
            asked.cache_clear()
            stack.callback(asked.cache_clear)
        for patch in replaced:
            stack.enter_context(patch)
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(_FAKE)
        if not compiling:
            stack.enter_context(device)
            stack.enter_context(DEVICE)
        yield device


def _looks(device: Device) -> Iterator[Any]:
    """Patches of what reads numbers without an operation of torch."""

    def shown(tensor: Tensor, *_: Any) -> str:
        device._wait("repr")  # of print and f-strings too
        return f"a tensor {tuple(tensor.shape)} whose numbers nobody computed"

    def as_array(*_: Any, **__: Any) -> Any:
        device._wait("numpy")
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    functions = {"__repr__": shown, "__format__": shown, "numpy": as_array, "__array__": as_array}
    for name, function in functions.items():
        yield mock.patch.object(FakeTensor, name, function, create=True)


def _patched(name: str, old: Any, new: Any) -> Iterator[Any]:
    """Patches of a function in every module of the package that imported it by name."""
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("fastlip.") and vars(module).get(name) is old:
            yield mock.patch.object(module, name, new)
