"""Products by parts (kernels/common/split_triton.py) in Triton's interpreter, with what tensor cores do to numbers.

tests/gpu/test_interpreter.py runs this file where the interpreter is on.
"""

import sys
from pathlib import Path

import pytest
import torch

from fastlip import ops, testing

triton = pytest.importorskip("triton", minversion="3.6")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "gpu"))
import tensor_cores  # noqa: E402
import triton.language as tl  # noqa: E402
from triton.runtime.interpreter import InterpreterBuilder  # noqa: E402

from fastlip.kernels.common import triton_launch  # noqa: E402
from fastlip.kernels.common.split_triton import split  # noqa: E402
from fastlip.kernels.spectral_conv import matrix_triton, triton_kernels  # noqa: E402
from fastlip.kernels.spectral_conv.finish_triton import Finish  # noqa: E402

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
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["image", "matrix"])
def test_what_is_not_finite_reaches_every_pixel(where, value, agrees):
    """No sum of the mixing turns it into a number, so that whatever looks at the results sees it."""
    x, Q = torch.randn(2, 3, 4, 4), torch.randn(10, 5, 3, dtype=torch.complex64)
    if where == "image":
        x[0, 1, 2, 1] = value
    else:
        Q[5, 1, 2] = value
    finite = ops.spectral_conv(x, Q, backend="triton").isfinite()
    expected = torch.ones_like(finite)
    expected[(0,) if where == "image" else (slice(None), 1)] = False
    assert torch.equal(finite, expected)


@inside
def test_without_the_small_parts_it_does_not(agrees, monkeypatch):
    monkeypatch.setattr(tensor_cores, "cut", lambda x: tensor_cores.tf32(x) * (abs(x) > 1e-3))
    with pytest.raises(AssertionError, match="is off by"):
        agrees("c8_s4")


@pytest.fixture
def first_programs(monkeypatch):
    """A list: where it has a number, only so many programs of a launch run."""
    number, launch = [], triton_launch.launch

    def some(kernel, grid, *arguments, **options):
        return launch(kernel, (number.pop(),) if number else grid, *arguments, **options)

    monkeypatch.setattr(triton_launch, "launch", some)
    return number


@inside
@pytest.mark.parametrize("count", [1, 6, 7])
def test_programs_of_a_member_follow_each_other(count, first_programs):
    """Products of three members, each of 2 x 3 tiles: what several of them read is still in the cache."""
    a, b, c = torch.ones(2, 3, 100, 4), torch.ones(2, 3, 4, 80), torch.full((2, 3, 100, 80), torch.nan)
    strides = [(x.stride(0), x.stride(1), 0, x.stride(2), x.stride(3)) for x in (a, b, c)]
    first_programs.append(count)
    triton_kernels._multiply(a, b, c, (100, 80, 4), 1, strides, 1, 1)
    begun = [not member.isnan().all() for member in c.unbind(1)]
    done = [not member.isnan().any() for member in c.unbind(1)]
    assert begun == [True, count > 6, False]
    assert done == [count >= 6, False, False]


@inside
@pytest.mark.parametrize("count", [1, 3, 4])
def test_programs_that_read_the_same_images_follow_each_other(count, first_programs):
    """A table of 150 rows, three tiles, and 3 x 64 columns."""
    table, x, y = torch.ones(150, 5), torch.ones(5, 3, 64), torch.full((150, 3, 64), torch.nan)
    first_programs.append(count)
    matrix_triton.transform(table, x, x.stride(), y, y.stride(), 3, 64, Finish(), "ieee")
    columns = y.unbind(1)
    assert [not one.isnan().all() for one in columns] == [True, count > 3, False]
    assert [not one.isnan().any() for one in columns] == [count >= 3, False, False]


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
