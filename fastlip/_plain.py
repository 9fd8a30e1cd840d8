"""Modules of torch alone, into which ``fastlip.export`` turns what ``torch.nn`` has no module for.

Each is written so that ``torch.fx`` can trace it. :func:`freeze` makes a ``torch.fx.GraphModule`` of it, which
holds its tensors and its own code, and needs no fastlip to be unpickled or run; :func:`thaw` finds the module
again, for the audit, and only if the graph still is the one that :func:`freeze` made.
"""

from __future__ import annotations

import ast
import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from fastlip import ops
from fastlip.nn._base import as_it_runs
from fastlip.nn._orthogonal import largest_singular_value
from fastlip.nn._residual import effective_norms, residual_bound
from fastlip.ops.conv_exp.truncation import largest_modulus

Shape = tuple[int, ...]
_PASSES = 4.0


class Plain(nn.Module):
    """A module given by tensors, which become parameters under their names, and a configuration of plain values."""

    TENSORS: tuple[str, ...] = ()

    def __init__(self, tensors: dict[str, Tensor | None] | None = None, **config: Any):
        super().__init__()
        self.config = config
        for name, value in config.items():
            setattr(self, name, value)
        for name in self.TENSORS:
            tensor = (tensors or {}).get(name)
            # Contiguous, because the layer's own tensor may be a slice of a larger one.
            self.register_parameter(name, None if tensor is None else nn.Parameter(tensor.detach().clone()))
        self.make_tables()

    def make_tables(self) -> None:
        """Registers the buffers that follow from the configuration."""

    def lipschitz_bound(self, input_shape: Shape) -> float:
        """An upper bound of the L2 Lipschitz constant, as it runs."""
        return 1.0

    def roundings(self, input_shape: Shape) -> float:
        """Roundings behind an output for a bound of 1, as ``fastlip.auditing.Bound`` counts them."""
        return 0.0


class SortPairs(Plain):
    """MaxMin: pairs of channels in descending order."""

    pairing: str
    dim: int

    def forward(self, x: Tensor) -> Tensor:
        """The pairs of x, sorted."""
        dim, count = self.dim, x.shape[self.dim]
        paired, last = x.narrow(dim, 0, count // 2 * 2), x.narrow(dim, count // 2 * 2, count % 2)
        adjacent = self.pairing == "adjacent"
        at = dim + adjacent if dim >= 0 else dim - (not adjacent)
        a, b = paired.unflatten(dim, (-1, 2) if adjacent else (2, -1)).split(1, at)
        # As the layer decides: on a tie, and for NaN, nothing moves.
        swap = b > a
        both = torch.cat((torch.where(swap, b, a), torch.where(swap, a, b)), at)
        start = dim if dim >= 0 else dim - 1
        return torch.cat((both.flatten(start, start + 1), last), dim)


class SortGroups(Plain):
    """GroupSort: groups of channels in descending order."""

    group_size: int | None
    dim: int

    def forward(self, x: Tensor) -> Tensor:
        """The groups of x, sorted."""
        dim = self.dim
        if self.group_size is None:
            return torch.sort(x, dim=dim, descending=True, stable=True)[0]
        inner, start = (dim + 1, dim) if dim >= 0 else (dim, dim - 1)
        groups = x.unflatten(dim, (-1, self.group_size))
        return torch.sort(groups, dim=inner, descending=True, stable=True)[0].flatten(start, start + 1)


class Absolute(Plain):
    """|x|."""

    def forward(self, x: Tensor) -> Tensor:
        """|x|."""
        return torch.abs(x)


class Reflection(Plain):
    """HouseHolder: pairs beyond their line, reflected in it. table: cos, sin of theta, and of theta / 2."""

    TENSORS = ("table",)
    table: Tensor
    channels: int
    pairing: str
    dim: int
    rank: int

    def forward(self, x: Tensor) -> Tensor:
        """The pairs of x, those beyond their line reflected."""
        dim, pairs = self.dim % self.rank, self.channels // 2
        paired, last = x.narrow(dim, 0, 2 * pairs), x.narrow(dim, 2 * pairs, self.channels % 2)
        shape, at = ((2, pairs), dim) if self.pairing == "halves" else ((pairs, 2), dim + 1)
        a, b = paired.unflatten(dim, shape).split(1, at)
        broadcast = (4, *(pairs if axis == dim + (at == dim) else 1 for axis in range(self.rank + 1)))
        cosine, sine, half_cosine, half_sine = self.table.view(broadcast).split(1, 0)
        cosine, sine, half_cosine, half_sine = cosine[0], sine[0], half_cosine[0], half_sine[0]
        keep = a * half_sine >= b * half_cosine
        first = torch.where(keep, a, a * cosine + b * sine)
        second = torch.where(keep, b, a * sine - b * cosine)
        return torch.cat((torch.cat((first, second), at).flatten(dim, dim + 1), last), dim)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        """The longest (cos, sin), as rounded; infinite if the lines are not those of the reflections."""
        cosine, sine, half_cosine, half_sine = as_it_runs(self.table)
        allowed = 16 * torch.finfo(self.table.dtype).eps
        jump = torch.hypot(half_cosine**2 - half_sine**2 - cosine, 2 * half_sine * half_cosine - sine)
        if (jump > allowed).any():
            return math.inf
        return torch.hypot(cosine, sine).amax().clamp_min(1).item() if cosine.numel() else 1.0

    def roundings(self, input_shape: Shape) -> float:
        """Two products and a sum."""
        return _PASSES


class FirstEntries(Plain):
    """The first ``count`` entries along ``dim``, in each of ``groups`` groups."""

    count: int
    dim: int
    groups: int

    def forward(self, x: Tensor) -> Tensor:
        """A part of x."""
        if self.groups == 1:
            return x.narrow(self.dim, 0, self.count)
        return (
            x.unflatten(self.dim, (self.groups, -1)).narrow(self.dim, 0, self.count).flatten(self.dim - 1, self.dim)
        )


class PadChannels(Plain):
    """Appends zeros along dim 1 up to ``channels``, whatever the rank and number of channels of x."""

    channels: int

    def forward(self, x: Tensor) -> Tensor:
        """x with zero channels."""
        torch._assert(x.shape[1] <= self.channels, f"expected at most {self.channels} channels")
        return F.pad(x.movedim(1, -1), (0, self.channels - x.shape[1])).movedim(-1, 1)


class PadGroups(Plain):
    """Appends ``missing`` zero channels to each of ``groups`` groups of channels of images."""

    groups: int
    missing: int

    def forward(self, x: Tensor) -> Tensor:
        """x with zero channels."""
        return F.pad(x.unflatten(-3, (self.groups, -1)), (0, 0, 0, 0, 0, self.missing)).flatten(-4, -3)


class Patches(Plain):
    """Space to depth: patches become channels, ``position_first`` or after the channel, within each group.

    Sides that the stride does not divide are padded with zeros at their end.
    """

    stride: tuple[int, int]
    groups: int
    position_first: bool

    def forward(self, x: Tensor) -> Tensor:
        """(..., c, h, w) to (..., c sh sw, ceil(h / sh), ceil(w / sw))."""
        down, across = self.stride
        x = F.pad(x, (0, -x.shape[-1] % across, 0, -x.shape[-2] % down))
        patches = x.unflatten(-3, (self.groups, -1)).unflatten(-1, (-1, across)).unflatten(-3, (-1, down))
        # (group, channel, h, row, w, column)
        patches = patches.movedim((-3, -1), (-5, -4) if self.position_first else (-4, -3))
        return patches.flatten(-6, -3)


class ScaledPool(Plain):
    """Average of disjoint windows times the root of their size."""

    kernel_size: tuple[int, int]

    def forward(self, x: Tensor) -> Tensor:
        """The scaled averages of x."""
        return F.avg_pool2d(x, self.kernel_size) * math.sqrt(math.prod(self.kernel_size))

    def roundings(self, input_shape: Shape) -> float:
        """A sum over the window."""
        return _PASSES * math.sqrt(math.prod(self.kernel_size))


class NormPool(Plain):
    """L2 norm of disjoint windows."""

    kernel_size: tuple[int, int]

    def forward(self, x: Tensor) -> Tensor:
        """The norm of each window of x."""
        down, across = self.kernel_size
        height, width = x.shape[-2] // down, x.shape[-1] // across
        covered = x.narrow(-2, 0, height * down).narrow(-1, 0, width * across)
        windows = covered.unflatten(-1, (-1, across)).unflatten(-3, (-1, down))
        return torch.linalg.vector_norm(windows, dim=(-3, -1))

    def roundings(self, input_shape: Shape) -> float:
        """A sum over the window, and a root."""
        return _PASSES * math.sqrt(math.prod(self.kernel_size))


class PlainConvolution(Plain):
    """What the convolutions below share: geometry and padding. image is the size for which they were exported."""

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int
    padding_mode: str
    image: tuple[int, int] | None

    def make_tables(self) -> None:
        """Indices, where circular padding exceeds the image, which F.pad refuses."""
        self.wraps = False
        if self.padding_mode == "circular" and self.image is not None:
            (height, width), (left, right, top, bottom) = self.image, self.pads
            self.wraps = max(top, bottom) > height or max(left, right) > width
            if self.wraps:
                # "after": what the adjoint of the padding before an image pads behind it.
                self.register_buffer("rows", torch.arange(-top, height + bottom) % height)
                self.register_buffer("columns", torch.arange(-left, width + right) % width)
                self.register_buffer("rows_after", torch.arange(-bottom, height + top) % height)
                self.register_buffer("columns_after", torch.arange(-right, width + left) % width)

    def pad(self, x: Tensor, after: str = "") -> Tensor:
        """x, padded as the convolution pads it, or with "_after" as its adjoint does."""
        left, right, top, bottom = self.pads
        pads = (right, left, bottom, top) if after else self.pads
        if not any(pads):
            return x
        if self.padding_mode == "zeros":
            return F.pad(x, pads)
        if self.wraps:
            return x[..., self.get_buffer(f"rows{after}"), :][..., self.get_buffer(f"columns{after}")]
        return F.pad(x, pads, mode="circular")

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The padded convolution."""
        left, right, top, bottom = self.pads
        if self.padding_mode == "zeros" and left == right and top == bottom:
            return F.conv2d(x, weight, bias, self.stride, (top, left), self.dilation, self.groups)
        return F.conv2d(self.pad(x), weight, bias, self.stride, 0, self.dilation, self.groups)

    def geometry(self) -> dict[str, Any]:
        """The arguments of ``fastlip.ops.spectral_norm``, without the stride."""
        names = "pads", "dilation", "groups", "padding_mode"
        return {name: getattr(self, name) for name in names}

    def roundings(self, input_shape: Shape) -> float:
        """Sums over the taps of all channels, each pixel in as many windows."""
        kernel = getattr(self, self.TENSORS[0])
        return _PASSES * math.sqrt(input_shape[0]) * math.prod(kernel.shape[2:])


class Convolution(PlainConvolution):
    """A convolution whose padding ``torch.nn.Conv2d`` does not have."""

    TENSORS = ("weight", "bias")

    def forward(self, x: Tensor) -> Tensor:
        """weight * x + bias."""
        return self.convolve(x, self.weight, self.bias)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        """The norm on images of this shape."""
        size = input_shape[-2], input_shape[-1]
        return ops.spectral_norm(as_it_runs(self.weight), size, self.stride, **self.geometry()).item()


class ResidualConvolution(PlainConvolution):
    """x - W^T diag(scale) relu(W x + b), for the kernel W and its exact adjoint (SLL, CPL)."""

    TENSORS = ("kernel", "bias", "scale")
    kernel: Tensor
    scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """The residual map of x."""
        hidden = self.convolve(x, self.kernel, self.bias).relu()
        second = self.scale.view(-1, 1, 1, 1) * self.kernel
        left, right, top, bottom = self.pads
        reach: tuple[int, int] = (top, left)
        if self.padding_mode == "circular" or left != right or top != bottom:
            hidden, reach = self.pad(hidden, "_after"), (top + bottom, left + right)
        return x - F.conv_transpose2d(hidden, second, None, 1, reach, 0, self.groups, self.dilation)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        """From the norm of the scaled kernel on images of this shape."""
        size = input_shape[-2], input_shape[-1]
        return residual_bound(*effective_norms(self.kernel, self.scale, size, **self.geometry()))


class ResidualDense(Plain):
    """x - W^T diag(scale) relu(W x + b) for a matrix W."""

    TENSORS = ("kernel", "bias", "scale")
    kernel: Tensor
    bias: Tensor | None
    scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """The residual map of x."""
        hidden = F.linear(x, self.kernel, self.bias).relu()
        return x - F.linear(hidden, (self.scale.view(-1, 1) * self.kernel).t())

    def lipschitz_bound(self, input_shape: Shape) -> float:
        """From the norm of the scaled matrix."""
        return residual_bound(*effective_norms(self.kernel, self.scale))

    def roundings(self, input_shape: Shape) -> float:
        """Sums over the inputs, and over the inner features."""
        return _PASSES * math.sqrt(max(self.kernel.shape))


class Exponential(PlainConvolution):
    """gain sum_{t <= terms} K^t x / t! + bias for a skew kernel K (SOC)."""

    TENSORS = ("kernel", "bias")
    kernel: Tensor
    terms: int
    gain: float

    def forward(self, x: Tensor) -> Tensor:
        """x + K(x + K(x + ...)/2)/1, innermost first."""
        y = x
        for t in range(self.terms, 0, -1):
            y = x + self.convolve(y, self.kernel / t, None)
        y = y if self.gain == 1 else y * self.gain
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        """The largest |p_T(i theta)| up to the norm of K; of a kernel that is not skew, sum_t |K|^t / t!."""
        size = input_shape[-2], input_shape[-1]
        norm = ops.spectral_norm(as_it_runs(self.kernel), size, **self.geometry()).item()
        grouped = self.kernel.detach().unflatten(0, (self.groups, -1))
        if torch.equal(grouped, -grouped.transpose(1, 2).flip(3, 4)):
            return largest_modulus(self.terms, norm) * self.gain
        return self.gain * sum(norm**t / math.factorial(t) for t in range(self.terms + 1))


class SpectralConvolution(Plain):
    """IDFT(Q_k DFT(x)_k) + bias on a torus, for images of one size.

    spectrum: (frequencies of rfft2, groups, cout / groups, cin / groups, 2), real and imaginary parts (no complex
    parameter, which ``module.to(dtype)`` would truncate). fourier: ``"fft"``, or ``"matrices"``: the transforms as
    products by real matrices, which ONNX runtimes have.
    """

    TENSORS = ("spectrum", "bias")
    spectrum: Tensor
    bias: Tensor | None
    image: tuple[int, int]
    torus: tuple[int, int]
    groups: int
    fourier: str

    def make_tables(self) -> None:
        """The matrices of the transforms, in double precision."""
        if self.fourier == "matrices":
            for name, table in zip(
                ("across", "down", "up", "back"), _transforms(self.image, self.torus), strict=True
            ):
                self.register_buffer(name, table)

    def forward(self, x: Tensor) -> Tensor:
        """Q * x + bias; images of another size are refused."""
        for axis, side in ((-2, self.image[0]), (-1, self.image[1])):
            torch._assert(x.shape[axis] == side, f"exported for images of {self.image} (after its stride)")
        images = x.to(self.spectrum.dtype)
        y = self.by_matrices(images) if self.fourier == "matrices" else self.by_fft(images)
        y = y if self.bias is None else y + self.bias.view(-1, 1, 1)
        return y.to(x.dtype)

    def by_fft(self, x: Tensor) -> Tensor:
        """Q * x with complex transforms."""
        (height, width), columns = self.torus, self.torus[1] // 2 + 1
        X = torch.fft.rfft2(x, s=self.torus).flatten(-2).unflatten(-2, (self.groups, -1))
        Y = torch.einsum("fgoi,...gif->...gof", torch.view_as_complex(self.spectrum), X)
        y = torch.fft.irfft2(Y.flatten(-3, -2).unflatten(-1, (height, columns)), s=(height, width))
        return y.narrow(-2, 0, self.image[0]).narrow(-1, 0, self.image[1])

    def by_matrices(self, x: Tensor) -> Tensor:
        """Q * x with real matrices; real and imaginary parts (2) stand beside what the comments name."""
        (height, _), (rows, columns) = self.image, (self.torus[0], self.torus[1] // 2 + 1)
        dtype = self.spectrum.dtype
        X = (
            (x @ self.get_buffer("across").to(dtype)).unflatten(-1, (2, columns)).movedim(-2, -3).flatten(-3, -2)
        )  # (c, 2 h, columns)
        X = (self.get_buffer("down").to(dtype) @ X).unflatten(-2, (2, rows)).flatten(-2)  # (c, 2, frequencies)
        X = X.unflatten(-3, (self.groups, -1)).movedim(-2, -3).flatten(-3, -2)  # (group, 2 cin, frequencies)
        real, imaginary = self.spectrum.select(-1, 0), self.spectrum.select(-1, 1)
        matrices = torch.cat((torch.cat((real, -imaginary), -1), torch.cat((imaginary, real), -1)), -2)
        Y = torch.einsum("fgoi,...gif->...gof", matrices, X)
        Y = Y.unflatten(-2, (2, -1)).movedim(-3, -2).flatten(-4, -3)  # (cout, 2, frequencies)
        Y = Y.unflatten(-1, (rows, columns)).flatten(-3, -2)
        Y = self.get_buffer("up").to(dtype) @ Y  # (cout, 2 h, columns)
        return Y.unflatten(-2, (2, height)).movedim(-3, -2).flatten(-2) @ self.get_buffer("back").to(dtype)

    def lipschitz_bound(self, input_shape: Shape) -> float:
        """The largest singular value of the matrices: transforms, embedding and cropping add no norm."""
        return largest_singular_value(torch.view_as_complex(self.spectrum.detach().contiguous()))

    def roundings(self, input_shape: Shape) -> float:
        """Complex sums along rows and columns, over the channels, and back."""
        lengths = *self.torus, *self.torus, self.spectrum.shape[3]
        return _PASSES * sum(math.sqrt(2 * length) for length in lengths)


def _transforms(image: tuple[int, int], torus: tuple[int, int]) -> tuple[Tensor, ...]:
    """rfft2 of an image in the corner of a torus along its rows and columns, and irfft2 of that corner."""
    (height, width), (rows, all_columns) = image, torus
    columns = all_columns // 2 + 1
    cosine, sine = _waves(width, columns, all_columns)  # (width, columns)
    twice = torch.full((columns,), 2.0, dtype=torch.float64)
    twice[0] = 1
    if all_columns % 2 == 0:
        twice[-1] = 1
    across = torch.cat((cosine, -sine), 1)
    back = torch.cat((cosine * twice, -sine * twice), 1).T.contiguous() / all_columns
    cosine, sine = _waves(rows, height, rows)  # (rows, height)
    down = torch.cat((torch.cat((cosine, sine), 1), torch.cat((-sine, cosine), 1)))
    return across, down, down.T.contiguous() / rows, back


def _waves(first: int, second: int, period: int) -> tuple[Tensor, Tensor]:
    turns = torch.outer(torch.arange(first), torch.arange(second)) % period
    angles = turns.double() * (2 * math.pi / period)
    return angles.cos(), angles.sin()


KINDS: dict[str, type[Plain]] = {
    kind.__name__: kind
    for kind in (
        *(SortPairs, SortGroups, Absolute, Reflection, FirstEntries, PadChannels, PadGroups, Patches, ScaledPool),
        *(NormPool, Convolution, ResidualConvolution, ResidualDense, Exponential, SpectralConvolution),
    )
}


def freeze(plain: Plain) -> fx.GraphModule:
    """The module as a graph of torch's functions, with its tensors: no class of fastlip is needed to load it."""
    tracer = fx.Tracer()
    tracer.proxy_buffer_attributes = True
    graph = tracer.trace(plain)
    for node in graph.nodes:
        node.type = None  # annotations are text here, which does not pickle
    _sign(graph, plain)
    return fx.GraphModule(plain, graph, type(plain).__name__).eval()


def _sign(graph: fx.Graph, plain: Plain) -> None:
    """Writes what the graph is into a check that always holds: copies and pickles of a graph keep nothing else."""
    (x,) = (node for node in graph.nodes if node.op == "placeholder")
    with graph.inserting_after(x):
        rank = graph.call_method("dim", (x,))
    with graph.inserting_after(rank):
        positive = graph.call_function(operator.gt, (rank, 0))
    with graph.inserting_after(positive):
        graph.call_function(torch._assert, (positive, f"{type(plain).__name__}{plain.config!r}"))


def _read_signature(graph: fx.Graph) -> tuple[type[Plain], dict[str, Any]] | None:
    for node in graph.nodes:
        if node.target is torch._assert and isinstance(node.args[1], str):
            kind, brace, config = node.args[1].partition("{")
            return (KINDS[kind], ast.literal_eval(brace + config)) if kind in KINDS else None
    return None


def thaw(module: fx.GraphModule) -> Plain | None:
    """The module that was frozen, with the tensors that it has now; None if its graph or tables were changed."""
    signature = _read_signature(module.graph)
    if signature is None or "forward" in vars(module):
        return None
    kind, config = signature
    plain = kind({name: getattr(module, name, None) for name in kind.TENSORS}, **config)
    tables = dict(plain.named_buffers())
    for name, buffer in module.named_buffers():
        if name not in tables or not torch.equal(tables[name].to(buffer), buffer):
            return None
    if _steps(freeze(plain)) != _steps(module):
        return None
    device = next((tensor.device for tensor in module.state_dict().values()), None)
    return plain.to(device).eval()


def _steps(module: fx.GraphModule) -> list[tuple[str, Any, str]]:
    """The graph, the same before and after pickling: attributes are named where they are used."""
    names: dict[fx.Node, str] = {}
    steps = []
    for node in module.graph.nodes:
        if node.op == "get_attr":
            names[node] = f"self.{node.target}"
            continue
        names[node] = f"%{len(steps)}"
        arguments = map_arg((node.args, node.kwargs), lambda used: _Name(names[used]))
        steps.append((node.op, node.target, repr(arguments)))
    return steps


class _Name(str):
    __slots__ = ()
    __repr__ = str.__str__
