"""Pictures do not depend on the environment, and names in them are only names."""

import os
import subprocess
import sys

import pytest
from PIL import Image

import fastlip
from fastlip import _extras, _figures
from fastlip.plotting import plot_curves

DRAW = """
import os, pathlib, fastlip
from fastlip import _figures
assert _figures.missing() == ""
with _figures.own_style():
    figure = _figures.new_figure(3, 2, dpi=50)
    figure.add_subplot().set_title("title")
    _figures.save(pathlib.Path("curve.png"), figure)
assert os.environ["MPLBACKEND"] == EXPECTED

"""


@pytest.mark.parametrize("backend", ["module://no_such_package.backend_inline", "nonsense"])
def test_a_backend_that_is_not_there_does_not_matter(tmp_path, backend):
    run = subprocess.run(
        [sys.executable, "-c", DRAW.replace("EXPECTED", repr(backend))],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert (tmp_path / "curve.png").is_file(), run.stderr
    assert run.returncode == 0, run.stderr


@pytest.fixture
def certificate(digits, trained):
    return fastlip.certify(trained, [digits], eps=(0.1, 1.0))


@pytest.mark.parametrize(
    "title", ["$", "$x_$ and $\\frac$", "a_b|c<script>", "\\input{x} %", "{}", "名前 \U0001f600", "\udcff"]
)
def test_names_are_no_formulas(tmp_path, certificate, title):
    plot_curves(tmp_path / "curve.png", certificate, title=title.encode("utf-8", "backslashreplace").decode())
    with Image.open(tmp_path / "curve.png") as image:
        assert image.size == (1024, 640)


def test_the_users_style_is_not_used(tmp_path, certificate):
    import matplotlib

    plot_curves(tmp_path / "plain.png", certificate)
    with matplotlib.rc_context({"text.usetex": True, "savefig.dpi": 20, "axes.facecolor": "black"}):
        plot_curves(tmp_path / "styled.png", certificate)
        assert matplotlib.rcParams["text.usetex"]
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "styled.png").read_bytes()


def test_a_matplotlib_that_cannot_be_imported_is_a_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert _figures.missing() == 'matplotlib is not installed: pip install "fastlip[train]"'
    monkeypatch.setattr(_extras, "missing", lambda *modules: "")
    assert _figures.missing().startswith("matplotlib cannot be imported: ")


def test_bench_refuses_a_plot_that_cannot_be_written_before_it_measures(cli, tmp_path):
    for name, text in (("a.xyz", "expected a name that ends in"), ("none/a.png", "none: No such file")):
        code, output, errors = cli("bench", "--method=aol", f"--plot={tmp_path / name}")
        assert (code in (1, 2), output) == (True, "")
        assert text in errors


def test_every_picture_is_written_atomically(tmp_path, certificate, monkeypatch):
    plot_curves(tmp_path / "curve.png", certificate)
    before = (tmp_path / "curve.png").read_bytes()

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match=r"curve\.png"):
        plot_curves(tmp_path / "curve.png", certificate)
    assert (tmp_path / "curve.png").read_bytes() == before
    assert os.listdir(tmp_path) == ["curve.png"]
