"""The formats of exported networks: how each is written, and that ONNX computes what it was made of."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fastlip._extras import MissingPackageError, missing

Format = Literal["torch", "onnx", "pt2"]
Program = Literal["onnxruntime", "torch"]  # that runs a file
SUFFIXES: dict[str, Format] = {".onnx": "onnx", ".pt2": "pt2", ".pt": "torch", ".pth": "torch"}
FORMATS: tuple[Format, ...] = ("torch", "onnx", "pt2")
INPUT = "images"
OUTPUTS = "logits", "radius"
FACTS = "fastlip.json"  # the file of facts in a .pt2 archive
_PREFIX = "fastlip."  # of the keys of facts in an ONNX model
_BATCH = "n"  # the name of the dimension of samples


class Network(NamedTuple):
    """The contents of a file: a module of torch alone, a batch for it, its number of outputs, and the facts."""

    module: nn.Module
    x: Tensor
    outputs: Sequence[str]
    facts: Mapping[str, Any]


def format_of(path: Path, kind: Format | None) -> Format:
    """The format asked for, or that of the suffix; ValueError if there is none."""
    if kind is not None:
        if kind not in FORMATS:
            raise ValueError(f"format={kind!r}: allowed are {', '.join(map(repr, FORMATS))}")
        return kind
    found = SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise ValueError(
            f"path={path.name!r}: the suffix {path.suffix!r} names no format; allowed are {', '.join(SUFFIXES)}, or "
            "any suffix if the format is given"
        )
    return found


def require_packages(kind: Format) -> None:
    """MissingPackageError if the format needs packages that are not installed."""
    if kind == "onnx" and (text := missing("onnx", "onnxscript")):
        raise MissingPackageError(f"ONNX: {text}")


def content(kind: Format, network: Network) -> bytes:
    """The content of the file."""
    file = BytesIO()
    _WRITERS[kind](network, file)
    return file.getvalue()


def run(kind: Format, data: bytes, x: Tensor) -> tuple[list[Tensor], Program] | None:
    """The outputs of a file with this content for a batch, and what ran it; None for ONNX without onnxruntime."""
    if kind == "onnx":
        found = None if missing("onnxruntime") else _run_onnx(data, x)
        return None if found is None else (found, "onnxruntime")
    file = BytesIO(data)
    module = torch.load(file, weights_only=False) if kind == "torch" else torch.export.load(file).module()
    with torch.no_grad():
        outputs = module(x)
    return list(outputs) if isinstance(outputs, tuple) else [outputs], "torch"


def _run_onnx(model: bytes, x: Tensor) -> list[Tensor]:
    import onnxruntime

    if x.dtype == torch.bfloat16:
        raise ValueError(
            "format='onnx': onnxruntime has no kernels for parameters in torch.bfloat16; use model.float()"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [torch.as_tensor(value) for value in session.run(None, {INPUT: x.cpu().numpy()})]


def _write_torch(network: Network, file: IO[bytes]) -> None:
    torch.save(network.module, file)


def _write_pt2(network: Network, file: IO[bytes]) -> None:
    torch.export.save(_program(network), file, extra_files={FACTS: json.dumps(network.facts, indent=2)})


def _write_onnx(network: Network, file: IO[bytes]) -> None:
    from torch.onnx.errors import OnnxExporterError

    with _quiet("torch.onnx"):
        try:
            program = torch.onnx.export(
                _program(network),
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=list(network.outputs),
            )
        except OnnxExporterError as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"format='onnx': this network has no ONNX form: {reason}") from error
    model = program.model_proto  # pyright: ignore[reportOptionalMemberAccess]
    _name_batch(model.graph)
    model.producer_name = "fastlip"
    for name, value in network.facts.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = _PREFIX + name, value if isinstance(value, str) else json.dumps(value)
    file.write(model.SerializeToString())


def _name_batch(graph: Any) -> None:
    """Renames the dimension of samples, to which torch gives a name such as s77."""
    values = [*graph.input, *graph.output, *graph.value_info]
    old = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for dim in (dim for value in values for dim in value.type.tensor_type.shape.dim):
        if dim.dim_param == old:
            dim.dim_param = _BATCH


def _program(network: Network) -> torch.export.ExportedProgram:
    return torch.export.export(network.module, (network.x,), dynamic_shapes=({0: torch.export.Dim(_BATCH)},))


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


_WRITERS: dict[Format, Callable[[Network, IO[bytes]], None]] = {
    "torch": _write_torch,
    "pt2": _write_pt2,
    "onnx": _write_onnx,
}
