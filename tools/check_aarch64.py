"""Builds the C++ kernels for aarch64 with a cross compiler, and runs every one of them under emulation.

Each op's cases run here first, forward and backward, with the kernels built for the baseline. Their vectors are as
wide as those of aarch64, and tests/ops/test_instruction_sets.py compares them with the reference. The calls of
kernels are recorded, with every buffer before and after. The program made of csrc/ and tools/aarch64/replay.cpp
repeats the calls under qemu; its buffers must be the recorded ones up to rounding.

It needs Debian's g++-aarch64-linux-gnu and qemu-user-static (or an aarch64 machine), and the baseline's kernels,
which `pip install -e .` builds.

    python tools/check_aarch64.py [--require] [--calls N] [--match TEXT]

Exits with 1 if a kernel disagrees or was not called. Without the tools it says so and exits with 0, or with 1 if
--require is given.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
BASELINE = {"ATEN_CPU_CAPABILITY": "default", "OMP_NUM_THREADS": "1"}
PAGE = 4096
LARGEST = 1 << 20  # bytes of a call's buffers: emulation is slow
# Roundings by which a buffer may differ, relative to its largest entry: kernels sum in the same order, but on aarch64
# the compiler fuses products with sums.
ROUNDINGS = 64
# Kernels that tell estimates in float64 of what they compute in float32: by how much these may differ, relative to
# the largest. polar_linear and skew_norm move their estimates of eigenvalues outwards by ten times as much.
ESTIMATES = {"polar_linear_gram_float32": 1e-3, "skew_norm_float32": 1e-3}


class Buffer(NamedTuple):
    """A piece of memory that a call may have read or written: its bytes before and after."""

    address: int
    dtype: Any
    before: bytes
    after: bytes


class Call(NamedTuple):
    """One call of a kernel, with the case that made it."""

    kernel: str
    case: str
    arguments: tuple[float, ...]
    buffers: list[Buffer]


class Recorder:
    """Stands for the compiled module: kernels run as they are, and their first calls are kept."""

    def __init__(self, module: ModuleType, limit: int):
        self._module = module
        self._limit = limit
        self._functions: dict[str, Callable[..., None]] = {}
        self.case = ""
        self.calls: list[Call] = []
        self.counts: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if name not in self._module.kernels:
            return value
        return self._functions.setdefault(name, lambda *arguments: self._record(name, value, arguments))

    def _record(self, name: str, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        storages = {} if self.counts[name] >= self._limit else storages_at(arguments)
        # A result that is no tensor's memory has no place in the replay.
        writes = any(at <= arguments[0] < at + storage.nbytes() for at, (storage, _) in storages.items())
        size = sum(storage.nbytes() for storage, _ in storages.values())
        if not storages or size > LARGEST or (name == "fingerprint" and not writes):
            function(*arguments)
            return
        before = [content(storage) for storage, _ in storages.values()]
        function(*arguments)
        self.counts[name] += 1
        buffers = [
            Buffer(address, dtype, old, content(storage))
            for (address, (storage, dtype)), old in zip(storages.items(), before, strict=True)
        ]
        self.calls.append(Call(name, self.case, arguments, buffers))


def storages_at(arguments: tuple[Any, ...]) -> dict[int, Any]:
    """Address of every tensor's memory that an argument points into: the storage, and the type of its numbers."""
    import torch

    found = {}
    pointers = [value for value in arguments if isinstance(value, int) and value > 1 << 24]
    for tensor in gc.get_objects():
        if issubclass(type(tensor), torch.Tensor) and tensor.layout is torch.strided and tensor.device.type == "cpu":
            storage = tensor.untyped_storage()
            address = storage.data_ptr()
            if any(address <= pointer < address + storage.nbytes() for pointer in pointers):
                found.setdefault(address, (storage, tensor.dtype))
    return found


def content(storage: Any) -> bytes:
    import torch

    return torch.tensor([], dtype=torch.uint8).set_(storage).numpy().tobytes()


def record(limit: int, match: str) -> Recorder:
    """The calls that the ops' cases make, in every dtype, forward and backward."""
    from fastlip import testing
    from fastlip.kernels.common import binding

    module = binding.library("cpu")
    if module.instruction_set != "default":
        raise SystemExit(f"{module.__name__} is loaded, built for {module.instruction_set}")
    recorder = binding._modules["cpu"] = Recorder(module, limit)
    binding.CPU.update((name, getattr(recorder, name)) for name in module.kernels)
    for op_name, case_name, case in testing.op_cases():
        if "native" in testing.backends_of(op_name) and match in op_name:
            for dtype in testing.dtypes_of(op_name):
                recorder.case = f"{case_name} {dtype}"
                run_case(op_name, case, dtype)
    recorder.case = "beyond the cases"
    run_beyond_cases()
    return recorder


def run_case(op_name: str, case: Any, dtype: Any) -> None:
    """One forward and backward of an op in its native kernels, unless they do not take the case."""
    from fastlip import testing

    try:
        testing.outputs_and_gradients(lambda **t: testing.call(op_name, "native", case, t), case.make(dtype, "cpu"))
    except ValueError as error:
        if "cannot run here" not in str(error):
            raise


def run_beyond_cases() -> None:
    """Kernels that the ops' cases do not reach: those of layers in evaluation, and 16-bit images."""
    import torch

    import fastlip
    from fastlip.kernels.common import binding, winograd
    from fastlip.kernels.common.geometry import ConvGeometry

    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        layer = fastlip.nn.SOCConv2d(8, 12, 3, padding=1, padding_mode="circular", backend="native").to(dtype).eval()
        with torch.no_grad():
            layer(torch.randn(2, 8, 6, 6, generator=generator, dtype=dtype))
            layer(torch.randn(3, 8, 5, 8, generator=generator, dtype=dtype))
    geometry = ConvGeometry((3, 3))
    for channels, outputs in ((5, 20), (18, 3), (3, 16)):
        x, weight = torch.randn(3, channels, 7, 6, generator=generator), torch.randn(outputs, channels, 3, 3)
        gradient = torch.randn(3, outputs, 7, 6, generator=generator)
        image, other = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, gradient))
        bias, bits = (
            torch.randn(outputs, generator=generator),
            torch.zeros(3 * 7 * 6 * outputs // 16, dtype=torch.uint8),
        )
        for tile in winograd.KERNELS:
            for activation in ("none", "relu", "adjacent"):
                kept = bits if activation == "adjacent" and outputs % winograd.PAIRED == 0 else None
                finish = winograd.Finish(bias, other, 0.5, -1.0, activation, kept)
                winograd.convolve(image, weight, geometry, (7, 6), finish, tile)
            circular = ConvGeometry((3, 3), padding_mode="circular")
            winograd.convolve(image, weight, circular, (7, 6), tile=tile)
        winograd.gradients(image, other, weight, geometry, True, True)
    fingerprint = binding.kernel("fingerprint", torch.device("cpu"))
    for size in (0, 3, 1000, 300_001):
        data, result = torch.randn(size + 1, generator=generator), torch.zeros(1, dtype=torch.int64)
        address = data.data_ptr()
        fingerprint(result.data_ptr(), size, address, 4 * size, address + 4, 4 * (size // 2), 0, 0, 0, 0)
    layer = fastlip.nn.CPLLinear(70, 50)
    for _ in range(3):  # from the second step on a vector is kept
        layer(torch.randn(2, 70, generator=generator))
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.randn(2, 3, 4, 6, generator=generator).to(dtype).requires_grad_()
        fastlip.ops.pixel_unshuffle(x, 2, backend="native").sum().backward()


def encode(calls: list[Call]) -> Iterator[bytes]:
    """The file that replay.cpp reads."""

    def integers(*values: int) -> bytes:
        return struct.pack(f"<{len(values)}q", *values)

    yield integers(len(calls))
    for call in calls:
        yield integers(len(call.kernel)) + call.kernel.encode() + integers(len(call.buffers))
        for buffer in call.buffers:
            yield integers(len(buffer.before), buffer.address % PAGE) + buffer.before
        yield integers(len(call.arguments))
        for argument in call.arguments:
            index, value = position(argument, call.buffers)
            yield integers(index) + (struct.pack("<d", value) if isinstance(value, float) else integers(value))


def position(argument: float, buffers: list[Buffer]) -> tuple[int, float]:
    """Which buffer an argument points into, and where; -1 and the value for a number."""
    if isinstance(argument, int):
        for index, buffer in enumerate(buffers):
            if buffer.address <= argument < buffer.address + len(buffer.before):
                return index, argument - buffer.address
    return -1, argument


def build(folder: Path) -> Path:
    """The program, linked statically: it needs no library of the other machine."""
    setup = load_setup()
    compiler = "g++" if platform.machine() == "aarch64" else COMPILER
    sources = ["csrc/common/runtime.cpp", *setup.sources("_cpu.cpp"), "tools/aarch64/replay.cpp"]

    def compile_one(source: str) -> str:
        target = folder / f"{Path(source).name}.o"
        subprocess.run([compiler, *setup.FLAGS.split(), "-Werror", "-c", source, "-o", target], cwd=ROOT, check=True)
        return str(target)

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    program = folder / "replay"
    subprocess.run([compiler, "-static", *objects, "-o", program], check=True)
    return program


def load_setup() -> Any:
    """setup.py as a module: the flags and sources of the build."""
    spec = importlib.util.spec_from_file_location("fastlip_setup", ROOT / "setup.py")
    if spec is None or spec.loader is None:
        raise SystemExit("setup.py cannot be read")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def difference(buffer: Buffer, found: bytes) -> float:
    """The largest difference from the recorded buffer, in roundings of its largest entry; infinite for other bits."""
    import torch

    if found == buffer.after:
        return 0.0
    if not (buffer.dtype.is_floating_point or buffer.dtype.is_complex):
        return float("inf")
    expected, got = (torch.frombuffer(bytearray(part), dtype=buffer.dtype) for part in (buffer.after, found))
    if buffer.dtype.is_complex:
        expected, got = torch.view_as_real(expected), torch.view_as_real(got)
    eps = torch.finfo(expected.dtype).eps
    expected, got = expected.double(), got.double()
    # What no kernel writes may hold anything, NaN too; it is the same on both sides.
    same = (expected == got) | (expected.isnan() & got.isnan())
    written = expected[~expected.isnan()].abs()
    scale = max(written.max().item() if len(written) else 0.0, torch.finfo(torch.float64).tiny)
    return torch.where(same, 0.0, (expected - got).abs()).amax().item() / (scale * eps)


def compare(calls: list[Call], results: bytes) -> list[str]:
    """What is wrong, a line for each call that disagrees; prints the largest difference of each kernel."""
    import torch

    problems, worst, start = [], Counter(), 0
    for call in calls:
        for buffer in call.buffers:
            found = results[start : start + len(buffer.after)]
            start += len(buffer.after)
            error = difference(buffer, found)
            worst[call.kernel] = max(worst[call.kernel], error)
            allowed: float = ROUNDINGS
            if call.kernel in ESTIMATES and buffer.dtype == torch.float64:
                allowed = ESTIMATES[call.kernel] / torch.finfo(torch.float64).eps
            if not error <= allowed:
                problems.append(f"{call.kernel}: {call.case}: {buffer.dtype} differs by {error:.3g} roundings")
    counts = Counter(call.kernel for call in calls)
    for kernel in sorted(counts):
        print(f"{kernel:<44} {counts[kernel]:>3} calls, largest difference {worst[kernel]:.2g} roundings")
    return problems


def check(limit: int, match: str) -> list[str]:
    """Records, builds and replays; returns what is wrong."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = build(folder)
        emulate = [] if platform.machine() == "aarch64" else [EMULATOR]
        listed = subprocess.run([*emulate, program, "--list"], capture_output=True, text=True, check=True)
        recorder = record(limit, match)
        (folder / "calls").write_bytes(b"".join(encode(recorder.calls)))
        subprocess.run([*emulate, program, folder / "calls", folder / "results"], check=True)
        problems = compare(recorder.calls, (folder / "results").read_bytes())
    called = {call.kernel for call in recorder.calls}
    missing = [kernel for kernel in listed.stdout.split() if kernel.startswith(match) and kernel not in called]
    return problems + [f"{kernel}: never called" for kernel in missing]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--require", action="store_true", help="fail if the tools are missing")
    parser.add_argument("--calls", type=int, default=4, help="calls of each kernel that are replayed")
    parser.add_argument("--match", default="", help="only ops whose name begins with this text")
    options = parser.parse_args()
    tools = () if platform.machine() == "aarch64" else (COMPILER, EMULATOR)
    if absent := [tool for tool in tools if shutil.which(tool) is None]:
        print(
            f"AARCH64 NOT CHECKED: {' and '.join(absent)} not found (apt-get install"
            " g++-aarch64-linux-gnu qemu-user-static)",
            file=sys.stderr,
        )
        sys.exit(1 if options.require else 0)
    if platform.machine() != "aarch64" and os.environ.get("ATEN_CPU_CAPABILITY") != "default":
        # torch reads the variable when it is imported.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **BASELINE})
    if problems := check(options.calls, options.match):
        sys.exit("\n".join(problems))
    print("every kernel agrees on aarch64")


if __name__ == "__main__":
    main()
