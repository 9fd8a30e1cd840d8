"""Triton's kernels on the CPU, by its interpreter: in a process of its own, since the decorators must see it on.

To run one case: ``TRITON_INTERPRET=1 pytest tests/gpu/test_interpreter.py -k odd_channels``.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastlip import ops, testing

triton = pytest.importorskip("triton", minversion="3.6")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "gpu"))
import tensor_cores  # noqa: E402
from triton.runtime.interpreter import InterpreterBuilder  # noqa: E402

ACTIVE = triton.knobs.runtime.interpret
inside = pytest.mark.skipif(not ACTIVE, reason="runs in the process that test_with_the_interpreter starts")

OPS = [path.parent.name for path in sorted(ROOT.glob("fastlip/kernels/*/triton_kernels.py"))]
ALSO = ("frozen", "polar_newton_schulz")
SMALL = 4000
# Each pair of taps and of channel tiles is a step of a loop, which takes the interpreter 10 ms whatever its size.
SMALL_DENSE, SMALL_CONVOLUTION = 20000, 5000
# Programs take the interpreter 10 ms too: one for each group, or each frequency and group.
MANY_PROGRAMS = {"gram_rowsum-depthwise", "spectral_conv-depthwise_torus", "spectral_conv-groups"}
# An iteration is a hundred launches, of some programs for each frequency.
MANY_PROGRAMS |= {f"spectral_polar-{name}" for name in ("c3", "c1", "c23_odd", "groups_dilation", "tall", "wide")}
MANY_PROGRAMS |= {"spectral_polar-ill_conditioned", "spectral_polar-c40"}


def kernels_of(op_name):
    assert testing.op(op_name).status("triton") == ""
    return {id(entry.kernel): entry.kernel for entry in testing.op(op_name).modules["triton"].AOT}.values()


def small(case):
    size = sum(torch.Size(shape).numel() for shape in case.shapes.values())
    if "weight" not in case.shapes:
        return size <= SMALL
    taps = torch.Size(case.shapes["weight"][2:]).numel()
    return size <= SMALL_DENSE if taps == 1 else size * taps <= SMALL_CONVOLUTION


def marks(name):
    return pytest.mark.slow if name in MANY_PROGRAMS else ()


CASES = [
    pytest.param(op_name, case, id=f"{op_name}-{case_name}", marks=marks(f"{op_name}-{case_name}"))
    for op_name in OPS
    for case_name, case in testing.cases_of(op_name).CASES.items()
    if ACTIVE and small(case)
]


@pytest.mark.skipif(ACTIVE, reason="this is the process that it starts")
@pytest.mark.parametrize("speed", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_with_the_interpreter(speed):
    files = [Path(__file__), *(ROOT / "tests" / "ops" / f"test_{name}.py" for name in ALSO)]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", speed, *map(str, files)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


@inside
@pytest.mark.parametrize("op_name", OPS)
def test_the_interpreter_is_active(op_name):
    for kernel in kernels_of(op_name):
        assert not isinstance(kernel, triton.JITFunction)


@inside
@pytest.mark.parametrize(("op_name", "case"), CASES)
def test_agreement(op_name, case):
    try:
        testing.check_agreement(op_name, "triton", case, torch.float32)
    except ValueError as error:
        if "cannot run here: " not in str(error):
            raise
        pytest.skip(str(error))


# A few small cases of each op that multiplies: what tensor cores make of float32.
ON_TENSOR_CORES = {"gram_rowsum": ("dense", "k3"), "spectral_conv": ("c4_s13x1",), "polar": ("c3", "c17")}


def cases_on_tensor_cores():
    for op_name, wanted in ON_TENSOR_CORES.items():
        found = [param for param in CASES if param.values[0] == op_name]
        for param in [*(p for p in found if p.id.partition("-")[2] in wanted), *found[:2]][:2]:
            yield pytest.param(*param.values, id=param.id)


@inside
@pytest.mark.parametrize(("op_name", "case"), [*cases_on_tensor_cores()])
def test_three_products_on_tensor_cores_agree(op_name, case, monkeypatch):
    monkeypatch.setattr(InterpreterBuilder, "create_dot", tensor_cores.interpreted(three=True))
    testing.check_agreement(op_name, "triton", case, torch.float32)


@inside
def test_one_product_on_tensor_cores_does_not(monkeypatch):
    monkeypatch.setattr(InterpreterBuilder, "create_dot", tensor_cores.interpreted(three=False))
    op_name, case = next(cases_on_tensor_cores()).values
    with pytest.raises(AssertionError, match="is off by"):
        testing.check_agreement(op_name, "triton", case, torch.float32)


@inside
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("case_name", ["c3", "c17", "c63_strided", "tall", "wide", "tall_50_33"])
def test_cayley_in_other_dtypes(case_name, dtype):
    testing.check_agreement("cayley", "triton", testing.cases_of("cayley").CASES[case_name], dtype)


@inside
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("shape", [(12, 12), (40, 40), (9, 6), (45, 37)], ids=str)
def test_cayley_is_never_expanding(shape, dtype):
    """Matrices too large for elimination in single precision are transformed again on the device; NaN stays NaN."""
    M = torch.randn(3, *shape, dtype=dtype) * torch.tensor([1, 40, 1e6]).view(3, 1, 1)
    M = torch.cat((M, M[:1]))
    M[3, 0, 1] = float("nan")
    Q = ops.cayley(M, backend="triton")
    wide = torch.complex128 if dtype.is_complex else torch.float64
    assert Q[3].isnan().any()
    assert torch.linalg.svdvals(Q[:3].to(wide)).amax() < 1 + 1e-6
    expected = ops.cayley(M[:2].to(wide), backend="reference")
    assert (Q[:2] - expected).abs().amax() < 2e-5


@inside
@pytest.mark.parametrize("dtype", testing.dtypes_of("maxmin") if ACTIVE else [], ids=str)
@pytest.mark.parametrize("pairing", ["adjacent", "halves"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_maxmin_is_exact_with_ties_and_nan(dtype, pairing, channels_last):
    x = torch.randn(3, 17, 3, 3).round().to(dtype)
    x[0, 2:5] = float("nan")
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    results = {}
    for backend in ("reference", "triton"):
        leaf = x.clone().requires_grad_()
        y = ops.maxmin(leaf, pairing, backend=backend)
        (gradient,) = torch.autograd.grad(y, leaf, torch.arange(y.numel()).view(y.shape).to(dtype))
        results[backend] = y.detach(), gradient
    for ours, expected in zip(results["triton"], results["reference"], strict=True):
        assert torch.equal(ours.isnan(), expected.isnan())
        assert torch.equal(ours.nan_to_num(), expected.nan_to_num())


@inside
@pytest.mark.parametrize("case_name", ["groups_s3x2", "c4_s13x1", "torus_s3x5_to_10x7"])
def test_spectral_conv_by_fft_as_on_larger_images(case_name, monkeypatch):
    kernels_of("spectral_conv")
    module = testing.op("spectral_conv").modules["triton"]
    monkeypatch.setattr(module.tables, "SMALL", 0)
    monkeypatch.setattr(module.planes, "fits", lambda torus, dtype: False)
    case = testing.cases_of("spectral_conv").CASES[case_name]
    testing.check_agreement("spectral_conv", "triton", case, torch.float32)


def test_outside_the_interpreter_a_cpu_tensor_is_refused_with_the_reason():
    if ACTIVE:
        pytest.skip("the interpreter is active")
    with pytest.raises(ValueError, match=r"need a CUDA tensor or Triton.s interpreter, got device cpu"):
        ops.maxmin(torch.zeros(2, 4), backend="triton")
