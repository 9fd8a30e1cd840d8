"""Compiles every GPU kernel ahead of time, without a GPU, and reports registers, spills and shared memory.

Triton kernels are those named in AOT by fastlip/kernels/*/triton_kernels.py, compiled for sm_80 and sm_90 unless
--targets names others (what networks launch: tools/gpu/launches.py, for sm_86 too); CUDA
sources are csrc/*/*_cuda.cu, compiled for sm_80 and sm_90a. Exits with 1 if a kernel spills, keeps an array in
local memory or needs more shared memory than a block can have.

    python tools/check_kernels.py [--only triton|cuda] [--match TEXT] [--targets 86 120] [--report FILE]
"""

from __future__ import annotations

import argparse
import importlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TRITON_TARGETS = (80, 90)
CUDA_TARGETS = ("sm_80", "sm_90a")
# Bytes that a block can ask for, by compute capability.
SHARED_LIMIT = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}


class Usage(NamedTuple):
    """What one kernel needs on one target, in bytes but for the registers of a thread."""

    kernel: str
    target: str
    registers: int
    local: int
    shared: int

    def problem(self) -> str:
        """What is wrong with these figures; empty if nothing is."""
        limit = SHARED_LIMIT[int(re.sub(r"\D", "", self.target))]
        found = [f"{self.local} bytes in local memory"] if self.local > 0 else []
        found += [f"{self.shared} bytes of shared memory, allowed {limit}"] if self.shared > limit else []
        return "; ".join(found)


def triton_ops() -> list[str]:
    """The ops that have Triton kernels."""
    return [path.parent.name for path in sorted(ROOT.glob("fastlip/kernels/*/triton_kernels.py"))]


def triton_compilations(op: str) -> list[Any]:
    """What to compile of an op: its list AOT."""
    return importlib.import_module(f"fastlip.kernels.{op}.triton_kernels").AOT


def triton_usage(op: str, index: int, capability: int, **options: Any) -> Usage:
    """Compiles one entry of an op's AOT list to machine code and reads that code's resources."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastlip.kernels.common import triton_launch

    compilation = triton_compilations(op)[index]
    kernel, constants = compilation.kernel, compilation.constants
    # In the order of the arguments: the compiler takes them from the signature.
    signature = {name: "constexpr" if name in constants else compilation.signature[name] for name in kernel.arg_names}
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, (name, kind) in enumerate(signature.items())
        if kind[0] == "*" or (name in compilation.divisible and name not in constants)
    }
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": compilation.num_warps, **triton_launch.OPTIONS, **options},
    )
    resources = machine_code_resources(compiled.asm["cubin"])
    return Usage(
        f"{op}: {compilation.name()}",
        f"sm_{capability}",
        resources["REG"],
        resources["STACK"] + resources["LOCAL"],
        compiled.metadata.shared,
    )


def machine_code_resources(cubin: bytes) -> dict[str, int]:
    """REG, STACK, SHARED, LOCAL and more, as cuobjdump reads them."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", text)}


def find_nvcc() -> str | None:
    """Where nvcc is, or None."""
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def cuda_sources() -> list[Path]:
    """Every CUDA source."""
    return sorted((ROOT / "csrc").glob("*/*_cuda.cu"))


def cuda_usage(nvcc: str, source: Path, target: str, *options: str) -> list[Usage]:
    """Compiles one CUDA source for one target and reads what ptxas says of each kernel."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            nvcc,
            "-std=c++20",
            "-O3",
            f"-I{ROOT / 'csrc'}",
            f"-arch={target}",
            "-cubin",
            "-Xptxas",
            "-v",
        ]
        command += [*options, str(source), "-o", f"{folder}/out.cubin"]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{source.name} for {target}: nvcc failed\n{done.stderr}")
    return list(parse_ptxas(done.stderr, target))


def parse_ptxas(text: str, target: str) -> Iterator[Usage]:
    """Every kernel in the output of ``nvcc -Xptxas -v``."""
    kernels = re.split(r"ptxas info\s+: Compiling entry function ", text)[1:]
    for section in kernels:
        numbers = [
            int(value) for value in re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", section)
        ]
        registers = re.search(r"Used (\d+) registers", section)
        shared = re.search(r"(\d+) bytes smem", section)
        if registers is None or len(numbers) != 3:
            raise SystemExit(f"ptxas wrote something unexpected:\n{section}")
        name = demangle(section.split("'")[1])
        yield Usage(name, target, int(registers[1]), sum(numbers), int(shared[1]) if shared else 0)


def demangle(name: str) -> str:
    """A kernel's name as in its source, without namespaces and arguments."""
    filter_path = shutil.which("c++filt")
    if filter_path is None:
        return name
    plain = subprocess.run([filter_path, name], capture_output=True, text=True).stdout.strip()
    return re.sub(r"\(anonymous namespace\)::|fastlip::|^void |\(.*", "", plain)


def all_usages(only: str | None, match: str, targets: Sequence[int] = TRITON_TARGETS) -> Iterator[Usage]:
    """Every kernel on every target whose line contains match."""
    if only != "cuda":
        jobs = [
            (op, index, capability)
            for op in triton_ops()
            for index, entry in enumerate(triton_compilations(op))
            if match in f"{op}: {entry.name()}"
            for capability in targets
        ]
        # Triton's compiler holds the interpreter lock, hence processes; started afresh, as torch has threads.
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            yield from pool.map(triton_usage, *zip(*jobs, strict=True), chunksize=4) if jobs else ()
    if only != "triton":
        nvcc = find_nvcc()
        if nvcc is None:
            raise SystemExit("no nvcc found on PATH or in /usr/local/cuda/bin: use --only triton")
        pairs = [(source, target) for source in cuda_sources() for target in CUDA_TARGETS]
        with ThreadPoolExecutor(2) as pool:
            for usages in pool.map(lambda pair: cuda_usage(nvcc, *pair), pairs):
                yield from (usage for usage in usages if match in usage.kernel)


def main() -> int:
    """Prints the table; 1 if a kernel has a problem or none was found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=("triton", "cuda"))
    parser.add_argument("--match", default="", help="only kernels whose line contains this text")
    parser.add_argument("--targets", nargs="*", type=int, default=TRITON_TARGETS, help="for Triton's kernels")
    parser.add_argument("--report", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    usages = list(all_usages(options.only, options.match, options.targets))
    width = max((len(usage.kernel) for usage in usages), default=0)
    lines = [f"{'kernel':{width}} target  registers  local  shared"]
    for usage in usages:
        numbers = f"{usage.target:7} {usage.registers:9} {usage.local:6} {usage.shared:7}"
        lines.append(f"{usage.kernel:{width}} {numbers}  {usage.problem()}".rstrip())
    problems = sum(bool(usage.problem()) for usage in usages)
    lines.append(f"{len(usages)} kernels compiled, {problems} with a problem")
    print("\n".join(lines))
    if options.report:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text("\n".join([*versions(options.only), "", *lines, ""]))
    return 1 if problems or not usages else 0


def versions(only: str | None) -> Iterator[str]:
    """What a report must say to be repeated."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    yield f"commit {commit.stdout.strip()}"
    if only != "cuda":
        import triton

        yield f"triton {triton.__version__}"
    nvcc = find_nvcc()
    if only != "triton" and nvcc:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
        yield "nvcc " + re.findall(r"V([\d.]+)", text)[0]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
