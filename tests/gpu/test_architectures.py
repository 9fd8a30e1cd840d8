"""What each GPU holds: every size that may be launched fits a block's shared memory, or is refused by the number."""

import math
import re
from pathlib import Path

import pytest
import torch

from fastlip.kernels.cayley import native as cayley
from fastlip.kernels.common import gpu
from fastlip.kernels.polar import on_cuda as polar

ROOT = Path(__file__).resolve().parents[2]
KB = 1024
# Bytes that a block can ask for: RTX 30, 40 and 50, A10, L4, L40S; A100; H100, H200, B200.
ARCHITECTURES = {"sm_86, sm_89, sm_120": 99 * KB, "sm_80": 163 * KB, "sm_90, sm_100": 227 * KB}
DEVICE = torch.device("cuda", 0)


class Properties:
    """What torch says of a device."""

    def __init__(self, shared=227 * KB, capability=(9, 0), name="a GPU"):
        self.shared_memory_per_block_optin, self.shared_memory_per_block = shared, 48 * KB
        (self.major, self.minor), self.name = capability, name


def clear():
    for asked in (gpu.shared_memory, gpu.capability, gpu.too_old):
        asked.cache_clear()


@pytest.fixture
def chip(monkeypatch):
    """A function that says what the GPU is."""

    def use(**properties):
        clear()
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties(**properties))

    yield use
    clear()


@pytest.mark.parametrize("shared", ARCHITECTURES.values(), ids=ARCHITECTURES)
@pytest.mark.parametrize("dtype", cayley._LARGEST, ids=str)
def test_cayley_inverts_on_chip_what_fits(dtype, shared, chip):
    chip(shared=shared)
    largest = cayley._largest(dtype, DEVICE)
    assert 64 <= largest <= cayley._LARGEST[dtype]
    for n in range(1, largest + 1):
        assert cayley.on_chip_bytes(n, dtype) <= shared
    assert largest == cayley._LARGEST[dtype] or cayley.on_chip_bytes(largest + 1, dtype) > shared


def test_what_cayley_inverts_on_chip_by_architecture(chip):
    table = {}
    for name, shared in ARCHITECTURES.items():
        chip(shared=shared)
        table[name] = [cayley._largest(dtype, DEVICE) for dtype in cayley._LARGEST]
    assert table["sm_90, sm_100"] == list(cayley._LARGEST.values())
    assert table["sm_80"] == list(cayley._LARGEST.values())
    assert table["sm_86, sm_89, sm_120"] == [128, 100, 100, 64]


@pytest.mark.parametrize("shared", ARCHITECTURES.values(), ids=ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_polar_is_refused_where_it_does_not_fit(dtype, shared, chip):
    chip(shared=shared)
    for rows in range(1, 65):
        for columns in (1, rows):
            needed = polar.shared_bytes(rows, columns, dtype)
            reason = polar._does_not_fit(needed, DEVICE)
            assert bool(reason) == (needed > shared)
            assert not reason or (str(needed) in reason and str(shared) in reason)


def test_shared_memory_is_what_the_kernels_ask_for():
    """The formulas here are those of csrc."""
    step = int(re.search(r"constexpr int kStep = (\d+);", source("cayley/elimination.cuh"))[1])
    body = re.search(r"numbers\(int64_t n\) \{\s+(.*?)\n  \}", source("cayley/elimination.cuh"), re.DOTALL)[1]
    assert "kPlanes * (size * (size + 4) + kStep * size + 2 * kStep * kStep)" in body
    assert cayley.on_chip_bytes(128, torch.float32) == 4 * (128 * 132 + step * 128 + 2 * step * step)
    assert cayley.on_chip_bytes(128, torch.complex64) == 155648
    assert "(tiles * X::kNumbers + 4 * kWarps) * int64_t{sizeof(float)}" in source("polar/iteration.cuh")
    assert "return tall ? 5 : 4;" in source("polar/polar_cuda.cu")
    assert polar.shared_bytes(64, 64, torch.complex64) == 131200
    assert polar.shared_bytes(64, 40, torch.complex64) == 163968


def source(name):
    return (ROOT / "csrc" / name).read_text()


def test_a_kernel_that_fits_no_chip_is_refused_with_the_number(chip):
    chip(shared=99 * KB)
    assert gpu.does_not_fit("it would", 99 * KB, DEVICE) == ""
    reason = gpu.does_not_fit("200 KB of tiles", 200 * KB, DEVICE)
    assert reason == "200 KB of tiles take 204800 bytes of shared memory, a block of cuda:0 has 101376"


def ask_for_shared_memory(csrc):
    """The folders of kernels in CUDA C++ whose launches give blocks shared memory of a size known at run time."""
    sources = [path for path in csrc.rglob("*.cu*") if path.parent.name != "common"]
    return {path.parent.name for path in sources if re.search(r"\blaunch_(with_shared|blocks)\(", path.read_text())}


def test_every_op_whose_blocks_ask_for_memory_asks_the_device_first(tmp_path):
    def asks(op_name):
        files = (ROOT / "fastlip" / "kernels" / op_name).glob("*.py")
        return any(re.search(r"gpu\.(does_not_fit|shared_memory)\(", path.read_text()) for path in files)

    found = ask_for_shared_memory(ROOT / "csrc")
    assert found == {"cayley", "polar"}
    assert all(map(asks, found))
    assert not asks("maxmin")  # planted below: it would be found, and it does not ask
    (tmp_path / "maxmin").mkdir()
    (tmp_path / "maxmin" / "maxmin_cuda.cu").write_text("launch_with_shared(kernel, blocks, 200 * 1024, stream, x);")
    assert ask_for_shared_memory(tmp_path) == {"maxmin"}


@pytest.mark.parametrize(("capability", "runs"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_compute_capability_is_asked(capability, runs, chip):
    chip(capability=capability, name="Tesla T4")
    reason = gpu.too_old(DEVICE)
    assert (reason == "") == runs
    assert runs or reason == f"Tesla T4 has compute capability {capability[0]}.{capability[1]}, kernels need 8.0"


@pytest.mark.parametrize(
    ("built", "driver", "runs"),
    [("CUDA 13.0", 12080, False), ("CUDA 13.0", 13000, True), ("CUDA 12.8", 12020, True), ("CUDA ", 12000, True)],
)
def test_a_driver_that_is_older_than_the_toolkit_is_refused(built, driver, runs):
    class Extension:
        instruction_set = built

    reason = gpu.driver_refusal(Extension, driver)
    assert (reason == "") == runs
    if not runs:
        assert "the driver supports CUDA 12.8, fastlip._cuda was built with CUDA 13.0" in reason


def test_without_a_driver_nothing_is_said():
    class Extension:
        instruction_set = "CUDA 13.0"

    assert gpu.driver_refusal(Extension, 0) == ""
    assert math.isfinite(gpu._driver_version())
    assert gpu.refusal_of_all() == "" or torch.cuda.is_available()


@pytest.fixture
def _asked_anew():
    gpu.triton_cannot_launch.cache_clear()
    yield
    gpu.triton_cannot_launch.cache_clear()


@pytest.mark.usefixtures("_asked_anew")
@pytest.mark.parametrize("found", ["gcc", "clang", "CC", ""])
def test_without_a_c_compiler_triton_is_not_chosen(found, monkeypatch):
    monkeypatch.setattr(gpu.shutil, "which", lambda name: name if name == found else None)
    monkeypatch.setattr(gpu.Path, "exists", lambda path: True)
    monkeypatch.setenv("CC", "/opt/cc" if found == "CC" else "")
    assert ("finds no C compiler: install gcc" in gpu.triton_cannot_launch()) == (found == "")


@pytest.mark.usefixtures("_asked_anew")
def test_without_pythons_headers_triton_is_not_chosen(monkeypatch):
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(gpu.Path, "exists", lambda path: False)
    assert "Python.h: install Python's headers" in gpu.triton_cannot_launch()
