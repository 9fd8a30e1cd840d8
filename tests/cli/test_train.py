"""fastlip train, in process: what it writes, what it prints, and one line for every mistake."""

import json
import signal

import pytest
import torch
from command_line import SMALL, assert_one_line

import fastlip
from fastlip.models import METHODS


def test_train_prints_its_certificate_and_writes_the_run(cli, tmp_path):
    code, output, progress = cli("train", *SMALL, "--out", "deep/run")
    assert code == 0
    for text in ("1437 training and 360 test images", "accuracy", "CRA at 36/255", "CRA at 1 ", "Lipschitz bound"):
        assert text in output
    assert " 2/2 " in progress
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


def test_the_sll_network_trains(cli, tmp_path):
    small = [*(option for option in SMALL if "layers" not in option), "--epochs=1", "--batch-size=512"]
    code, output, errors = cli("train", "--model=sll_net", *small, "--out", "sll")
    assert code == 0, errors
    assert "sll_net S:" in output
    assert json.loads((tmp_path / "sll" / "certificate.json").read_text())["method"] == "sll"
    assert_one_line(cli("train", "--model=sll_net", "--method=aol"), "method='aol': model='sll_net'")


@pytest.mark.parametrize("model", ["bro_net", "lip_res_net", "plain_bro_net"])
def test_the_networks_of_the_catalog_train_and_resume(cli, tmp_path, model):
    small = [
        "--width=4",
        "--depth=1",
        "--threads=1",
        "--no-tensorboard",
        "--epochs=2",
        "--batch-size=512",
        "--ema=0.5",
    ]
    code, output, errors = cli("train", f"--model={model}", *small, "--out", "run", "--stop-after=1")
    assert code == 0, errors
    assert f"{model} XS:" in output
    code, output, errors = cli("train", "--resume", "--out", "run")
    assert code == 0, errors
    certificate = json.loads((tmp_path / "run" / "certificate.json").read_text())
    assert (certificate["lipschitz"] > 2) == (model == "plain_bro_net")
    assert cli("audit", "run")[0] == cli("export", "run", "--out", "net.pt")[0] == 0


def test_another_constant_reaches_the_certificate_the_card_and_the_file(cli, tmp_path):
    code, _, errors = cli(
        "train", *SMALL, "--method=cayley", "--epochs=1", "--set", "model.lipschitz=5", "--out", "five"
    )
    assert code == 0, errors
    card = json.loads((tmp_path / "five" / "card.json").read_text())
    certificate = json.loads((tmp_path / "five" / "certificate.json").read_text())
    assert cli("audit", "five")[0] == 0
    code, exported, errors = cli("export", "five", "--out", "net.pt", "--json")
    assert code == 0, errors
    stated = certificate["lipschitz"], card["certificate"]["lipschitz"], json.loads(exported)["lipschitz"]
    assert stated == pytest.approx([5] * 3, rel=1e-5)
    assert fastlip.audit(fastlip.hub.load("five").eval(), (1, 8, 8)).bound == pytest.approx(5, rel=1e-5)


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
    assert "Stopped after 1 of 2 epochs" in output
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
    assert_one_line(cli("train", "--recipe=none"), "recipe='none': closest are ")
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
        (["--data=imagenet"], "data='imagenet': allowed are 'digits'", 1),
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


def test_a_resumed_run_keeps_its_recipe(cli, trained):
    assert_one_line(cli("train", "--out", trained, "--resume", "--epochs=9"), "epochs=9: the run has 2")
