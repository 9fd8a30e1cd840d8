"""The CPU kernels built for lesser machines than this one: each agrees with the reference in a process of its own.

torch's own variable ATEN_CPU_CAPABILITY makes this machine pass for a lesser one, and the package follows torch.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from fastlip import testing
from fastlip.kernels.common import binding

ROOT = Path(__file__).resolve().parents[2]
BEST = torch.backends.cpu.get_cpu_capability()
LESSER = {"AVX512": ("avx2", "default"), "AVX2": ("default",)}.get(BEST, ())


def selection(sweep):
    """(op, case name, case, dtype): what the agreement tests run, in single precision or in every dtype."""
    for op_name, case_name, case in testing.op_cases():
        if "native" in testing.backends_of(op_name):
            for dtype in testing.dtypes_of(op_name):
                if sweep or dtype in (torch.float32, torch.complex64):
                    yield op_name, case_name, case, dtype


def main(instruction_set, sweep):
    """What the child does: prints what disagrees, and how many cases of each op ran."""
    loaded = binding.library("cpu")
    if (loaded.__name__, loaded.instruction_set) != (f"fastlip._native_{instruction_set}", instruction_set):
        raise SystemExit(f"{loaded.__name__} is loaded, built for {loaded.instruction_set}")
    ran = dict.fromkeys((name for name in testing.ops_with_cases() if "native" in testing.backends_of(name)), 0)
    for op_name, case_name, case, dtype in selection(sweep):
        try:
            testing.check_agreement(op_name, "native", case, dtype)
        except ValueError as error:
            if "cannot run here" not in str(error):
                raise
            continue
        except AssertionError as error:
            print(f"{case_name}: {error}")
        ran[op_name] += 1
    print(f"{sum(ran.values())} cases on {instruction_set}")
    if missing := [name for name, count in ran.items() if count == 0]:
        raise SystemExit(f"nothing ran of {missing}")


def child(instruction_set, *arguments):
    if binding.missing("maxmin_forward_float32", torch.device("cpu")):
        pytest.skip("the kernels are not built")
    if find_spec(f"fastlip._native_{instruction_set}") is None:
        pytest.skip(f"the {instruction_set} kernels are not built: FASTLIP_ISA=all pip install -e .")
    command = [sys.executable, __file__, instruction_set, *arguments]
    search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    ours = {"ATEN_CPU_CAPABILITY": instruction_set, "OMP_NUM_THREADS": "1", "PYTHONPATH": search}
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | ours)
    assert process.returncode == 0, process.stdout + process.stderr
    count, _, rest = process.stdout.strip().partition(" ")
    assert rest == f"cases on {instruction_set}", process.stdout
    return int(count)


@pytest.mark.parametrize("instruction_set", ["default", "avx2", "avx512"])
def test_a_module_that_cannot_run_here_says_so(instruction_set):
    """Whoever looks at all modules of a package imports it too, and shall not lose the process."""
    if find_spec(f"fastlip._native_{instruction_set}") is None:
        pytest.skip(f"the {instruction_set} kernels are not built")
    command = [sys.executable, "-c", f"import fastlip._native_{instruction_set}"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if instruction_set in (*LESSER, BEST.lower()):
        assert process.returncode == 0, process.stderr
    else:
        expected = f"ImportError: this processor cannot run {instruction_set} kernels"
        assert (process.returncode, process.stderr.splitlines()[-1]) == (1, expected)


@pytest.mark.parametrize("instruction_set", LESSER)
def test_kernels_agree_in_single_precision(instruction_set):
    assert child(instruction_set) > 100


@pytest.mark.slow
@pytest.mark.parametrize("instruction_set", LESSER)
def test_kernels_agree_in_every_dtype(instruction_set):
    assert child(instruction_set, "sweep") > 300


if __name__ == "__main__":
    main(sys.argv[1], "sweep" in sys.argv[2:])
