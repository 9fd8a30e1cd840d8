"""A network with the certified radius of each prediction as its second output, of torch's modules alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastlip.certification.auditing import Audit
from fastlip.certification.certificates.margins import LARGEST, TINY, gaps_of
from fastlip.certification.certificates.prepared import Prepared
from fastlip.certification.certificates.slopes import SQRT2
from fastlip.certification.graphs import Branch
from fastlip.certification.input_norms import require_same
from fastlip.certification.rounding import Rounded
from fastlip.certification.rounding.following import Values, WorstCase
from fastlip.exporting import Fourier
from fastlip.exporting.models import parts
from fastlip.inspection.evaluation import certified_precision, evaluating
from fastlip.inspection.running import batch_like
from fastlip.inspection.traces import no_trace

_ROUNDED_DOWN = 1 - 2.0**-22  # a radius in float64 times this is no larger after it is rounded to float32
_SAMPLES = 8
_SLACK = 1e-9  # of two errors that are computed in float64


class _Errors:
    r"""The worst-case rounding error of a network's outputs as a function of the norms of its layers' values.

    :class:`WorstCase` follows errors by sums and products with constants. Its result is therefore affine in the norms
    N of the input and of every layer's output: e + near = N w + b. The distance of computed values at layer l, at
    radius 0, is N V_l + d_l, and it grows with the radius by a constant.

    The coefficients are read off: each norm in turn is 1, and all others are 0.
    """

    def __init__(self, prepared: Prepared, dtype: torch.dtype):
        links, rows = prepared.links, prepared.audit.layers
        norms = torch.cat((torch.zeros(1, len(links) + 1), torch.eye(len(links) + 1))).double()
        rules: dict[Any, Any] = {}
        follower = WorstCase(len(norms), torch.device("cpu"), rules)
        state, distances, self.growths, largest = follower.start, [], [], []
        for index, (link, row) in enumerate(zip(links, rows, strict=True)):
            before, after = Values(norms[:, index], dtype), Values(norms[:, index + 1], dtype)
            distances.append(state[3])
            self.growths.append(state[4, 0].item())
            state = follower.links([(link.module, row, before, after)], state)
            own = rules[id(row), dtype, dtype]
            largest.append(min(own.largest, torch.finfo(torch.float64).max))
            if own.quadratic:
                raise ValueError(
                    f"radius=True: the rounding error of layer {link.name!r} ({row.kind}) grows with the square of "
                    "its input; expected a network without layer and group norms"
                )
        self.growth = state[2, 0].item()
        self.largest = torch.tensor(largest, dtype=torch.float64)
        columns = torch.stack((state[0] + state[1], *distances), 1)  # (1 + norms, 1 + layers)
        self.constants = columns[0]
        self.factors = (columns[1:] - columns[0]).clamp_min(0)


class CertifiedNetwork(nn.Module):
    """Layers one after the other, and the certified radius of the class with the largest score.

    Everything that follows from the weights is a constant here. ``forward(x)`` returns the scores and the radii (n,).
    """

    steepness: Tensor
    factors: Tensor
    constants: Tensor
    largest: Tensor
    growths: Tensor
    classes: Tensor

    def __init__(self, layers: list[nn.Module], prepared: Prepared, dtype: torch.dtype):
        super().__init__()
        errors = _Errors(prepared, dtype)
        output = prepared.audit.layers[-1].output_shape
        self.single = math.prod(output) == 1
        shapes = [prepared.audit.input_shape, *(row.output_shape for row in prepared.audit.layers)]
        self.ranks = [len(shape) for shape in shapes]
        self.root = 1.0 if self.single else SQRT2
        self.dtype = dtype
        self.layers = nn.ModuleList(layers)
        growths = torch.tensor(errors.growths, dtype=torch.float64).clamp_min(TINY)
        steepness = (prepared.slopes.cpu() + self.root * errors.growth).clamp_min(TINY)
        tables = {
            "steepness": steepness,
            "factors": errors.factors,
            "constants": errors.constants,
            "largest": errors.largest,
            "growths": growths,
            "classes": torch.arange(len(steepness)),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.clone())  # no view of a larger table: files hold whole storages

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores, and the radius within which the class with the largest score stays the same."""
        sizes = [_norms(x, self.ranks[0])]
        for layer, rank in zip(self.layers, self.ranks[1:], strict=True):
            x = layer(x)
            sizes.append(_norms(x, rank))
        found = torch.stack(sizes, 1) @ self.factors + self.constants
        lost, distances = self.root * found.narrow(1, 0, 1), found.narrow(1, 1, len(self.layers))
        inputs = torch.stack(sizes[:-1], 1)
        reach = ((self.largest - inputs - distances) / self.growths).amin(1)
        logits = x.double()
        if self.single:
            logits = logits.reshape(-1, 1)
            logits = torch.cat((-logits / 2, logits / 2), 1)
        label = logits.argmax(1)
        gaps = gaps_of(logits, self.classes == label.unsqueeze(1))
        steepness = torch.index_select(self.steepness, 0, label)
        radius = torch.minimum(((gaps - lost) / steepness).amin(1), reach)
        # NaN and Inf in any layer show in the norms, whatever a later layer made of them.
        certain = (found.sum(1) < LARGEST) & (radius > 0)
        return x, self._narrow(torch.where(certain, radius, 0.0))

    def _narrow(self, radius: Tensor) -> Tensor:
        """The radii in the dtype of the scores, rounded down."""
        info = torch.finfo(self.dtype)
        if self.dtype == torch.float64:
            return radius.clamp_max(LARGEST)
        kept = torch.where(radius > info.tiny, radius * _ROUNDED_DOWN, 0.0)
        return kept.clamp_max(info.max).to(self.dtype)


def _norms(x: Tensor, rank: int) -> Tensor:
    """(n,): the L2 norm of each sample of that rank, in float64."""
    rows = x.flatten(1) if rank > 1 else x if rank else x.unsqueeze(1)
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)


def certified_network(
    model: nn.Module, plain: nn.Module, input_shape: tuple[int, ...], fourier: Fourier
) -> tuple[nn.Module, Audit]:
    """A module of torch alone that returns scores and certified radii, and the audit by which these divide.

    The radii are those that ``fastlip.certify`` gives the model. Its bound of rounding errors must hold for the copy
    as well, which computes the same layers by other operations: on random samples that of the copy may not be larger.
    Where it is, the radii are those that ``fastlip.certify`` gives the copy.

    Args:
        model: the model.
        plain: its copy that :func:`fastlip.export` returned.
        input_shape: the shape of one sample.
        fourier: see :func:`fastlip.export`.
    """
    x = batch_like(model, _SAMPLES, input_shape)
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"radius=True: the parameters are {x.dtype}, expected torch.float32 or torch.float64")
    with (
        certified_precision(x.device.type),
        evaluating(model),
        no_trace(model),
        torch.inference_mode(False),
        torch.no_grad(),
    ):
        own, copied = (Prepared(module, input_shape, "worst-case", x.device) for module in (model, plain))
        for prepared in (own, copied):
            _require_layers(prepared)
        require_same("radius=True", copied.audit.norm, own.audit.norm, "the model is")
        errors = [prepared.forward(0, x.clone())[1] for prepared in (own, copied)]
        chosen, memo = (own, parts(model, input_shape, fourier)) if _covers(*errors) else (copied, {})
        layers = [_plain_form(link.module, memo) for link in chosen.links]
        network = CertifiedNetwork(layers, chosen, x.dtype)
        return _traced(network.to(x.device).eval()), chosen.audit


def _covers(whole: Rounded, part: Rounded) -> bool:
    """Whether a bound of rounding errors holds for a second network as well, whose own bound is given."""
    pairs = (whole.error, part.error), (whole.near, part.near), (whole.growth, part.growth)
    smaller = [bool((one <= (1 + _SLACK) * other).all()) for other, one in pairs]
    return all(smaller) and bool((part.reach >= (1 - _SLACK) * whole.reach).all())


def _require_layers(prepared: Prepared) -> None:
    """ValueError for a network that is no sequence of layers, or not a classifier."""
    for link in prepared.links:
        if isinstance(link.module, Branch):
            raise ValueError(
                f"radius=True: the network branches in {link.name or 'its forward'!r}; expected layers one after the "
                "other (fastlip.certify certifies networks that branch)"
            )
    output = prepared.audit.layers[-1].output_shape
    if len(output) > 1:
        raise ValueError(f"radius=True: the model's outputs have the shape {output}, expected scores of classes")


def _plain_form(module: nn.Module, memo: Mapping[int, Any]) -> nn.Module:
    """A layer's exported form, or a copy of a module that needs none."""
    from fastlip.exporting import plain

    if isinstance(module, plain.Plain):
        return plain.freeze(module)
    return copy.deepcopy(module, dict(memo)).eval()


class _Tracer(fx.Tracer):
    """A tracer that keeps every layer as a module."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _traced(network: CertifiedNetwork) -> fx.GraphModule:
    """The network as a graph of torch's functions and its layers: no class of fastlip is needed to load it."""
    tracer = _Tracer()
    tracer.proxy_buffer_attributes = True
    graph = fx.Graph()  # a new one, because that of a tracer names the tracer's class in its pickle
    graph.output(graph.graph_copy(tracer.trace(network), {}))
    for node in graph.nodes:
        node.type = None  # annotations are text here, which does not pickle
    return fx.GraphModule(network, graph, "CertifiedNetwork").eval()
