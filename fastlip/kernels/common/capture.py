"""Whether a CUDA graph is being captured: its memory may not be kept, and the host must neither wait nor upload."""

from __future__ import annotations

import torch


def is_capturing(device: torch.device) -> bool:
    """Whether the device's current stream is being captured."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
