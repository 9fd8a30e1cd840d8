"""fastlip certify: the certificate, its report, and attacks."""

import csv
import dataclasses
import errno
import json
import os
import sys

import pytest
import torch
from command_line import SMALL, assert_one_line
from PIL import Image

import fastlip


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
        code, output, errors = cli("certify", trained, "--attack=pgd", "--steps=8", "--restarts=1", "--eps=0.1")
        # The network is hardly trained, of which a warning comes first.
        result = code, output, errors.splitlines(keepends=True)[-1]
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
    assert 'curve.png left out: matplotlib is not installed: pip install "fastlip[train]"\n' in output
    assert not (trained / "certify-test" / "curve.png").exists()
    assert (trained / "certify-test" / "radii.csv").exists()


def test_wrong_options_of_a_report_are_one_line(cli, trained, tmp_path):
    assert_one_line(cli("certify", trained, "--steps=3"), "--steps needs --attack", 2)
    assert_one_line(cli("certify", trained, "--attack=fgsm"), "'--attack'", 2)
    assert_one_line(cli("certify", trained, "--out", trained / "log.csv"), "log.csv: File exists; --out", 2)
    assert not (trained / "certify-test").exists()


def test_a_replaced_run_loses_its_reports(cli, trained):
    cli("certify", trained)
    (trained / "certify-test" / "notes.txt").write_text("mine")
    assert cli("train", *SMALL, "--out", trained, "--overwrite")[0] == 0
    assert [file.name for file in (trained / "certify-test").iterdir()] == ["notes.txt"]


def test_a_missing_run_is_one_line(cli):
    assert_one_line(cli("certify", "runs/none"), "runs/none: no such checkpoint")


def test_a_wrong_radius_is_one_line(cli, trained):
    assert_one_line(cli("certify", trained, "--eps=1/0"), "is not a number or a fraction", 2)
    assert_one_line(cli("certify", trained, "--eps=-1"), "is not positive", 2)
    assert_one_line(cli("certify", trained, "--eps=36"), "--eps 36/255", 2)  # images of 8x8 pixels: 8 apart
    assert_one_line(cli("certify", trained, "--eps=8.1"), "images in [0, 1] are at most 8 apart", 2)


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(cli, trained, tmp_path, monkeypatch):
    import fastlip.cli.evaluate
    import fastlip.cli.train
    import fastlip.deployment.exported

    def refuse(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    def work(*arguments, **options):
        raise AssertionError("began to work")

    for module in (fastlip.cli.evaluate, fastlip.cli.train, fastlip.deployment.exported):
        monkeypatch.setattr(module, "require_writable", refuse)
    monkeypatch.setattr(fastlip, "certify", work)
    monkeypatch.setattr(fastlip.exporting, "export", work)
    monkeypatch.setattr("fastlip.training.loop.Training", work)
    refused = "run/certify-test: Read-only file system; --out names another folder"
    assert_one_line(cli("certify", trained), refused, 2)
    assert_one_line(cli("export", trained, "--out", "net.pt"), "net.pt: Read-only file system")
    assert_one_line(cli("train", "--resume", "--out", trained), "checkpoint.pt: Read-only file system")
    assert not (tmp_path / "net.pt").exists()
