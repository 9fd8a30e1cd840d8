"""gram_rowsum of large 3 x 3 kernels in float32, in C++: fewer products, whose differences must not cost a sign."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from fastlip.kernels.common.dispatch import registered
from fastlip.kernels.gram_rowsum.native import gram_rowsum_backward, gram_rowsum_forward
from fastlip.nn import BCOPConv2d
from fastlip.ops import gram_rowsum

EPS = torch.finfo(torch.float32).eps
ROOT = Path(__file__).parents[2]
LESSER = {"AVX512": ("avx2", "default"), "AVX2": ("default",)}.get(torch.backends.cpu.get_cpu_capability(), ())


@pytest.fixture(autouse=True)
def native():
    if reason := registered["gram_rowsum"].status("native"):
        pytest.skip(reason)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def both(weight, groups=1, psi=None):
    """r, the signs and the gradients in float32, and those of the same tensors in float64, summed tap by tap."""
    found = []
    for dtype in (torch.float32, torch.float64):
        tensor, exponents = weight.to(dtype), None if psi is None else psi.to(dtype)
        r, signs = gram_rowsum_forward(tensor, exponents, groups)
        gradient = normal(len(r), seed=7).to(dtype)
        kept = None if psi is None else r
        found.append((r, signs, *gram_rowsum_backward(gradient, tensor, exponents, kept, signs, groups)))
    return found


def check(weight, groups=1, gradient_error=64 * EPS, psi=None):
    (r, signs, gradient, for_psi), (exact_r, exact_signs, exact, exact_for_psi) = both(weight, groups, psi)
    assert torch.equal(signs, exact_signs)
    torch.testing.assert_close(r.double(), exact_r, rtol=8 * EPS, atol=0)
    assert (gradient - exact).abs().max() <= gradient_error * exact.abs().max()
    if psi is not None:
        assert (for_psi - exact_for_psi).abs().max() <= gradient_error * exact_for_psi.abs().max()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((64, 64), 1), ((65, 97), 1), ((96, 64), 1), ((70, 290), 1), ((290, 70), 1), ((192, 96), 2), ((64, 600), 1)],
)
def test_any_width_and_layout(shape, groups, transposed):
    """Also partly filled tiles, several bands, groups, and the operator over output channels."""
    if transposed:
        check(normal(shape[1], shape[0], 3, 3).transpose(0, 1), groups)
    else:
        check(normal(*shape, 3, 3), groups, psi=normal(groups * shape[1], seed=1))


@pytest.mark.parametrize("layout", ["channels_last", "strided"])
def test_other_strides(layout):
    if layout == "channels_last":
        check(normal(64, 80, 3, 3).to(memory_format=torch.channels_last))
    else:
        check(normal(64, 80, 3, 6)[..., ::2])


def test_signs_that_rounding_could_decide():
    """One weight of each of 60 channels makes one v of it vanish up to its rounding."""
    weight, exact = normal(64, 96, 3, 3), torch.empty(0)
    for channel in range(1, 61):
        weight[5, channel, 1, 1] = 0
        exact = weight.double()
        # v[0, channel, δ = 0] is linear in the weight.
        rest = (exact[:, 0] * exact[:, channel]).sum()
        weight[5, channel, 1, 1] = -rest / exact[5, 0, 1, 1]
    exact = weight.double()
    center = torch.einsum("oyx,oiyx->i", exact[:, 0], exact)[1:61]
    assert (center.abs() < 16 * EPS * exact[:, 0].square().sum()).all()
    assert (center != 0).any()
    check(weight, gradient_error=2e3 * EPS)


def test_weights_that_are_nearly_orthogonal():
    """Every v but the norms is rounding: the tiles are summed tap by tap, and r is 1."""
    torch.manual_seed(0)
    weight = BCOPConv2d(64, 64, 3).weight.detach()
    (r, *_), (exact_r, *_) = both(weight)
    torch.testing.assert_close(r.double(), exact_r, rtol=1e-4, atol=0)
    assert (r - 1).abs().max() < 1e-3


@pytest.mark.parametrize("taps", [1, 2, 5, 8])
def test_kernels_with_empty_taps(taps):
    """Their v are exactly 0 where no taps overlap, and have no gradient."""
    weight = normal(64, 64, 3, 3)
    weight.flatten(2)[..., taps:] = 0
    check(weight)


def test_a_channel_without_weights():
    weight = normal(64, 64, 3, 3)
    weight[:, 40] = 0
    (r, _, gradient, _), _ = both(weight)
    assert r[40] == 0
    assert torch.equal(gradient[:, 40], torch.zeros(64, 3, 3))
    check(weight)


@pytest.mark.parametrize("factor", [1e-3, 1e-8, 1e-30])
def test_small_taps_keep_their_signs(factor):
    weight = normal(64, 64, 3, 3)
    weight[..., 0, :] *= factor
    check(weight, gradient_error=1e-4 if factor > 1e-30 else 1e-3)


@pytest.mark.parametrize("size", [1e-15, 1e15, 1e-19, 3e16])
def test_any_size(size):
    weight = normal(64, 64, 3, 3) * size
    r = gram_rowsum(weight, backend="native")
    torch.testing.assert_close(r.double(), gram_rowsum(weight.double(), backend="native"), rtol=1e-5, atol=1e-36)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_finite_comes_from_infinities(value):
    weight = normal(64, 64, 3, 3)
    weight[3, 7, 1, 1] = value
    (r, *_), (exact, *_) = both(weight)
    assert not r[7].isfinite()
    assert torch.equal(r.isfinite(), exact.isfinite())


@pytest.mark.parametrize("spread", [30, 60, 200])
def test_exponents_far_apart(spread):
    weight, psi = normal(64, 64, 3, 3), torch.linspace(-spread / 2, spread / 2, 64)
    (r, signs, gradient, _), (exact_r, exact_signs, exact, _) = both(weight, psi=psi)
    assert torch.equal(signs, exact_signs)
    assert torch.equal(r.isfinite(), exact_r.float().isfinite())
    if spread < 100:
        torch.testing.assert_close(r.double(), exact_r, rtol=64 * EPS, atol=0)
        assert (gradient - exact).abs().max() <= 64 * EPS * exact.abs().max()


def test_an_infinite_gradient_reaches_the_same_weights():
    weight = normal(64, 64, 3, 3)
    found = []
    for tensor in (weight, weight.double()):
        r, signs = gram_rowsum_forward(tensor, None, 1)
        gradient = torch.ones_like(r)
        gradient[9] = float("inf")
        found.append(gram_rowsum_backward(gradient, tensor, None, None, signs, 1)[0])
    assert torch.equal(found[0].isnan(), found[1].isnan())


@pytest.mark.parametrize("instruction_set", LESSER)
def test_other_instruction_sets(instruction_set):
    if find_spec(f"fastlip._native_{instruction_set}") is None:
        pytest.skip(f"the {instruction_set} kernels are not built: FASTLIP_ISA=all pip install -e .")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-k",
        "width or decide or empty",
        __file__,
    ]
    environment = os.environ | {"ATEN_CPU_CAPABILITY": instruction_set, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "19 passed" in process.stdout
