"""A network with the certified radius of each prediction as its second output, of torch's modules alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastlip.certification.auditing import Audit
from fastlip.certification.certificates.margins import LARGEST, TINY, gaps_of
from fastlip.certification.certificates.prepared import Prepared
from fastlip.certification.certificates.slopes import SQRT2
from fastlip.certification.input_norms import require_same
from fastlip.certification.rounding import Rounded
from fastlip.deployment.recording import Recorder, Step
from fastlip.exporting import Fourier
from fastlip.exporting.models import parts
from fastlip.inspection.evaluation import certified_precision, evaluating
from fastlip.inspection.running import batch_like
from fastlip.inspection.traces import no_trace

_ROUNDED_DOWN = 1 - 2.0**-22  # a radius in float64 times this is no larger after it is rounded to float32
_SAMPLES = 8
_SLACK = 1e-9  # of two errors that are computed in float64


class CertifiedNetwork(nn.Module):
    """The layers of a network, and the certified radius of the class with the largest score.

    Everything that follows from the weights is a constant here. ``forward(scores, norms)`` returns the scores and the
    radii (n,), given the scores and the norms (n, k) of the layers' values.
    """

    slopes: Tensor
    largest: Tensor
    classes: Tensor

    def __init__(self, recorder: Recorder, prepared: Prepared, steps: list[Step], errors: Step, dtype: torch.dtype):
        super().__init__()
        self.single = math.prod(prepared.audit.layers[-1].output_shape) == 1
        self.root = 1.0 if self.single else SQRT2
        self.dtype = dtype
        self.layers = recorder.layers
        self.steps = nn.ModuleList(steps)
        self.errors = errors
        self.limits = len(recorder.limits)
        largest = torch.tensor([limit for limit, *_ in recorder.limits], dtype=torch.float64)
        tables = {
            "slopes": prepared.slopes.cpu(),
            "largest": largest,
            "classes": torch.arange(len(prepared.slopes)),
            **recorder.tensors,
        }
        for name, table in tables.items():
            self.register_buffer(name, table.clone())  # no view of a larger table: files hold whole storages

    def forward(self, scores: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Scores, and the radius within which the class with the largest score stays the same."""
        for step in self.steps:
            norms = torch.cat((norms, step(norms)), 1)
        found = self.errors(norms)
        lost, growth = self.root * found.narrow(1, 0, 1), self.root * found.narrow(1, 1, 1)
        limits = found.narrow(1, 2, 2 * self.limits).unflatten(1, (self.limits, 2))
        reach = (self.largest - limits.select(2, 0)) / limits.select(2, 1).clamp_min(TINY)
        logits = scores.double()
        if self.single:
            logits = logits.reshape(-1, 1)
            logits = torch.cat((-logits / 2, logits / 2), 1)
        label = logits.argmax(1)
        gaps = gaps_of(logits, self.classes == label.unsqueeze(1))
        steepness = (torch.index_select(self.slopes, 0, label) + growth).clamp_min(TINY)
        radius = torch.minimum(((gaps - lost) / steepness).amin(1), reach.amin(1))
        # NaN and Inf in any layer show in the norms, whatever a later layer made of them.
        certain = (norms.sum(1) < LARGEST) & (radius > 0)
        return scores, self._narrow(torch.where(certain, radius, 0.0))

    def _narrow(self, radius: Tensor) -> Tensor:
        """The radii in the dtype of the scores, rounded down."""
        info = torch.finfo(self.dtype)
        if self.dtype == torch.float64:
            return radius.clamp_max(LARGEST)
        kept = torch.where(radius > info.tiny, radius * _ROUNDED_DOWN, 0.0)
        return kept.clamp_max(info.max).to(self.dtype)


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
        raise ValueError(f"radius=True: got parameters in {x.dtype}; use model.float() or model.double()")
    with (
        certified_precision(x.device.type),
        evaluating(model),
        no_trace(model),
        torch.inference_mode(False),
        torch.no_grad(),
    ):
        own, copied = (Prepared(module, input_shape, "worst-case", x.device) for module in (model, plain))
        for prepared in (own, copied):
            _require_scores(prepared)
        require_same("radius=True", copied.audit.norm, own.audit.norm, "the model is")
        errors = [prepared.forward(0, x.clone())[1] for prepared in (own, copied)]
        chosen, memo = (own, parts(model, input_shape, fourier)) if _covers(*errors) else (copied, {})
        return _recorded(chosen, x[:2].clone(), lambda module: _plain_form(module, memo)), chosen.audit


def _recorded(prepared: Prepared, x: Tensor, form: Callable[[nn.Module], nn.Module]) -> fx.GraphModule:
    """The network whose layers have been prepared, in other forms, with radii."""
    recorder = Recorder(prepared.links, x, form)
    logits, state = prepared.follow(x, recorder)
    network = CertifiedNetwork(recorder, prepared, *recorder.finished(state, logits), x.dtype)
    return _joined(recorder.graph, network.to(x.device).eval())


def _covers(whole: Rounded, part: Rounded) -> bool:
    """Whether a bound of rounding errors holds for a second network as well, whose own bound is given."""
    pairs = (whole.error, part.error), (whole.near, part.near), (whole.growth, part.growth)
    smaller = [bool((one <= (1 + _SLACK) * other).all()) for other, one in pairs]
    return all(smaller) and bool((part.reach >= (1 - _SLACK) * whole.reach).all())


def _require_scores(prepared: Prepared) -> None:
    """ValueError for a network that is no classifier."""
    output = prepared.audit.layers[-1].output_shape
    if len(output) > 1:
        raise ValueError(f"radius=True: the model's outputs have the shape {output}, expected scores of classes")


def _plain_form(module: nn.Module, memo: Mapping[int, Any]) -> nn.Module:
    """A layer's exported form, or a copy of a module that needs none."""
    from fastlip.exporting import plain

    if isinstance(module, plain.Plain):
        return plain.freeze(module)
    return copy.deepcopy(module, dict(memo)).eval()


def _joined(body: fx.Graph, network: CertifiedNetwork) -> fx.GraphModule:
    """The layers and then the radii as one graph of torch's functions: no class of fastlip is needed to load it."""
    tracer = fx.Tracer()
    tracer.proxy_buffer_attributes = True
    end = tracer.trace(network)
    graph = fx.Graph()  # a new one, because that of a tracer names the tracer's class in its pickle
    outputs: Any = graph.graph_copy(body, {})
    norms = graph.call_function(torch.stack, (outputs[1:], 1))
    places = [node for node in end.nodes if node.op == "placeholder"]
    graph.output(graph.graph_copy(end, dict(zip(places, (outputs[0], norms), strict=True))))
    for node in graph.nodes:
        node.type = None  # annotations are text here, which does not pickle
    return fx.GraphModule(network, graph, "CertifiedNetwork").eval()
