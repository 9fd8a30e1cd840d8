"""block_conv against the published block convolution, and its orthogonality at every frequency."""

import itertools

import pytest
import torch

from fastlip import ops, testing
from fastlip.kernels.block_conv.reference import alternating_axes

MISSING = testing.op("block_conv").status("native")
needs_native = pytest.mark.skipif(bool(MISSING), reason=MISSING)
BACKENDS = ["reference", pytest.param("native", marks=needs_native)]


def chain(*shape, projectors, rank=None):
    """An orthogonal matrix and projectors of a rank (half of the channels), in float64."""
    channels = shape[-1]
    rank = channels // 2 if rank is None else rank
    matrix = torch.linalg.qr(torch.randn(*shape, channels, dtype=torch.float64)).Q
    bases = torch.linalg.qr(torch.randn(*shape[:-1], projectors, channels, channels, dtype=torch.float64)).Q
    return matrix, bases[..., :rank] @ bases[..., :rank].mT


def published(matrix, projectors):
    """Li et al. (2019): O block-convolved with one 2 x 2 block per pair of projectors; dictionary of K[x, y]."""
    kernel, identity = {(0, 0): matrix}, torch.eye(matrix.shape[1], dtype=matrix.dtype)
    for P1, P2 in zip(projectors[0::2], projectors[1::2], strict=True):
        block = {
            (0, 0): P1 @ P2,
            (0, 1): P1 @ (identity - P2),
            (1, 0): (identity - P1) @ P2,
            (1, 1): (identity - P1) @ (identity - P2),
        }
        product = {}
        for ((x, y), K), ((u, v), B) in itertools.product(kernel.items(), block.items()):
            product[x + u, y + v] = product.get((x + u, y + v), 0) + K @ B
        kernel = product
    return kernel


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("channels", "kernel_size"), [(1, 3), (2, 2), (4, 3), (5, 4), (7, 5), (16, 3)])
def test_equals_the_published_formula(channels, kernel_size, backend):
    matrix, projectors = chain(channels, projectors=2 * (kernel_size - 1))
    K = ops.block_conv(matrix, projectors, alternating_axes((kernel_size, kernel_size)), backend=backend)
    assert K.shape == (kernel_size, kernel_size, channels, channels)
    for (x, y), expected in published(matrix, projectors).items():
        torch.testing.assert_close(K[y, x], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel_size", [(1, 1), (1, 4), (3, 1), (2, 5), (3, 3)])
def test_is_unitary_at_every_frequency(kernel_size):
    axes = alternating_axes(kernel_size)
    K = ops.block_conv(*chain(2, 5, projectors=len(axes)), axes)
    assert K.shape == (2, *kernel_size, 5, 5)
    spectrum = torch.fft.fft2(K, s=(6, 7), dim=(1, 2))
    identity = torch.eye(5, dtype=spectrum.dtype).expand_as(spectrum)
    torch.testing.assert_close(spectrum @ spectrum.mH, identity, rtol=0, atol=1e-13)


def test_rows_of_the_matrix_give_rows_of_the_kernel():
    matrix, projectors = chain(6, projectors=4)
    whole = ops.block_conv(matrix, projectors, (1, 0, 1, 0))
    part = ops.block_conv(matrix[:2], projectors, (1, 0, 1, 0))
    torch.testing.assert_close(part, whole[..., :2, :], rtol=0, atol=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_kernel_as_first_factor_is_a_sum_of_shifted_kernels(backend):
    axes, taps = (1, 0, 0), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    _, projectors = chain(5, projectors=3)
    expected = torch.zeros(4, 4, 4, 5, dtype=torch.float64)
    for y, x in itertools.product(range(2), range(3)):
        expected[y : y + 3, x : x + 2] += ops.block_conv(taps[y, x], projectors, axes, backend="reference")
    result = ops.block_conv(taps, projectors, axes, backend=backend)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)


@needs_native
def test_the_operator_keeps_its_arguments_only():
    tensors = dict(zip(("matrix", "projectors"), chain(8, projectors=4), strict=True))

    def kept(backend):
        return testing.saved_bytes(lambda **t: ops.block_conv(**t, axes=(1, 0, 1, 0), backend=backend), tensors)

    assert kept("native") == sum(tensor.nbytes for tensor in tensors.values())
    assert kept("reference") > 2 * kept("native")


@needs_native
@pytest.mark.parametrize("wide", [torch.complex64, torch.float32])
def test_complex_kernels_and_autocast(wide):
    matrix, projectors = torch.randn(2, 3, 3, dtype=wide), torch.randn(2, 2, 3, 3, dtype=wide)
    with torch.autocast("cpu", torch.bfloat16):
        result = ops.block_conv(matrix, projectors, (1, 0), backend="native")
    expected = ops.block_conv(matrix, projectors, (1, 0), backend="reference")
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


@needs_native
@pytest.mark.parametrize(("backend", "is_operator"), [("auto", True), ("reference", False)])
def test_compiled_programs_call_the_kernels(backend, is_operator):
    graphs = []

    def keep(module, inputs):
        graphs.append(module.graph)
        return module

    tensors = chain(3, projectors=2)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *t: ops.block_conv(*t, (1, 0), backend=backend), backend=keep, fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), ops.block_conv(*tensors, (1, 0)), rtol=0, atol=1e-14)
    targets = [str(node.target) for graph in graphs for node in graph.nodes]
    assert any("block_conv_forward" in target for target in targets) == is_operator


@needs_native
@pytest.mark.parametrize(
    ("rows", "axes", "expected"), [(2, (0,), "native"), (0, (0,), "reference"), (2, (), "reference")]
)
def test_auto_leaves_what_has_no_products_to_the_reference(rows, axes, expected):
    kernel, projectors = torch.zeros(1, 1, rows, 2), torch.zeros(len(axes), 2, 2)
    assert testing.op("block_conv").choose("auto", kernel, projectors, axes) == expected


@needs_native
def test_strides_batches_and_conjugates_are_read_as_they_are():
    axes, wide = (0, 1, 1), torch.complex128
    matrix = torch.randn(2, 5, 3, dtype=wide).mT.conj()
    projectors = torch.randn(2, 3, 10, 5, dtype=wide).conj()[..., ::2, :]
    results = [
        testing.outputs_and_gradients(
            lambda **t: ops.block_conv(t["matrix"], t["projectors"], axes, backend=backend),  # noqa: B023
            {"matrix": matrix, "projectors": projectors},
        )
        for backend in ("native", "reference")
    ]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_a_projector_and_its_complement_cancel_to_a_shift():
    matrix, (P,) = chain(4, projectors=1)
    K = ops.block_conv(matrix, torch.stack((P, torch.eye(4) - P)), (0, 0))
    expected = torch.stack((torch.zeros_like(matrix), matrix, torch.zeros_like(matrix)))[:, None]
    torch.testing.assert_close(K, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("matrix", "projectors", "axes", "error", "text"),
    [
        ((3, 3), (2, 3, 3), (0, 2), ValueError, r"axes=\(0, 2\)"),
        ((3, 3), (2, 3, 3), (0,), ValueError, "projectors: got shape"),
        ((3, 4), (1, 3, 3), (0,), ValueError, "projectors: got shape"),
        ((3,), (0, 3, 3), (), ValueError, r"matrix: got shape \(3,\)"),
    ],
)
def test_errors_name_the_argument(matrix, projectors, axes, error, text):
    with pytest.raises(error, match=text):
        ops.block_conv(torch.zeros(matrix), torch.zeros(projectors), axes)


def test_dtypes_must_be_floating_and_equal():
    with pytest.raises(TypeError, match=r"matrix: got torch\.int64"):
        ops.block_conv(torch.zeros(3, 3, dtype=torch.int64), torch.zeros(0, 3, 3), ())
    with pytest.raises(TypeError, match=r"projectors: got torch\.float64"):
        ops.block_conv(torch.zeros(3, 3), torch.zeros(0, 3, 3, dtype=torch.float64), ())
