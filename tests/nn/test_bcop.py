"""BCOP beside what test_layers.py and test_theorems.py ask of every layer."""

import pytest
import torch
from layer_catalog import perturb

from fastlip.nn import BCOPConv2d, BjorckLinear


def spectrum(weight, size=(6, 5)):
    return torch.fft.fft2(weight.detach(), s=size).permute(2, 3, 0, 1)


@pytest.mark.parametrize("kernel_size", [2, 3, 4, 7, (1, 3), (5, 2)], ids=str)
@pytest.mark.parametrize("channels", [(4, 4), (3, 5), (6, 3), (1, 1), (7, 7)], ids=str)
def test_the_kernel_is_semi_orthogonal_at_every_frequency(kernel_size, channels):
    layer = perturb(BCOPConv2d(*channels, kernel_size, dtype=torch.float64))
    values = torch.linalg.svdvals(spectrum(layer.weight, (8, 9)))
    torch.testing.assert_close(values, torch.ones_like(values), rtol=0, atol=1e-12)


def test_single_precision_kernels_of_many_channels():
    layer = perturb(BCOPConv2d(64, 64, 3))
    values = torch.linalg.svdvals(spectrum(layer.weight.double()))
    assert values.max() <= 1 + 1e-5
    assert values.min() >= 1 - 1e-5


@pytest.mark.parametrize(("kernel_size", "channels"), [(3, 8), (5, 4), (1, 5)])
def test_starts_at_the_dirac_kernel(kernel_size, channels):
    layer = BCOPConv2d(channels, channels, kernel_size, groups=1)
    expected = torch.nn.init.dirac_(torch.empty(channels, channels, kernel_size, kernel_size))
    torch.testing.assert_close(layer.weight, expected, rtol=0, atol=1e-5)


def test_is_a_drop_in_conv2d():
    ours = BCOPConv2d(6, 4, 3, 2, 1, groups=2, padding_mode="zeros", dtype=torch.float64)
    theirs = torch.nn.Conv2d(6, 4, 3, 2, 1, groups=2, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight.copy_(perturb(ours).weight)
        theirs.bias.copy_(ours.bias)
    x = torch.randn(2, 6, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-13)


def test_the_weight_is_differentiable_in_training():
    layer = perturb(BCOPConv2d(3, 2, (3, 2), dtype=torch.float64))

    def kernel(raw):
        return torch.func.functional_call(layer, {"raw_matrices": raw}, (torch.ones(1, 3, 4, 4).double(),))

    assert torch.autograd.gradcheck(kernel, layer.raw_matrices.detach().requires_grad_(), fast_mode=True)
    layer.weight[0, 0, 0, 0].backward()
    assert layer.raw_matrices.grad.any()


def test_parameters_of_the_published_sizes():
    def count(kernel_size):
        return BCOPConv2d(16, 16, kernel_size, bias=False).raw_matrices.numel() // 256

    assert [count(k) for k in (1, 3, 5)] == [1, 5, 9]
    assert BCOPConv2d(4, 8, 3, groups=2).raw_matrices.shape == (2, 5, 4, 4)


@pytest.mark.parametrize("features", [(5, 5), (3, 7), (7, 3)], ids=str)
def test_the_dense_layer_is_the_nearest_orthogonal_matrix(features):
    layer = perturb(BjorckLinear(*features, dtype=torch.float64))
    U, _, Wh = torch.linalg.svd(layer.raw_weight.detach(), full_matrices=False)
    torch.testing.assert_close(layer.weight.detach(), U @ Wh, rtol=0, atol=1e-12)
    Q = layer.weight.detach()
    gram = Q @ Q.T if features[0] >= features[1] else Q.T @ Q
    torch.testing.assert_close(gram, torch.eye(min(features), dtype=Q.dtype), rtol=0, atol=1e-13)
