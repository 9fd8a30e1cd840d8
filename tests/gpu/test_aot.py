"""GPU kernels compiled without a GPU: a sample here, all of them by tools/check_kernels.py in CI."""

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("check_kernels", ROOT / "tools" / "check_kernels.py")
check_kernels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_kernels)

SPILLING = """
__global__ void spills(const float* x, float* y) {
  float value[64];
  for (int i = 0; i < 64; ++i) value[i] = x[i * blockDim.x + threadIdx.x];
  for (int i = 0; i < 64; ++i) y[i * blockDim.x + threadIdx.x] = value[63 - i] * value[i];
}
"""


@pytest.fixture
def compiler():
    triton = pytest.importorskip("triton", minversion="3.6")
    if triton.knobs.runtime.interpret:
        pytest.skip("Triton's interpreter is active")


@pytest.fixture
def nvcc():
    return check_kernels.find_nvcc() or pytest.skip("no nvcc found")


@pytest.mark.parametrize("capability", check_kernels.TRITON_TARGETS)
@pytest.mark.parametrize("op", check_kernels.triton_ops())
def test_triton_kernels_fit_the_chip(op, capability, compiler):
    first_of = {}
    for index, entry in enumerate(check_kernels.triton_compilations(op)):
        if "fp32" in next(iter(entry.signature.values())):
            first_of.setdefault(entry.kernel, index)
    assert first_of
    for index in first_of.values():
        usage = check_kernels.triton_usage(op, index, capability)
        assert usage.registers > 0
        assert not usage.problem(), usage


def test_a_triton_kernel_that_spills_is_reported(compiler):
    usage = check_kernels.triton_usage("maxmin", 0, 90, maxnreg=24)
    assert "local memory" in usage.problem()


SLOW = ("cayley_cuda", "polar_cuda")  # their many instances take nvcc 15 s


def cuda_sources():
    for path in check_kernels.cuda_sources():
        yield pytest.param(path, id=path.stem, marks=pytest.mark.slow if path.stem in SLOW else ())


@pytest.mark.parametrize("source", [*cuda_sources()])
def test_cuda_kernels_do_not_spill(source, nvcc):
    usages = check_kernels.cuda_usage(nvcc, source, "sm_90a", "-Werror", "all-warnings")
    assert usages
    for usage in usages:
        assert not usage.problem(), usage


def test_a_cuda_kernel_that_spills_is_reported(tmp_path, nvcc):
    source = tmp_path / "spills_cuda.cu"
    source.write_text(SPILLING)
    (usage,) = check_kernels.cuda_usage(nvcc, source, "sm_90a", "-maxrregcount=24")
    assert usage.kernel == "spills"
    assert "local memory" in usage.problem()


def test_too_much_shared_memory_is_reported():
    usage = check_kernels.Usage("kernel", "sm_90a", 32, 0, 228 * 1024)
    assert "shared memory" in usage.problem()
    assert not usage._replace(shared=227 * 1024).problem()


def dots(path):
    tree = ast.parse(path.read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if ast.unparse(call.func) == "tl.dot"]


def untyped(path):
    return [call.lineno for call in dots(path) if "out_dtype" not in {keyword.arg for keyword in call.keywords}]


KERNEL_FILES = sorted((ROOT / "fastlip").rglob("*.py"))


def test_every_product_names_its_type():
    # Triton 3.6 sums in float32 unless told otherwise, and does not compile a sum of another type.
    assert sum(len(dots(path)) for path in KERNEL_FILES) > 10
    assert {str(path): untyped(path) for path in KERNEL_FILES if untyped(path)} == {}


def test_a_product_without_its_type_is_found(tmp_path):
    planted = tmp_path / "kernel.py"
    planted.write_text("v = tl.dot(a, b, v, input_precision=PRECISION)\n")
    assert untyped(planted) == [1]
