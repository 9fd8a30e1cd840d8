"""The contest: its contestants, whether they agree, and the ratios of the costs of their steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, nn

from fastlip.benchmarking import peers, whole_step
from fastlip.benchmarking.literals import Contestant
from fastlip.benchmarking.networks import PLAIN, is_channels_last, network_of, perturb
from fastlip.benchmarking.steps import evaluation_step, gradients_of, loss_of, training_step
from fastlip.benchmarking.timing import alternate
from fastlip.models import lip_conv_net
from fastlip.models.literals import MethodName, Size
from fastlip.testing import bytes_kept

CONTESTANTS: tuple[Contestant, ...] = get_args(Contestant)
# Relative, in float64: in float32 a pair or a maximum that rounding decides may fall either way, which changes
# gradients visibly.
_AGREEMENT = 1e-6
# Of normal noise: the standard deviation in median distances, and a median's error in those of a mean.
_DEVIATION, _MEDIAN = 1.4826, 1.2533
_OWN_MEMORY = ("compiled", whole_step.PLAIN_COMPILED, *whole_step.PROGRAMS)


@dataclass(frozen=True)
class Setting:
    """One method's network, its batch, and how it is timed.

    Args:
        method: parametrization of the layers.
        size: size of the network.
        batch_size: images in a step.
        image_size: side of the images in pixels.
        layers_per_block: convolutions in each block.
        rounds: number of timed steps of each network.
        device: where the networks run.
        layer_options: keyword arguments of the method's convolutions.
        scale: factor of the weights, which may grow in training.
    """

    method: MethodName
    size: Size = "XS"
    batch_size: int = 256
    image_size: int = 32
    layers_per_block: int = 5
    rounds: int = 7
    device: str = "cpu"
    layer_options: Mapping[str, Any] = field(default_factory=dict)
    scale: float = 1.0

    @property
    def stages(self) -> int:
        """Number of parts of the work: the check, and the rounds of training and evaluation with their warm-ups."""
        return 1 + 2 * (self.rounds + 1)


@dataclass(frozen=True)
class Row:
    """A contestant compared with plain: medians over the rounds of time ratios, and the ratio of saved bytes.

    Args:
        method: parametrization of the layers.
        contestant: which network.
        train: ratio of the times of training steps to plain.
        evaluate: ratio of the times of evaluation.
        saved: ratio of the bytes saved for the backward; None where a compiled program manages its own memory, which
            autograd does not see.
        train_ms: milliseconds of a training step, as of the next three the median.
        evaluate_ms: milliseconds of an evaluation.
        plain_train_ms: milliseconds of plain's training step.
        plain_evaluate_ms: milliseconds of plain's evaluation.
        train_to_best: ratio of the times of training steps to the fastest plain network of this run.
        evaluate_to_best: ratio of the times of evaluation to the fastest plain network of this run.
        best_train: which plain network trained fastest.
        best_evaluate: which plain network evaluated fastest.
        train_error: relative standard error of ``train``.
        evaluate_error: relative standard error of ``evaluate``.
    """

    method: MethodName
    contestant: Contestant
    train: float
    evaluate: float
    saved: float | None
    train_ms: float
    evaluate_ms: float
    plain_train_ms: float
    plain_evaluate_ms: float
    train_to_best: float | None = None
    evaluate_to_best: float | None = None
    best_train: str = "plain"
    best_evaluate: str = "plain"
    train_error: float | None = None
    evaluate_error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The row as values that JSON can hold."""
        return asdict(self)


class DisagreementError(RuntimeError):
    """Fused and reference networks differ by more than rounding. Nothing is timed."""


def run(
    setting: Setting, contestants: Sequence[Contestant] = CONTESTANTS, watch: Callable[[], None] | None = None
) -> list[Row]:
    """Times the contestants and the plain network in turn, after checking that their gradients agree.

    Plain is the same network of zero-padded ``nn.Conv2d`` and ``nn.Linear``, contiguous, with MaxMin by maximum and
    minimum as it is usually published. The contestants are:

    - ``"fused"``: the network with its kernels.
    - ``"fused compiled"``: its network and loss, forward and backward, in one graph of ``torch.compile``, which takes
      minutes to compile.
    - ``"fused CUDA graph"``: its whole step with the optimiser, captured and replayed on a GPU without synchronising
      the host (CPL: ``training_sigma="power"``).
    - ``"reference"``: the layers in PyTorch operations only.
    - ``"channels-last"``: the reference in that memory format, which shows the effect of the format alone.
    - ``"compiled"``: the reference under ``torch.compile``.
    - ``"plain channels-last"``: plain in that memory format.
    - ``"plain compiled"``: plain, network and loss, forward and backward, in one graph of ``torch.compile``.
    - ``"orthogonium"`` and ``"deel-torchlip"``: the same network of that package's layers, with that package's
      initialisation and evaluation.

    Every ratio is reported to plain, and to the fastest of the plain networks that were timed: plain itself and those
    among the contestants.

    Args:
        setting: the network, its batch, and how it is timed.
        contestants: the networks that are compared with plain.
        watch: is called after the check and after each round, :attr:`Setting.stages` times.

    Returns:
        A row for each contestant.

    Raises:
        ValueError: a contestant that cannot run (see :func:`why_not`).
        DisagreementError: fused (eager, compiled or captured) and reference differ by more than rounding; nothing
            was timed.
    """
    for contestant in contestants:
        if reason := why_not(contestant, setting.method, setting.device):
            raise ValueError(f"contestants: {reason}")
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = _model(setting)
    networks = {name: network_of(name, setting.method, model) for name in ("plain", *contestants)}
    x = torch.rand(setting.batch_size, 3, setting.image_size, setting.image_size, device=setting.device)
    y = torch.randint(10, (setting.batch_size,), device=setting.device)
    for name in dict.fromkeys(("fused", *(name for name in contestants if name in whole_step.PROGRAMS))):
        _require_agreement(name, setting.method, model, x[:4], y[:4])
    if watch is not None:
        watch()
    inputs = {name: _input(name, x) for name in networks}
    losses = {name: loss_of(network, inputs[name], y) for name, network in networks.items()}
    sizes: dict[str, int | None] = {}
    how = setting.rounds, setting.device, math.inf, watch
    train = alternate({name: training_step(name, networks[name], losses[name]) for name in networks}, *how)
    for name, network in networks.items():
        sizes[name] = None if name in _OWN_MEMORY else bytes_kept(losses[name])
        network.eval()
    evaluate = alternate({name: evaluation_step(name, networks[name], inputs[name]) for name in networks}, *how)
    return [_row(setting, name, train, evaluate, sizes) for name in contestants]


def why_not(contestant: Contestant, method: MethodName, device: str = "cpu") -> str:
    """Why this contestant cannot be timed next to this method on this device; empty if it can."""
    if contestant not in CONTESTANTS:
        return f"got {contestant!r}, allowed are {', '.join(map(repr, CONTESTANTS))}"
    if contestant in peers.PEERS:
        return peers.why_not(contestant, method)
    return whole_step.why_not(contestant, device)


def _row(
    setting: Setting,
    name: Contestant,
    train: dict[str, list[float]],
    evaluate: dict[str, list[float]],
    sizes: dict[str, int | None],
) -> Row:
    def milliseconds(seconds: list[float]) -> float:
        return 1e3 * statistics.median(seconds)

    own, plain = sizes[name], sizes["plain"]
    best_train, best_evaluate = _fastest_plain(train), _fastest_plain(evaluate)
    return Row(
        setting.method,
        name,
        _ratio(train, name, "plain"),
        _ratio(evaluate, name, "plain"),
        own / plain if own is not None and plain else None,
        *map(milliseconds, (train[name], evaluate[name], train["plain"], evaluate["plain"])),
        train_to_best=_ratio(train, name, best_train),
        evaluate_to_best=_ratio(evaluate, name, best_evaluate),
        best_train=best_train,
        best_evaluate=best_evaluate,
        train_error=_error(train, name),
        evaluate_error=_error(evaluate, name),
    )


def _ratio(seconds: dict[str, list[float]], name: str, other: str) -> float:
    """The median over the rounds of the ratios of two contestants."""
    return statistics.median(_ratios(seconds, name, other))


def _ratios(seconds: dict[str, list[float]], name: str, other: str) -> list[float]:
    return [a / b for a, b in zip(seconds[name], seconds[other], strict=True)]


def _error(seconds: dict[str, list[float]], name: str) -> float:
    """The relative standard error of a median ratio to plain, from the median distance to it (normal noise)."""
    ratios = _ratios(seconds, name, "plain")
    middle = statistics.median(ratios)
    spread = statistics.median(abs(ratio - middle) for ratio in ratios) / middle
    return _DEVIATION * _MEDIAN * spread / math.sqrt(len(ratios))


def _fastest_plain(seconds: dict[str, list[float]]) -> str:
    return min((name for name in PLAIN if name in seconds), key=lambda name: _ratio(seconds, name, "plain"))


def _model(setting: Setting) -> nn.Module:
    model = lip_conv_net(
        setting.method,
        setting.size,
        image_size=setting.image_size,
        layers_per_block=setting.layers_per_block,
        **setting.layer_options,
    ).to(setting.device)
    return perturb(model, setting.scale)


def _input(name: str, x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if is_channels_last(name) else x


def _require_agreement(name: str, method: str, model: nn.Module, x: Tensor, y: Tensor) -> None:
    ours, theirs = (gradients_of(one, method, model, x.double(), y) for one in (name, "reference"))
    for (parameter, _), one, other in zip(model.named_parameters(), ours, theirs, strict=True):
        if one is None or other is None:
            continue
        error = (one - other).norm() / other.norm().clamp_min(torch.finfo(one.dtype).tiny)
        if not error <= _AGREEMENT:
            raise DisagreementError(
                f"{method}: gradients of {parameter} differ by {error:.1e} between {name} and reference"
            )
