"""Where autocast must not lower the precision: parametrizations run in at least float32."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def autocasts(device: torch.device) -> bool:
    """Whether operations on this device run under autocast; meta tensors know none."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off on this device; nothing where it is off already, which costs less."""
    return torch.autocast(device.type, enabled=False) if autocasts(device) else nullcontext()
