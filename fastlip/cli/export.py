"""``fastlip export``."""

from __future__ import annotations

import errno
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Literal

import click
import torch
from torch import Tensor, nn

import fastlip
from fastlip import hub
from fastlip._files import printable, write_atomically

Format = Literal["torch", "onnx", "pt2"]
_SUFFIXES: dict[str, Format] = {".onnx": "onnx", ".pt2": "pt2", ".pt": "torch", ".pth": "torch"}
_ONNX_PACKAGES = ("onnx", "onnxscript")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File to write.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["torch", "onnx", "pt2"]),
    help="Format of the file.  [default: by its suffix: .pt or .pth, .pt2, .onnx]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def export(run: Path, out: Path, kind: Format | None, as_json: bool):
    """Writes the network of RUN (a run folder or a checkpoint) to a file that loads and runs without fastlip.

    torch: a module for torch.load(FILE, weights_only=False). pt2: a program for torch.export.load. onnx: a model for
    any ONNX runtime. All take images (n, c, h, w) for any n, scaled and centred as the output of this command says.
    """
    kind = kind or _kind_of(out)
    missing = [name for name in _ONNX_PACKAGES if kind == "onnx" and find_spec(name) is None]
    if missing:
        raise click.ClickException(f"--format=onnx: needs {' and '.join(missing)}: pip install 'fastlip[onnx]'")
    if not out.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(out.parent))
    recipe, data, model, _ = hub.read(run, device="cpu")
    shape = tuple(data["shape"])
    plain = fastlip.export(model, shape, fourier="matrices" if kind == "onnx" else "fft")
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (plain(x) - model(x)).abs().amax().item()
    write_atomically(out, lambda file: _WRITERS[kind](plain, x, file))
    about = {
        "file": str(out),
        "format": kind,
        "input_shape": list(shape),
        "divisor": data["divisor"],
        "mean": list(data["mean"]) if recipe.center else [],
        "difference": difference,
        "lipschitz": fastlip.audit(plain, shape).bound,
    }
    click.echo(json.dumps(about, indent=2) if as_json else _describe(about, out))


def _kind_of(out: Path) -> Format:
    """The format that a file's suffix names; BadParameter if it names none."""
    kind = _SUFFIXES.get(out.suffix.lower())
    if kind is None:
        raise click.BadParameter(
            f"{out.name}: the suffix {out.suffix!r} names no format; allowed are {', '.join(_SUFFIXES)}, or any "
            "suffix with --format",
            param_hint="--out",
        )
    return kind


def _describe(about: dict[str, Any], out: Path) -> str:
    size, shape = out.stat().st_size / 1e6, ", ".join(map(str, about["input_shape"]))
    centred = f" - {about['mean']}" if about["mean"] else ""
    return (
        f"{printable(out)}: {about['format']}, {size:.2f} MB; its outputs differ by {about['difference']:.1e}\n"
        f"Lipschitz bound    {about['lipschitz']:.7f}  (audited)\n"
        f"input              (n, {shape}): stored value / {about['divisor']:g}{centred}"
    )


def _write_torch(plain: nn.Module, x: Tensor, file: IO[bytes]) -> None:
    torch.save(plain, file)


def _write_pt2(plain: nn.Module, x: Tensor, file: IO[bytes]) -> None:
    torch.export.save(_program(plain, x), file)


def _write_onnx(plain: nn.Module, x: Tensor, file: IO[bytes]) -> None:
    from torch.onnx.errors import OnnxExporterError

    with _quiet("torch.onnx"):
        try:
            model = torch.onnx.export(_program(plain, x), dynamo=True, verbose=False)
        except OnnxExporterError as error:
            reason = str(error).partition("\n")[0]
            raise click.ClickException(f"--format=onnx: this network has no ONNX form: {reason}") from error
    file.write(model.model_proto.SerializeToString())  # pyright: ignore[reportOptionalMemberAccess]


def _program(plain: nn.Module, x: Tensor) -> torch.export.ExportedProgram:
    return torch.export.export(plain, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))


@contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    """In this context the exporter does not log or warn about its own packages and internals."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


_WRITERS = {"torch": _write_torch, "pt2": _write_pt2, "onnx": _write_onnx}
