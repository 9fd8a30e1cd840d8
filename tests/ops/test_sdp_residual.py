"""sdp_residual beyond agreement: the adjoint is exact, the scale is folded, errors name the argument."""

import pytest
import torch

from fastlip import ops
from fastlip.kernels.common.padding import pad, same_pads

GEOMETRIES = [
    ((3, 3), (1, 1), 1, (5, 4)),
    ((2, 4), (1, 1), 1, (5, 4)),
    ((1, 1), (1, 1), 1, (2, 3)),
    ((5, 6), (1, 1), 1, (2, 1)),
    ((3, 2), (2, 3), 1, (4, 6)),
    ((3, 3), (1, 1), 2, (3, 3)),
]


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize("backend", ["auto", "native"])
@pytest.mark.parametrize(("kernel", "dilation", "groups", "size"), GEOMETRIES)
def test_the_second_weight_is_the_exact_adjoint_of_the_first(kernel, dilation, groups, size, backend, padding_mode):
    weight = torch.randn(6, 4 // groups, *kernel, dtype=torch.float64)
    scale = torch.rand(6, dtype=torch.float64)
    x = torch.randn(2, 4, *size, dtype=torch.float64)

    def convolve(image):
        padded = pad(image, same_pads(kernel, dilation), padding_mode)
        return torch.nn.functional.conv2d(padded, weight, None, 1, 0, dilation, groups)

    hidden = convolve(x).relu()
    _, adjoint = torch.autograd.functional.vjp(convolve, x, hidden * scale[:, None, None])
    try:
        y = ops.sdp_residual(x, weight, None, scale, dilation, groups, padding_mode, backend=backend)
    except ValueError as error:
        if backend == "auto" or "cannot run here" not in str(error):
            raise
        pytest.skip(str(error))
    torch.testing.assert_close(y, x - adjoint, rtol=1e-12, atol=1e-12)


def test_dense_is_the_formula():
    x, weight = torch.randn(3, 5, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    bias, scale = torch.randn(4, dtype=torch.float64), torch.rand(4, dtype=torch.float64)
    expected = x - (scale * (x @ weight.T + bias).relu()) @ weight
    torch.testing.assert_close(ops.sdp_residual(x, weight, bias, scale), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ops.sdp_residual(x[0], weight, bias, scale), expected[0], rtol=1e-12, atol=1e-12)


def test_a_matrix_and_a_1x1_convolution_agree():
    x, weight, scale = torch.randn(3, 5), torch.randn(4, 5), torch.rand(4)
    image = ops.sdp_residual(x[:, :, None, None], weight[:, :, None, None], None, scale)
    torch.testing.assert_close(image[:, :, 0, 0], ops.sdp_residual(x, weight, None, scale), rtol=1e-5, atol=1e-5)


def test_a_channel_of_scale_0_contributes_nothing():
    x, weight, bias = torch.randn(3, 5), torch.randn(4, 5), torch.full((4,), 7.0)
    assert torch.equal(ops.sdp_residual(x, weight, bias, torch.zeros(4)), x)


IMAGE = {"x": torch.zeros(2, 4, 3, 3), "weight": torch.zeros(6, 4, 3, 3), "bias": None, "scale": torch.zeros(6)}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"weight": torch.zeros(6, 4, 3, 3, dtype=torch.int64)}, TypeError, "weight: got torch.int64"),
        ({"weight": torch.zeros(6, 4, 3)}, ValueError, r"weight: got shape \(6, 4, 3\)"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias: got shape \(4,\), expected \(6,\)"),
        ({"scale": torch.zeros(1)}, ValueError, r"scale: got shape \(1,\), expected \(6,\)"),
        ({"x": torch.zeros(2, 5, 3, 3)}, ValueError, r"x: got shape \(2, 5, 3, 3\)"),
        ({"weight": torch.zeros(6, 4)}, ValueError, r"x: got shape \(2, 4, 3, 3\), expected \(\*, 4\)"),
        ({"groups": 4}, ValueError, "groups=4"),
        ({"dilation": (1, 0)}, ValueError, r"dilation=\(1, 0\)"),
        ({"padding_mode": "reflect"}, ValueError, "padding_mode='reflect': allowed are 'zeros', 'circular'"),
        ({"backend": "triton"}, ValueError, "backend='triton' cannot run here"),
    ],
)
def test_errors_name_the_argument(change, error, text):
    with pytest.raises(error, match=text):
        ops.sdp_residual(**{**IMAGE, **change})
