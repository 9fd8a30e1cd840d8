"""A CUDA device that computes nothing: which copies spectral_conv makes of images in sixteen bits.

tests/gpu/test_fake_device.py runs this file where that device is.
"""

import os
import sys
from pathlib import Path

import pytest
import torch

from fastlip import ops
from fastlip.kernels.common.fourier import count_frequencies

pytest.importorskip("triton", minversion="3.6")

ACTIVE = os.environ.get("FASTLIP_FAKE_CUDA") == "1"
inside = pytest.mark.skipif(not ACTIVE, reason="runs in the process that tests/gpu/test_fake_device.py starts")
if ACTIVE:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "gpu"))
    import watch

LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every other row": lambda x: torch.cat((x, x), 2)[:, :, ::2],
}
COPIES = "_to_copy", "clone", "copy_"


def copies(side, dtype, layout):
    """Numbers of copies of images (4, 6, side, side) in the forward and in the backward of spectral_conv."""
    found = []
    with watch.gpu() as device:
        x = LAYOUTS[layout](torch.randn(4, 6, side, side, dtype=dtype)).requires_grad_()
        Q = torch.randn(count_frequencies((side, side)), 6, 6, dtype=torch.complex64, requires_grad=True)
        ops.spectral_conv(x, Q, backend="triton")  # makes tables
        with device.counting() as counts:
            y = ops.spectral_conv(x, Q, backend="triton")
        found.append(sum(counts.by_name[name] for name in COPIES))
        with device.counting() as counts:
            torch.autograd.grad(y, [x, Q], torch.empty_like(y))
        found.append(sum(counts.by_name[name] for name in COPIES))
    return found


@inside
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("side", [16, 32, 48])
def test_images_are_copied_at_most_once(side, dtype, layout):
    """To float32 for torch.fft, at sides above 32; for the kernels where no memory format has the images' strides."""
    converted = side > 32 and dtype != torch.float32
    gradients = int(converted)
    images = int(converted or layout == "every other row")
    assert copies(side, dtype, layout) == [images, images + gradients]
