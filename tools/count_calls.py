"""Counts the Python calls inside the package that one public call makes, and the files they lie in.

Few calls in few files are easy to follow and cheap. Calls of torch and of the standard library do not count, nor do
calls of compiled code. Each measured call is made once before it is counted, so that imports do not count either.

    python tools/count_calls.py [--list NAME]
"""

from __future__ import annotations

import argparse
import collections
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
from torch import nn

import fastlip
from fastlip import nn as lip

PACKAGE = Path(fastlip.__file__).resolve().parent


def count(call: Callable[[], object]) -> collections.Counter[tuple[str, str]]:
    """How often each function of the package, (file, name), is entered during one call."""
    entered: collections.Counter[tuple[str, str]] = collections.Counter()

    def note(frame: FrameType, event: str, _: object) -> None:
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(str(PACKAGE)):
            entered[str(Path(path).relative_to(PACKAGE)), frame.f_code.co_name] += 1

    call()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return entered


def calls() -> dict[str, Callable[[], object]]:
    """The measured calls by name."""
    torch.manual_seed(0)
    x = torch.rand(2, 8, 8, 8)
    cayley, aol, sll = lip.CayleyConv2d(8, 8, 3), lip.AOLConv2d(8, 8, 3), lip.SLLConv2d(8, 8, 3)
    network = fastlip.models.lip_conv_net("aol", width=8, image_size=8, in_channels=1, layers_per_block=1).eval()
    images, labels = torch.rand(500, 1, 8, 8), torch.arange(500) % 10
    batches = list(zip(images.split(100), labels.split(100), strict=True))
    modules = sum(not isinstance(module, nn.Sequential) for module in network.modules())
    return {
        "CayleyConv2d, forward in training": lambda: cayley(x),
        "AOLConv2d.weight": lambda: aol.weight,
        "SLLConv2d, forward in training": lambda: sll(x),
        f"certify, {modules} modules": lambda: fastlip.certify(network, [(images[:8], labels[:8])]),
        f"certify, {modules} modules, 5 batches": lambda: fastlip.certify(network, batches),
    }


def main() -> None:
    """Prints a line for each call; with --list every function that the named call enters."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", default="", metavar="NAME", help="also list the functions of calls with this text")
    options = parser.parse_args()
    for name, call in calls().items():
        entered = count(call)
        files = {file for file, _ in entered}
        print(f"{name:40} {entered.total():6} calls in {len(files):3} files")
        if options.list and options.list in name:
            for (file, function), times in sorted(entered.items()):
                print(f"    {times:4}  {file}: {function}")


if __name__ == "__main__":
    main()
