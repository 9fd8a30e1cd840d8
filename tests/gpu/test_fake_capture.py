"""A CUDA device that computes nothing: every layer and whole steps of ``--cuda-graph`` captured, traced and timed.

tests/gpu/test_fake_device.py runs this file where that device is.
"""

import os
import sys
from pathlib import Path

import pytest
import torch

from fastlip.training.captured_steps import WARM_UPS, CapturedSteps, is_captured
from fastlip.training.distributed import World
from fastlip.training.gradients import Gradients
from fastlip.training.optimization import limit_gradient, optimizer_of
from fastlip.training.recipe import Recipe

pytest.importorskip("triton", minversion="3.6")

ROOT = Path(__file__).resolve().parents[2]
ACTIVE = os.environ.get("FASTLIP_FAKE_CUDA") == "1"
inside = pytest.mark.skipif(not ACTIVE, reason="runs in the process that tests/gpu/test_fake_device.py starts")
if ACTIVE:
    sys.path[:0] = [str(ROOT / "tools" / "gpu"), str(ROOT / "tests" / "nn"), str(ROOT / "benchmarks")]
    import gpu_clock
    import gpu_report
    import steps
    import watch
    from functorch.compile import make_boxed_func
    from layer_catalog import every_layer
    from torch._dynamo.backends.common import aot_autograd

LAYERS = every_layer() if ACTIVE else {"none": (None, ())}
# Its constructor reads the numbers that it is given.
READS = ("InputWeights",)
CPU_ONLY = [name for name in LAYERS if "native" in name]  # kernels that are asked for by name
QUICK = (
    "AOLConv2d circular",
    "CayleyConv2d circular",
    "Chain",
    "Scale",
    "BROConv3d",
    "SandwichLinear",
    "PositionBias",
)


def by_layer(quick=()):
    """All layers; those not named take longer together than a test may."""
    found = [name for name in LAYERS if name not in CPU_ONLY]
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in found]
    )


def made(name, train):
    """A layer and a batch on the device."""
    make, shape = LAYERS[name]
    with pytest.MonkeyPatch.context() as patch:
        if name in READS:  # numbers that nobody computed
            patch.setattr(torch.Tensor, "all", lambda self, *_: True)
            patch.setattr(torch.Tensor, "any", lambda self, *_: False)
        layer = make()
    return layer.train(train), torch.randn(8, *shape)


@inside
@by_layer(QUICK)
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("extension", [True, False], ids=["extension", "triton"])
def test_every_layer_is_captured(name, extension, warm):
    """Forward and backward in training, and evaluation; also without a step before that makes tables."""
    with watch.gpu(extension=extension) as device:
        layer, x = made(name, train=True)
        step = steps.layer_step(layer, x)
        if warm:
            step()
        with device.capture():
            step()
        layer.eval()
        with torch.no_grad(), device.capture():
            layer(x)


@inside
@pytest.mark.filterwarnings("ignore")
@by_layer(("AOLConv2d circular",))
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_every_layer_is_one_graph_forward_and_backward(name, train):
    """What torch.compile captures for mode="reduce-overhead": no wait and no table of the host in either graph."""
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    with watch.gpu(compiling=True):
        with watch.DEVICE:
            layer, x = made(name, train)
            x.requires_grad_()
        compiler = aot_autograd(fw_compiler=keep, bw_compiler=keep)
        torch.compile(layer, fullgraph=True, backend=compiler, dynamic=False)(x).sum().backward()
    # A view, and an input that has as many channels already: nothing is left for the backward.
    assert len(graphs) == (1 if name in ("FirstChannels", "ZeroChannelPad") else 2)
    for node in (node for graph in graphs for node in graph.graph.nodes if node.op == "call_function"):
        assert node.target.__name__.partition(".")[0] not in watch.WAITS
        assert torch.device(node.kwargs.get("device") or "cuda").type == "cuda", node


@inside
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name == "cayley" else pytest.mark.slow)
        for name in (steps.NETWORKS if ACTIVE else ())
    ],
)
def test_a_captured_step_launches_what_any_step_does(method):
    """No table is made in each replay; of matrices on the manifold each replay makes a retraction."""
    with watch.gpu() as device:
        step = steps.training_step(steps.network(method, width=16, image_size=16), *steps.batch(8, 16))
        step()
        with device.counting() as eager:
            step()
        with device.capture() as captured:
            step()
    more = 40 if method == "lip_next" else 0
    assert captured.launches <= eager.launches + more


def captured_training(method, **options):
    """Steps of ``--cuda-graph`` with a small network."""
    recipe = Recipe(device="cuda", cuda_graph=True, batch_size=8, clip_norm=1.0, **options)
    model = steps.network(method, width=16, image_size=16)
    gradients = Gradients(model, recipe, (3, 16, 16), World())

    def add(*batch):
        values = gradients.add(*batch)
        limit_gradient(recipe, model)
        return values

    optimizer = steps.optimizer_of(model, lambda _: optimizer_of(recipe, model))
    return CapturedSteps(add, optimizer, recipe.batch_size)


@inside
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name == "aol" else pytest.mark.slow)
        for name in (steps.NETWORKS if ACTIVE else ())
    ],
)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", pytest.param("adamw", marks=pytest.mark.slow), "nadam"])
def test_a_step_of_training_is_one_launch(method, optimizer):
    if method == "lip_next":
        pytest.skip("tests/gpu/test_fake_recipes.py has its steps")
    with watch.gpu(strict=True) as device:
        step = captured_training(method, optimizer=optimizer)
        batch = (*steps.batch(8, 16), 8, 8)
        for _ in range(WARM_UPS + 1):
            step(*batch)
        with device.counting() as counts:
            step(*batch)
    assert counts.by_name["graph"] == 1
    assert not counts.waits + counts.uploads
    assert is_captured(step.optimizer) == (optimizer != "nadam")
    if optimizer != "nadam":  # batch, labels, learning rate, graph, figures
        assert counts.launches == 5


def measures():
    """All of them; of the layers, which are timed alike, one in every run: .ci/run does them all by run_gpu.sh."""
    for name in gpu_report.MEASURES if ACTIVE else ():
        long = name.startswith("layer ") and name != "layer Cayley"
        yield pytest.param(name, marks=pytest.mark.slow if long else ())


@inside
@pytest.mark.parametrize("name", [*measures()])
def test_every_measure_is_timed_by_graphs(name, monkeypatch):
    class Event:
        record = synchronize = lambda self: None

        def __init__(self, enable_timing):
            assert enable_timing

        def elapsed_time(self, end):
            return 2.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    with watch.gpu():
        clock = gpu_clock.Clock(watch.DEVICE, 2)
        top = gpu_clock.reached(clock, small=True)
        measured = gpu_report.MEASURES[name](watch.DEVICE, 8, 16, 8)
        row = gpu_report.figures(clock, measured, top, compiles=False)
        about = gpu_clock.about(watch.DEVICE)
    assert row["ours"] == {"forward µs": 2000.0, "training µs": 2000.0, "clock": "graph, graph"}
    assert row["eager"]["forward µs"] == 2000.0
    assert ("plain tf32" in row) == (measured.plain is not None)
    assert about["device"] == "fake GPU"
