"""``fastlip.export``: a copy of a model that needs no fastlip, in memory or in a file."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

from torch import Tensor, nn

import fastlip
from fastlip import exporting
from fastlip._files import printable, require_writable, write_atomically, write_json
from fastlip.certification.certificates import Certificate
from fastlip.certification.input_norms import InputNorm, require_same
from fastlip.deployment.checking import check_file
from fastlip.deployment.formats import INPUT, OUTPUTS, Format, Network, Program, content, format_of, require_packages
from fastlip.deployment.radius import certified_network
from fastlip.exporting import Fourier
from fastlip.inspection.evaluation import check_shape
from fastlip.inspection.running import batch_like
from fastlip.kernels.common.checks import boolean

_CERTIFIED = "accuracy", "cra", "joint_cra", "lipschitz", "rounding", "rounding_model", "n"


@dataclass(frozen=True)
class ExportedFile:
    """The result of :func:`fastlip.export` to a file.

    Attributes:
        path: the file.
        format: ``"torch"``, ``"pt2"`` or ``"onnx"``.
        size: its number of bytes.
        input_shape: the shape of one sample; a batch of any size is (n, \\*input_shape).
        inputs: the name of the input.
        outputs: the names of the outputs, ``"logits"`` and perhaps ``"radius"``.
        lipschitz: the audited bound of the network's Lipschitz constant.
        difference: the largest difference of the file's scores and the model's, on random samples.
        checked: what ran the file for that: ``"onnxruntime"`` or ``"torch"``. For ONNX without onnxruntime torch ran
            the module that was written.
        facts: what the file says about itself.
        norm: the :class:`fastlip.certification.InputNorm` in which the bound and the radii are.

    Example:
        >>> model = torch.nn.Sequential(lip.AOLLinear(4, 2)).eval()
        >>> found = fastlip.export(model, "net.pt", (4,))
        >>> found.format, found.outputs, found.difference < 1e-6
        ('torch', ('logits',), True)
    """

    path: Path
    format: Format
    size: int
    input_shape: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    lipschitz: float
    difference: float
    checked: Program
    facts: dict[str, Any]
    norm: InputNorm

    def to_dict(self) -> dict[str, Any]:
        """The values as plain ones, ready for JSON."""
        return {**asdict(self), "path": str(self.path), **self.norm.to_dict()}

    def __str__(self) -> str:
        shape = ", ".join(map(str, self.input_shape))
        weighted = "" if self.norm.weights is None else f"norm of the input  {self.norm}\n"
        return (
            f"{printable(self.path)}: {self.format}, {self.size / 1e6:.2f} MB\n"
            f"difference         {self.difference:.1e}  (of the scores, run by {self.checked})\n"
            f"Lipschitz bound    {self.lipschitz:.7f}  (audited)\n"
            f"{weighted}"
            f"input              {self.inputs[0]} (n, {shape})\n"
            f"outputs            {', '.join(self.outputs)}"
        )


@overload
def export(model: nn.Module, path: tuple[int, ...] | None = None, *, fourier: Fourier | None = None) -> nn.Module:
    """Returns a copy; the second argument may be the shape of a sample: ``export(model, (3, 32, 32))``."""


@overload
def export(
    model: nn.Module,
    path: None = None,
    input_shape: tuple[int, ...] | None = None,
    *,
    example: Tensor | None = None,
    fourier: Fourier | None = None,
) -> nn.Module:
    """Returns a copy; the shape, or an example of a batch, by its name: ``export(model, example=images)``."""


@overload
def export(
    model: nn.Module,
    path: str | Path,
    input_shape: tuple[int, ...] | None = None,
    *,
    example: Tensor | None = None,
    format: Format | None = None,
    fourier: Fourier | None = None,
    radius: bool = False,
    bounds: tuple[float, float] | None = None,
    certificate: Certificate | None = None,
    facts: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> ExportedFile:
    """Writes a file, and returns what it is: ``export(model, "net.onnx", (3, 32, 32))``."""


def export(
    model: nn.Module,
    path: str | Path | tuple[int, ...] | None = None,
    input_shape: tuple[int, ...] | None = None,
    *,
    example: Tensor | None = None,
    format: Format | None = None,
    fourier: Fourier | None = None,
    radius: bool = False,
    bounds: tuple[float, float] | None = None,
    certificate: Certificate | None = None,
    facts: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> nn.Module | ExportedFile:
    r"""Returns a copy of the model that needs no fastlip, or writes it to a file for other programs.

    Without a path: a copy in eval mode with ``torch.nn`` layers of the same function for fastlip's:
    ``torch.nn.Conv2d`` (AOC, AOL, BCOP, one-tap kernels), ``ConvTranspose2d`` (AOC), ``Linear`` (all matrices),
    ``ZeroPad``, ``PixelUnshuffle`` and ``Sequential`` where they agree exactly. What torch.nn has no layer for
    (residual layers, convolution exponentials, spectral convolutions, sorting activations, paddings that Conv2d
    lacks) becomes a ``torch.fx.GraphModule`` that holds its tensors and its code, which calls torch only. Modules
    of other packages are copied as they are. Weights are those that eval mode uses, constants now: training the
    result further would lose the Lipschitz bound. ``fastlip.audit`` and ``fastlip.certify`` take it too: the bound is
    that of the original, up to rounding (AOL: 1e-6, where the original's Gram certificate was the smaller bound).

    With a path: that copy in a file, whose suffix names the format. ``.onnx`` is for any ONNX runtime, ``.pt2`` for
    ``torch.export.load``, ``.pt`` and ``.pth`` for ``torch.load(path, weights_only=False)``. The input is named
    ``images``, a batch (n, \*input_shape) of any size n of at least 1 (torch and onnxruntime have operators that
    refuse an empty batch); the outputs are ``logits`` and, if asked for, ``radius``.
    The file is written as a whole or not at all. Before that its content is loaded and run on random samples, an ONNX
    file by onnxruntime if that is installed, and a difference beyond rounding is refused. The file says what is known
    of the network: in ``metadata_props`` of ONNX (keys ``fastlip.lipschitz`` and so on), in the extra file
    ``fastlip.json`` of ``.pt2``, and in PATH.json next to ``.pt``.

    ``radius=True`` adds the certified radius of every prediction as a second output: no change of the image that is
    smaller, in L2 norm or the weighted one of a first layer :class:`fastlip.nn.InputWeights`, changes the class with
    the largest score. The file names the norm (``norm``, and ``input_weights`` if there are any).

    .. math:: r(x) = \min_{j \ne y} \frac{\max(0,\; f_y - f_j - 2 \sqrt 2\, e)}
                                         {\min(\sqrt 2\, L,\; L_{body} \|w_y - w_j\|) + \sqrt 2\, g}

    Here y is the class with the largest score. It is the radius of :func:`fastlip.certify` with y as the label, the
    same slopes and ``rounding="worst-case"``, computed from the norms of the values of all layers. (If an ``eps`` of
    certify lies between what is certain and what is possible, certify evaluates the image in float64 again, and may
    certify a little more.) It is 0 where nothing is certain, NaN and Inf included. It holds for a program that
    computes in float32, or in the float64 of the model, and sums products in any order; not in TF32 or 16 bits, and
    not with Winograd's convolutions.

    Args:
        model: any module; fastlip layers are found at any depth. It is left as it was.
        path: the file to write; default None returns the copy. A tuple of ints is taken for ``input_shape``.
        input_shape: the shape of one sample, such as (3, 32, 32); default None takes that of ``example``, or the
            ``input_shape`` that the model has, as those of ``fastlip.models`` do. Files need it. Spectral layers
            (BRO, Cayley, LOT, spectral SOC) and CPL convolutions compute a different function for each image size:
            they are exported for the sizes that they have then, and the spectral ones refuse others. So do circular
            layers whose padding exceeds the image.
        example: a batch (n, \*input_shape), of which the shape is taken; default None.
        format: ``"torch"``, ``"pt2"`` or ``"onnx"``; default None takes that of the suffix.
        fourier: how spectral layers transform: ``"fft"``; ``"matrices"``, by products with real matrices, which are
            slower for large images, but ONNX has them; or ``"matrices64"``, by those products in float64, which lose
            less to rounding. Default None: ``"matrices"`` for ONNX (with radius: ``"matrices64"``), else ``"fft"``.
        radius: whether the file has the output ``radius``; default False. It takes every classifier that
            :func:`fastlip.certify` takes, those that branch included.
        bounds: the least and largest value of the images on which the network was trained, to be noted in the file;
            default None notes nothing.
        certificate: the result of :func:`fastlip.certify`, in the norm of the network, whose accuracies and CRA are
            noted in the file; default None notes nothing.
        facts: further values that JSON can hold, to be noted in the file, such as the names of the classes; default
            None: no others.
        progress: prints each step to stderr; default False.

    Returns:
        The copy without a path, which holds no reference to the model; else an :class:`ExportedFile`.

    Raises:
        TypeError: a module of fastlip, or a subclass with a forward of its own, that no rule knows; with a path a
            module that the audit does not understand; arguments of another type.
        ValueError: NaN or Inf in a weight; a layer that depends on the image size without an input_shape; one
            that is called on several sizes; a copy or a file that computes something else than the model; another
            fourier or format; an unknown suffix; with radius: a network that is no classifier, or that is not in
            float32 or float64; a certificate in another norm.
        OSError: a file that cannot be written.
        MissingPackageError: (a ModuleNotFoundError) ONNX without the packages of the extra ``onnx``.

    Example:
        >>> model = torch.nn.Sequential(lip.AOLConv2d(3, 8, 3, padding_mode="zeros"), torch.nn.ReLU())
        >>> fastlip.export(model, input_shape=(3, 8, 8))
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
          (1): ReLU()
        )
        >>> fastlip.export(model, "net.tflite", (3, 8, 8))
        Traceback (most recent call last):
        ...
        ValueError: path='net.tflite': the suffix '.tflite' names no format; allowed are .onnx, .pt2, .pt, .pth, ...
    """
    boolean("radius", radius)
    boolean("progress", progress)
    if isinstance(path, (tuple, list)):
        path, input_shape = None, tuple(path)
    shape = _shape_of(model, input_shape, example)
    if path is None:
        options = {"format": format, "radius": radius, "bounds": bounds, "certificate": certificate, "facts": facts}
        if needless := [name for name, value in options.items() if value not in (None, False)]:
            raise ValueError(f"{needless[0]}={options[needless[0]]!r}: is for a file; expected a path as well")
        return exporting.export(model, shape, fourier=fourier or "fft")
    if not isinstance(path, (str, Path)):
        raise TypeError(f"path: got {type(path).__name__}, expected the name of a file, or None for a module")
    target = Path(path).expanduser()
    kind = format_of(target, format)
    _check_target(target)
    require_packages(kind)
    if shape is None:
        raise ValueError("input_shape=None: expected the shape of one sample, such as (3, 32, 32), or an example")
    noted = {**_facts(bounds, certificate), **_plain("facts", facts or {})}
    fourier = fourier or ("fft" if kind != "onnx" else "matrices64" if radius else "matrices")
    return _Writing(model, shape, target, kind, radius, certificate, progress).write(fourier, noted)


@dataclass(frozen=True)
class _Writing:
    """A file that is to be written."""

    model: nn.Module
    input_shape: tuple[int, ...]
    path: Path
    kind: Format
    radius: bool
    certificate: Certificate | None
    progress: bool

    def write(self, fourier: Fourier, noted: dict[str, Any]) -> ExportedFile:
        """Makes the network, writes the file, and returns what it is."""
        self._note("copying the network")
        plain = exporting.export(self.model, self.input_shape, fourier=fourier)
        if self.radius:
            self._note("bounding its rounding errors")
            network, audit = certified_network(self.model, plain, self.input_shape, fourier)
        else:
            self._note("auditing its Lipschitz constant")
            network, audit = plain, fastlip.audit(plain, self.input_shape)
        if self.certificate is not None:
            require_same("certificate", self.certificate.norm, audit.norm, "the network is")
        outputs = OUTPUTS if self.radius else OUTPUTS[:1]
        facts = {
            "version": fastlip.__version__,
            "lipschitz": audit.bound,
            **audit.norm.to_dict(),
            "input_shape": list(self.input_shape),
            "inputs": [INPUT],
            "outputs": list(outputs),
            **noted,
        }
        self._note(f"writing {self.kind}" + (", which may take a minute" if self.kind == "onnx" else ""))
        x = batch_like(self.model, 2, self.input_shape)
        data = content(self.kind, Network(network, x, outputs, facts))
        difference, checked = check_file(self.model, network, self.kind, data, self.input_shape, audit.l2_bound)
        write_atomically(self.path, lambda file: file.write(data))
        if self.kind == "torch":
            write_json(self.path.with_name(self.path.name + ".json"), facts)
        return ExportedFile(
            path=self.path,
            format=self.kind,
            size=len(data),
            input_shape=self.input_shape,
            inputs=(INPUT,),
            outputs=tuple(outputs),
            lipschitz=audit.bound,
            norm=audit.norm,
            difference=difference,
            checked=checked,
            facts=facts,
        )

    def _note(self, step: str) -> None:
        if self.progress:
            print(f"{printable(self.path.name)}: {step}", file=sys.stderr)


def _shape_of(
    model: nn.Module, input_shape: tuple[int, ...] | None, example: Tensor | None
) -> tuple[int, ...] | None:
    """The shape of one sample; None if nothing tells it."""
    if example is not None:
        if not isinstance(example, Tensor) or example.dim() == 0:
            got = f"shape {tuple(example.shape)}" if isinstance(example, Tensor) else type(example).__name__
            raise TypeError(f"example: got {got}, expected a tensor, a batch of samples")
        if input_shape is not None and tuple(input_shape) != tuple(example.shape[1:]):
            raise ValueError(
                f"input_shape={tuple(input_shape)}: the example is a batch of {tuple(example.shape[1:])}; expected "
                "one of the two"
            )
        return tuple(example.shape[1:])
    found = getattr(model, "input_shape", None) if input_shape is None else input_shape
    if found is not None:
        check_shape(found)
    return None if found is None else tuple(found)


def _check_target(path: Path) -> None:
    """An error, before any work, for a file that could not be written."""
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory; make the folder first", str(path.parent))
    if path.is_dir():
        raise ValueError(f"path={str(path)!r}: is a folder, expected the name of a file")
    require_writable(path)


def _facts(bounds: tuple[float, float] | None, certificate: Certificate | None) -> dict[str, Any]:
    """The facts about the network from the arguments, as JSON can hold them."""
    found: dict[str, Any] = {}
    if bounds is not None:
        if not isinstance(bounds, (tuple, list)) or len(bounds) != 2 or not bounds[0] < bounds[1]:
            raise ValueError(f"bounds={bounds!r}: expected (low, high) with low < high, or None")
        found["bounds"] = [float(bounds[0]), float(bounds[1])]
    if certificate is not None:
        if not isinstance(certificate, Certificate):
            raise TypeError(f"certificate: got {type(certificate).__name__}, expected a fastlip Certificate")
        values = certificate.to_dict()
        found["certificate"] = {name: values[name] for name in _CERTIFIED}
    return found


def _plain(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as JSON has them; TypeError if it cannot hold them."""
    try:
        return json.loads(json.dumps(dict(values), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected a dict of values that JSON can hold ({error})") from None
