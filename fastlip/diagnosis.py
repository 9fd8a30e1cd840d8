"""Reports what this installation can run, and why it cannot run the rest."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

import fastlip.ops  # registers every op
from fastlip.kernels.common import binding, gpu
from fastlip.kernels.common.dispatch import registered

_COLUMN = 56  # width of the column for the CPU
_PACKAGES = ("torch", "triton", "numpy", "scikit-learn", "pillow", "tensorboard")


def diagnose() -> dict[str, Any]:
    """Returns versions, devices, compiled extensions, and the state of each op's backends.

    Returns:
        A dictionary for JSON. ``report["ops"][op][backend]`` is ``"ok"`` or the reason why the backend cannot run.

    Examples:
        >>> fastlip.diagnosis.diagnose()["ops"]["maxmin"]["reference"]
        'ok'
    """
    extensions = {device: _extension(device) for device in ("cpu", "cuda")}
    return {
        "versions": {**_own_versions(), **{name: _version(name) for name in _PACKAGES}},
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "extensions": extensions,
        "ops": {name: {"reference": "ok", **_backends(name)} for name in sorted(registered)},
        "ops_on_gpu": {name: _on_gpu(name) for name in sorted(registered)},
    }


def doctor() -> None:
    """Prints versions, devices and the state of each op's backends: ``"ok"`` or the reason why it cannot run.

    Examples:
        >>> fastlip.doctor()
        fastlip ...
    """
    print(doctor_text(diagnose()))


def doctor_text(report: dict[str, Any]) -> str:
    """Formats a report of :func:`diagnose` as text."""
    lines = [f"{name:<14} {version}" for name, version in report["versions"].items()]
    lines += [f"{'machine':<14} {report['machine']}, torch uses {report['cpu_capability']}"]
    lines += [f"{'GPU':<14} {name}" for name in report["gpus"] or ["none that torch can use"]]
    lines += [f"{device + ' kernels':<14} {state}" for device, state in report["extensions"].items()]
    for op, backends in report["ops"].items():
        on_gpu = report["ops_on_gpu"][op]
        lines += ["", f"{op:<14} {'on the CPU':<{_COLUMN}} on a GPU"]
        lines += [f"  {backend:<12} {state:<{_COLUMN}} {on_gpu[backend]}" for backend, state in backends.items()]
    return "\n".join(lines)


def _own_versions() -> dict[str, str]:
    """Versions of fastlip and Python."""
    return {"fastlip": fastlip.__version__, "python": platform.python_version()}


def _version(package: str) -> str:
    """Version of a package, or that it is not installed; of torch with its build, as in 2.11.0+cu130."""
    if package == "torch":
        return str(torch.__version__)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _extension(device: str) -> str:
    """The compiled extension of a device, or why there is none."""
    try:
        module = binding.library(device)
    except ImportError as error:
        return str(error)
    return f"{module.__name__}: {module.instruction_set}, built with {module.compiler}"


def _backends(op: str) -> dict[str, str]:
    """State of each backend of an op."""
    return {backend: _status(op, backend) or "ok" for backend in registered[op].backends}


def _status(op: str, backend: str) -> str:
    """The reason why a backend cannot run here, or an empty string."""
    if reason := registered[op].status(backend):
        return reason
    if backend == "triton":
        return "" if torch.cuda.is_available() else "importable, but there is no GPU that torch can use"
    return _without_kernels(op, backend, "cpu", f"{op} is not in the built extension")


def _on_gpu(op: str) -> dict[str, str]:
    """State of each backend of an op for tensors on a GPU."""
    if not torch.cuda.is_available():
        return dict.fromkeys(("reference", *registered[op].backends), "no GPU")
    states = {backend: _status_on_gpu(op, backend) or "ok" for backend in registered[op].backends}
    return {"reference": "ok", **states}


def _status_on_gpu(op: str, backend: str) -> str:
    """The reason why a backend cannot run on the GPU, or an empty string."""
    if reason := registered[op].status(backend):
        return reason
    if backend == "triton":
        return gpu.refusal_of_all() or gpu.triton_cannot_launch()
    return _without_kernels(op, backend, "cuda", "no such kernel in the CUDA extension")


def _without_kernels(op: str, backend: str, device: str, reason: str) -> str:
    """Why a device's extension cannot be loaded, the given reason if it lacks the kernels, or an empty string."""
    # A native backend may use another op's kernels, or torch's matrix products alone.
    prefix = getattr(registered[op].modules[backend], "KERNELS", f"{op}_")
    if not prefix:
        return ""
    try:
        kernels = binding.library(device).kernels
    except ImportError as error:
        return str(error)
    return "" if any(name.startswith(prefix) for name in kernels) else reason
