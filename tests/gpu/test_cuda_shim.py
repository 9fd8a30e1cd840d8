"""The CUDA kernels on the CPU: agreement with the reference, memory errors, and data races."""

import subprocess

import pytest
import shim
import torch

from fastlip import ops, testing
from fastlip.kernels.common import binding

SMALL = 4000


def size(case):
    return sum(torch.Size(shape).numel() for shape in case.shapes.values())


CASES = [
    pytest.param(op_name, case, id=f"{op_name}-{case_name}")
    for op_name in shim.OPS
    for case_name, case in testing.cases_of(op_name).CASES.items()
    if size(case) <= SMALL
]
# Cayley's on chip, by blocks, tall; each size of polar's tiles. The others repeat these launches, of 0.2 s and more.
SANITIZED = {"cayley": {"c3", "c17", "tall"}, "polar": {"c3", "c17", "wide_33_63"}}


def sanitized_cases():
    for op_name in shim.OPS:
        for case_name, case in testing.cases_of(op_name).CASES.items():
            if size(case) <= SMALL:
                ordinary = case_name in SANITIZED.get(op_name, {case_name})
                marks = () if ordinary else pytest.mark.slow
                yield pytest.param(op_name, case, id=f"{op_name}-{case_name}", marks=marks)


@pytest.fixture(autouse=True)
def _extension():
    """The op's native.py calls the kernels, and it needs the built extension."""
    for op_name in shim.OPS:
        if reason := testing.op(op_name).status("native"):
            pytest.skip(reason)


@pytest.fixture(scope="module")
def kernels():
    return shim.Kernels(shim.build("kernels.so", "-O0", "-shared"))


@pytest.fixture(autouse=True)
def _poisoned():
    """Memory from torch.empty holds NaN: an element that no kernel writes is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _small_chips(monkeypatch):
    """Cayley's 2 x 2 blocks are reached by small cases too."""
    native = testing.op("cayley").modules["native"]
    monkeypatch.setattr(native, "_LARGEST", dict.fromkeys(native._LARGEST, 16))


def replace_native(monkeypatch, names, kernels):
    for name in names:
        monkeypatch.setitem(binding.CPU, name, kernels[name])


def dtypes_of(op_name, kernels):
    """Those that the op has CUDA kernels for."""
    ends = {name.rpartition("_")[2] for name in kernels.names if name.startswith(f"{op_name}_")}
    return [dtype for dtype in testing.dtypes_of(op_name) if str(dtype).removeprefix("torch.") in ends]


@pytest.mark.parametrize(("op_name", "case"), CASES)
def test_agreement(op_name, case, kernels, monkeypatch):
    replace_native(monkeypatch, kernels.names, kernels)
    for dtype in dtypes_of(op_name, kernels):
        testing.check_agreement(op_name, "native", case, dtype)


@pytest.mark.parametrize("dtype", testing.dtypes_of("cayley"), ids=str)
@pytest.mark.parametrize("shape", [(2, 12, 12), (2, 37, 37), (2, 9, 6)], ids=str)
def test_cayley_is_never_expanding(shape, dtype, kernels, monkeypatch):
    """Matrices too large for elimination without pivots are transformed again; NaN stays NaN."""
    replace_native(monkeypatch, kernels.names, kernels)
    M = torch.randn(3, *shape, dtype=dtype)
    M *= torch.tensor([1, 300, 1e6]).view(3, 1, 1, 1)
    M[1, 0, 0, 1] = float("nan")
    Q = ops.cayley(M, backend="native")
    wide = torch.complex128 if dtype.is_complex else torch.float64
    assert Q[1, 0].isnan().any()
    Q[1, 0] = Q[1, 1]
    single = dtype in (torch.float32, torch.complex64)
    values = torch.linalg.svdvals(Q.to(wide))
    assert (values.amax() - 1).item() < (1e-5 if single else 1e-13)
    expected = ops.cayley(M[:2].to(wide), backend="reference")
    expected[1, 0] = expected[1, 1]
    error = (Q[:2] - expected).abs().amax().item()
    assert error < (1e-5 if single else 1e-9)


# The address sanitizer's optimised build takes longer than its runs.
OPTIMISED = {"thread": "-O1", "address,alignment": "-O0"}


@pytest.fixture(scope="module", params=OPTIMISED)
def sanitized(request):
    """A function that runs one kernel under a sanitizer."""
    options = [OPTIMISED[request.param], f"-fsanitize={request.param}", "-fno-sanitize-recover=all"]
    program = shim.build(f"driver_{request.param.replace(',', '_')}", *options)

    def run(*arguments):
        return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)

    probe = run("selftest_reverse", "p:1024", "p:1024", "i:256")
    if "unexpected memory mapping" in probe.stderr:
        pytest.skip("this kernel's address layout is unknown to the sanitizer")
    assert probe.returncode == 0, probe.stderr
    run.sanitizer = request.param
    return run


def planted(name, *sizes):
    return [f"selftest_{name}", *(f"p:{size}" for size in sizes), "i:256"]


@pytest.mark.parametrize(
    ("sanitizer", "command", "complaint"),
    [
        ("thread", planted("reverse_without_barrier", 1024, 1024), "data race"),
        ("thread", planted("collide", 1024, 1024), "data race"),
        ("thread", planted("stuck", 1024, 1024), "wait at a barrier"),
        ("address,alignment", planted("reverse", 1024, 1020), "heap-buffer-overflow"),
    ],
)
def test_planted_defects_are_found(sanitized, sanitizer, command, complaint):
    if sanitized.sanitizer != sanitizer:
        pytest.skip("another sanitizer's defect")
    result = sanitized(*command)
    assert result.returncode != 0
    assert complaint in result.stderr


@pytest.mark.parametrize(("op_name", "case"), [*sanitized_cases()])
def test_no_races_and_no_stray_accesses(op_name, case, sanitized, kernels, monkeypatch):
    recorder = shim.Recorder(kernels, monkeypatch)
    replace_native(monkeypatch, kernels.names, recorder)
    tensors = case.make(dtypes_of(op_name, kernels)[0])
    testing.outputs_and_gradients(lambda **t: testing.call(op_name, "native", case, t), tensors)
    assert recorder.commands
    for command in recorder.commands:
        result = sanitized(*command)
        assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr[:3000]}"
