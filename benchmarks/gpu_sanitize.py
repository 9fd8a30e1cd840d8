"""Runs every kernel of the CUDA extension at the small cases of its op, for compute-sanitizer to watch.

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 9 python benchmarks/gpu_sanitize.py

With --dry-run the reference computes the same on a CPU.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch

from fastlip import testing

SOURCES = Path(__file__).resolve().parents[1] / "csrc"
LARGEST = 20_000  # elements of a case: the tools slow kernels down a hundredfold


def ops() -> list[str]:
    """The ops that have kernels in CUDA C++."""
    return sorted(path.parent.name for path in SOURCES.glob("*/*_cuda.cu"))


def is_small(shapes: dict[str, tuple[int, ...]]) -> bool:
    return sum(torch.Size(shape).numel() for shape in shapes.values()) <= LARGEST


def names_of(op_name: str) -> set[str]:
    """The names of the op's CUDA kernels."""
    text = (SOURCES / op_name / f"{op_name}_cuda.cu").read_text()
    return set(re.findall(r"^FASTLIP_KERNEL\((\w+),", text, re.MULTILINE))


def run(op_name: str, backend: str, device: str) -> int:
    """Forward and backward of each small case, in each dtype that a kernel has; the number of them."""
    count = 0
    for name, case_name, case in testing.op_cases():
        if name != op_name or not is_small(case.shapes):
            continue
        for dtype in testing.dtypes_of(op_name):
            tensors = case.make(dtype, device)
            try:
                testing.outputs_and_gradients(lambda case=case, **t: testing.call(op_name, backend, case, t), tensors)
            except ValueError as error:
                if "cannot run here" not in str(error):
                    raise
                print(f"{op_name} {case_name} {dtype}: {error}")
                continue
            count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="by the reference, on a CPU")
    options = parser.parse_args()
    backend, device = ("reference", "cpu") if options.dry_run else ("native", "cuda")
    for op_name in ops():
        count = run(op_name, backend, device)
        print(f"{op_name}: {count} cases for {len(names_of(op_name))} kernels", flush=True)
        if not count:
            raise SystemExit(f"{op_name}: no case ran")


if __name__ == "__main__":
    main()
