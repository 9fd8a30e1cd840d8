"""KR, HKR and their soft forms: limits, formulas, the running mean, and processes."""

import math

import pytest
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from loss_inputs import CLASSES6, CLASSES8, LABELS8, LOGITS6, LOGITS8, SCORES8

from fastlip import losses


def test_soft_hkr_keeps_a_running_mean_in_training_only():
    loss = losses.SoftHKR(5 / 6, 0.2)
    torch.testing.assert_close(loss(LOGITS6, CLASSES6), torch.tensor(1.0897621 / 1.2), rtol=1e-5, atol=0)
    torch.testing.assert_close(loss(LOGITS6, CLASSES6), torch.tensor(1.0834466 / 1.2), rtol=1e-5, atol=0)
    loss.eval()
    assert torch.equal(loss(LOGITS6, CLASSES6), loss(LOGITS6, CLASSES6))
    copy = losses.SoftHKR(5 / 6, 0.2).eval()
    copy.load_state_dict(loss.state_dict())
    assert torch.equal(copy(LOGITS6, CLASSES6), loss(LOGITS6, CLASSES6))


def test_lse_hkr_against_its_formula():
    # Two rivals: sharpness t = log(2) / (penalty * m / 2).
    score, rivals = LOGITS8[2, 0], LOGITS8[2, 1:]
    t = math.log(2) / (0.5 * 1.2 / 2)
    rival = torch.logsumexp(t * 3 * rivals, 0) / t
    hinge = F.relu(0.6 - 3 * score) + F.relu(0.6 + rival)
    expected = 0.3 * (rival - 3 * score) + 0.7 * hinge
    loss = losses.LseHKR(0.7, temperature=3, penalty=0.5, min_margin=1.2)
    torch.testing.assert_close(loss(LOGITS8[2:3], CLASSES8[2:3]), expected)
    assert (3 * rivals).amax() <= rival <= (3 * rivals).amax() + 0.3
    two = torch.tensor([[0.3, -0.1]])
    torch.testing.assert_close(losses.LseHKR(0.0)(two, torch.tensor([0])), torch.tensor(-0.4))


@pytest.mark.parametrize(
    ("hkr", "kr", "hinge", "scores", "labels"),
    [
        (losses.HKR, losses.KR(), losses.Hinge(0.8), SCORES8, LABELS8),
        (losses.MulticlassHKR, losses.MulticlassKR(), losses.MulticlassHinge(0.8), LOGITS8, CLASSES8),
    ],
)
def test_hkr_ends_at_kr_and_hinge(hkr, kr, hinge, scores, labels):
    assert torch.equal(hkr(0.0, 0.8)(scores, labels), -kr(scores, labels))
    assert torch.equal(hkr(1.0, 0.8)(scores, labels), hinge(scores, labels))


@pytest.mark.parametrize("constant", [-3.0, 100.0])
def test_kr_ignores_a_constant(constant):
    torch.testing.assert_close(
        losses.KR()(SCORES8 + constant, LABELS8), losses.KR()(SCORES8, LABELS8), atol=1e-4, rtol=0
    )
    loss = losses.MulticlassKR()
    torch.testing.assert_close(loss(LOGITS8 + constant, CLASSES8), loss(LOGITS8, CLASSES8), atol=1e-4, rtol=0)


def _worker(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    part = slice(0, 3) if rank == 0 else slice(3, 8)
    values = [loss(LOGITS8[part], CLASSES8[part]) for loss in _distributed(True)]
    torch.save(torch.stack(values), f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _distributed(multi_gpu):
    return [
        losses.MulticlassKR(multi_gpu),
        losses.MulticlassHKR(0.6, multi_gpu=multi_gpu),
        losses.SoftHKR(0.6, multi_gpu=multi_gpu),
    ]


def test_processes_average_to_the_whole_batch(tmp_path):
    mp.spawn(_worker, (str(tmp_path),), nprocs=2)
    mean = (torch.load(tmp_path / "0.pt") + torch.load(tmp_path / "1.pt")) / 2
    whole = torch.stack([loss(LOGITS8, CLASSES8) for loss in _distributed(False)])
    torch.testing.assert_close(mean, whole)
