"""Are effective weights better computed by every process, or each layer's by one that sends them to the others?

``python benchmarks/sharded_parametrizations.py`` starts two processes of one thread each over gloo (GPUs: NCCL,
``--device cuda``) and times, alternating in one run:

- training steps of the ConvNet on random images, without ``--share`` and with it, once their gradients agree;
- what they do for the parametrizations alone, weights and adjoints: all in every process, or shared and sent.

Ratios are medians of each round's ratio of the slowest processes. The bandwidth is that of a broadcast of 64 MB.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
import torch.distributed as dist
import torch.multiprocessing

from fastlip.benchmarking import keep_pages, perturb
from fastlip.data import Data, TensorImages
from fastlip.models import METHODS, SIZES, TITLES
from fastlip.training.distributed import World
from fastlip.training.loop import Training
from fastlip.training.recipe import Recipe
from fastlip.training.recipe_files import default_recipe
from fastlip.training.setup import model_of, prepare_process
from fastlip.training.sharing import SharedWeights

_TOLERANCE = 1e-3  # of gradients, relative to the largest of the parameter
_SENT = 2**26


class Contest:
    """What every process times, in the same order."""

    def __init__(self, recipe: Recipe, data: Data, world: World):
        self.replicated = _training(recipe, data, world)
        self.shared = _training(dataclasses.replace(recipe, share=True), data, world)
        self.x, self.y = next(self.shared.train_batches.epoch(0, 0, 1))
        model = self.replicated.model
        self.all_weights, self.share = (SharedWeights(model, self.x[:2], each) for each in (World(), world))

    def replicated_step(self) -> None:
        """Every process computes all weights."""
        self.replicated.step(self.x, self.y)

    def shared_step(self) -> None:
        """Every process computes its share."""
        self.shared.step(self.x, self.y)

    def replicated_weights(self) -> None:
        """All effective weights and adjoints, without the gradients' sum, which the backward hides in part."""
        _weights_alone(self.all_weights)

    def shared_weights(self) -> None:
        """A share of them; weights, their gradients and those of the parameters are sent."""
        _weights_alone(self.share)

    @property
    def effective_bytes(self) -> int:
        """The bytes of all effective weights."""
        return sum(weight.nbytes for share in self.share.shares.values() for weight in share.like)

    def require_agreement(self) -> None:
        """RuntimeError unless both kinds of step have the same gradients."""
        self.replicated_step()
        self.shared_step()
        pairs = zip(self.replicated.model.named_parameters(), self.shared.model.parameters(), strict=True)
        for (name, one), other in pairs:
            if (one.grad - other.grad).abs().max() > _TOLERANCE * one.grad.abs().max():
                raise RuntimeError(f"gradients of {name} differ: not timed")


def _training(recipe: Recipe, data: Data, world: World) -> Training:
    prepare_process(recipe)
    return Training(perturb(model_of(recipe, data)).train(), recipe, data, Path(), None, world)


def _weights_alone(weights: SharedWeights) -> None:
    with weights.lent():
        weights.hand_out()
        weights.collect()


def _row(contest: Contest, rounds: int) -> dict[str, Any]:
    contest.require_agreement()
    names = ("replicated_step", "shared_step", "replicated_weights", "shared_weights")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in names:
            taken = _slowest(getattr(contest, name), contest.x.device)
            if turn:
                seconds[name].append(taken)
    row: dict[str, Any] = {f"{name}_ms": 1e3 * statistics.median(times) for name, times in seconds.items()}
    for what in ("step", "weights"):
        pairs = zip(seconds[f"shared_{what}"], seconds[f"replicated_{what}"], strict=True)
        row[f"{what}_ratio"] = statistics.median(one / other for one, other in pairs)
    return {"method": contest.shared.recipe.method, **row, "effective_bytes": contest.effective_bytes}


def _slowest(function: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the process that takes longest."""
    dist.barrier()
    started = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    taken = torch.tensor(time.perf_counter() - started, device=device)
    dist.all_reduce(taken, dist.ReduceOp.MAX)
    return taken.item()


def _bandwidth(device: torch.device) -> float:
    """Bytes a second of a broadcast."""
    sent = torch.zeros(_SENT, dtype=torch.uint8, device=device)
    return _SENT / min(_slowest(lambda: dist.broadcast(sent, 0), device) for _ in range(5))


def _process(rank: int, port: int, methods: tuple[str, ...], options: dict[str, Any], out: Path | None) -> None:
    keep_pages()
    torch.set_num_threads(options["threads"])
    device = torch.device(options["device"], rank if options["device"] == "cuda" else None)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    world = World(rank, options["processes"])
    kind = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(kind, f"tcp://127.0.0.1:{port}", rank=rank, world_size=world.size)
    given = {name: options[name] for name in ("size", "batch_size", "threads")}
    given |= {"data": "cifar10", "path": "random images", "lr": 1e-6, "epochs": 1000.0, "device": str(device)}
    bandwidth, rows = _bandwidth(device), []
    for method in methods:
        contest = Contest(default_recipe({**given, "method": method}), _data(options["batch_size"]), world)
        rows.append(_row(contest, options["rounds"]))
        if rank == 0:
            click.echo(_line(rows[-1]))
    dist.destroy_process_group()
    if rank == 0 and out:
        machine = {"torch": torch.__version__, "processor": platform.processor(), "bytes_per_second": bandwidth}
        out.write_text(json.dumps({"options": {**options, **machine}, "rows": rows}, indent=2) + "\n")


def _data(count: int) -> Data:
    pixels = torch.randint(256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    images = TensorImages(pixels, torch.arange(count) % 10)
    return Data("random", images, images, tuple("0123456789"), (3, 32, 32), 255.0, (0.5, 0.5, 0.5))


def _line(row: dict[str, Any]) -> str:
    parts = [
        f"{what} {row[f'{what}_ratio']:.2f} ({row[f'shared_{what}_ms']:.0f} / {row[f'replicated_{what}_ms']:.0f} ms)"
        for what in ("step", "weights")
    ]
    return (
        f"{TITLES[row['method']]:<7} shared / replicated: {', '.join(parts)}; {row['effective_bytes'] / 1e6:.0f} MB"
    )


@click.command()
@click.option("--method", "methods", multiple=True, type=click.Choice(METHODS), default=METHODS)
@click.option("--size", type=click.Choice(list(SIZES)), default="S", help="Of the ConvNet.")
@click.option("--batch-size", default=64, help="Of all processes together.")
@click.option("--processes", default=2)
@click.option("--threads", default=1, help="Of each process.")
@click.option("--rounds", default=5)
@click.option("--device", type=click.Choice(("cpu", "cuda")), default="cpu", help="cuda: a GPU for each process.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures to this JSON file.")
def main(methods: tuple[str, ...], out: Path | None, **options: Any):
    """Times both; prints a line for each method."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_process, (port, methods, options, out), options["processes"])


if __name__ == "__main__":
    main()
