"""``fastlip bench``: training steps of fused, reference and plain networks, alternating in one run."""

from __future__ import annotations

import copy
import json
import statistics
import time
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlip.fusing import fuse, unfuse
from fastlip.models import METHODS, SIZES, lip_conv_net
from fastlip.nn._base import LipschitzLinear
from fastlip.nn._conv import LipschitzConv2d

VARIANTS = ("plain", "fused", "reference")
# Rounding differences grow through the network's layers: each sums thousands of products.
_AGREEMENT = 1e-3


@click.command()
@click.option("--method", "methods", multiple=True, help="Method; give it once for each.  [default: all]")
@click.option("--size", type=click.Choice(list(SIZES)), default="XS", help="Size of the network.")
@click.option("--layers-per-block", type=click.IntRange(1), default=5)
@click.option("--batch-size", type=click.IntRange(1), default=64)
@click.option("--image-size", type=click.IntRange(2), default=32)
@click.option("--rounds", type=click.IntRange(1), default=7, help="Steps of each network that are timed.")
@click.option("--device", default="cpu")
@click.option("--channels-last", is_flag=True, help="Channels-last images and weights, for all three.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(methods: tuple[str, ...], as_json: bool, **options: Any):
    """Times training steps: fused kernels, the reference, and plain convolutions in the same network.

    The three alternate in one process, after a check that fused and reference agree; times are medians, ratios
    medians of each round's ratio. Plain is the network of nn.Conv2d and nn.Linear, with the fused MaxMin.
    """
    rows = []
    for method in methods or METHODS:
        rows.append({"method": method, **_bench_method(method, **options)})
        if not as_json:
            _print_row(rows[-1], header=len(rows) == 1)
    if as_json:
        about = {**options, "torch": torch.__version__, "threads": torch.get_num_threads()}
        click.echo(json.dumps({"options": about, "rows": rows}, indent=2))


def _bench_method(
    method: str,
    *,
    size: str,
    layers_per_block: int,
    batch_size: int,
    image_size: int,
    rounds: int,
    device: str,
    channels_last: bool,
) -> dict[str, float]:
    torch.manual_seed(0)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    model = lip_conv_net(method, size=size, image_size=image_size, layers_per_block=layers_per_block)
    x = torch.rand(batch_size, 3, image_size, image_size, device=device).contiguous(memory_format=memory_format)
    y = torch.randint(10, (batch_size,), device=device)
    networks = {"plain": plain(model), "fused": fuse(copy.deepcopy(model)), "reference": unfuse(model)}
    for network in networks.values():
        network.to(device)
        if channels_last:
            network.to(memory_format=torch.channels_last)
    _require_agreement(method, networks["fused"], networks["reference"], x, y)
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    optimizers = {name: torch.optim.SGD(network.parameters(), lr=1e-3) for name, network in networks.items()}
    for turn in range(rounds + 1):  # the first round warms up
        for name in VARIANTS:
            elapsed = _time_step(networks[name], optimizers[name], x, y)
            if turn:
                seconds[name].append(elapsed)
    return _summary(seconds)


def plain(model: nn.Module) -> nn.Module:
    """A copy of the model with ordinary zero-padded convolutions and dense layers in place of fastlip's."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, LipschitzConv2d):
                setattr(module, name, _plain_convolution(layer))
            elif isinstance(layer, LipschitzLinear):
                setattr(module, name, nn.Linear(layer.in_features, layer.out_features))
    return fuse(model)


def _plain_convolution(layer: LipschitzConv2d) -> nn.Conv2d:
    height, width = layer.kernel_size
    return nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        padding=(height // 2, width // 2),
        groups=layer.groups,
    )


def _loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(4 * network(x), y)


def _require_agreement(method: str, fused: nn.Module, reference: nn.Module, x: Tensor, y: Tensor) -> None:
    for network in (fused, reference):
        network.zero_grad()
        _loss(network, x, y).backward()
    for (name, one), other in zip(fused.named_parameters(), reference.parameters(), strict=True):
        if one.grad is None or other.grad is None:
            continue
        error = (one.grad - other.grad).norm() / other.grad.norm().clamp_min(torch.finfo(one.dtype).tiny)
        if not error <= _AGREEMENT:
            raise click.ClickException(
                f"{method}: gradients of {name} differ by {error:.1e} between fused and reference: not timed"
            )


def _time_step(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    _wait(x)
    started = time.perf_counter()
    optimizer.zero_grad()
    _loss(network, x, y).backward()
    optimizer.step()
    _wait(x)
    return time.perf_counter() - started


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def _summary(seconds: dict[str, list[float]]) -> dict[str, float]:
    def ratio(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))

    return {
        **{f"{name}_ms": 1e3 * statistics.median(seconds[name]) for name in VARIANTS},
        "fused_to_plain": ratio("fused", "plain"),
        "reference_to_plain": ratio("reference", "plain"),
        "reference_to_fused": ratio("reference", "fused"),
    }


def _print_row(row: dict[str, Any], *, header: bool) -> None:
    if header:
        click.echo("method     plain ms  fused ms  reference ms  fused/plain  reference/plain  reference/fused")
    click.echo(
        f"{row['method']:<9} {row['plain_ms']:>9.1f} {row['fused_ms']:>9.1f} {row['reference_ms']:>13.1f}"
        f" {row['fused_to_plain']:>12.2f} {row['reference_to_plain']:>16.2f} {row['reference_to_fused']:>16.2f}"
    )
