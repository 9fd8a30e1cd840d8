"""What evaluation pays for looking at the parameters: networks that do, and the same ones frozen, which do not.

``python benchmarks/bench_fingerprint.py [--method NAME ...] [--size XS] [--batch N ...] [--rounds N]``: calls
alternate in every round; a ratio is the median of each round's ratio. Exits with 1 where one exceeds the limit for
its batch.
"""

import statistics
import sys
import time
from typing import Any

import click
import torch
from torch import nn

import fastlip
from fastlip.models import METHODS

LIMITS = {256: 1.03, 1: 1.15}  # of larger batches the next smaller one's


@click.command()
@click.option("--method", "methods", multiple=True, type=click.Choice(sorted(METHODS)), help="[default: all]")
@click.option("--size", default="XS", show_default=True, help="of the ConvNet")
@click.option("--batch", "batches", multiple=True, type=int, default=(256, 1), show_default=True)
@click.option("--rounds", default=0, help="[default: 20 for a batch of 256, 400 for one image]")
@torch.inference_mode()
def main(methods: tuple[str, ...], size: str, batches: tuple[int, ...], rounds: int) -> None:
    too_slow = False
    for batch in batches:
        limit = next(limit for least, limit in LIMITS.items() if batch >= least)
        for method in methods or sorted(METHODS):
            following, frozen = network(method, size), network(method, size)
            fastlip.freeze(frozen)
            x = torch.randn(batch, *following.input_shape)
            own, ratio = compare(following, frozen, x, rounds or (20 if batch >= 256 else 400))
            too_slow |= ratio > limit
            print(f"{method:<8} batch {batch:<4} {own * 1e3:8.2f} ms   {ratio:.3f} of frozen", flush=True)
    sys.exit(too_slow)


def network(method: str, size: str) -> Any:
    torch.manual_seed(0)
    return fastlip.fuse(fastlip.models.lip_conv_net(method, size=size)).eval()


def compare(following: nn.Module, frozen: nn.Module, x: torch.Tensor, rounds: int) -> tuple[float, float]:
    """The median seconds of the network that follows its parameters, and its ratio to the frozen one."""
    for model in (following, frozen):
        seconds(model, x)
    pairs = []
    for turn in range(rounds):
        order = (following, frozen) if turn % 2 else (frozen, following)
        taken = {model is following: seconds(model, x) for model in order}
        pairs.append((taken[True], taken[False]))
    return statistics.median(a for a, _ in pairs), statistics.median(a / b for a, b in pairs)


def seconds(model: nn.Module, x: torch.Tensor) -> float:
    begin = time.perf_counter()
    model(x)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
