"""A CUDA device that computes nothing (tools/gpu): waits of the host, captures, budgets, whole graphs.

In a process of its own, because the device must be there before torch. To run one test:
``python tools/gpu/fake_cuda.py pytest tests/gpu/test_fake_device.py -k soc``.
"""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

import fastlip
from fastlip import losses
from fastlip import nn as lip
from fastlip.training.averaging import averaged
from fastlip.training.optimization import limit_gradient, optimizer_of
from fastlip.training.recipe import Recipe

pytest.importorskip("triton", minversion="3.6")

ROOT = Path(__file__).resolve().parents[2]
ACTIVE = os.environ.get("FASTLIP_FAKE_CUDA") == "1"
inside = pytest.mark.skipif(not ACTIVE, reason="runs in the process that test_on_a_fake_device starts")
if ACTIVE:
    sys.path.insert(0, str(ROOT / "tools" / "gpu"))
    import ledger
    import steps
    import watch

OTHERS = tuple(
    ROOT / "tests" / "gpu" / f"test_fake_{name}.py" for name in ("waits", "limits", "capture", "recipes", "traffic")
)
METHODS = ("aol", "cayley", "aoc", "sll", "cpl", "lot", "bcop", "soc", "bro")
NETWORKS = (*METHODS, "bro_net", "lip_next")


def quick_first(*quick, of=METHODS):
    """All methods; those that are not named here take longer, and .ci/run does them by the tools themselves."""
    return [pytest.param(method, marks=() if method in quick else pytest.mark.slow) for method in of]


@pytest.mark.skipif(ACTIVE, reason="this is the process that it starts")
@pytest.mark.parametrize(
    "speed", [pytest.param("not slow", marks=pytest.mark.without_gpu), pytest.param("slow", marks=pytest.mark.slow)]
)
def test_on_a_fake_device(speed):
    if shutil.which("g++") is None:
        pytest.skip("no g++ to build tools/gpu/fake_cuda.cpp with")
    command = [sys.executable, ROOT / "tools/gpu/fake_cuda.py", "pytest", "-q", "-p", "no:cacheprovider", "-m", speed]
    result = subprocess.run([*command, __file__, *OTHERS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert " passed" in result.stdout


def small_step(method, optimizer=torch.optim.SGD):
    return steps.training_step(steps.network(method, width=16, image_size=16), *steps.batch(8, 16), optimizer)


# Waits


@inside
@pytest.mark.parametrize("name", [*(steps.CONVOLUTIONS if ACTIVE else ()), *(steps.LINEARS if ACTIVE else ())])
@pytest.mark.parametrize("extension", [True, False], ids=["extension", "triton"])
def test_a_layer_is_captured(name, extension):
    with watch.gpu(extension=extension) as device:
        if name in steps.CONVOLUTIONS:
            make, options = steps.CONVOLUTIONS[name]
            step = steps.layer_step(make(32, 32, 3, **options).train(), torch.randn(4, 32, 8, 8))
        else:
            step = steps.layer_step(getattr(lip, name)(32, 32).train(), torch.randn(4, 32))
        step()
        if name in ("CayleyConv2d", "CayleyLinear", "AOCConv2d", "LOTConv2d") and not extension:
            pytest.skip("torch.linalg waits: only the extension's kernels do not")
        with device.capture() as counts:
            step()
    assert counts.launches


@inside
@pytest.mark.parametrize(
    ("method", "optimizer"),
    [
        ("aol", torch.optim.SGD),
        ("aol", torch.optim.Adam),
        ("cayley", torch.optim.AdamW),
        pytest.param("aol", torch.optim.AdamW, marks=pytest.mark.slow),
        pytest.param("cayley", torch.optim.SGD, marks=pytest.mark.slow),
        pytest.param("cayley", torch.optim.Adam, marks=pytest.mark.slow),
    ],
)
def test_a_step_never_waits(method, optimizer):
    with watch.gpu(strict=True):
        step = small_step(method, optimizer)
        step()
        step()


@inside
@pytest.mark.parametrize("method", quick_first("lip_next", of=NETWORKS))
def test_a_step_of_any_network_never_waits(method):
    with watch.gpu() as device:
        step = small_step(method)
        with device.counting() as counts:
            step()
            step()
    assert counts.launches
    assert not counts.waits


@inside
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_step_on_the_manifold_and_its_retraction_are_captured(dtype):
    with watch.gpu() as device:
        shapes = ((96, 96), (96, 96), (96, 32))
        layers = [lip.LOTLinear(*shape, parametrization="manifold", dtype=dtype) for shape in shapes]
        model, x = torch.nn.Sequential(*layers), torch.randn(8, 96, dtype=dtype)
        optimizer = steps.optimizer_of(model, lambda groups: torch.optim.SGD(groups, lr=0.1), retract_every=1)

        def step():
            model(x).sum().backward()
            optimizer.step()

        step()
        with device.counting() as counts:
            step()
        assert counts.launches
        assert not counts.waits
        with device.capture():
            step()


@inside
@pytest.mark.parametrize("method", quick_first("aol", "cayley", "sll", of=NETWORKS))
def test_a_training_step_is_captured(method):
    with watch.gpu() as device:
        step = small_step(method)
        step()
        with device.capture() as counts:
            step()
    assert counts.launches > 100


@inside
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_limits_and_averages_neither_wait_nor_upload(optimizer, monkeypatch):
    recipe = Recipe(optimizer=optimizer, clip_norm=1.0, ema=0.9, decayed="weights", weight_decay=0.01)
    with watch.gpu(strict=True) as device:
        model, other = (steps.network("aol", image_size=8, width=8, layers_per_block=1) for _ in range(2))
        monkeypatch.setattr("copy.deepcopy", lambda _: other)  # tensors of this device have no memory to copy
        update, average = optimizer_of(recipe, model), averaged(model, recipe.ema)
        for _ in range(2):
            model(steps.batch(4, 8)[0]).sum().backward()
            with device.counting() as counts:
                limit_gradient(recipe, model)
                update.step()
                average.update_parameters(model)
    assert counts.launches
    assert not counts.waits + counts.uploads


@inside
def test_the_training_loop_reads_figures_later():
    from fastlip.training.figures import STEPS, Figures, Pending

    with watch.gpu() as device:
        pending = Pending(watch.DEVICE)
        assert pending.limit == STEPS > 1
        with device.counting() as counts:
            for _ in range(pending.limit):
                pending.add(Figures(torch.zeros(4, dtype=torch.float64), 8, "step"))
        assert not counts.waits
        with device.counting() as counts:
            pending.read()
    assert Pending(torch.device("cpu")).limit == 1


# Budgets


@inside
@pytest.mark.parametrize("method", quick_first("aol", of=NETWORKS))
def test_a_network_keeps_its_budget(method):
    budgets = json.loads(ledger.FILE.read_text())
    assert ledger.exceeded(ledger.figures(ledger.count_network(method)), budgets[method]) == []
    found = ledger.figures(ledger.count_evaluation(method))
    assert ledger.exceeded(found, budgets[f"{method} evaluation"]) == []


@inside
@pytest.mark.parametrize("name", ["AOLConv2d", "CayleyConv2d", "SLLConv2d"])
def test_a_layer_keeps_its_budget(name):
    budgets = json.loads(ledger.FILE.read_text())
    found = ledger.figures(ledger.count_layer(name, 64, 32), 256 * 64 * 32 * 32 * 4)
    assert ledger.exceeded(found, budgets[f"{name} 64x32"]) == []


@inside
def test_no_budget_has_a_wait():
    budgets = json.loads(ledger.FILE.read_text())
    assert {*steps.NETWORKS} <= {*budgets}
    assert [name for name, budget in budgets.items() if budget["waits"]] == []


@inside
def test_what_exceeds_its_budget_is_named():
    budget = {"launches": 10, "gigabytes": 1.0, "waits": 0}
    assert ledger.exceeded(budget, budget) == []
    assert ledger.exceeded({**budget, "waits": 1}, budget) == ["1 waits, budget 0"]
    assert ledger.exceeded(budget, None) == ["there is no budget"]
    assert ledger.above_bars("aol", {"launches": 650}) == []
    assert ledger.above_bars("aol", {"launches": 651}) == ["651 launches, bar 650"]
    assert ledger.above_bars("AOLConv2d 64x32", {"launches": 999, "activations": 12.1}) == [
        "12.1 activations, bar 12.0"
    ]


@inside
def test_launches_and_bytes_are_those_of_each_operation():
    with watch.gpu() as device:
        x = torch.randn(4, 8, 2, 2)
        with device.counting() as counts:
            y = x.transpose(0, 1)[1:] + 1  # views are free
            fastlip.ops.maxmin(x, backend="triton")
    assert y.shape == (7, 4, 2, 2)
    assert counts.by_name == Counter({"add": 1, "triton:_forward_kernel": 1}) or counts.launches == 2
    assert counts.bytes >= 2 * 7 * 16 * 4


# Whole graphs

CHOSEN = {
    "aol": {"gram_rowsum_forward": {"triton"}, "conv_chain_forward": {"triton"}},
    "cayley": {"cayley_forward": {"native"}, "spectral_conv_forward": {"triton"}, "maxmin_forward": {"native"}},
    "aoc": {"cayley_forward": {"native"}, "block_conv_forward": {"triton"}, "conv_chain_forward": {"triton"}},
    "sll": {"gram_rowsum_forward": {"triton"}, "sdp_residual_forward": {"triton"}},
    "cpl": {"sdp_residual_forward": {"triton"}},
    "lot": {"polar_forward": {"native", "triton"}, "spectral_conv_forward": {"triton"}},
    "bcop": {"polar_forward": {"native", "triton"}, "conv_chain_forward": {"triton"}},
    "soc": {"skew_exp_forward": {"triton"}, "maxmin_forward": {"native"}},
    "bro": {"block_reflector_forward": {"triton"}},
}


@inside
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", quick_first("aol", "cayley"))
def test_a_network_is_one_graph(method):
    chosen = {}

    def note(graph, inputs):
        for node in graph.graph.nodes:
            if node.op == "call_function" and str(node.target).startswith("fastlip."):
                chosen.setdefault(str(node.target).split(".")[1], set()).add(node.args[-1])
        return graph.forward

    torch._dynamo.reset()
    with watch.gpu(compiling=True) as device:
        with watch.DEVICE:
            model = steps.network(method, width=16, image_size=16, layers_per_block=1)
            x, y = steps.batch(8, 16)
        criterion = losses.OffsetCrossEntropy(offset=0.5, temperature=0.25)
        torch.compile(lambda x, y: criterion(model(x), y), fullgraph=True, backend=note, dynamic=False)(x, y)
    assert CHOSEN[method].items() <= chosen.items(), chosen
    if "spectral_conv_forward" in chosen:  # before the graph runs
        assert device.tables
