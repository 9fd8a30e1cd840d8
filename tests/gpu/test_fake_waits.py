"""A CUDA device that computes nothing: whatever makes the host wait is found, and no loss does.

tests/gpu/test_fake_device.py runs this file where that device is.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastlip import losses, ops

pytest.importorskip("triton", minversion="3.6")

ACTIVE = os.environ.get("FASTLIP_FAKE_CUDA") == "1"
inside = pytest.mark.skipif(not ACTIVE, reason="runs in the process that tests/gpu/test_fake_device.py starts")
if ACTIVE:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "gpu"))
    import watch


@inside
def test_a_planted_wait_is_found():
    class Planted(torch.nn.Module):
        def forward(self, scores):
            return scores / scores.detach().norm().item()

    with watch.gpu(strict=True), pytest.raises(watch.HostWaitError, match="_local_scalar_dense at tests/gpu"):
        Planted()(torch.randn(8, 10))
    with watch.gpu() as device, device.counting() as counts:
        Planted()(torch.randn(8, 10))
    assert sum(counts.waits.values()) == 1


LOOKS = {
    "bool": bool,
    "float": float,
    "int": int,
    "complex": complex,
    "index": lambda x: range(x.long()),
    "item": torch.Tensor.item,
    "print": print,
    "repr": repr,
    "format": "{}".format,
    "format of digits": lambda x: f"{x[0]:.3f}",
    "message": lambda x: f"{x.mean(0)}",
    "numpy": lambda x: x.numpy(),
    "asarray": np.asarray,
    "contains": lambda x: 1.0 in x,
    "largest of two": lambda x: max(x[0], x[0]),
    "tolist": lambda x: x.tolist(),
    "cpu": torch.Tensor.cpu,
    "cpu, later": lambda x: x.to("cpu", non_blocking=True),
    "all": lambda x: 1 if (x > 0).all() else 0,
    "equal": lambda x: torch.equal(x, x),
    "allclose": lambda x: torch.allclose(x, x),
    "nonzero": torch.Tensor.nonzero,
    "where": lambda x: torch.where(x > 0),
    "argwhere": torch.argwhere,
    "mask": lambda x: x[x > 0],
    "assignment by a mask": lambda x: x.__setitem__(x > 0, 0.0),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": torch.unique,
    "bincount": lambda x: torch.bincount(x.long()),
    "repeat_interleave": lambda x: x.repeat_interleave(torch.ones(1, dtype=torch.long)),
    "one_hot": lambda x: torch.nn.functional.one_hot(x.long()),
    "slice": lambda x: x[: x[0].long()],
    "inv": lambda x: torch.linalg.inv(x[:, None]),
    "pinv": lambda x: torch.linalg.pinv(x[:, None]),
    "svdvals": lambda x: torch.linalg.svdvals(x[:, None]),
    "norm": lambda x: torch.linalg.matrix_norm(x[:, None], 2),
    "matrix_exp": lambda x: torch.matrix_exp(x[:, None]),
    "multinomial": lambda x: x.multinomial(1),
    "synchronize": lambda x: torch.cuda.synchronize(x.device),
    "empty_cache": lambda x: torch.cuda.empty_cache(),
}


@inside
@pytest.mark.parametrize("look", LOOKS)
def test_every_look_at_values_is_a_wait(look):
    with watch.gpu(strict=True):
        x = torch.randn(1)
        with pytest.raises(watch.HostWaitError):
            LOOKS[look](x)


@inside
@pytest.mark.parametrize(
    ("kind", "options", "look"),
    [("MulticlassKR", {}, "tolist"), ("LseHKR", {"alpha": 0.5}, "all"), ("EMMA", {}, "nonzero")],
)
def test_a_wait_in_any_loss_is_found(kind, options, look):
    class Planted(getattr(losses, kind)):
        def forward(self, scores, labels):
            LOOKS[look](scores.detach())
            return super().forward(scores, labels)

    with watch.gpu() as device:
        scores, labels = torch.randn(8, 10, requires_grad=True), torch.zeros(8, dtype=torch.long)
        honest, planted = getattr(losses, kind)(**options), Planted(**options)
        with device.capture():
            step_of_loss(honest, scores, labels)()
        with pytest.raises(watch.HostWaitError, match="at tests/gpu"), device.capture():
            step_of_loss(planted, scores, labels)()


LOSSES = {
    "OffsetCrossEntropy": {"offset": 0.5},
    "TemperatureCrossEntropy": {"temperature": 1.0},
    "MulticlassHinge": {},
    "MulticlassKR": {},
    "MulticlassHKR": {"alpha": 0.5},
    "SoftHKR": {"alpha": 0.5},
    "LseHKR": {"alpha": 0.5},
    "MultiMargin": {},
    "CategoricalHinge": {},
    "EMMA": {},
    "LogitAnnealing": {},
}
BINARY = {"Hinge": {}, "KR": {}, "HKR": {"alpha": 0.5}, "OffsetCrossEntropy": {"offset": 0.5}}


def step_of_loss(criterion, scores, labels):
    def step():
        criterion(scores, labels).backward()

    return step


@inside
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("encoding", ["numbers", "one-hot", "signs", "soft"])
def test_a_loss_is_captured(name, encoding):
    if encoding == "soft" and "CrossEntropy" not in name:
        pytest.skip("hard labels only")
    with watch.gpu() as device:
        scores = torch.randn(8, 10, requires_grad=True)
        shape = (8,) if encoding == "numbers" else (8, 10)
        labels = torch.zeros(shape, dtype=torch.float32 if encoding == "soft" else torch.long)
        weight = {"weight": torch.ones(10)} if "CrossEntropy" in name else {}
        step = step_of_loss(getattr(losses, name)(**LOSSES[name]), scores, labels)
        if weight:
            weighted = getattr(losses, name)(**LOSSES[name])
            weighted.weight = weight["weight"]
            step_of_loss(weighted, scores, labels)()
        step()
        with device.capture():
            step()


@inside
@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("dtype", [torch.long, torch.float32, torch.bool])
def test_a_loss_of_one_score_is_captured(name, dtype):
    with watch.gpu() as device:
        step = step_of_loss(
            getattr(losses, name)(**BINARY[name]), torch.randn(8, requires_grad=True), torch.zeros(8, dtype=dtype)
        )
        with device.capture():
            step()


@inside
@pytest.mark.parametrize(("backend", "size"), [("native", 32), ("native", 200), ("triton", 32)])
def test_an_exponential_is_captured(backend, size):
    """Its norm stays on the device, forward and backward, and torch.linalg.matrix_exp, which waits, is not called."""
    with watch.gpu() as device:
        K = torch.randn(2, size, size, requires_grad=True)

        def step():
            ops.skew_exp(K, backend=backend).sum().backward()

        step()
        with device.capture() as counts:
            step()
    assert counts.launches
