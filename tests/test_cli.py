"""The command line, in process: what it writes, what it prints, and one line for every mistake."""

import csv
import dataclasses
import json
import signal
import subprocess
import sys

import pytest
import torch
from PIL import Image

import fastlip
from fastlip.models import METHODS

SMALL = ["--width=2", "--layers-per-block=1", "--batch-size=256", "--epochs=2", "--threads=1", "--no-tensorboard"]


@pytest.fixture(autouse=True)
def _process_settings():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def trained(cli, tmp_path):
    code, _, errors = cli("train", *SMALL, "--out", "run")
    assert code == 0, errors
    return tmp_path / "run"


def assert_one_line(result, text, expected_code=1):
    code, _, errors = result
    assert code == expected_code
    assert errors.startswith("Error: ")
    assert text in errors
    assert errors.count("\n") == 1, errors


def test_train_prints_its_certificate_and_writes_the_run(cli, tmp_path):
    code, output, progress = cli("train", *SMALL, "--out", "deep/run")
    assert code == 0
    for text in ("1437 training and 360 test images", "accuracy", "CRA at 36/255", "CRA at 1 ", "Lipschitz bound"):
        assert text in output
    assert "epoch 2/2" in progress
    assert "images/s" in progress
    folder = tmp_path / "deep" / "run"
    assert {file.name for file in folder.iterdir()} == {
        "recipe.json",
        "checkpoint.pt",
        "log.csv",
        "certificate.json",
        "card.json",
        "README.md",
    }
    certificate = json.loads((folder / "certificate.json").read_text())
    assert certificate["lipschitz"] <= 1 + 1e-6
    assert json.loads((folder / "recipe.json").read_text())["width"] == 2


def test_certify_repeats_the_certificate(cli, trained):
    code, output, _ = cli("certify", trained, "--json")
    assert code == 0
    result = json.loads(output)
    assert result == json.loads((trained / "certificate.json").read_text())
    assert result["images"] == 360
    _, text, _ = cli("certify", trained / "checkpoint.pt", "--eps=1/10", "--eps", "2", "--split=train")
    assert "CRA at 0.1 " in text
    assert "CRA at 2 " in text
    assert "1437 train images" in text


QUICK_ATTACK = ("--steps=2", "--restarts=1")
REPORT = {"certificate.json", "radii.csv", "curve.png"}


def read_report(folder):
    rows = list(csv.DictReader((folder / "radii.csv").read_text().splitlines()))
    return json.loads((folder / "certificate.json").read_text()), rows


def test_certify_writes_a_report(cli, trained, tmp_path):
    code, output, _ = cli("certify", trained)
    assert code == 0
    assert "report in" in output
    folder = trained / "certify-test"
    assert {file.name for file in folder.iterdir()} == REPORT
    figures, rows = read_report(folder)
    assert figures == json.loads((trained / "certificate.json").read_text())
    assert list(rows[0]) == ["index", "label", "prediction", "margin", "radius", "attack_distance"]
    assert [int(row["index"]) for row in rows] == list(range(360))
    assert [float(row["radius"]) for row in rows] == figures["radii"]
    assert [float(row["margin"]) for row in rows] == figures["margins"]
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert right / 360 == pytest.approx(figures["accuracy"], abs=1e-12)
    assert {row["attack_distance"] for row in rows} == {""}
    with Image.open(folder / "curve.png") as image:
        image.load()
        assert image.format == "PNG"
        assert image.width > 800
        assert len(image.convert("RGB").getcolors(2**24)) > 50
    cli("certify", trained / "checkpoint.pt", "--split=train", "--out=other/place")
    assert {file.name for file in (tmp_path / "other" / "place").iterdir()} == REPORT


@pytest.mark.parametrize("kind", ["pgd", "apgd"])
def test_certify_attacks(cli, trained, kind):
    code, output, _ = cli("certify", trained, "--attack", kind, *QUICK_ATTACK, "--eps=0.1", "--eps=3")
    assert code == 0
    assert "attacked at 3 " in output
    assert "attacked within their certified radii: 0 of" in output
    figures, rows = read_report(trained / "certify-test")
    attack = figures["attack"]
    assert attack["kind"] == kind
    assert figures["cra"]["0.1"] <= attack["robust_accuracy"]["0.1"] <= figures["accuracy"]
    assert attack["robust_accuracy"]["3.0"] < figures["accuracy"], "an attack at three grey levels finds something"
    for row, distance in zip(rows, attack["distances"], strict=True):
        expected = {None: "inf", 0.0: ""}.get(distance, str(distance))
        assert row["attack_distance"] == expected
        assert (distance == 0.0) == (float(row["margin"]) <= 0)


def test_a_broken_certificate_fails_the_command(cli, trained, monkeypatch):
    honest = fastlip.certify

    def planted(*arguments, **options):
        certificate = honest(*arguments, **options)
        return dataclasses.replace(certificate, radii=3 * certificate.radii + 0.5 * (certificate.margins > 0))

    report = trained / "certify-test"
    with monkeypatch.context() as patch:
        patch.setattr(fastlip, "certify", planted)
        result = cli("certify", trained, "--attack=pgd", "--steps=8", "--restarts=1", "--eps=0.1")
        assert_one_line(result, "an attack succeeded within the certified radius")
    assert str(report / "broken.pt") in result[2]
    saved = torch.load(report / "broken.pt", weights_only=True)
    assert (saved["distance"] <= saved["radius"]).all()
    assert saved["image"].shape[1:] == (1, 8, 8)
    assert json.loads((report / "certificate.json").read_text())["attack"]["broken"] == saved["index"].tolist()
    code, _, errors = cli("certify", trained, "--attack=pgd", *QUICK_ATTACK, "--eps=0.1")
    assert code == 0, errors
    assert {file.name for file in report.iterdir()} == REPORT


def test_without_matplotlib_the_plot_is_left_out_with_a_note(cli, trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, output, _ = cli("certify", trained)
    assert code == 0
    assert "curve.png left out: matplotlib is not installed: pip install 'fastlip[plot]'\n" in output
    assert not (trained / "certify-test" / "curve.png").exists()
    assert (trained / "certify-test" / "radii.csv").exists()


def test_wrong_options_of_a_report_are_one_line(cli, trained, tmp_path):
    assert_one_line(cli("certify", trained, "--steps=3"), "--steps needs --attack", 2)
    assert_one_line(cli("certify", trained, "--attack=fgsm"), "'--attack'", 2)
    assert_one_line(cli("certify", trained, "--out", trained / "log.csv"), "log.csv: File exists")
    assert not (trained / "certify-test").exists()


def test_a_replaced_run_loses_its_reports(cli, trained):
    cli("certify", trained)
    (trained / "certify-test" / "notes.txt").write_text("mine")
    assert cli("train", *SMALL, "--out", trained, "--overwrite")[0] == 0
    assert [file.name for file in (trained / "certify-test").iterdir()] == ["notes.txt"]


def test_audit_names_every_layer(cli, trained):
    code, output, _ = cli("audit", trained)
    assert code == 0
    assert "block1" in output
    code, output, _ = cli("audit", trained, "--json", "--backend=reference")
    assert code == 0
    assert json.loads(output)["bound"] <= 1 + 1e-6


@pytest.mark.parametrize("name", ["net.pt", "net.pt2"])
def test_export_writes_a_network_that_needs_no_fastlip(cli, trained, tmp_path, name):
    code, output, errors = cli("export", trained, "--out", name, "--json")
    assert code == 0, errors
    about = json.loads(output)
    assert about["input_shape"] == [1, 8, 8]
    assert about["difference"] <= 1e-6
    assert about["lipschitz"] <= 1 + 1e-6
    x = torch.rand(5, 1, 8, 8)
    if name == "net.pt":
        net = torch.load(tmp_path / name, weights_only=False)
        assert type(net) is torch.nn.Sequential
    else:
        net = torch.export.load(tmp_path / name).module()
    assert net(x).shape == (5, 10)
    _, text, _ = cli("export", trained, "--out", name)
    assert "Lipschitz bound" in text
    assert "stored value / 16 - [0." in text


def test_export_refuses_in_one_line(cli, trained, monkeypatch):
    from fastlip.commands import export

    assert_one_line(cli("export", "runs/none", "--out", "net.pt"), "runs/none: no such checkpoint")
    assert_one_line(cli("export", trained, "--out", "nowhere/net.pt"), "nowhere: No such file")
    assert_one_line(cli("export", trained, "--out", "net.pt", "--format=tflite"), "'--format'", 2)
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    assert_one_line(cli("export", trained, "--out", "net.onnx"), "needs onnx and onnxscript: pip install")


def test_the_sll_network_trains(cli, tmp_path):
    small = [*(option for option in SMALL if "layers" not in option), "--epochs=1", "--batch-size=512"]
    code, output, errors = cli("train", "--model=sll_net", *small, "--out", "sll")
    assert code == 0, errors
    assert "sll_net S:" in output
    assert json.loads((tmp_path / "sll" / "certificate.json").read_text())["method"] == "sll"
    assert_one_line(cli("train", "--model=sll_net", "--method=aol"), "method='aol': model='sll_net'")


def test_an_existing_run_is_not_overwritten_unasked(cli, trained):
    before = (trained / "checkpoint.pt").read_bytes()
    assert_one_line(cli("train", *SMALL, "--out", trained), "exists; --resume continues it", 2)
    assert (trained / "checkpoint.pt").read_bytes() == before
    (trained / "notes.txt").write_text("mine")
    code, _, _ = cli("train", *SMALL, "--out", trained, "--overwrite", "--seed=5")
    assert code == 0
    assert (trained / "checkpoint.pt").read_bytes() != before
    assert (trained / "notes.txt").exists()


def test_overwrite_replaces_only_runs(cli, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "checkpoint.pt").write_text("precious")
    assert_one_line(cli("train", *SMALL, "--out", "thesis", "--overwrite"), "is not a run folder", 2)
    assert_one_line(cli("train", *SMALL, "--out", "thesis/checkpoint.pt"), "is not a folder", 2)
    assert (tmp_path / "thesis" / "checkpoint.pt").read_text() == "precious"


def test_stop_and_resume_give_the_same_weights(cli, trained, tmp_path):
    code, output, _ = cli("train", *SMALL, "--out", "halves", "--stop-after=1")
    assert code == 0
    assert "stopped after 1 of 2 epochs" in output
    assert not (tmp_path / "halves" / "certificate.json").exists()
    code, _, errors = cli("train", "--out", "halves", "--resume", "--no-tensorboard")
    assert code == 0, errors
    assert_equal_weights(trained, tmp_path / "halves")


def assert_equal_weights(one, other):
    one, other = (torch.load(run / "checkpoint.pt", weights_only=True)["model"] for run in (one, other))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_ctrl_c_saves_the_run_and_exits_with_130(cli, trained, tmp_path, monkeypatch):
    from fastlip.training.loop import Training

    step, count = Training.step, 0

    def interrupted(self, x, y):
        nonlocal count
        count += 1
        if count == 8:
            signal.raise_signal(signal.SIGINT)
        return step(self, x, y)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", interrupted)
        code, _, errors = cli("train", *SMALL, "--out", "stopped")
    assert code == 130
    assert "stopped by SIGINT" in errors
    assert "--resume" in errors
    code, _, _ = cli("train", "--out", "stopped", "--resume", "--no-tensorboard")
    assert code == 0
    assert_equal_weights(trained, tmp_path / "stopped")


def test_a_recipe_and_its_keys(cli, tmp_path):
    (tmp_path / "mine.toml").write_text('base = "digits"\n[optimizer]\nlr = 0.3\n[schedule]\nepochs = 1\n')
    small = [option for option in SMALL if "epochs" not in option]
    options = ("--recipe=mine.toml", "--set", "optimizer.momentum=0.5", "--set=loss.temperature=0.2")
    code, _, errors = cli("train", *small, *options, "--out=run")
    assert code == 0, errors
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert [recipe[name] for name in ("lr", "epochs", "momentum", "temperature", "width")] == [0.3, 1, 0.5, 0.2, 2]
    assert_one_line(cli("train", "--recipe=none"), "recipe='none': allowed are cifar10-comparison")
    assert_one_line(cli("train", "--recipe=none.toml"), "none.toml: No such file")
    assert_one_line(cli("train", "--set=optimizer.lr=-1"), "--set optimizer.lr=-1: must be above 0")
    assert_one_line(cli("train", "--lr=1", "--set=optimizer.lr=1"), "lr is given twice", 2)
    assert_one_line(cli("train", "--resume", "--recipe=digits"), "--resume and --recipe exclude each other", 2)
    assert_one_line(cli("train", "--out=run", "--resume", "--set=optimizer.lr=1"), "lr=1: the run has 0.3")


@pytest.mark.parametrize("method", METHODS)
def test_activations_in_sixteen_bits(cli, tmp_path, method):
    options = [*SMALL, "--epochs=1", "--batch-size=512", f"--method={method}", "--precision=bf16", "--accumulate=2"]
    code, _, errors = cli("train", *options, "--deterministic", "--out=run")
    assert code == 0, errors
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert all(value.dtype == torch.float32 for value in state["model"].values())
    assert json.loads((tmp_path / "run" / "certificate.json").read_text())["lipschitz"] <= 1 + 1e-5


def test_nan_stops_with_the_name_of_a_layer(cli):
    result = cli("train", *SMALL, "--lr=1e30", "--out", "nan")
    assert_one_line((result[0], result[1], result[2].splitlines(keepends=True)[-1]), "layer '")


@pytest.mark.parametrize(
    ("arguments", "text", "code"),
    [
        (["--method=resnet"], "method='resnet': allowed are", 1),
        (["--data=mnist"], "'--data'", 2),
        (["--loss=mse"], "'--loss'", 2),
        (["--epochs=many"], "'--epochs'", 2),
        (["--epochs=0"], "epochs=0.0: must be above 0", 1),
        (["--lr=-1"], "lr=-1.0: must be above 0", 1),
        (["--backend=fast"], "backend='fast': allowed are", 1),
        (["--device=gpu"], "device='gpu': cannot be used here", 1),
        (["--colour=red"], "--colour", 2),
        (["--data=cifar10"], "path='': data='cifar10' needs the folder", 1),
        (["--data=cifar10", "--path=nowhere"], "nowhere: no such folder", 1),
        (["--path=x"], "path='x': data='digits'", 1),
        (["--resume", "--overwrite"], "exclude each other", 2),
        (["--resume", "--out=none"], "none/checkpoint.pt: no such checkpoint", 1),
        (["--width=3"], "width=3", 1),
    ],
)
def test_a_wrong_option_is_one_line(cli, tmp_path, arguments, text, code):
    assert_one_line(cli("train", *arguments), text, code)
    assert not any(tmp_path.iterdir()), "a refused run leaves nothing behind"


def test_a_truncated_data_file_is_one_line(cli, tmp_path):
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        (tmp_path / name).write_bytes(bytes(3073 * 2))
    (tmp_path / "data_batch_4.bin").write_bytes(bytes(3000))
    assert_one_line(cli("train", "--data=cifar10", "--path", tmp_path), "data_batch_4.bin: got 3000 bytes")


def test_a_corrupt_checkpoint_is_one_line(cli, trained):
    file = trained / "checkpoint.pt"
    file.write_bytes(file.read_bytes()[:5000])
    for command in (["certify", trained], ["audit", trained], ["train", "--out", trained, "--resume"]):
        assert_one_line(cli(*command), "checkpoint.pt: corrupt checkpoint")


def test_a_missing_run_is_one_line(cli):
    assert_one_line(cli("certify", "runs/none"), "runs/none: no such checkpoint")


def test_a_wrong_radius_is_one_line(cli, trained):
    assert_one_line(cli("certify", trained, "--eps=1/0"), "is not a number or a fraction", 2)
    assert_one_line(cli("certify", trained, "--eps=-1"), "is not positive", 2)


def test_a_resumed_run_keeps_its_recipe(cli, trained):
    assert_one_line(cli("train", "--out", trained, "--resume", "--epochs=9"), "epochs=9: the run has 2")


def test_a_bug_shows_its_traceback(cli, monkeypatch):
    from fastlip.commands import train

    def broken(*_):
        raise KeyError("bug")

    monkeypatch.setattr(train, "default_recipe", broken)
    with pytest.raises(KeyError, match="bug"):
        cli("train")


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


def test_doctor_gives_a_reason_for_every_backend(cli):
    code, output, _ = cli("doctor")
    assert code == 0
    assert "maxmin" in output
    code, output, _ = cli("doctor", "--json")
    report = json.loads(output)
    assert report["versions"]["torch"] == torch.__version__
    for backends in report["ops"].values():
        assert backends["reference"] == "ok"
        assert all(backends.values())


def test_doctor_fails_where_a_required_backend_is_missing(cli, monkeypatch):
    from fastlip import diagnosis

    monkeypatch.setattr(diagnosis, "_status", lambda op, backend: "no compiler" if backend == "native" else "")
    assert_one_line(cli("doctor", "--require=native"), "native: no compiler")
    assert cli("doctor", "--require=triton")[0] == 0


def test_the_module_is_the_command():
    process = subprocess.run(
        [sys.executable, "-m", "fastlip", "certify", "nowhere"], capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    assert process.stderr == "Error: nowhere: no such checkpoint\n"
