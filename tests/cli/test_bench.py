"""fastlip bench."""

import json
import sys

import pytest
import torch


def test_bench_prints_ratios(cli, tmp_path):
    options = ("--method=aol", "--batch-size=2", "--image-size=4", "--layers-per-block=1", "--rounds=2")
    code, output, _ = cli("bench", *options)
    assert code == 0
    assert "ratios to plain" in output
    code, output, _ = cli("bench", *options, "--json", "--contestant=fused", f"--plot={tmp_path / 'bench.png'}")
    (row,) = json.loads(output)["rows"]
    assert row["contestant"] == "fused"
    assert min(row["train"], row["evaluate"], row["saved"], row["train_ms"]) > 0
    assert (tmp_path / "bench.png").stat().st_size > 1000


def test_bench_passes_options_to_the_layers(cli):
    options = ("--method=soc", "--batch-size=2", "--image-size=4", "--layers-per-block=1", "--rounds=1")
    code, output, _ = cli(
        "bench", *options, "--contestant=fused", "--json", "--option=terms=2", "--option=recompute=True"
    )
    assert code == 0
    assert json.loads(output)["options"]["layer_options"] == {"terms": 2, "recompute": True}
    code, _, errors = cli("bench", *options, "--option=terms=x")
    assert code == 1
    assert "soc: terms='x'" in errors
    code, _, errors = cli("bench", *options, "--option=nothing")
    assert code == 2
    assert "expected NAME=VALUE" in errors


def test_bench_says_which_contestant_it_leaves_out(cli, monkeypatch):
    options = ("--method=aol", "--batch-size=2", "--image-size=4", "--layers-per-block=1", "--rounds=1")
    code, output, errors = cli("bench", *options, "--contestant=fused", "--contestant=deel-torchlip")
    assert code == 0
    assert "deel-torchlip has no counterpart of aol" in errors
    assert "deel-torchlip" not in output
    monkeypatch.setitem(sys.modules, "orthogonium.layers.conv.AOL.aol", None)
    code, _, errors = cli("bench", *options, "--contestant=orthogonium")
    assert code == 1
    assert "pip install 'fastlip[peers]'" in errors
    assert "nothing was timed" in errors


def test_bench_times_the_compiled_step_and_captures_on_a_gpu_only(cli, monkeypatch):
    programs = []

    def compile_in_part(function, *, fullgraph, dynamic):
        programs.append(fullgraph and not dynamic)
        return compile_as_it_is(function, fullgraph=fullgraph, dynamic=dynamic, backend="aot_eager")

    compile_as_it_is = torch.compile
    monkeypatch.setattr(torch, "compile", compile_in_part)
    options = ("--method=aol", "--batch-size=2", "--image-size=2", "--layers-per-block=1", "--rounds=1")
    code, output, errors = cli(
        "bench", *options, "--contestant=fused compiled", "--contestant=fused CUDA graph", "--json"
    )
    assert code == 0
    assert "left out: fused CUDA graph needs a CUDA device, got cpu" in errors
    (row,) = json.loads(output)["rows"]
    assert row["contestant"] == "fused compiled"
    assert min(row["train"], row["evaluate"]) > 0
    assert programs == [True, True, True]  # of the gate, training, evaluation


def test_nothing_is_timed_where_the_compiled_step_is_wrong(cli, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda: function() * 1.01)
    options = ("--method=aol", "--batch-size=2", "--image-size=2", "--layers-per-block=1", "--rounds=1")
    code, output, errors = cli("bench", *options, "--contestant=fused compiled")
    assert code == 1
    assert "between fused compiled and reference: not timed" in errors
    assert output == ""


def test_bench_times_another_package_where_it_is_installed(cli):
    pytest.importorskip("orthogonium")
    options = ("--method=aol", "--batch-size=2", "--image-size=4", "--layers-per-block=1", "--rounds=1")
    code, output, _ = cli("bench", *options, "--json", "--contestant=orthogonium")
    assert code == 0
    (row,) = json.loads(output)["rows"]
    assert row["contestant"] == "orthogonium"
    assert min(row["train"], row["evaluate"], row["saved"]) > 0
