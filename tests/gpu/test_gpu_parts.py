"""``benchmarks/run_gpu.sh`` without a GPU: limits, file names, arguments, and that it stops at the first red part."""

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tf32_model
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu_networks  # noqa: E402
import gpu_parts  # noqa: E402
import gpu_report  # noqa: E402
import gpu_sanitize  # noqa: E402

NINE_MINUTES = 9 * 60


def test_what_is_timed_is_compared_in_full_precision(monkeypatch):
    """cuDNN's convolutions use TF32 unless told otherwise: two of them differ by more than the gate allows."""
    x, weight = torch.randn(2, 64, 4, 4), torch.randn(64, 64, 3, 3)

    def function(backend):
        return torch.conv2d(x if backend == "auto" else x.flip(1), weight if backend == "auto" else weight.flip(1))

    measured = gpu_report.Measured(function, [])
    tf32_model.LOWER["all libraries"]()
    try:
        with tf32_model.TF32() as model:
            gpu_report.agree(measured)
            assert model.rounded == 0
            monkeypatch.setattr(gpu_report, "everything_ieee", contextlib.nullcontext)
            gpu_report.agree(measured)
            assert model.rounded
    finally:
        tf32_model.reset()


def test_wrong_results_are_not_timed():
    measured = gpu_report.Measured(lambda backend: torch.ones(3) * (1.01 if backend == "auto" else 1), [])
    with pytest.raises(RuntimeError, match="nothing is timed"):
        gpu_report.agree(measured)


def all_steps():
    return [(name, step) for name, part in gpu_parts.PARTS.items() for step in part()]


@pytest.mark.parametrize("name", gpu_parts.PARTS)
def test_a_part_ends_within_nine_minutes(name):
    steps = gpu_parts.PARTS[name]()
    assert steps
    assert sum(step.seconds for step in steps) <= gpu_parts.LIMIT
    assert gpu_parts.LIMIT + gpu_parts._GRACE <= NINE_MINUTES


def test_at_most_eight_files_and_all_of_them_json():
    written = {step.stdout for _, step in all_steps() if step.stdout} | {"steps.json"}
    for _, step in all_steps():
        written |= set(re.findall(r"\{out\}/(\S+)", " ".join((*step.command, *(step.dry or ())))))
    assert written == set(gpu_parts.FILES)
    assert len(written) <= 8
    assert all(name.endswith(".json") for name in written)


def test_what_a_step_does_on_a_gpu_a_dry_run_does_without(tmp_path):
    run = gpu_parts.Run(tmp_path, "abc", dry=True)
    wet = gpu_parts.Run(tmp_path, "abc", dry=False)
    for part, step in all_steps():
        dry, real = run.command(step), wet.command(step)
        assert not re.search(r"\{\w+\}", " ".join((*dry, *real))), part
        if part != "build":
            assert set(dry) - set(real) <= {"--dry-run", "--collect-only"}
            assert dry != real
            assert set(real) - set(dry) <= {"compute-sanitizer", "--tool", *gpu_parts.TOOLS, "--error-exitcode", "9"}


def test_every_measure_and_network_is_in_a_part():
    words = {word for _, step in all_steps() for word in step.command}
    assert set(gpu_report.MEASURES) <= words
    methods = {setting.method for setting, _ in gpu_networks.settings(compiled=False)}
    assert methods == set(gpu_networks.METHODS)
    for setting, contestants in [*gpu_networks.settings(False), *gpu_networks.settings(True)]:
        small, left = gpu_networks.on_cpu(setting, contestants)
        assert small.device == "cpu"
        assert "fused" in left


def test_every_cuda_kernel_is_sanitized():
    sources = {path.parent.name for path in (ROOT / "csrc").glob("*/*_cuda.cu")}
    assert set(gpu_sanitize.ops()) == sources
    for op_name in sources:
        assert gpu_sanitize.names_of(op_name)
    assert gpu_sanitize.run("maxmin", "reference", "cpu") > 3
    assert {step.command[2] for step in gpu_parts.sanitizer()} == {"memcheck", "racecheck", "initcheck"}


def ends_with(code):
    return gpu_parts.Step(f"exit {code}", 60, (sys.executable, "-c", f"print({code}); raise SystemExit({code})"))


def planted(*codes):
    return list(map(ends_with, codes))


def test_the_first_red_step_ends_the_run(tmp_path, monkeypatch):
    parts = {"first": lambda: planted(0), "second": lambda: planted(3, 0), "third": lambda: planted(0)}
    monkeypatch.setattr(gpu_parts, "PARTS", parts)
    monkeypatch.setattr(sys, "argv", ["gpu_parts.py", "-o", str(tmp_path)])
    assert gpu_parts.main() == 1
    steps = json.loads((tmp_path / "steps.json").read_text())
    assert [(step["part"], step["status"]) for step in steps] == [("first", 0), ("second", 3)]
    assert steps[1]["tail"] == "3\n"


def test_what_to_do_after_a_red_step_is_said(tmp_path, monkeypatch, capfd):
    """Its traceback, its command, which a shell can run, and the command that goes on."""
    code = "import os; print(os.environ['WORD']); raise ValueError('planted fault')"
    failing = gpu_parts.Step("fails", 60, (sys.executable, "-c", code), environment={"WORD": "two words"})
    parts = {"first": lambda: planted(0), "build": lambda: [failing], "third": lambda: planted(0)}
    monkeypatch.setattr(gpu_parts, "PARTS", parts)
    monkeypatch.setattr(sys, "argv", ["gpu_parts.py", "-o", str(tmp_path)])
    assert gpu_parts.main() == 1
    (_, step) = json.loads((tmp_path / "steps.json").read_text())
    assert step["tail"].endswith("ValueError: planted fault\n")
    out, errors = capfd.readouterr()
    assert "ValueError: planted fault" in errors
    assert "stopped: part build, step fails: 1\n" in out
    assert gpu_parts.HINTS["build"] in out
    assert out.endswith(f"\n    benchmarks/run_gpu.sh -o {tmp_path} build third\n")
    again = subprocess.run(step["command"], shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == (1, "two words\n")


def test_a_step_that_hangs_is_ended(tmp_path, monkeypatch):
    sleeping = gpu_parts.Step("sleeps", 1, (sys.executable, "-c", "import time; time.sleep(60)"))
    monkeypatch.setattr(gpu_parts, "PARTS", {"slow": lambda: [sleeping]})
    run = gpu_parts.Run(tmp_path, "abc", dry=False)
    assert not run.part("slow")
    assert run.steps[0]["status"] == "out of time after 1 s"
    assert run.steps[0]["seconds"] < 20


def test_a_step_without_its_program_is_red_except_in_a_dry_run(tmp_path, monkeypatch):
    missing = gpu_parts.Step("missing", 5, ("no-such-program",), dry=("no-such-program",), needs="no-such-program")
    monkeypatch.setattr(gpu_parts, "PARTS", {"part": lambda: [missing]})
    run = gpu_parts.Run(tmp_path, "abc", dry=False)
    assert not run.part("part")
    assert "no-such-program" in run.steps[0]["status"]
    assert gpu_parts.Run(tmp_path, "abc", dry=True).part("part")


def test_an_unknown_part_is_refused(tmp_path):
    command = ["bash", ROOT / "benchmarks/run_gpu.sh", "-o", tmp_path, "kernel"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "PART='kernel': allowed are build, sanitizer, agreement" in done.stderr


@pytest.mark.slow
def test_a_dry_run(tmp_path):
    parts = [name for name in gpu_parts.PARTS if name != "build"]
    command = ["bash", ROOT / "benchmarks/run_gpu.sh", "--dry-run", "-o", tmp_path, *parts]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert {path.name for path in tmp_path.iterdir()} == set(gpu_parts.FILES) - {"doctor.json"}
    assert json.loads((tmp_path / "agreement.json").read_text())["collected"] > 100
