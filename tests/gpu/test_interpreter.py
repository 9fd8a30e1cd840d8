"""Triton's kernels on the CPU, by its interpreter: in a process of its own, since the decorators must see it on.

To run one case: ``TRITON_INTERPRET=1 pytest tests/gpu/test_interpreter.py -k odd_channels``.
"""

import dataclasses
import itertools
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from fastlip import ops, testing
from fastlip.kernels.common import exponential_triton
from fastlip.kernels.spectral_conv.frequencies import own_frequencies
from fastlip.kernels.spectral_exp.api import kernel_exp

triton = pytest.importorskip("triton", minversion="3.6")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "gpu"))
import tensor_cores  # noqa: E402
from triton.runtime.interpreter import InterpreterBuilder  # noqa: E402

ACTIVE = triton.knobs.runtime.interpret
inside = pytest.mark.skipif(not ACTIVE, reason="runs in the process that test_with_the_interpreter starts")

OPS = [path.parent.name for path in sorted(ROOT.glob("fastlip/kernels/*/triton_kernels.py"))]
ALSO = [ROOT / "tests" / "ops" / f"test_{name}.py" for name in ("frozen", "polar_newton_schulz")]
ALSO.append(ROOT / "tests" / "gpu" / "test_second_derivatives_in_triton.py")
QUICK = [ROOT / f"tests/gpu/test_{name}.py" for name in ("sixteen_bits", "fixed_spectrum", "parts_of_factors")]
SLOW = [file for file in (Path(__file__), *ALSO) if "mark.slow" in file.read_text()]
SMALL = 4000
slow = pytest.mark.slow
SINGLE = (torch.float32, torch.complex64)
# Each pair of taps and of channel tiles is a step of a loop, which takes the interpreter 10 ms whatever its size.
SMALL_DENSE, SMALL_CONVOLUTION = 20000, 5000
# Programs take the interpreter 10 ms too: one for each group, or each frequency and group.
MANY_PROGRAMS = {"gram_rowsum-depthwise", "spectral_conv-depthwise_torus", "spectral_conv-groups"}
# A transform of a large image in one launch is products of larger tables.
MANY_PROGRAMS |= {
    f"spectral_conv-{name}"
    for name in ("c1_s32", "c2_s21x20", "c1_s29x31_channels_last", "groups_torus_s22x27_to_24x30")
}
# An iteration is a hundred launches, of some programs for each frequency.
MANY_PROGRAMS |= {f"spectral_polar-{name}" for name in ("c3", "c1", "c23_odd", "groups_dilation", "tall", "wide")}
MANY_PROGRAMS |= {"spectral_polar-ill_conditioned", "spectral_polar-c40", "polar-wide_33_63"}
MANY_PROGRAMS |= {f"block_reflector-{name}" for name in ("c2", "c3", "wide", "c63_strided", "half")}
MANY_PROGRAMS |= {f"block_conv-{name}" for name in ("3x3, 16 channels", "3x3, one channel", "3x3, 3 of 17 rows")}
MANY_PROGRAMS |= {
    "block_conv-5x5, 8 channels, 3 groups",
    "block_conv-2x3 to 3x5, 5 rows, 3 channels, two batch dimensions",
}
# So is an exponential.
QUICK_EXPONENTIALS = ("17", "empty batch", "empty_batch")
MANY_PROGRAMS |= {
    f"{op_name}-{name}"
    for op_name in ("skew_exp", "spectral_exp")
    for name in testing.cases_of(op_name).CASES
    if name not in QUICK_EXPONENTIALS
}


def kernels_of(op_name):
    assert testing.op(op_name).status("triton") == ""
    return {id(entry.kernel): entry.kernel for entry in testing.op(op_name).modules["triton"].AOT}.values()


def small(case):
    size = sum(torch.Size(shape).numel() for shape in case.shapes.values())
    if "weight" not in case.shapes:
        return size <= SMALL
    taps = torch.Size(case.shapes["weight"][2:]).numel()
    return size <= SMALL_DENSE if taps == 1 else size * taps <= SMALL_CONVOLUTION


CASES = [
    pytest.param(op_name, case, id=name, marks=slow if name in MANY_PROGRAMS else ())
    for op_name in OPS
    for case_name, case in testing.cases_of(op_name).CASES.items()
    if ACTIVE and small(case)
    for name in [f"{op_name}-{case_name}"]
]


@pytest.mark.without_gpu
@pytest.mark.skipif(ACTIVE, reason="this is the process that it starts")
@pytest.mark.parametrize("file", [Path(__file__), *ALSO], ids=lambda file: file.stem)
def test_with_the_interpreter(file):
    run_interpreted("not slow", file)


@slow
@pytest.mark.skipif(ACTIVE, reason="this is the process that it starts")
@pytest.mark.parametrize("file", SLOW, ids=lambda file: file.stem)
def test_slowly_with_the_interpreter(file):
    run_interpreted("slow", file)


@pytest.mark.without_gpu
@pytest.mark.skipif(ACTIVE, reason="this is the process that it starts")
def test_quick_files_with_the_interpreter():
    run_interpreted("not slow", *QUICK)


def run_interpreted(speed, *files):
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


OTHER_TYPES = (torch.float64, torch.complex64, torch.complex128)
# Each type at one size, each size in one type.
CAYLEY = [("c3", dtype) for dtype in OTHER_TYPES]
CAYLEY += [("wide", torch.float64), ("c17", torch.complex64), ("tall_50_33", torch.complex64)]
CAYLEY += [("tall", torch.complex128)]
OTHERS = {*itertools.product(("c17", "tall", "wide", "tall_50_33", "c63_strided"), OTHER_TYPES)} - {*CAYLEY}
CAYLEY += [pytest.param(*others, marks=slow) for others in sorted(OTHERS, key=str)]
NOT_EXPANDING = [*itertools.product(((12, 12), (9, 6)), SINGLE), ((45, 37), torch.complex64)]
NOT_EXPANDING += [pytest.param((45, 37), torch.float32, marks=slow)]
NOT_EXPANDING += [pytest.param((40, 40), dtype, marks=slow) for dtype in SINGLE]


@inside
@pytest.mark.parametrize(("case_name", "dtype"), CAYLEY, ids=str)
def test_cayley_in_other_dtypes(case_name, dtype):
    testing.check_agreement("cayley", "triton", testing.cases_of("cayley").CASES[case_name], dtype)


@inside
@pytest.mark.parametrize(("shape", "dtype"), NOT_EXPANDING, ids=str)
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
    monkeypatch.setattr(module.planes, "fits", lambda fft_size, dtype: False)
    case = testing.cases_of("spectral_conv").CASES[case_name]
    testing.check_agreement("spectral_conv", "triton", case, torch.float32)


@inside
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("factor", "channels"), [(1, 3), (2, 300), (3, 5), (9, 2)])
def test_pixel_unshuffle_moves_slices_of_channels_last_images(dtype, factor, channels):
    large = torch.randn(2, channels + 3, 2 * factor, 3 * factor).to(dtype)
    x = large.contiguous(memory_format=torch.channels_last)[:, 2:-1].requires_grad_()
    y = ops.pixel_unshuffle(x, factor, backend="triton")
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, ops.pixel_unshuffle(x, factor, backend="reference"))
    gradient = torch.randn(y.shape).to(dtype)
    (ours,) = torch.autograd.grad(y, x, gradient)
    assert torch.equal(ours, torch.nn.functional.pixel_shuffle(gradient, factor))


@inside
def test_pixel_unshuffle_is_chosen_for_channels_last_images():
    choose = testing.op("pixel_unshuffle").modules["triton"].unprofitable
    assert choose(torch.zeros(1, 4, 2, 2), 2) == "the image is not channels-last"
    assert choose(torch.zeros(1, 4, 2, 2).contiguous(memory_format=torch.channels_last), 2) == ""


@pytest.fixture
def few_halvings(monkeypatch):
    """For norms up to 32 of those that exponentials are made for: each halving takes the interpreter 0.1 s."""
    monkeypatch.setattr(exponential_triton, "HALVINGS", 6)


@inside
@pytest.mark.parametrize(
    ("op_name", "case_name", "dtype"),
    [
        ("skew_exp", "17", torch.float64),
        pytest.param("spectral_exp", "c3", torch.complex64, marks=slow),
        pytest.param("spectral_exp", "c3", torch.complex128, marks=slow),
        pytest.param("spectral_exp", "c17_two_squarings", torch.complex64, marks=slow),
        pytest.param("spectral_exp", "c33_large", torch.complex64, marks=slow),
    ],
    ids=str,
)
def test_exponentials_in_other_dtypes(op_name, case_name, dtype, few_halvings):
    testing.check_agreement(op_name, "triton", testing.cases_of(op_name).CASES[case_name], dtype)


@inside
def test_exponentials_of_a_kernel_are_real_where_they_must_be(few_halvings):
    kernel = torch.randn(4, 2, 1, 3, generator=torch.Generator().manual_seed(0)) / 4
    arguments = {"size": (1, 3), "groups": 2}

    def found(backend, kernel):
        return testing.outputs_and_gradients(
            lambda kernel: kernel_exp(kernel, **arguments, backend=backend), {"kernel": kernel}
        )

    ours, expected = found("triton", kernel), found("reference", kernel.double())
    assert torch.equal(ours["output"][: own_frequencies((1, 3))].imag, torch.zeros(1, 4, 2))
    for name, value in expected.items():
        assert (ours[name] - value).abs().max() < 20 * torch.finfo(torch.float32).eps * value.abs().max()


@inside
@slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_exponentials_are_never_expanding(dtype):
    """Whatever the norm up to 8192; beyond, and where K is not finite, they are NaN, matrix by matrix."""
    K = torch.randn(1, 5, 5, dtype=dtype, generator=torch.Generator().manual_seed(0)) * torch.ones(4, 1, 1)
    K *= torch.tensor([0.2, 2000, 1e5, 1]).view(4, 1, 1)
    K[3, 0, 1] = float("nan")
    E = ops.spectral_exp(K, backend="triton")
    assert E[2:].isnan().all()
    wide = E[:2].to(torch.complex128)
    assert torch.linalg.svdvals(wide).amax() < 1 + 1e-6
    assert (wide @ wide.mH - torch.eye(5)).abs().amax() < 1e-4
    assert (wide[0] - ops.spectral_exp(K[0].to(torch.complex128))).abs().amax() < 1e-6


@inside
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("case_name", ["c8", pytest.param("half", marks=slow)])
def test_block_reflectors_in_other_dtypes(case_name, dtype):
    case = testing.cases_of("block_reflector").CASES[case_name]
    one = dataclasses.replace(case, shapes={"V": (1, *case.shapes["V"][-2:])})
    testing.check_agreement("block_reflector", "triton", one, dtype)


@inside
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
def test_block_reflectors_of_matrices_without_full_rank(dtype):
    """Zero, equal columns, rank one, ill-conditioned, tiny, huge, too small for a gradient, NaN, Inf: one batch."""
    V = torch.randn(10, 8, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    U, _, Wh = torch.linalg.svd(V[4].to(torch.promote_types(dtype, torch.float64)), full_matrices=False)
    V[1] = 0
    V[2] = V[2][:, [0, 1, 1, 2]]
    V[3] = V[3][:, :1] * torch.arange(1, 5)
    V[4] = ((U * torch.logspace(0, -5, 4)) @ Wh).to(dtype)
    V[5] *= 1e-25
    V[6] *= 1e25
    V[7] *= 1e-41
    V[8, 3, 2], V[9, 3, 2] = float("nan"), float("inf")
    V.requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of Inf
        Q = ops.block_reflector(V, backend="triton")
        (gradient,) = torch.autograd.grad(Q[:8].abs().sum(), V)
    assert Q[8:].isnan().all()
    assert torch.equal(Q[1], torch.eye(8, dtype=dtype))
    assert gradient[:8].abs().isfinite().all()
    Q, wide = Q.detach()[:8].to(torch.complex128), V.detach()[:8].to(torch.complex128)
    assert (Q @ Q.mH - torch.eye(8)).abs().amax() < 40 * torch.finfo(dtype).eps
    expected = ops.block_reflector(wide, backend="reference")
    error, eps = (Q - expected).abs().amax((1, 2)), torch.finfo(dtype).eps
    assert error[[0, 1, 2, 3, 5, 6]].amax() < 200 * eps
    assert error[4] < max(200 * eps, 1e6 * torch.finfo(torch.float64).eps)  # of condition 1e5


@inside
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.complex128], ids=str)
def test_block_conv_in_other_dtypes(dtype):
    case = testing.cases_of("block_conv").CASES["4x1, no batch dimension"]
    testing.check_agreement("block_conv", "triton", case, dtype)


def test_outside_the_interpreter_a_cpu_tensor_is_refused_with_the_reason():
    if ACTIVE:
        pytest.skip("the interpreter is active")
    with pytest.raises(ValueError, match=r"need a CUDA tensor or Triton.s interpreter, got device cpu"):
        ops.maxmin(torch.zeros(2, 4), backend="triton")
