"""A CUDA device that computes nothing: what is read, copied and multiplied, and in which type.

tests/gpu/test_fake_device.py runs this file where that device is.
"""

import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from fastlip import nn as lip
from fastlip import ops, testing
from fastlip.kernels.common.case import Case
from fastlip.kernels.common.dispatch import registered
from fastlip.kernels.common.fourier import count_frequencies
from fastlip.nn.base import LipschitzLayer

pytest.importorskip("triton", minversion="3.6")

ACTIVE = os.environ.get("FASTLIP_FAKE_CUDA") == "1"
inside = pytest.mark.skipif(not ACTIVE, reason="runs in the process that tests/gpu/test_fake_device.py starts")
if ACTIVE:
    ROOT = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(ROOT / "tools" / "gpu"), str(ROOT / "tests" / "nn")]
    import steps
    import watch
    from layer_catalog import every_layer

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
def test_tiles_of_a_product_that_read_the_same_are_neighbours(side):
    """Programs start in the order of their axis: along a second one, all frequencies would come in between."""
    with watch.gpu() as device:
        x, Q = (
            torch.randn(64, 96, side, side),
            torch.randn(count_frequencies((side, side)), 96, 96).to(torch.complex64),
        )
        with device.counting() as counts:
            ops.spectral_conv(x, Q, backend="triton")
    grids = [(launch.kernel.__name__, launch.grid) for launch in counts.triton]
    assert ("_product_kernel", (len(Q) * 3,)) in grids  # tiles of 64 images and 32 channels
    assert all(len(grid) == 1 for _, grid in grids)
    if side == 16:  # 260 numbers of a spectrum, then 256 pixels, of 64 * 96 channels, in tiles of 64 x 64
        assert [grid for name, grid in grids if name == "_transform_kernel"] == [(5 * 96,), (4 * 96,)]


@inside
@pytest.mark.parametrize("method", ["aol", "sll"])
def test_layers_of_one_shape_take_one_gram_launch(method):
    with watch.gpu() as device:
        model = steps.network(method, width=16, image_size=16)
        step = steps.training_step(model, *steps.batch(8, 16))
        step()
        with device.counting() as counts:
            step()
        layers = [layer for layer in model.modules() if isinstance(layer, LipschitzLayer)]
        shapes = {tuple(tuple(parameter.shape) for parameter in layer.parameters()) for layer in layers}
    of_gram = [launch for launch in counts.triton if "gram_rowsum" in launch.kernel.fn.__module__]
    forward = [launch for launch in of_gram if launch.kernel.__name__ == "_forward_kernel"]
    assert len(forward) == len(shapes) < len(layers)
    assert len(of_gram) == 2 * len(forward)


GET, PUT = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "addbmm", "addmv", "mv", "dot", "vdot", "linalg_matrix_exp"}
PRODUCTS |= {"_addmm_activation", "_cdist_forward", "_trilinear"}
SINGLE = torch.float32, torch.complex64


@pytest.fixture
def lowered(monkeypatch):
    """Products of single precision that are rounded to TF32, and convolutions without cuDNN; all convolved types."""
    found, convolved, waits = [], set(), watch.Device._waits

    def noted(self, name, args, kwargs):
        kind = "conv" if name.startswith("convolution") else "matmul" if name in PRODUCTS else ""
        if kind:
            dtypes = {tensor.dtype for tensor in watch.tensors(args)}
            if dtypes & set(SINGLE) and GET("cuda", kind) not in ("none", "ieee"):
                found.append(f"{name} at {watch.place()}")
            convolved.update(dtypes if kind == "conv" else ())
            if kind == "conv" and not torch.backends.cudnn.enabled:  # as inside torch.backends.cudnn.flags()
                found.append(f"{name} without cuDNN at {watch.place()}")
        return waits(self, name, args, kwargs)

    monkeypatch.setattr(watch.Device, "_waits", noted)
    return found, convolved


@pytest.fixture(params=["tf32", pytest.param("ieee", marks=pytest.mark.slow)])
def setting(request):
    """The precision of float32 products and of cuDNN's convolutions."""
    before = {kind: GET("cuda", kind) for kind in ("matmul", "conv")}
    for kind in before:
        PUT("cuda", kind, request.param)
    yield request.param
    for kind, value in before.items():
        PUT("cuda", kind, value)


def weights_and_gradients(layer, x):
    """Computes a layer's weights for x and their gradients, and applies nothing."""
    seen = []
    layer._supplied = lambda _, context: seen.append(context)
    layer(x)
    layer._supplied = None
    yield
    sum(weight.abs().sum() for weight in layer._effective(*seen[0])).backward()
    yield


@inside
@pytest.mark.parametrize("name", [*(steps.CONVOLUTIONS if ACTIVE else ()), *(steps.LINEARS if ACTIVE else ())])
@pytest.mark.parametrize("backend", ["auto", pytest.param("triton", marks=pytest.mark.slow), "reference"])
def test_weights_are_never_computed_in_tf32(name, backend, setting, lowered):
    """Forward and backward, whatever the settings of cuBLAS and cuDNN, which stay as they are."""
    make, options = steps.CONVOLUTIONS.get(name, (getattr(lip, name), {}))
    kernel, size = ((3,), (2, 32, 8, 8)) if name in steps.CONVOLUTIONS else ((), (2, 32))
    with watch.gpu(extension=backend == "auto"):
        layer = make(32, 32, *kernel, **options, backend="reference" if backend == "reference" else "auto").train()
        run = weights_and_gradients(layer, torch.randn(size))
        next(run)
        for found in lowered:
            found.clear()
        next(run)
        assert torch.backends.cudnn.enabled
        assert {GET("cuda", kind) for kind in ("matmul", "conv")} == {setting}
    found, convolved = lowered
    assert not found
    if name in ("AOLConv2d", "CPLConv2d", "SLLConv2d") and backend == "reference":
        assert convolved == {torch.float64 if setting == "tf32" else torch.float32}


def of_other_methods():
    """Every layer with a constrained weight that is in no budget; a few in every run."""
    if not ACTIVE:
        return [pytest.param("none", marks=pytest.mark.skip)]
    quick = "Sandwich", "ECO", "AOC", "BROConv3d"
    found = [name for name, (make, _) in every_layer().items() if isinstance(make(), LipschitzLayer)]
    found = [name for name in found if "native" not in name]  # kernels that are asked for by name
    return [pytest.param(name, marks=() if name.startswith(quick) else pytest.mark.slow) for name in found]


@inside
@pytest.mark.parametrize("setting", ["tf32"], indirect=True)
@pytest.mark.parametrize("name", of_other_methods())
def test_weights_of_no_layer_are_computed_in_tf32(name, setting, lowered):
    make, shape = every_layer()[name]
    with watch.gpu():
        run = weights_and_gradients(make().train(), torch.randn(2, *shape))
        next(run)
        lowered[0].clear()
        next(run)
    assert not lowered[0]


class OfWeights(torch.nn.Module):
    """A function of a layer's weights for ``torch.func.functional_call``."""

    def __init__(self, layer, context):
        super().__init__()
        self.layer, self.context = layer, context

    def forward(self):
        return sum(weight.abs().sum() for weight in self.layer._effective(*self.context))


@inside
@pytest.mark.parametrize("setting", ["tf32"], indirect=True)
@pytest.mark.parametrize("make", [lip.BjorckLinear, lip.SLLLinear, lip.BROLinear], ids=lambda make: make.__name__)
def test_torch_func_differentiates_no_weights_in_tf32(make, setting, lowered):
    """It multiplies outside of the context of full precision: what it multiplies is float64."""
    with watch.gpu():
        layer, seen = make(16, 16).train(), []
        layer._supplied = lambda _, context: seen.append(context)
        layer(torch.randn(2, 16))
        layer._supplied = None
        module = OfWeights(layer, seen[0])
        values = {name: value.detach() for name, value in module.named_parameters()}
        lowered[0].clear()
        gradients = torch.func.grad(lambda values: torch.func.functional_call(module, values))(values)
    assert not lowered[0]
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}


# The others' results are images, in the precision that the user sets.
OPS = sorted(
    name for name, op in registered.items() if op.backends and name not in ("conv_chain", "sdp_residual", "conv_exp")
)
QUICK = ("gram_rowsum", "skew_exp", "spectral_cayley")  # of the ops, those whose cases take a second


@inside
@pytest.mark.parametrize(
    "op_name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in OPS]
)
@pytest.mark.parametrize("setting", ["tf32"], indirect=True)
def test_no_kernel_of_an_op_computes_weights_in_tf32(op_name, setting, lowered, monkeypatch):
    """Nor does the reference, or what torch makes of it to differentiate it."""
    monkeypatch.setattr(Case, "_lay_out", lambda _, shape, __, dtype, ___: torch.empty(shape, dtype=dtype))
    ran, of_op = 0, [(name, case) for op, name, case in testing.op_cases() if op == op_name]
    for case_name, case in of_op:
        # Images of the reference of spectral_conv are in the precision that the user sets.
        for backend in ("native", "triton", *(("reference",) if op_name != "spectral_conv" else ())):
            with watch.gpu():
                tensors = case.make(torch.float32, "cuda")
                try:
                    testing.outputs_and_gradients(partial(called, op_name, backend, case), tensors)
                except ValueError as error:
                    if "cannot run here" not in str(error) and "allowed are" not in str(error):
                        raise
                    continue
            ran += 1
            assert not lowered[0], (backend, case_name)
    assert ran


def called(op_name, backend, case, **tensors):
    return testing.call(op_name, backend, case, tensors)


def with_planted(product):
    """A layer of another method, with such a product among those of its weights, outside of full precision."""

    class Planted(lip.SandwichLinear):
        def _computed(self, context):
            weights = super()._computed(context)
            return weights[0] + product(weights[0]).mean(), *weights[1:]

    return Planted(8, 8)


PLANTED = {
    "product": lambda x: x @ x,
    "vector": lambda x: x @ x[0],
    "dot": lambda x: x[0] @ x[0],
    "batch": lambda x: torch.addbmm(x, x[None], x[None]),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
    "convolution": lambda x: torch.nn.functional.conv2d(x[None, :, :, None], x[:, :, None, None]),
    "transposed": lambda x: torch.nn.functional.conv_transpose2d(x[None, :, :, None], x[:, :, None, None]),
    "bilinear": lambda x: torch.nn.functional.bilinear(x, x, x[None]),
    "power": lambda x: torch.linalg.matrix_power(x, 2),
    "distances": torch.cdist,
    "exponential": torch.matrix_exp,
}


@inside
@pytest.mark.parametrize("setting", ["tf32"], indirect=True)
@pytest.mark.parametrize("kind", PLANTED)
def test_a_product_in_tf32_is_found(kind, setting, lowered):
    with watch.gpu():
        x = torch.randn(8, 8)
        PLANTED[kind](x, x) if kind == "distances" else PLANTED[kind](x)
    assert lowered[0]


@inside
@pytest.mark.parametrize("setting", ["tf32"], indirect=True)
@pytest.mark.parametrize("kind", ["einsum", "convolution", "vector"])
def test_a_product_in_tf32_in_a_parametrization_is_found(kind, setting, lowered):
    with watch.gpu():
        layer = with_planted(PLANTED[kind])
        lowered[0].clear()
        layer.effective()
        assert lowered[0]
