"""Under autocast a layer multiplies by its rounded weight, and its bound is that of the rounded weight."""

import pytest
import torch

from fastlip import nn as lip

LINEAR = [name for name in lip.__all__ if name.endswith("Linear")]
CONV = [name for name in lip.__all__ if name.endswith("Conv2d")]


def perturbed(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return layer.eval()


def rounded_norm(layer):
    (matrix,) = layer._effective()
    return torch.linalg.matrix_norm(matrix.detach().bfloat16().double().flatten(1), 2).item()


@pytest.mark.parametrize("name", [name for name in LINEAR if hasattr(getattr(lip, name), "weight")])
def test_dense(name):
    layer = perturbed(getattr(lip, name)(23, 23))
    with torch.autocast("cpu", torch.bfloat16):
        bound = layer.lipschitz_bound((23,))
    assert rounded_norm(layer) <= bound <= rounded_norm(layer) * (1 + 1e-6)
    assert bound != layer.lipschitz_bound((23,))


@pytest.mark.parametrize("name", [name for name in CONV if name not in ("CPLConv2d", "SLLConv2d", "SandwichConv2d")])
def test_one_tap(name):
    layer = perturbed(getattr(lip, name)(12, 12, 1))
    with torch.autocast("cpu", torch.bfloat16):
        bound = layer.lipschitz_bound((12, 3, 3))
    assert rounded_norm(layer) <= bound <= rounded_norm(layer) * (1 + 1e-6)


# The bound of SOC's four terms is 1 for any kernel; with five it grows with the kernel's norm.
@pytest.mark.parametrize(("name", "options"), [("AOLConv2d", {}), ("BCOPConv2d", {}), ("SOCConv2d", {"terms": 5})])
def test_kernels(name, options):
    layer = perturbed(getattr(lip, name)(4, 4, 3, **options))
    with torch.autocast("cpu", torch.bfloat16):
        bound = layer.lipschitz_bound((4, 5, 5))
    assert bound != layer.lipschitz_bound((4, 5, 5))
