"""Runs the parts of what is done on a GPU one after the other, and stops at the first that fails.

    benchmarks/run_gpu.sh [-o FOLDER] [--commit TEXT] [--dry-run] [PART ...]

Each part ends within nine minutes, so that each can be a call of its own; by default all of them run:

    build       compiles the kernels in place; what each op can run (doctor.json)
    sanitizer   compute-sanitizer on every CUDA kernel: memcheck, racecheck, initcheck
    agreement   the kernels' agreement with float64 in IEEE precision, whole steps, captures (agreement.json)
    kernels     seconds of each op by replays of CUDA graphs, over what the device reaches (kernels.json)
    layers      the same of each method's layer, forward and in training, next to its convolution (kernels.json)
    ops         every op's benchmark cases, every backend next to the reference and other algorithms (ops.json)
    networks    training and evaluation of whole networks: fused, captured, reference, plain (networks.json)
    compiled    ops, layers and networks against what torch compiles (kernels.json, networks.json)

FOLDER (default $OUT, or benchmarks/results/gpu) also gets steps.json, with each step's exit status and seconds, and
of a failed one its command and the end of what it printed. After a failure the last lines say how to repeat that step
alone and how to go on from its part.
--commit (default $COMMIT) names the commit where git cannot. --dry-run needs no GPU: every step runs with what it
imports, selects and writes, small, on the CPU, and tests are collected only.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 530  # seconds of a part
_DRY_LIMIT = 3600
_GRACE = 10  # between an interrupt and an end by force
_TAIL = 2000  # characters of a failed step's output in steps.json
FILES = ("doctor.json", "agreement.json", "kernels.json", "ops.json", "networks.json", "steps.json")
PACKAGES = ("torch", "numpy", "pybind11", "ninja", "setuptools", "pytest", "hypothesis", "sklearn", "click", "tqdm")
_WHERE = ("--commit", "{commit}", "--output")
TOOLS = ("memcheck", "racecheck", "initcheck")
DRY = "--dry-run"
# What to do where a part fails.
HINTS = {
    "build": "Without nvcc the kernels in CUDA C++ are missing, and Triton's run: leave out build and sanitizer.",
    "sanitizer": "Do not use results of the kernel it names. An error of the first kernel hides the others.",
    "agreement": "pytest's -k selects an op; an op whose kernel is wrong runs by backend='reference' meanwhile.",
}


@dataclass(frozen=True)
class Step:
    """A command of a part.

    Args:
        name: of the step.
        seconds: its limit.
        command: what runs; ``{out}`` is the folder of results, ``{commit}`` the commit.
        dry: what runs in a dry run in its place; None: the command and ``--dry-run``.
        stdout: file in the folder that gets the command's output.
        environment: variables of the command.
        needs: program without which a dry run leaves the step out.
    """

    name: str
    seconds: int
    command: tuple[str, ...]
    dry: tuple[str, ...] | None = None
    stdout: str = ""
    environment: Mapping[str, str] | None = None
    needs: str = ""


def script(name: str, *arguments: str) -> tuple[str, ...]:
    return sys.executable, f"benchmarks/{name}.py", *arguments


def build() -> list[Step]:
    # From an empty folder: an old setuptools cannot read pyproject.toml, which setup.py does without.
    command = "cd {empty} && exec {python} {root}/setup.py -q build_ext --build-lib {root}"
    text = command.format(empty=tempfile.mkdtemp(), python=sys.executable, root=ROOT)
    compiles = "sh", "-c", text
    how = {"FASTLIP_CUDA": "require", "FASTLIP_ISA": "machine"}
    doctor = sys.executable, "-m", "fastlip", "doctor", "--json"
    return [
        Step("build", 450, compiles, dry=compiles, environment=how, needs="nvcc"),
        Step("doctor", 60, doctor, dry=doctor, stdout="doctor.json"),
    ]


def sanitizer() -> list[Step]:
    program = script("gpu_sanitize")
    own = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # so that each tensor is an allocation, with an end
    return [
        Step(tool, LIMIT // 3, ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *program),
             dry=(*program, DRY), environment=own)
        for tool in TOOLS
    ]  # fmt: skip


def agreement() -> list[Step]:
    # Warnings are errors in the project; those of another machine's packages are listed instead.
    pytest = [sys.executable, "-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider", "-W", "default"]
    if importlib.util.find_spec("xdist"):
        pytest += ["-p", "xdist.plugin", "-n", "8"]
    tests = "tests/ops/test_agreement.py", "tests/gpu/test_whole_step.py"
    command = (
        *pytest,
        "-p",
        "benchmarks.counts_plugin",
        "--json-summary",
        "{out}/agreement.json",
        "--device",
        "cuda",
        *tests,
    )
    return [Step("tests", LIMIT, command, dry=(*command, "--collect-only"))]


def kernels() -> list[Step]:
    return [
        Step("kernels", LIMIT, _report("maxmin", "gram_rowsum", "cayley", "polar", "spectral_conv", "conv_chain"))
    ]


def layers() -> list[Step]:
    names = "AOL", "Cayley", "AOC", "SLL", "CPL", "LOT", "BCOP", "SOC", "BRO"
    return [Step("layers", LIMIT, _report(*(f"layer {name}" for name in names)))]


def ops() -> list[Step]:
    return [Step("cases", LIMIT, script("gpu_report", "--cases", *_WHERE, "{out}/ops.json"))]


def networks() -> list[Step]:
    return [Step("networks", LIMIT, _networks("--seconds", "420"))]


def compiled() -> list[Step]:
    return [
        Step("ops", 260, _report("spectral_conv", "conv_chain", "layer Cayley", "layer SLL", "--compiled")),
        Step("networks", 270, _networks("--compiled", "--seconds", "120")),
    ]


def _report(*names: str) -> tuple[str, ...]:
    only = [word for name in names for word in ([name] if name.startswith("--") else ["--only", name])]
    return script("gpu_report", *only, *_WHERE, "{out}/kernels.json")


def _networks(*options: str) -> tuple[str, ...]:
    return script("gpu_networks", *options, *_WHERE, "{out}/networks.json")


PARTS = {part.__name__: part for part in (build, sanitizer, agreement, kernels, layers, ops, networks, compiled)}


class Run:
    """A run of parts: where its results are, and how its steps went."""

    def __init__(self, out: Path, commit: str, dry: bool):
        self.out = out
        self.commit = commit
        self.dry = dry
        self.file = out / "steps.json"
        self.steps: list[dict[str, object]] = json.loads(self.file.read_text()) if self.file.exists() else []

    def part(self, name: str) -> bool:
        """Runs a part's steps; False after the first that fails."""
        started = time.monotonic()
        limit = _DRY_LIMIT if self.dry else LIMIT  # a machine that tests may be slow
        return all(self._step(name, step, limit - (time.monotonic() - started)) for step in PARTS[name]())

    def _step(self, part: str, step: Step, left: float) -> bool:
        command = self.command(step)
        print(f"=== {part}: {step.name}: {' '.join(command)}", flush=True)
        if self.dry and step.needs and shutil.which(step.needs) is None:
            return self._note(part, step, f"left out: no {step.needs}", 0.0, "")
        started = time.monotonic()
        status, text, errors = _run(
            command, left if self.dry else min(left, step.seconds), {**os.environ, **(step.environment or {})}
        )
        if step.stdout and status == 0:
            (self.out / step.stdout).write_text(text)
        return self._note(part, step, status, time.monotonic() - started, text + errors)

    def command(self, step: Step) -> list[str]:
        """The words of a step's command in this run."""
        words = step.command if not self.dry else (*step.command, DRY) if step.dry is None else step.dry
        return [word.replace("{out}", str(self.out)).replace("{commit}", self.commit) for word in words]

    def _note(self, part: str, step: Step, status: int | str, seconds: float, text: str) -> bool:
        good = status == 0 or (isinstance(status, str) and status.startswith("left out"))
        row: dict[str, object] = {"part": part, "step": step.name, "status": status, "seconds": round(seconds, 1)}
        if not good:
            row["command"] = _typed(step.environment or {}, self.command(step))
            row["tail"] = text[-_TAIL:]
        self.steps.append(row)
        self.file.write_text(json.dumps(self.steps, indent=1) + "\n")
        print(f"{part} {step.name}: {status} ({seconds:.0f} s)", flush=True)
        return good


def _typed(environment: Mapping[str, str], command: Sequence[str]) -> str:
    """The command as one types it in the folder of the project."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in {"PYTHONPATH": ".", **environment}.items()]
    return " ".join((*variables, shlex.join(command)))


def _run(command: Sequence[str], seconds: float, environment: Mapping[str, str]) -> tuple[int | str, str, str]:
    """Exit status (or that it ran out of time), output, which is shown as it comes, and error output of a command."""
    if seconds <= 0:
        return "no time left", "", ""
    with tempfile.TemporaryFile("w+") as errors:
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=dict(environment),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        except OSError as error:
            return str(error), "", ""
        timer = _Deadline(process, seconds)
        with process, timer:
            lines = []
            for line in process.stdout or ():
                lines.append(line)
                print(line, end="", flush=True)
            status = process.wait()
        errors.seek(0)
        text = errors.read()
    print(text, end="", file=sys.stderr, flush=True)
    return (f"out of time after {seconds:.0f} s" if timer.passed else status), "".join(lines), text


class _Deadline:
    """Interrupts a process and all that it started when its time is over, and ends them by force after that."""

    def __init__(self, process: subprocess.Popen[str], seconds: float):
        import threading

        self.passed = False
        self.process = process
        self._timers = [
            threading.Timer(seconds, self._send, [signal.SIGINT]),
            threading.Timer(seconds + _GRACE, self._send, [signal.SIGKILL]),
        ]

    def _send(self, number: int) -> None:
        self.passed = True
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def __enter__(self) -> None:
        for timer in self._timers:
            timer.daemon = True
            timer.start()

    def __exit__(self, *_: object) -> None:
        for timer in self._timers:
            timer.cancel()


def commit_here() -> str:
    """The commit that is checked out, or "unknown"."""
    if shutil.which("git") is None:
        return "unknown"
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--commit", default=os.environ.get("COMMIT") or commit_here())
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    options = parser.parse_args()
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"PART={unknown[0]!r}: allowed are {', '.join(PARTS)}")
    out = (options.out or Path(os.environ.get("OUT", ROOT / "benchmarks" / "results" / "gpu"))).resolve()
    out.mkdir(parents=True, exist_ok=True)
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            print(f"this Python lacks {name}: what needs it fails below")
    run = Run(out, options.commit, options.dry_run)
    parts = options.parts or list(PARTS)
    for place, name in enumerate(parts):
        if not run.part(name):
            print(stopped(run, parts[place:]))
            return 1
    return 0


def stopped(run: Run, parts: Sequence[str]) -> str:
    """What to do after the first of these parts has failed."""
    failed = run.steps[-1]
    again = ["benchmarks/run_gpu.sh", "-o", str(run.out), *([DRY] if run.dry else []), *parts]
    return (
        f"stopped: part {parts[0]}, step {failed['step']}: {failed['status']}\n"
        f"{run.file} has the end of its output.\n"
        f"{HINTS.get(parts[0], 'Figures of a kernel that fails are not to be used.')}\n"
        f"The step alone:\n    cd {shlex.quote(str(ROOT))} && {failed['command']}\n"
        f"From here on, when it is mended:\n    {shlex.join(again)}"
    )


if __name__ == "__main__":
    sys.exit(main())
