"""fastlip bench."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from fastlip.benchmarking import Row, picture


def test_bench_prints_ratios(cli, tmp_path):
    options = ("--method=aol", "--batch-size=2", "--image-size=4", "--layers-per-block=1", "--rounds=2")
    code, output, _ = cli("bench", *options, "--contestant=reference", "--contestant=plain channels-last")
    assert code == 0
    assert "ratios to plain" in output
    assert max(map(len, output.splitlines())) <= 80
    code, output, _ = cli("bench", *options, "--json", "--contestant=fused", f"--plot={tmp_path / 'bench.png'}")
    (row,) = json.loads(output)["rows"]
    assert row["contestant"] == "fused"
    assert min(row["train"], row["evaluate"], row["saved"], row["train_ms"]) > 0
    assert (tmp_path / "bench.png").stat().st_size > 1000


def test_every_plain_network_is_timed_by_default(cli, monkeypatch):
    compile_as_it_is, compiled = torch.compile, []

    def compile_in_part(function, **options):
        compiled.append(options)
        return compile_as_it_is(function, **options, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile_in_part)
    options = ("--method=aol", "--batch-size=2", "--image-size=4", "--layers-per-block=1", "--rounds=2")
    code, output, _ = cli("bench", *options, "--json")
    assert code == 0
    found = json.loads(output)
    assert found["options"]["processor"], "figures say on what they were measured"
    rows = {row["contestant"]: row for row in found["rows"]}
    assert list(rows) == ["fused", "reference", "plain channels-last", "plain compiled"]
    assert compiled == 2 * [{"fullgraph": True, "dynamic": False}]  # training and evaluation, in one graph each
    for figure in ("train", "evaluate"):
        best = rows["fused"][f"best_{figure}"]
        ratio = rows[best][figure] if best in rows else 1.0
        assert ratio == min(1.0, *(rows[name][figure] for name in list(rows)[2:]))
        if best in rows:
            assert rows[best][f"{figure}_to_best"] == 1.0
        assert rows["reference"][f"{figure}_error"] >= 0
    assert rows["plain compiled"]["saved"] is None
    assert rows["plain channels-last"]["saved"] == pytest.approx(1, abs=0.2)


def test_ratios_to_the_best_are_medians_of_rounds():
    from fastlip.benchmarking.contest import Setting, _row

    train = {"fused": [2.0, 4.0, 9.0], "plain": [4.0, 4.0, 3.0], "plain compiled": [2.0, 3.0, 2.0]}
    evaluate = {"fused": [2.0, 2.0, 2.0], "plain": [1.0, 1.0, 1.0], "plain compiled": [2.0, 2.0, 0.5]}
    row = _row(Setting("aol"), "fused", train, evaluate, {"fused": 1, "plain": 2, "plain compiled": None})
    assert (row.train, row.train_to_best, row.best_train) == (1.0, pytest.approx(4 / 3), "plain compiled")
    assert (row.evaluate, row.evaluate_to_best, row.best_evaluate) == (2.0, 2.0, "plain")
    assert row.train_error == pytest.approx(1.4826 * 1.2533 * 0.5 / 3**0.5)
    assert row.evaluate_error == 0


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


def bars(axes):
    """(place, ratio, colour) of each bar of a panel."""
    return {
        (round(bar.get_x() + bar.get_width() / 2, 6), bar.get_height(), bar.get_facecolor()) for bar in axes.patches
    }


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which not even root may write")
def test_a_plot_that_cannot_be_written_is_an_error_before_anything_is_timed(cli, monkeypatch):
    monkeypatch.setattr(
        importlib.import_module("fastlip.cli.bench"), "run", lambda *arguments, **options: pytest.fail("it ran")
    )
    code, _, errors = cli("bench", "--plot=/proc/bench.png")
    assert code == 1
    assert errors.startswith("Error: /proc/bench.png: ")


def test_the_plot_gives_each_contestant_its_bars_and_its_name():
    rows = [
        Row("aol", "fused", 0.5, 0.6, 0.7, 1, 1, 1, 1),
        Row("sll", "fused", 1.5, 1.6, 0.8, 1, 1, 1, 1),
        Row("sll", "compiled", 2.5, 2.6, None, 1, 1, 1, 1),  # only of the second method, without a figure of memory
    ]
    figure = picture.draw(rows, "title")
    (legend,) = figure.legends
    names = {text.get_text(): handle for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)}
    assert list(names) == ["fused", "compiled"]
    fused, compiled = (handle.get_facecolor() for handle in names.values())
    assert fused != compiled
    assert bars(figure.axes[0]) == {(-0.2, 0.5, fused), (0.8, 1.5, fused), (1.2, 2.5, compiled)}
    assert bars(figure.axes[2]) == {(-0.2, 0.7, fused), (0.8, 0.8, fused)}


def test_the_plot_has_readable_axes_and_says_which_way_is_better():
    near, far = Row("aol", "fused", 0.5, 0.02, 0.7, 1, 1, 1, 1), Row("lot", "reference", 1.5, 130.0, 0.8, 1, 1, 1, 1)
    figure = picture.draw([near, far], "title")
    assert "lower is better" in figure.axes[0].get_ylabel()
    train, evaluate, _ = figure.axes
    assert (train.get_yscale(), train.get_ylim()[0]) == ("linear", 0)
    assert evaluate.get_yscale() == "log"
    labels = [label.get_text() for label in evaluate.get_yticklabels()]
    assert labels == ["0.02", "0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "50", "100"]


def test_a_share_of_nothing_is_a_figure(capsys):
    from fastlip.cli import bench

    bench._print_row(Row("aol", "fused", 0.5, 0.6, 0.0, 1, 1, 1, 1), header=False)
    bench._print_row(Row("aol", "compiled", 0.5, 0.6, None, 1, 1, 1, 1), header=False)
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[4] == "0.00"
    assert second.split()[4] == "-"
