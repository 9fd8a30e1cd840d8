"""Training by several processes, each with its part of every batch: how they agree, and which one reports."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastlip.data import Share

# Seconds that a process waits whose error follows from another's, so that the launcher does not end the other first.
_PATIENCE = 2.0
_FIRST = "fastlip/first-report"


class _Launch:
    """This process's connection to the others; None until it has joined them."""

    store: dist.Store | None = None


@dataclass(frozen=True)
class World:
    """The processes of a run: this one's rank, and their number. A single one needs no torch.distributed."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the main process, which writes and prints."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """This process's part of every batch."""
        return Share(self.rank, self.size)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of every process's values, with the same bits in all processes."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def largest(self, number: int, device: torch.device) -> int:
        """The largest of every process's numbers; device: that of this process's tensors."""
        if self.size == 1:
            return number
        value = torch.tensor(number, device=device)
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return int(value)

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in the order of ranks."""
        values: list[Any] = [value]
        if self.size > 1:
            values *= self.size
            dist.all_gather_object(values, value)
        return values

    def of_main(self, value: Any) -> Any:
        """The main process's value."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model as it trains: gradients are averaged over processes as soon as they are computed.

        Every process computes all parametrizations, which are functions of the parameters that all have. With
        :mod:`fastlip.training.sharing` each process computes some of them.
        """
        if self.size == 1:
            return model
        return DistributedDataParallel(model, gradient_as_bucket_view=True)


def join(device: str) -> World:
    """Joins the processes that ``torchrun`` started: over NCCL on GPUs, one each, and over gloo on CPUs.

    Args:
        device: the recipe's, ``"auto"``, ``"cpu"`` or ``"cuda"``.

    Raises:
        ValueError: a device that does not exist, or that all processes of this machine would use together.
    """
    if not dist.is_torchelastic_launched():
        return World()
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if not cuda and device not in ("auto", "cpu"):
        raise ValueError(f"device={device!r}: with several processes 'auto', 'cpu' and 'cuda' are allowed")
    _Launch.store, rank, size = next(iter(dist.rendezvous("env://")))
    if cuda:
        _take_gpu()
    store = dist.PrefixStore("fastlip", _Launch.store)
    dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=size)
    return World(rank, size)


def _take_gpu() -> None:
    local = dist.get_node_local_rank()
    if local >= torch.cuda.device_count():
        raise ValueError(
            f"process {local} of this machine has no GPU of its own: there are {torch.cuda.device_count()};"
            " start fewer processes, or train with --device cpu"
        )
    torch.cuda.set_device(local)


def leave() -> None:
    """Leaves the other processes, so that they may end before this one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def may_report() -> bool:
    """Whether this process reports why the run ends. Only the first process that knows does.

    Before they have joined, all processes meet the same errors, and the first of each machine reports them. The
    others wait a moment, because the launcher ends all processes as soon as one has failed.
    """
    if not dist.is_torchelastic_launched():
        return True
    try:
        first = dist.get_node_local_rank() == 0 if _Launch.store is None else _Launch.store.add(_FIRST, 1) == 1
    except RuntimeError:  # the launcher, which holds the store, is gone
        first = True
    if not first:
        time.sleep(_PATIENCE)
    return first


def is_lost(error: RuntimeError) -> bool:
    """Whether this error says that another process of the run has ended."""
    text = str(error).lower()
    return dist.is_initialized() and (isinstance(error, dist.DistError) or "peer" in text or "gloo" in text)
