"""Counts the Python calls inside the package that one public call makes, and the files that they lie in.

Few calls in few files are easy to follow and cheap. ``BUDGETS`` says how many a call may take. Calls of torch, of the
standard library and of compiled code do not count; a generator counts once, however many items it yields. Each call
is made once before it is counted, so that imports do not count either.

    python tools/count_calls.py [--check] [--list NAME]
"""

from __future__ import annotations

import argparse
import collections
import sys
from collections.abc import Callable
from inspect import CO_GENERATOR
from pathlib import Path
from types import CodeType, FrameType
from typing import NamedTuple

import torch
from torch import nn

import fastlip
from fastlip import nn as lip

PACKAGE = Path(fastlip.__file__).resolve().parent
# (channels, side of the image): kernels run at the larger one, and at the smaller one torch's own operators.
SIZES = (8, 8), (64, 32)
CAYLEY, AOL, SLL = "CayleyConv2d, forward in training", "AOLConv2d.weight", "SLLConv2d, forward in training"
SLL_KERNELS = f"{SLL}, by kernels"
CERTIFY = "certify, digits network of 19 modules"
CERTIFY_FIVE = f"{CERTIFY}, 5 batches"


class Budget(NamedTuple):
    """The largest numbers of calls and of files; infinite where there is no limit."""

    calls: float = float("inf")
    files: float = float("inf")


BUDGETS = {
    CAYLEY: Budget(25, 6),
    AOL: Budget(12, 5),
    SLL: Budget(35, 7),
    SLL_KERNELS: Budget(60, 14),
    CERTIFY: Budget(1200),
    CERTIFY_FIVE: Budget(2870),
}
Entered = collections.Counter[tuple[str, str]]


def count(call: Callable[[], object]) -> Entered:
    """Returns how often each function of the package, (file, name), is entered during one call."""
    entered: Entered = collections.Counter()
    starts: dict[CodeType, int] = {}

    def note(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(str(PACKAGE)):
            return
        # Every item of a generator is an event; only the first one is at its start.
        if code.co_flags & CO_GENERATOR and starts.setdefault(code, frame.f_lasti) != frame.f_lasti:
            return
        entered[str(Path(code.co_filename).relative_to(PACKAGE)), code.co_name] += 1

    call()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return entered


def calls() -> dict[str, list[Callable[[], object]]]:
    """Returns the measured calls by name, each at every size at which it is measured."""
    torch.manual_seed(0)
    found: dict[str, list[Callable[[], object]]] = {name: [] for name in BUDGETS}
    for channels, side in SIZES:
        x = torch.rand(2, channels, side, side)
        cayley, aol, sll = (kind(channels, channels, 3) for kind in (lip.CayleyConv2d, lip.AOLConv2d, lip.SLLConv2d))
        found[CAYLEY].append(lambda layer=cayley, x=x: layer(x))
        found[AOL].append(lambda layer=aol: layer.weight)
        found[SLL if side < 32 else SLL_KERNELS].append(lambda layer=sll, x=x: layer(x))
    network = fastlip.models.lip_conv_net("aol", image_size=8, in_channels=1, layers_per_block=1).eval()
    modules = sum(not isinstance(module, nn.Sequential) for module in network.modules())
    if f"{modules} modules" not in CERTIFY:
        raise ValueError(f"the digits network has {modules} modules: rename {CERTIFY!r}")
    batches = [(torch.rand(64, 1, 8, 8), torch.arange(64) % 10) for _ in range(5)]
    found[CERTIFY].append(lambda: fastlip.certify(network, batches[:1]))
    found[CERTIFY_FIVE].append(lambda: fastlip.certify(network, batches))
    return found


def files_of(entered: Entered) -> set[str]:
    """Returns the files in which the counted functions lie."""
    return {file for file, _ in entered}


def measured() -> dict[str, list[Entered]]:
    """Returns what each call enters, at every size."""
    return {name: [count(call) for call in at_sizes] for name, at_sizes in calls().items()}


def excess(name: str, at_sizes: list[Entered]) -> str:
    """Says by how much a call exceeds its budget at any of its sizes; empty if it does not."""
    budget = BUDGETS[name]
    most, files = max(e.total() for e in at_sizes), max(len(files_of(e)) for e in at_sizes)
    if most <= budget.calls and files <= budget.files:
        return ""
    limit = f"{budget.calls} calls" + (f" in {budget.files} files" if budget.files < float("inf") else "")
    return f"{name}: {most} calls in {files} files, allowed are {limit}"


def main() -> None:
    """Prints a line for each call; with --list every function that the named calls enter."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit with 1 if a call exceeds its budget")
    parser.add_argument("--list", default="", metavar="NAME", help="also list the functions of calls with this text")
    options = parser.parse_args()
    found = measured()
    for name, at_sizes in found.items():
        entered = max(at_sizes, key=collections.Counter.total)
        files = max(len(files_of(e)) for e in at_sizes)
        print(f"{name:50} {entered.total():6} calls in {files:3} files")
        if options.list and options.list in name:
            for (file, function), times in sorted(entered.items()):
                print(f"    {times:4}  {file}: {function}")
    over = [text for name, at_sizes in found.items() if (text := excess(name, at_sizes))]
    if options.check and over:
        sys.exit("\n".join(over))


if __name__ == "__main__":
    main()
