"""Training and evaluation steps of a method's network beside the same network of plain convolutions, in one run."""

from __future__ import annotations

import copy
import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlip import _peers, _whole_step
from fastlip.fusing import fuse, unfuse
from fastlip.models import lip_conv_net
from fastlip.nn._base import LipschitzLinear
from fastlip.nn._conv import LipschitzConv2d
from fastlip.nn.activations import MaxMin
from fastlip.testing import bytes_kept

CONTESTANTS = ("fused", *_whole_step.PROGRAMS, "reference", "channels-last", "compiled", *_peers.PEERS)
# In float64: in float32 a pair or a maximum that rounding decides may fall either way, and moves gradients visibly.
_AGREEMENT = 1e-6
_NOISE = 0.3  # of each parameter's standard deviation: away from initialisations where iterations end early
_LEARNING_RATE = 1e-6  # so that nothing diverges while it is timed


@dataclass(frozen=True)
class Setting:
    """One method's network, its batch, and how it is timed."""

    method: str
    size: str = "XS"
    batch_size: int = 256
    image_size: int = 32
    layers_per_block: int = 5
    rounds: int = 7
    device: str = "cpu"
    layer_options: Mapping[str, Any] = field(default_factory=dict)  # of the method's convolutions
    scale: float = 1.0  # of the weights, away from their initialisation


@dataclass(frozen=True)
class Row:
    """A contestant beside plain: medians over the rounds of time ratios, and the ratio of saved bytes."""

    method: str
    contestant: str
    train: float
    evaluate: float
    saved: float
    train_ms: float
    evaluate_ms: float
    plain_train_ms: float
    plain_evaluate_ms: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class DisagreementError(RuntimeError):
    """Fused and reference networks differ by more than rounding: nothing is timed."""


def run(setting: Setting, contestants: Sequence[str] = CONTESTANTS) -> list[Row]:
    """Times the contestants and the plain network, alternating; after the agreement of gradients is checked.

    Plain is the same network of zero-padded ``nn.Conv2d`` and ``nn.Linear``, contiguous, with MaxMin by maximum and
    minimum as usually published. Contestants: ``"fused"``; ``"fused compiled"``, its network and loss in one graph of
    ``torch.compile`` (which takes minutes), backward too; ``"fused CUDA graph"``, its whole step with the optimiser
    captured and replayed, on a GPU, without the host's synchronisations (CPL: ``training_sigma="power"``);
    ``"reference"``, the pure-PyTorch layers;
    ``"channels-last"``, the reference in that memory format (what it alone is worth); ``"compiled"``, the reference
    under ``torch.compile``; ``"orthogonium"`` and ``"deel-torchlip"``, the same network of that package's layers,
    from their own initialisation and as they evaluate by themselves.

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
    networks = {name: _network(name, setting.method, model) for name in ("plain", *contestants)}
    x = torch.rand(setting.batch_size, 3, setting.image_size, setting.image_size, device=setting.device)
    y = torch.randint(10, (setting.batch_size,), device=setting.device)
    for name in dict.fromkeys(("fused", *(name for name in contestants if name in _whole_step.PROGRAMS))):
        _require_agreement(name, setting.method, model, x[:4], y[:4])
    inputs = {name: _input(name, x) for name in networks}
    losses = {name: _loss(network, inputs[name], y) for name, network in networks.items()}
    sizes = dict.fromkeys(networks, 0)
    train = _alternate({name: _training_step(name, networks[name], losses[name]) for name in networks}, setting)
    for name, network in networks.items():
        sizes[name] = 0 if name in ("compiled", *_whole_step.PROGRAMS) else bytes_kept(losses[name])
        network.eval()
    evaluate = _alternate({name: _evaluation_step(name, networks[name], inputs[name]) for name in networks}, setting)
    return [_row(setting, name, train, evaluate, sizes) for name in contestants]


def why_not(contestant: str, method: str, device: str = "cpu") -> str:
    """Why this contestant cannot be timed beside this method on this device; empty if it can."""
    if contestant not in CONTESTANTS:
        return f"got {contestant!r}, allowed are {', '.join(map(repr, CONTESTANTS))}"
    if contestant in _peers.PEERS:
        return _peers.why_not(contestant, method)
    return _whole_step.why_not(contestant, device)


def plain(model: nn.Module) -> nn.Module:
    """A copy of the model with ordinary layers in place of fastlip's: see :func:`run`."""
    return _replaced(model, _plain_convolution, nn.Linear, MaximumMinimum)


def _replaced(
    model: nn.Module,
    convolution: Callable[[LipschitzConv2d], nn.Module],
    dense: Callable[[int, int], nn.Module],
    sorting: Callable[[str], nn.Module] = MaxMin,
) -> nn.Module:
    model = unfuse(copy.deepcopy(model))
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, LipschitzConv2d):
                setattr(module, name, convolution(layer))
            elif isinstance(layer, LipschitzLinear):
                setattr(module, name, dense(layer.in_features, layer.out_features))
            elif isinstance(layer, MaxMin):
                setattr(module, name, sorting(layer.pairing))
    return model


class MaximumMinimum(nn.Module):
    """MaxMin by ``torch.maximum`` and ``torch.minimum``, which keep both inputs for the backward."""

    def __init__(self, pairing: str):
        super().__init__()
        self.pairing = pairing

    def forward(self, x: Tensor) -> Tensor:
        """The pairs of x, sorted in descending order."""
        if self.pairing == "halves":
            a, b = x.chunk(2, 1)
            return torch.cat((torch.maximum(a, b), torch.minimum(a, b)), 1)
        a, b = x.unflatten(1, (-1, 2)).unbind(2)
        return torch.stack((torch.maximum(a, b), torch.minimum(a, b)), 2).flatten(1, 2)


@torch.no_grad()
def perturb(model: nn.Module, scale: float = 1.0) -> nn.Module:
    """Moves the weights, in place, away from an initialisation where iterations would end early, and scales them."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter += _NOISE * parameter.std() * torch.randn_like(parameter)
            parameter *= scale
    return model


def keep_pages() -> bool:
    """Asks glibc's allocator to keep freed memory, whose fresh pages would dominate timings; False if it cannot."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Trim threshold, top pad and the threshold above which memory comes from mmap, at most 32 MiB.
    options = ((-1, 2**31 - 1), (-2, 256 << 20), (-3, 32 << 20))
    return mallopt is not None and all(mallopt(option, value) for option, value in options)


def _model(setting: Setting) -> nn.Module:
    model = lip_conv_net(
        setting.method,
        setting.size,
        image_size=setting.image_size,
        layers_per_block=setting.layers_per_block,
        **setting.layer_options,
    ).to(setting.device)
    return perturb(model, setting.scale)


def _network(name: str, method: str, model: nn.Module) -> nn.Module:
    if name == "plain":
        return plain(model)
    if name in _peers.PEERS:
        return _replaced(
            model,
            lambda layer: _peers.convolution(name, method, *_arguments(layer), padding="same", groups=layer.groups),
            lambda inputs, outputs: _peers.dense(name, inputs, outputs),
        ).to(next(model.parameters()).device)
    network = copy.deepcopy(model)
    if name == "fused" or name in _whole_step.PROGRAMS:
        return fuse(network)
    network = unfuse(network)
    if name == "channels-last":
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if name == "compiled":
        network.compile()
    return network


def _input(name: str, x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if name == "channels-last" else x


def _plain_convolution(layer: LipschitzConv2d) -> nn.Conv2d:
    height, width = layer.kernel_size
    convolution = nn.Conv2d(*_arguments(layer), padding=(height // 2, width // 2), groups=layer.groups)
    return convolution.to(next(layer.parameters()).device)


def _arguments(layer: LipschitzConv2d) -> tuple[Any, ...]:
    return layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride


def _loss(network: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    return lambda: F.cross_entropy(4 * network(x), y)


def _require_agreement(name: str, method: str, model: nn.Module, x: Tensor, y: Tensor) -> None:
    ours, theirs = (_gradients(one, method, model, x.double(), y) for one in (name, "reference"))
    for (parameter, _), one, other in zip(model.named_parameters(), ours, theirs, strict=True):
        if one is None or other is None:
            continue
        error = (one - other).norm() / other.norm().clamp_min(torch.finfo(one.dtype).tiny)
        if not error <= _AGREEMENT:
            raise DisagreementError(
                f"{method}: gradients of {parameter} differ by {error:.1e} between {name} and reference"
            )


def _gradients(name: str, method: str, model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor | None]:
    network = _network(name, method, model).double()
    start = copy.deepcopy(network.state_dict())
    loss = _whole_step.compiled(name, _loss(network, x, y))

    def step() -> None:
        network.zero_grad()
        loss().backward()

    step = _whole_step.captured(name, step)
    network.load_state_dict(start)  # the steps before the capture moved buffers
    step()
    return [parameter.grad for parameter in network.parameters()]


def _training_step(name: str, network: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.SGD(network.parameters(), lr=_LEARNING_RATE)
    loss = _whole_step.compiled(name, loss)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return _whole_step.captured(name, step)


def _evaluation_step(name: str, network: nn.Module, x: Tensor) -> Callable[[], None]:
    forward = _whole_step.compiled(name, network)

    def step() -> None:
        with torch.no_grad():
            forward(x)

    return _whole_step.captured(name, step)


def _alternate(steps: dict[str, Callable[[], None]], setting: Setting) -> dict[str, list[float]]:
    """Seconds of each step, one after the other in every round; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(setting.rounds + 1):
        for name, step in steps.items():
            _wait(setting.device)
            started = time.perf_counter()
            step()
            _wait(setting.device)
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _row(
    setting: Setting,
    name: str,
    train: dict[str, list[float]],
    evaluate: dict[str, list[float]],
    sizes: dict[str, int],
) -> Row:
    def ratio(seconds: dict[str, list[float]]) -> float:
        return statistics.median(a / b for a, b in zip(seconds[name], seconds["plain"], strict=True))

    def milliseconds(seconds: list[float]) -> float:
        return 1e3 * statistics.median(seconds)

    return Row(
        setting.method,
        name,
        ratio(train),
        ratio(evaluate),
        sizes[name] / sizes["plain"],
        *map(milliseconds, (train[name], evaluate[name], train["plain"], evaluate["plain"])),
    )
