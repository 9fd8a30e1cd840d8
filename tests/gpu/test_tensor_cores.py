"""Float32 on tensor cores, modelled on the CPU: which products keep float32's precision, and what sums lose."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from fastlip.nn import aol

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("tensor_cores", ROOT / "tools" / "gpu" / "tensor_cores.py")
tensor_cores = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tensor_cores)
EPS = 2.0**-23


def test_tf32_keeps_ten_bits():
    x = np.float32([1, 1 + 2**-10, 1 + 2**-11, 1 + 2**-12, -1 - 2**-11, 0])
    expected = [1, 1 + 2**-10, 1 + 2**-10, 1, -1 - 2**-10, 0]
    assert np.array_equal(tensor_cores.tf32(x), np.float32(expected))
    assert np.array_equal(
        tensor_cores.truncated(np.float64([1 + 2**-24 * 1.5, -1 - 2**-23])), np.float32([1, -1 - EPS])
    )


@pytest.mark.parametrize(("three", "least", "most"), [(True, 0, 8 * EPS), (False, 2**-13, 2**-9)])
def test_three_products_keep_the_precision_of_float32(three, least, most):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 32, 32)).astype(np.float32)
    found = tensor_cores.dot(a, b, np.zeros((32, 32), np.float32), three)
    exact = a.astype(np.float64) @ b
    assert least <= np.abs(found - exact).max() / np.abs(exact).max() <= most


def sums_of_squares(length, count=48):
    """The relative errors of sums of squares as a Gram kernel has them, 32 terms a step."""
    rng = np.random.default_rng(length)
    w = (rng.standard_normal((count, length)) / length**0.5).astype(np.float32)
    total = np.zeros((count, 1, 1), np.float32)
    for start in range(0, length, 32):
        step = w[:, None, start : start + 32]
        total = tensor_cores.dot(step, step.swapaxes(1, 2), total)
    exact = (w.astype(np.float64) ** 2).sum(1)
    return (total[:, 0, 0] - exact) / exact


@pytest.mark.parametrize("length", [9 * 16, 9 * 64, 9 * 512])
def test_the_enlargement_on_gpus_covers_what_is_cut_off(length):
    error = sums_of_squares(length)
    assert error.min() > -aol._ROUNDINGS_ON_GPU * EPS
    assert error.mean() < 0  # cut off, not rounded
    assert aol._ROUNDINGS_ON_GPU > aol._ROUNDINGS


class _OnGpu(torch.Tensor):
    """Numbers of which torch says that they are on a GPU."""

    is_cuda = True


def test_aol_enlarges_as_the_device_needs(monkeypatch):
    r = torch.ones(3, dtype=torch.float64)
    for found, roundings in ((r, aol._ROUNDINGS), (r.as_subclass(_OnGpu), aol._ROUNDINGS_ON_GPU)):
        monkeypatch.setattr(aol, "GRAM_ROWSUM", lambda *_, found=found: found)
        scale = aol.channel_scale(torch.ones(3, 3), 1, 0.0, "auto")
        assert torch.equal(torch.as_tensor(scale), (r * (1 + roundings * torch.finfo(r.dtype).eps)).rsqrt())


def test_the_enlargement_of_cpus_would_not_do():
    assert sums_of_squares(9 * 512).min() < -aol._ROUNDINGS * EPS
    assert torch.finfo(torch.float32).eps == EPS
