"""Two processes train as one: under DDP, with parameters divided (fully_shard), and with activations recomputed."""

import functools

import pytest
import torch
import torch.distributed as dist
from fresh_processes import outputs, run_ranks
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from fastlip import models
from fastlip import nn as lip
from fastlip.optim import ManifoldOptimizer, manifold_groups, orthogonality_errors, retract_
from fastlip.training import distributed

STEPS = 20


def matrices():
    """Square, tall and wide, of sides that two processes cannot divide evenly."""
    on = {"parametrization": "manifold"}
    layers = [lip.CayleyLinear(6, 9, **on), lip.MaxMin(), lip.LOTLinear(9, 9, **on), lip.MaxMin()]
    return nn.Sequential(*layers, lip.SOCLinear(9, 5, **on)), torch.randn(16, 6), 5


def over_matrices(model):
    base = functools.partial(torch.optim.Adam, lr=0.01)
    return ManifoldOptimizer(manifold_groups(model), base, retract_every=8)


def looking_ahead(model):
    base = functools.partial(torch.optim.NAdam, lr=0.01)
    return ManifoldOptimizer(manifold_groups(model), base, lookahead=3)


def lip_next():
    model = models.lip_next("XS", num_classes=5, image_size=8, in_channels=2, width=10, depth=3)
    return model, torch.rand(16, 2, 8, 8), 5


def bro_net():
    sizes = {"width": 6, "depth": 2, "features": 10, "dense_layers": 2}
    return models.bro_net("XS", num_classes=5, image_size=8, in_channels=2, **sizes), torch.rand(16, 2, 8, 8), 5


def usual(model):
    return torch.optim.NAdam(model.parameters(), 0.005)


NETWORKS = {
    "matrices": (matrices, over_matrices),
    "matrices, Lookahead": (matrices, looking_ahead),
    "lip_next": (lip_next, over_matrices),
    "lip_next, Lookahead": (lip_next, looking_ahead),
    "bro_net": (bro_net, usual),
}
WAYS = ("one", "ddp", "fsdp", "fsdp, recomputed")


class Recomputed(nn.Sequential):
    """A module whose activations are computed again in the backward pass."""

    def forward(self, x):
        return checkpoint(self[0], x, use_reentrant=False)


def units_of(model):
    """The parts that fully_shard gathers one after the other, as (parent, name)."""
    for name, child in model.named_children():
        if name in ("blocks", "stem", "neck", "dense"):
            yield from units_of(child)
        elif list(child.parameters()):
            yield model, name


def train(name, way):
    """The weights after some steps by all processes of the world, or by this one alone."""
    build, optimizer_of = NETWORKS[name]
    torch.manual_seed(0)
    model, x, classes = build()
    named = list(model.state_dict().items())
    y = torch.arange(len(x)) % classes
    rank, size = (0, 1) if way == "one" else (dist.get_rank(), dist.get_world_size())
    network = model
    if way == "ddp":
        network = DistributedDataParallel(model)
    units = list(units_of(model))
    if way == "fsdp, recomputed":
        for parent, key in units:
            setattr(parent, key, Recomputed(getattr(parent, key)))
    if way.startswith("fsdp"):
        for parent, key in units:
            fully_shard(getattr(parent, key))
        fully_shard(model)
    optimizer = optimizer_of(model)
    for _ in range(STEPS):
        optimizer.zero_grad()
        scores = network(x[rank::size])
        nn.functional.cross_entropy(4 * scores, y[rank::size]).backward()
        optimizer.step()
    if way == "fsdp" and name.startswith("matrices"):
        check_division(model, optimizer)
    state = model.state_dict()
    whole = {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in state.items()}
    return dict(zip([key for key, _ in named], whole.values(), strict=True))


def check_division(model, optimizer):
    """Moments are divided as the matrices are, a state dict continues, errors are those of whole matrices."""
    W = model[2].orthogonal_weight
    moment = optimizer.state[W]["exp_avg"]
    assert moment.to_local().shape == W.to_local().shape == (5 - dist.get_rank(), 9)
    other = optimizer_of_like(optimizer, model)
    other.load_state_dict(optimizer.state_dict())
    assert torch.equal(other.state[W]["exp_avg"].to_local(), moment.to_local())
    assert optimizer.orthogonality_error() == max(orthogonality_errors(model).values()) < 1e-4
    retract_(model)
    assert optimizer.orthogonality_error() < 1e-6


def optimizer_of_like(optimizer, model):
    return ManifoldOptimizer(manifold_groups(model), type(optimizer.base))


def train_all(folder):
    world = distributed.join("cpu")
    for name in NETWORKS:
        for way in WAYS[1:]:
            torch.save(train(name, way), folder / f"{name}-{way}-{world.rank}.pt")
    distributed.leave()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    codes = run_ranks(train_all, folder, folder=folder)
    assert codes == [0, 0], outputs(folder)
    return folder


@pytest.mark.parametrize("way", WAYS[1:])
@pytest.mark.parametrize("name", NETWORKS)
def test_two_processes_train_as_one(runs, name, way):
    alone = train(name, "one")
    start, _, _ = NETWORKS[name][0]()
    for rank in range(2):
        together = torch.load(runs / f"{name}-{way}-{rank}.pt")
        assert together.keys() == alone.keys()
        for key, value in alone.items():
            assert (together[key] - value).abs().max() <= 1e-5, key
    moved = [key for key, value in start.state_dict().items() if (value - alone[key]).abs().max() > 1e-3]
    assert len(moved) > len(alone) // 2
