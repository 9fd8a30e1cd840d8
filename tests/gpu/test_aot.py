"""GPU kernels compiled without a GPU: a sample here, all of them by tools/check_kernels.py in CI."""

import ast
import importlib.util
import sys
from pathlib import Path
from unittest import mock

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("check_kernels", ROOT / "tools" / "check_kernels.py")
check_kernels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_kernels)
sys.path.insert(0, str(ROOT / "tools" / "gpu"))
import launches  # noqa: E402

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


def ops_and_chips():
    """Every op on the newest chip, and for each other chip the first op: its compiler is another, the ops are not."""
    for op in check_kernels.triton_ops():
        for capability in check_kernels.TRITON_TARGETS:
            ordinary = capability == max(check_kernels.TRITON_TARGETS) or op == check_kernels.triton_ops()[0]
            yield pytest.param(op, capability, marks=() if ordinary else pytest.mark.slow)


@pytest.mark.parametrize(("op", "capability"), [*ops_and_chips()])
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


@pytest.mark.parametrize(("target", "limit"), [("sm_80", 163), ("sm_86", 99), ("sm_90a", 227), ("sm_120", 99)])
def test_too_much_shared_memory_is_reported(target, limit):
    usage = check_kernels.Usage("kernel", target, 32, 0, limit * 1024 + 1)
    assert usage.problem() == f"{limit * 1024 + 1} bytes of shared memory, allowed {limit * 1024}"
    assert not usage._replace(shared=limit * 1024).problem()
    assert bool(usage._replace(shared=200 * 1024).problem()) == (limit < 200)


def gram_launch(num_warps, size=3):
    """The weighted Gram kernel as a training step of SLL launches it, but for the warps."""
    sizes = (32, 32, 1, 32, 32, 1, size, size)
    tensors = [launches.Argument(dtype, True) for dtype in ("float32", "float32", "float32", "int32")]
    return launches.Recorded(
        "fastlip.kernels.gram_rowsum.triton_kernels",
        "_forward_kernel",
        tuple(tensors + [launches.Argument("", value) for value in sizes]),
        (("PRECISION", "tf32x3"), ("SUM", 32), ("TILE", 32), ("WEIGHTED", True)),
        num_warps,
    )


@pytest.fixture
def no_driver(compiler):
    """Whatever a test makes Triton's driver, it is as before afterwards."""
    import triton

    with mock.patch.dict(vars(triton.runtime.driver)):
        yield


def test_a_launch_is_compiled_as_it_was_made(no_driver):
    usage = launches.compiled(gram_launch(4), 90)
    assert not isinstance(usage, str), usage
    assert usage.registers > 0
    assert not usage.problem()


def test_a_launch_that_does_not_compile_is_reported(no_driver):
    launch = gram_launch(4)
    other = launch._replace(constants=(("PRECISION", "tf32x3"), ("SUM", 31), ("TILE", 32), ("WEIGHTED", True)))
    assert "for sm_90: CompilationError" in launches.compiled(other, 90)


def test_a_launch_is_known_by_what_triton_specialises():
    numbers = [launches._argument(value, False).value for value in (1, 3, 16, 48, 2**31, 2**31 + 1)]
    assert numbers == [1, 33, 32, 32, 2**31 + 32, 2**31 + 33]
    assert launches._argument(3, True).value == 3
    assert launches._argument(2.5, False) == launches._argument(0.1, False)
    assert launches._argument(1, False, False) == launches._argument(16, False, False) == launches._argument(3, False)


def dots(path):
    """Every product of tiles, under whatever name: the calls, and mentions of it that are not called."""
    tree = ast.parse(path.read_text())
    if not any("triton" in ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))):
        return [], []
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and is_dot(node.func)]
    called = {id(call.func) for call in calls}
    return calls, [node for node in ast.walk(tree) if is_dot(node) and id(node) not in called]


def is_dot(node):
    name = getattr(node, "attr", None) or getattr(node, "id", None) or getattr(node, "name", None)
    return name in ("dot", "dot_scaled") and isinstance(node, (ast.Attribute, ast.Name, ast.alias))


def untyped(path):
    """The lines of products whose type is not said, or is that of one precision whatever is multiplied."""
    calls, mentions = dots(path)
    types = [(call, [keyword.value for keyword in call.keywords if keyword.arg == "out_dtype"]) for call in calls]
    fixed = [call for call, found in types if not found or ast.unparse(found[0]).startswith("tl.")]
    return sorted(node.lineno for node in (*fixed, *mentions))


KERNEL_FILES = sorted((ROOT / "fastlip").rglob("*.py"))


def test_every_product_names_its_type():
    # Triton 3.6 sums in float32 unless told otherwise, and does not compile a sum of another type.
    assert sum(len(dots(path)[0]) for path in KERNEL_FILES) > 10
    assert {str(path): untyped(path) for path in KERNEL_FILES if untyped(path)} == {}


@pytest.mark.parametrize(
    "text",
    [
        "v = tl.dot(a, b, v, input_precision=PRECISION)",
        "v = triton.language.dot(a, b)",
        "v = tl.dot(a, b, out_dtype=tl.float32)",
        "multiply = tl.dot",
        "from triton.language import dot",
        "v = tl.dot_scaled(a, s, 'e4m3', b, t, 'e4m3')",
    ],
)
def test_a_product_without_its_type_is_found(text, tmp_path):
    planted = tmp_path / "kernel.py"
    planted.write_text(f"import triton\n{text}\n")
    assert untyped(planted) == [2]
    planted.write_text("import triton\nv = tl.dot(a, b, v, out_dtype=p_a.dtype.element_ty)\n")
    assert untyped(planted) == []


def test_a_kernel_with_too_large_tiles_is_reported(no_driver):
    """Tiles of 128 KB, for which a block of an A100 has room and one of an RTX 30 has none."""
    launch = transform_launch(128)
    assert "131072 bytes of shared memory, allowed 101376" in launches.compiled(launch, 86).problem()
    assert "shared" not in launches.compiled(launch, 80).problem()
    assert not launches.compiled(transform_launch(32, num_warps=4), 86).problem()


def transform_launch(terms, num_warps=8):
    """The transform of spectral_conv, with so many terms in each step of its sums."""
    tensors = [launches.Argument("float32", True)] * 5
    numbers = [launches.Argument("", number) for number in (0.5, 33, 32, 32, 32, 32, 32, 1, 32, 32, 1, 32, 32, 1)]
    constants = {"ACTIVATION": "none", "BIAS": False, "COLUMNS": 64, "PRECISION": "tf32x3", "RESIDUAL": False}
    constants |= {"ROWS": 64, "SCALED": False, "TERMS": terms}
    module = "fastlip.kernels.spectral_conv.matrix_triton"
    return launches.Recorded(
        module, "_transform_kernel", tuple(tensors + numbers), tuple(sorted(constants.items())), num_warps
    )
