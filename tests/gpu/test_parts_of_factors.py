"""Products by parts (kernels/common/split_triton.py) in Triton's interpreter, with what tensor cores do to numbers.

tests/gpu/test_interpreter.py runs this file where the interpreter is on.
"""

import sys
from pathlib import Path

import pytest
import torch

from fastlip import testing

triton = pytest.importorskip("triton", minversion="3.6")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "gpu"))
import tensor_cores  # noqa: E402
import triton.language as tl  # noqa: E402
from triton.runtime.interpreter import InterpreterBuilder  # noqa: E402

from fastlip.kernels.common.split_triton import split  # noqa: E402
from fastlip.kernels.spectral_conv import triton_kernels  # noqa: E402

inside = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="runs where Triton's interpreter is on")


@pytest.fixture
def agrees(monkeypatch):
    """spectral_conv as on a GPU: its mixing splits the factors itself and asks for single products in TF32."""
    monkeypatch.setattr(InterpreterBuilder, "create_dot", tensor_cores.interpreted(three=True))
    monkeypatch.setattr(triton_kernels, "_precision", lambda *_: "tf32x3")
    cases = testing.cases_of("spectral_conv").CASES
    return lambda name: testing.check_agreement("spectral_conv", "triton", cases[name], torch.float32)


@inside
@pytest.mark.parametrize("name", ["c8_s4", "c3_to_5_s3", "c63_s5"])
def test_the_mixing_agrees(name, agrees):
    agrees(name)


@inside
def test_without_the_small_parts_it_does_not(agrees, monkeypatch):
    monkeypatch.setattr(tensor_cores, "cut", lambda x: tensor_cores.tf32(x) * (abs(x) > 1e-3))
    with pytest.raises(AssertionError, match="is off by"):
        agrees("c8_s4")


@triton.jit
def _split_kernel(p_x, p_large, p_small, N: tl.constexpr):
    o = tl.arange(0, N)
    large, small = split(tl.load(p_x + o))
    tl.store(p_large + o, large)
    tl.store(p_small + o, small)


@inside
@pytest.mark.filterwarnings("ignore:invalid value")
def test_the_parts_are_the_number():
    """Exactly; the large one has TF32's bits; and what is no number stays none, whatever its bits."""
    x = torch.randn(64) * 10.0 ** torch.randint(-30, 30, (64,))
    none = torch.tensor([2**31 - 1, 0x7FC00000, -1, 0x7F800001], dtype=torch.int32).view(torch.float32)
    x[:6] = torch.cat((none, torch.tensor([0.0, float("inf")])))
    large, small = torch.empty_like(x), torch.empty_like(x)
    _split_kernel[(1,)](x, large, small, N=64)
    assert torch.equal(large[6:] + small[6:], x[6:])
    assert ((large[4:].view(torch.int32) & 0x1FFF) == 0).all()
    assert (small[6:].abs() <= 2.0**-11 * x[6:].abs()).all()
    assert (large + small)[:6].isnan().tolist() == [True, True, True, True, False, True]
