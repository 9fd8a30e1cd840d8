"""Compiles the Triton launches that networks really make, and reports registers, spills and shared memory.

    python tools/gpu/fake_cuda.py launches [--networks NAME ...] [--targets 80 86 89 90 120] [--verbose]

Each network (S, 256 images of 32 x 32) trains one step and is evaluated on a CUDA device that computes nothing, in
float32, and a small one in float64. Triton specialises each kernel by the arguments of its launches (1, multiples of
16, 64 bits) and compiles it for each target as it would on the device; launches that it does not tell apart are
compiled once. Exits with 1 if a kernel does not compile, spills, or takes more shared memory than a block of the
target has.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tools"), str(Path(__file__).parent)]
TARGETS = (80, 86, 89, 90, 120)
DEFAULT = (86, 90)  # least shared memory; the only one with warp-group products


class Argument(NamedTuple):
    """An argument of a launch: a tensor's type and whether it is aligned to 16 bytes, or a number."""

    dtype: str
    value: Any


class Recorded(NamedTuple):
    """A launch without its tensors: what its compilation depends on."""

    module: str
    kernel: str
    arguments: tuple[Argument, ...]
    constants: tuple[tuple[str, Any], ...]
    num_warps: int

    def name(self) -> str:
        first = next((argument.dtype for argument in self.arguments if argument.dtype), "")
        numbers = " ".join(str(argument.value) for argument in self.arguments if not argument.dtype)
        constants = ", ".join(f"{key}={value}" for key, value in self.constants)
        return f"{self.module.split('.')[2]}.{self.kernel}({first}, {constants}; {numbers})"


def recorded(launch: Any) -> Recorded:
    """A launch of ``watch.py`` by what its compilation depends on."""
    return Recorded(
        launch.kernel.fn.__module__,
        launch.kernel.__name__,
        tuple(
            _argument(value, parameter.is_constexpr, not parameter.do_not_specialize)
            for value, parameter in zip(launch.arguments, launch.kernel.params, strict=False)
        ),
        tuple(sorted((key, _constant(value)) for key, value in launch.constants.items())),
        launch.num_warps,
    )


def _argument(value: Any, is_constant: bool, is_specialised: bool = True) -> Argument:
    """One number for all that Triton does not tell apart."""
    if hasattr(value, "data_ptr"):
        return Argument(str(value.dtype).removeprefix("torch."), value.data_ptr() % 16 == 0)
    if is_constant or isinstance(value, (bool, str)):
        return Argument("", value)
    if isinstance(value, float):
        return Argument("", 0.5)
    if value == 1 and is_specialised:
        return Argument("", 1)
    aligned = value % 16 == 0 and is_specialised
    return Argument("", (2**31 if abs(value) >= 2**31 else 0) + (32 if aligned else 33))


def _constant(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool)) else str(value)


def launches_of(name: str, dtype: str = "float32", target: int = 90, **sizes: Any) -> set[Recorded]:
    """The different launches of a network's step and evaluation on a target."""
    import steps
    import torch
    import watch
    from evaluation import evaluation_of

    count, side = sizes.pop("images", 256), sizes.get("image_size", 32)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(getattr(torch, dtype))
        with watch.gpu(extension=False, capability=divmod(target, 10)) as device:
            model, batch = steps.network(name, **sizes), steps.batch(count, side)
            step, found = steps.training_step(model, *batch), set()
            for run in (step, evaluation_of(model, batch[0])):
                model.train(run is step)
                with device.counting() as counts:
                    run()
                found |= {recorded(launch) for launch in counts.triton}  # while tensors have addresses
            return found
    finally:
        torch.set_default_dtype(default)


def sizes_of(name: str, dtype: str) -> dict[str, Any]:
    """A network's options: size S, or in float64 a small one."""
    import steps

    if dtype == "float32":
        return {"image_size": 32}
    small = {"images": 8, "width": 16, "image_size": 16}
    return small | ({"depth": 1} if name in steps.OTHERS else {"layers_per_block": 1})


def _sorted_launches(name: str, dtype: str, target: int) -> list[Recorded]:
    return sorted(launches_of(name, dtype, target, **sizes_of(name, dtype)), key=str)


def all_launches(networks: list[str], target: int, run: Callable[..., Any] = map) -> dict[Recorded, str]:
    """Those of every network on a target, with the first that makes it; ``run`` is map, or that of a pool."""
    runs = [(name, dtype) for name in networks for dtype in ("float32", "float64")]
    found: dict[Recorded, str] = {}
    results = run(partial(_sorted_launches, target=target), *zip(*runs, strict=True))
    for names, launches in zip(runs, results, strict=True):
        for launch in launches:
            found.setdefault(launch, " ".join(names))
    return found


class _Tensor:
    """What Triton asks a tensor when it chooses a specialisation."""

    def __init__(self, dtype: Any, aligned: bool):
        self.dtype, self.aligned = dtype, aligned

    def data_ptr(self) -> int:
        return 1 << 20 if self.aligned else (1 << 20) + 4


class _Driver:
    """A GPU for which Triton compiles, where there is none."""

    def __init__(self, capability: int):
        from triton.backends.compiler import GPUTarget

        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return self.target.arch

    def get_current_stream(self, device: Any = None) -> int:
        return 0

    def get_current_target(self) -> Any:
        return self.target


def binary(launch: Recorded, capability: int) -> Any:
    """Triton's compilation of a launch for a target."""
    import torch
    import triton
    import triton.language as tl

    from fastlip.kernels.common import triton_launch

    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    arguments = [
        _Tensor(getattr(torch, argument.dtype), argument.value) if argument.dtype else argument.value
        for argument in launch.arguments
    ]
    kinds = {str(kind): kind for kind in (tl.int32, tl.int64, tl.float32, tl.float64)}
    constants = {key: kinds.get(value, value) for key, value in launch.constants}
    triton.runtime.driver.set_active(_Driver(capability))
    options = {"num_warps": launch.num_warps, **triton_launch.OPTIONS}
    return kernel.warmup(*arguments, grid=(1,), **constants, **options)


def compiled(launch: Recorded, capability: int) -> Any:
    """The usage of a launch on a target (a ``check_kernels.Usage``), or why it does not compile."""
    import check_kernels

    try:
        result = binary(launch, capability)
        resources = check_kernels.machine_code_resources(result.asm["cubin"])
    except Exception as error:  # whatever the compiler raises is what is reported
        return f"{launch.name()} for sm_{capability}: {type(error).__name__}: {str(error)[-300:]}"
    return check_kernels.Usage(
        launch.name(),
        f"sm_{capability}",
        resources["REG"],
        resources["STACK"] + resources["LOCAL"],
        result.metadata.shared,
    )


def pool() -> ProcessPoolExecutor:
    """A process on each core: Triton's compiler holds Python's lock. Started afresh, as torch has threads."""
    import fake_cuda

    return ProcessPoolExecutor(mp_context=get_context("spawn"), initializer=fake_cuda.load)


def main() -> int:
    import steps

    parser = argparse.ArgumentParser(prog="launches", description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="+", default=list(steps.NETWORKS), choices=steps.NETWORKS)
    parser.add_argument("--targets", nargs="+", type=int, default=list(DEFAULT), choices=TARGETS)
    parser.add_argument("--verbose", action="store_true", help="list every kernel, not only those with a problem")
    options = parser.parse_args()
    bad = 0
    with pool() as workers:
        jobs = [
            (launch, target, where)
            for target in options.targets
            for launch, where in all_launches(options.networks, target, workers.map).items()
        ]
        launches, targets, places = zip(*jobs, strict=True)
        usages = list(workers.map(compiled, launches, targets, chunksize=4))
    for launch, target, where, usage in zip(launches, targets, places, usages, strict=True):
        problem = usage if isinstance(usage, str) else usage.problem()
        bad += bool(problem)
        if isinstance(usage, str):
            print(f"{usage}  [{where}]")
        elif problem or options.verbose:
            numbers = f"{usage.registers} registers, {usage.local} local, {usage.shared} shared"
            print(f"sm_{target} {launch.name()} [{where}]: {numbers}  {problem}")
    print(f"{len(jobs)} launches compiled for {len(options.targets)} targets, {bad} with a problem")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
