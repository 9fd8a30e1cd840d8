"""Where a step's launches are asked for: lines of the package, those of a backward under the line of its forward."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
import watch

_BACKWARD = "backward of "


@contextlib.contextmanager
def remembered() -> Iterator[None]:
    """Lets autograd remember which line made each node of the graph, as ``detect_anomaly`` does."""
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        yield


def place_of_launch() -> str:
    """The line of the package on the stack; in a backward of torch's own that of the forward."""
    found = watch.place()
    node = torch._C._current_autograd_node()
    if node is None or found.startswith("fastlip/"):
        return found
    lines = [line for line in node.metadata.get("traceback_", []) if f'File "{watch.PACKAGE}' in line]
    if not lines:
        return f"{_BACKWARD}{node.name()}"
    name, number = lines[-1].split('"')[1], lines[-1].split("line ")[1].split(",")[0]
    return f"{_BACKWARD}{Path(name).relative_to(watch.ROOT)}:{number}"
