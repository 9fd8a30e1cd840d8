"""A CUDA device that computes nothing: what is read, copied and multiplied, and in which type.

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
    import steps
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


@inside
@pytest.mark.parametrize("side", [16, 32])
def test_tiles_that_read_the_same_are_neighbours(side):
    """Programs start in the order of their axis: along a second one, all frequencies would come in between."""
    with watch.gpu() as device:
        x, Q = (
            torch.randn(64, 96, side, side),
            torch.randn(count_frequencies((side, side)), 96, 96).to(torch.complex64),
        )
        with device.counting() as counts:
            ops.spectral_conv(x, Q, backend="triton")
    grids = {launch.kernel.__name__: launch.grid for launch in counts.triton}
    assert grids["_product_kernel"] == (len(Q) * 3,)  # tiles of 64 images and 32 channels
    assert {len(grid) for grid in grids.values()} == {1}


@pytest.fixture
def convolved(monkeypatch):
    """The types of what is convolved."""
    found, waits = [], watch.Device._waits

    def noted(self, name, args, kwargs):
        if name.startswith("convolution"):
            found.append(args[0].dtype)
        return waits(self, name, args, kwargs)

    monkeypatch.setattr(watch.Device, "_waits", noted)
    return found


@pytest.fixture(params=["tf32", "ieee"])
def cudnn(request):
    """The precision of cuDNN's convolutions."""
    get, put = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
    before = get("cuda", "conv")
    put("cuda", "conv", request.param)
    yield request.param
    put("cuda", "conv", before)


@inside
@pytest.mark.parametrize("name", ["AOLConv2d", "CPLConv2d", "SLLConv2d"])
def test_weights_are_never_convolved_in_tf32(name, cudnn, convolved):
    """Where cuDNN would round them to TF32 they are in float64, and no setting of cuDNN's is touched."""
    make, options = steps.CONVOLUTIONS[name]
    with watch.gpu():
        layer = make(8, 8, 3, **options, backend="reference").train()
        seen = []
        layer.supplied = lambda _, context: seen.append(context)
        layer(torch.randn(2, 8, 8, 8))
        layer.supplied = None
        convolved.clear()
        weights = layer.effective(*seen[0])
        sum(weight.abs().sum() for weight in weights).backward()
        assert torch.backends.cudnn.enabled
        assert torch._C._get_fp32_precision_getter("cuda", "conv") == cudnn
    assert set(convolved) == {torch.float64 if cudnn == "tf32" else torch.float32}
