"""The CUDA kernels on the CPU: agreement with the reference, memory errors, and data races."""

import subprocess

import pytest
import shim
import torch

from fastlip import testing
from fastlip.ops import _native

SMALL = 4000


def size(case):
    return sum(torch.Size(shape).numel() for shape in case.shapes.values())


CASES = [
    pytest.param(op_name, case, id=f"{op_name}-{case_name}")
    for op_name in shim.OPS
    for case_name, case in testing.cases_of(op_name).CASES.items()
    if size(case) <= SMALL
]


@pytest.fixture(autouse=True)
def _extension():
    """The op's native.py calls the kernels, and it needs the built extension."""
    if reason := testing.op("maxmin").status("native"):
        pytest.skip(reason)


@pytest.fixture(scope="module")
def kernels():
    return shim.Kernels(shim.build("kernels.so", "-shared"))


@pytest.fixture(autouse=True)
def _poisoned():
    """Memory from torch.empty holds NaN: an element that no kernel writes is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def replace_native(monkeypatch, names, kernels):
    for name in names:
        monkeypatch.setitem(_native._kernels, ("cpu", name), kernels[name])


@pytest.mark.parametrize(("op_name", "case"), CASES)
def test_agreement(op_name, case, kernels, monkeypatch):
    replace_native(monkeypatch, kernels.names, kernels)
    for dtype in testing.dtypes_of(op_name):
        testing.check_agreement(op_name, "native", case, dtype)


@pytest.fixture(scope="module", params=["thread", "address,alignment"])
def sanitized(request):
    """A function that runs one kernel under a sanitizer."""
    options = [f"-fsanitize={request.param}", "-fno-sanitize-recover=all"]
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


@pytest.mark.parametrize(("op_name", "case"), CASES)
def test_no_races_and_no_stray_accesses(op_name, case, sanitized, kernels, monkeypatch):
    recorder = shim.Recorder(kernels, monkeypatch)
    replace_native(monkeypatch, kernels.names, recorder)
    tensors = case.make(testing.dtypes_of(op_name)[0])
    testing.outputs_and_gradients(lambda **t: testing.call(op_name, "native", case, t), tensors)
    assert recorder.commands
    for command in recorder.commands:
        result = sanitized(*command)
        assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr[:3000]}"
