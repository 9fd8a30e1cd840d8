"""A CUDA device that computes nothing: what may not be captured, and what a device cannot run.

tests/gpu/test_fake_device.py runs this file where that device is.
"""

import os
import re
import sys
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar
from weakref import WeakValueDictionary

import pytest
import torch

import fastlip
from fastlip import diagnosis, ops, testing
from fastlip import nn as lip
from fastlip.kernels.cayley import reference as cayley_reference
from fastlip.kernels.common import binding, capture
from fastlip.kernels.common import gpu as limits
from fastlip.kernels.common.case import Case
from fastlip.kernels.common.dispatch import registered
from fastlip.kernels.skew_exp import api as skew_exp
from fastlip.kernels.spectral_conv import tables
from fastlip.kernels.spectral_conv.api import fix_spectrum, spectral_conv_fixed
from fastlip.models.pooling import GlobalMaxPool2d

pytest.importorskip("triton", minversion="3.6")

ROOT = Path(__file__).resolve().parents[2]
ACTIVE = os.environ.get("FASTLIP_FAKE_CUDA") == "1"
inside = pytest.mark.skipif(not ACTIVE, reason="runs in the process that tests/gpu/test_fake_device.py starts")
if ACTIVE:
    sys.path.insert(0, str(ROOT / "tools" / "gpu"))
    import launches
    import watch
    from evaluation import evaluation_of


@inside
def test_an_upload_during_a_capture_is_found():
    with watch.gpu() as device:
        torch.tensor([1.0, 2.0])  # allowed otherwise
        with pytest.raises(watch.HostWaitError, match="upload"), device.capture():
            torch.tensor([1.0, 2.0])


def keeping_dictionary():
    found = {}
    return found, lambda table: found.update(key=[table])


def keeping_attribute():
    def function():
        return None

    return function, lambda table: setattr(function, "table", table)


def keeping_class():
    class Tables:
        known: ClassVar = {}

    return Tables, lambda table: Tables.known.update({3: table})


def keeping_object():
    found = SimpleNamespace(table=None)
    return found, lambda table: setattr(found, "table", (table,))


def keeping_closure():
    found = []
    return (lambda: found), found.append


def keeping_default():
    def function(size, tables=[]):  # noqa: B006 (planted)
        return size, tables

    return function, function.__defaults__[0].append


def keeping_weakly():
    found, alive = WeakValueDictionary(), []

    def keep(table):
        alive.append(table)
        found["key"] = table

    return found, keep


def keeping_lru_cache():
    function = lru_cache(lambda size: torch.zeros(size))
    return function, lambda table: function(len(table))


KEPT = {function.__name__: function for function in (
    keeping_dictionary, keeping_attribute, keeping_class, keeping_object, keeping_closure, keeping_default,
    keeping_weakly, keeping_lru_cache,
)}  # fmt: skip


@inside
@pytest.mark.parametrize("module", [tables, cayley_reference, skew_exp])
@pytest.mark.parametrize("how", KEPT)
def test_a_table_kept_from_a_capture_is_found(how, module, monkeypatch):
    holder, keep = KEPT[how]()
    monkeypatch.setattr(module, "planted", holder, raising=False)
    with watch.gpu() as device:
        with pytest.raises(watch.HostWaitError, match=r"kept from a capture.*\.planted"), device.capture():
            keep(torch.zeros(3))
        with device.capture():
            torch.zeros(3)


@inside
@pytest.mark.parametrize("side", [8, 32])
def test_no_table_is_kept_from_a_capture_without_warm_up(side):
    tables._keep.cache_clear()
    capture._read_by_graphs.clear()
    capture._kept.clear()
    with watch.gpu() as device, device.capture():
        x, Q = torch.randn(2, 4, side, side), torch.randn(side * side // 2 + 2, 4, 4, dtype=torch.complex64)
        ops.spectral_conv(x, Q, backend="triton")
        spectral_conv_fixed(x, fix_spectrum(Q, (side, side), "triton"), activation="maxmin")


@inside
def test_a_graph_reads_tables_that_were_made_before():
    """They stay, also where no cache holds them any more."""
    with watch.gpu() as device:
        x, Q = torch.randn(2, 4, 32, 32), torch.randn(514, 4, 4, dtype=torch.complex64)
        with device.counting() as eager:
            ops.spectral_conv(x, Q, backend="triton")
        with device.capture() as captured:
            ops.spectral_conv(x, Q, backend="triton")
        tables._keep.cache_clear()
        assert captured.launches <= eager.launches
        assert {key[2] for key in capture._read_by_graphs} >= {tables._plane_matrices}
        with device.capture() as again:
            ops.spectral_conv(x, Q, backend="triton")
        assert again.by_name == captured.by_name


@inside
@pytest.mark.parametrize("make", [lip.CayleyConv2d, lip.SOCConv2d, lip.AOLConv2d], ids=lambda make: make.__name__)
def test_a_frozen_layer_is_captured_with_the_weights_that_it_keeps(make):
    with watch.gpu() as device:
        model = fastlip.fuse(torch.nn.Sequential(make(16, 16, 3), lip.MaxMin()))
        run = evaluation_of(model, torch.randn(4, 16, 8, 8))
        run()
        with device.counting() as eager:
            run()
        with device.capture() as captured:
            run()
        assert captured.by_name == eager.by_name
        kept = dict(model[0]._cache.captured)
        assert kept
        fastlip.unfreeze(model)  # the graph goes on reading them
        assert not model[0]._cache.entries
        assert model[0]._cache.captured == kept


@inside
def test_without_a_freeze_a_graph_computes_weights_from_the_parameters():
    with watch.gpu() as device, torch.no_grad():
        layer, x = lip.AOLConv2d(16, 16, 3).eval(), torch.randn(4, 16, 8, 8)
        layer(x)
        with device.capture() as captured:
            layer(x)
        assert captured.by_name["triton:_forward_kernel"]
        assert not layer._cache.captured
        with device.capture() as cold:  # nothing is kept of what a capture computes
            fastlip.freeze(layer).model(x)
        assert cold.by_name == captured.by_name
        assert not layer._cache.entries


@inside
def test_a_frozen_layer_per_frequency_evaluates_in_three_launches():
    """MaxMin included: nothing is computed from parameters, and the host does not wait."""
    layers = lip.CayleyConv2d, lip.LOTConv2d, lip.BROConv2d
    with watch.gpu(strict=True) as device:
        for make in layers:
            model = fastlip.fuse(torch.nn.Sequential(make(16, 16, 3), lip.MaxMin()))
            run = evaluation_of(model, torch.randn(4, 16, 8, 8))
            device.strict = False  # the weights are computed once
            run()
            device.strict = True
            with device.counting() as counts:
                run()
            assert counts.by_name == {"triton:_transform_kernel": 2, "triton:_product_kernel": 1}
            assert {launch.constants.get("ACTIVATION") for launch in counts.triton} == {None, "none", "maxmin"}


@inside
def test_a_gpu_that_is_too_old_runs_the_reference():
    for capability, expected in (((7, 5), 0), ((8, 0), 1)):
        with watch.gpu(capability=capability, extension=False) as device:
            x = torch.randn(4, 8)
            with device.counting() as counts:
                ops.maxmin(x)
            assert len(counts.triton) == expected
    with (
        watch.gpu(capability=(7, 5)),
        pytest.raises(ValueError, match=r"fake GPU has compute capability 7.5, kernels need 8.0"),
    ):
        ops.maxmin(torch.randn(4, 8), backend="triton")


@inside
def test_doctor_has_a_column_for_the_gpu(monkeypatch):
    """What the CPU's module has says nothing of the GPU: each state there is what a tensor on it would be told."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    library = binding.library
    extension = SimpleNamespace(kernels={"maxmin_forward_float32": None})
    monkeypatch.setattr(binding, "library", lambda device: library(device) if device == "cpu" else extension)
    for capability, reason in (((9, 0), "ok"), ((7, 5), "fake GPU has compute capability 7.5, kernels need 8.0")):
        with watch.gpu(capability=capability):
            on_gpu = {op: diagnosis._on_gpu(op) for op in ("maxmin", "conv_chain", "spectral_norm")}
        assert on_gpu["maxmin"] == {"reference": "ok", "native": "ok", "triton": reason}
        assert on_gpu["conv_chain"]["native"] == "no such kernel in the CUDA extension"
        assert on_gpu["spectral_norm"] == {"reference": "ok"}
    assert diagnosis._backends("conv_chain")["native"] == "ok"


@inside
@pytest.mark.parametrize("deterministic", [True, False])
def test_the_pool_of_networks_has_a_deterministic_backward_on_a_gpu(deterministic):
    torch.use_deterministic_algorithms(deterministic)
    try:
        with watch.gpu() as device, device.counting() as counts:
            x = torch.randn(4, 8, 6, 6, requires_grad=True)
            GlobalMaxPool2d()(x).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    pools = {name for name in counts.by_name if "max_pool" in name}
    assert bool(pools) != deterministic
    assert x.grad.shape == x.shape


@inside
def test_where_triton_cannot_launch_the_reference_runs(monkeypatch):
    monkeypatch.setattr(limits, "triton_cannot_launch", lambda: "no C compiler")
    with watch.gpu(extension=False) as device:
        x = torch.randn(4, 8)
        with device.counting() as counts:
            ops.maxmin(x)
        assert not counts.triton
        with pytest.raises(ValueError, match="cannot run here: no C compiler"):
            ops.maxmin(x, backend="triton")


@inside
def test_what_does_not_fit_the_chip_is_refused_with_the_number():
    from fastlip import testing

    V = {"shape": (3, 64, 64), "dtype": torch.complex64}
    with watch.gpu(shared=99 * 1024):
        reason = testing.op("polar").why_not("native", torch.randn(V["shape"], dtype=V["dtype"]), 0)
    assert "take 131200 bytes of shared memory, a block of cuda:0 has 101376" in reason
    with watch.gpu(shared=163 * 1024):
        assert testing.op("polar").why_not("native", torch.randn(V["shape"], dtype=V["dtype"]), 0) == ""


@inside
def test_one_compilation_serves_many_launches():
    """Of iterations on matrices of two sizes: neither a step's number nor the number of tiles is compiled in."""
    kinds, number = [], 0
    for side in (96, 160):
        with watch.gpu(extension=False) as device:
            x = torch.randn(2, side, side, requires_grad=True)
            with device.counting() as counts:
                ops.polar(x, backend="triton").sum().backward()
            kinds.append({launches.recorded(launch) for launch in counts.triton})
            number += len(counts.triton)
    assert kinds[0] == kinds[1]
    assert number > 10 * len(kinds[0])


@inside
def test_what_would_spill_on_one_generation_is_launched_otherwise_there():
    """On sm_120: the transform and the mixing in float32, and products in float64."""
    triton = pytest.importorskip("triton")
    with watch.gpu(extension=False, capability=(12, 0)) as device, device.counting() as counts:
        Q = torch.randn(10, 16, 16, dtype=torch.complex64)
        ops.spectral_conv(torch.randn(16, 16, 4, 4), Q, backend="triton")
        ops.cayley(torch.randn(1, 48, 48, dtype=torch.float64), backend="triton")
        found = {launches.recorded(launch) for launch in counts.triton}
    spilled = {"_transform_kernel", "_product_kernel", "product_kernel"}
    found = {launch for launch in found if launch.kernel in spilled}
    assert {launch.kernel for launch in found} == spilled
    assert {launch.num_warps for launch in found if launch.kernel == "_product_kernel"} == {8}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in vars(triton.runtime.driver).items():
            patch.setattr(triton.runtime.driver, name, value)  # as it was, afterwards
        usages = [launches.compiled(launch, 120) for launch in found]
    assert [usage for usage in usages if isinstance(usage, str) or usage.problem()] == []


def on_a_gpu():
    """What the documentation says of each op: the last column of its table."""
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8").partition("## What runs where")[2]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    return {name: row[-1] for row in rows for name in re.findall(r"`(\w+)`", row[0]) if "kept" not in row[0]}


KINDS = {"triton": "Triton", "cuda": "CUDA C++"}


def laid_out(case, shape, generator, dtype, device):
    """In place of random numbers."""
    x = torch.empty(shape, dtype=dtype)
    last = case.layout == "channels_last" and x.dim() == 4
    return x.contiguous(memory_format=torch.channels_last) if last else x


@inside
@pytest.mark.parametrize("name", sorted(registered))
def test_the_documentation_says_what_a_gpu_runs(name, monkeypatch):
    """At the sizes of networks, whatever "auto" launches is named, and what is named is launched."""
    monkeypatch.setattr(Case, "_lay_out", laid_out)
    found = set()
    for op_name, _, case in testing.op_cases(bench=True):
        if op_name == name:
            with watch.gpu() as device, device.counting() as counts:
                testing.call(name, "auto", case, case.make(torch.float32, "cuda"))
            found |= {KINDS[kind] for kind in (key.partition(":")[0] for key in counts.by_name) if kind in KINDS}
    said = {word for word in KINDS.values() if word in on_a_gpu()[name]}
    # No benchmark case of polar is larger than 64; of spectral_polar some are.
    assert found == said - ({"Triton"} if name == "polar" else set())
