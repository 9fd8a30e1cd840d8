"""What the main loops of the Triton kernels consist of, and the bound that issuing them sets.

    python tools/gpu/fake_cuda.py sass [--networks NAME ...] [--target 90] [--match TEXT]

For each launch of the networks' steps with a product: the instructions of its longest loop, how many of them are
products of tensor cores (HMMA; HGMMA of warp groups) or of the ordinary units (FFMA, DFMA), barriers, and loads.
A scheduler issues one instruction per clock, so a loop of n instructions that holds f flops per warp cannot exceed
f / n flops per clock and scheduler: ``bound`` is that, for 4 schedulers on each of 132 multiprocessors at 1.755 GHz.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from typing import Any

import launches

SCHEDULERS, CLOCK = 4 * 132, 1.755e9
# Flops of one instruction, for its warp.
FLOPS = {"FFMA": 64, "DFMA": 64}
# Rows, columns and terms of tensor cores' products, where they are written without separators.
SHAPES = {"884": (8, 8, 4), "1684": (16, 8, 4), "1688": (16, 8, 8), "16816": (16, 8, 16), "16832": (16, 8, 32)}
KINDS = ("HGMMA", "HMMA", "DMMA", "FFMA", "DFMA", "BAR", "WARPGROUP", "LDG", "LDGSTS")


def loops(text: str) -> list[list[str]]:
    """The bodies of a disassembly's loops, the longest first."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(re.sub(r"^@!?U?P\d+\s+", "", found[1]))
    bodies = []
    for index, instruction in enumerate(instructions):
        jump = re.search(r"BRA.*`\((\.L_x_\d+)\)", instruction)
        if jump and labels.get(jump[1], index) < index:
            bodies.append(instructions[labels[jump[1]] : index + 1])
    return sorted(bodies, key=len, reverse=True)


def flops(instruction: str) -> int:
    """Operations of one instruction, for its warp: a quarter of a warp group's product."""
    name = instruction.split()[0]
    if found := re.match(r"(HGMMA|HMMA|DMMA)\.(?:(\d+)x(\d+)x(\d+)|(\d+))", name):
        shape = SHAPES.get(found[5], (0, 0, 0)) if found[5] else tuple(map(int, found.group(2, 3, 4)))
        return 2 * shape[0] * shape[1] * shape[2] // (4 if found[1] == "HGMMA" else 1)
    return FLOPS.get(name.split(".")[0], 0)


def summary(body: list[str], products: int = 1) -> dict[str, Any]:
    """What a loop consists of. products: of tensor cores for one of the program, 3 in 3xTF32."""
    kinds = Counter(instruction.split()[0].split(".")[0] for instruction in body)
    bound = sum(map(flops, body)) / products / len(body) * SCHEDULERS * CLOCK / 1e12
    counts = {name: kinds[name] for name in KINDS if kinds[name]}
    return {"instructions": len(body), **counts, "bound": f"{bound:.1f} TFLOP/s"}


def disassembled(cubin: bytes) -> str:
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> int:
    import steps

    parser = argparse.ArgumentParser(prog="sass", description=__doc__.partition("\n")[0])
    parser.add_argument("--networks", nargs="*", default=list(steps.METHODS))
    parser.add_argument("--target", type=int, default=90, choices=launches.TARGETS)
    parser.add_argument("--match", default="", help="only launches whose name contains this text")
    options = parser.parse_args()
    for launch in launches.all_launches(options.networks, options.target):
        if options.match not in launch.name() or "PRECISION" not in dict(launch.constants):
            continue
        binary = launches.binary(launch, options.target)
        bodies = loops(disassembled(binary.asm["cubin"]))
        print(launch.name())
        products = 3 if dict(launch.constants)["PRECISION"] == "tf32x3" else 1
        print(f"  {summary(bodies[0], products)}" if bodies else "  no loop")
    return 0


if __name__ == "__main__":
    sys.exit(main())
