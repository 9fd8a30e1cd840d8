"""What type checkers see of an installed fastlip: nothing wrong in right calls, and every mistake in wrong ones.

``pyright`` and ``mypy`` run in their strict modes, each once, on copies of the scripts in an empty folder: they find
the package as a user's do, through the editable installation.
"""

import importlib.util
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fastlip
from fastlip import nn as lip

HERE = Path(__file__).parent
SCRIPTS = "user_script.py", "right_calls.py", "wrong_calls.py"
WRONG = {
    match[1]: number
    for number, line in enumerate((HERE / "wrong_calls.py").read_text(encoding="utf-8").splitlines(), 1)
    if (match := re.match(r"(\w+) = ", line))
}
CHECKERS = "pyright", "mypy"
# What no checker reports yet.
UNREPORTED: list[str] = []


def run(*command, cwd):
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False).stdout


def pyright(folder):
    (folder / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    output = run(sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", cwd=folder)
    found = json.loads(output)["generalDiagnostics"]
    return [(Path(error["file"]).name, error["range"]["start"]["line"] + 1, error["message"]) for error in found]


def mypy(folder):
    output = run(sys.executable, "-m", "mypy", "--strict", "--no-color-output", *SCRIPTS, cwd=folder)
    if not re.search(r"^(Success|Found \d+ errors?)", output, re.M):
        raise AssertionError(output)
    found = re.findall(r"^(.+?):(\d+): error: (.*)", output, re.M)
    return [(file, int(line), message) for file, line, message in found]


@pytest.fixture(scope="module", params=CHECKERS)
def reports(request, tmp_path_factory):
    """{script: {line: messages}} of one checker."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f'{request.param} is not installed: pip install "fastlip[dev]"')
    folder = tmp_path_factory.mktemp(request.param)
    code = "import fastlip; print(fastlip.__file__)"
    if run(sys.executable, "-I", "-c", code, cwd=folder).strip() != fastlip.__file__:
        pytest.skip("this folder is not installed as editable")
    for script in SCRIPTS:
        shutil.copy(HERE / script, folder)
    found = {script: {} for script in SCRIPTS}
    for script, line, message in {"pyright": pyright, "mypy": mypy}[request.param](folder):
        found[script].setdefault(line, []).append(message)
    return found


@pytest.mark.parametrize("script", ["user_script.py", "right_calls.py"])
def test_what_is_right_has_no_error(script, reports):
    assert reports[script] == {}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.xfail(strict=True, reason="types are missing")] * (name in UNREPORTED))
        for name in WRONG
    ],
)
def test_a_wrong_call_is_reported(name, reports):
    assert WRONG[name] in reports["wrong_calls.py"]


def test_nothing_else_is_reported(reports):
    assert set(reports["wrong_calls.py"]) <= set(WRONG.values())


def test_right_calls_run(tmp_path, capsys):
    x, y = torch.rand(20, 3, 8, 8), torch.arange(20) % 10
    net = nn.Sequential(lip.AOLConv2d(3, 8, 3), lip.MaxMin(), nn.Flatten(), lip.AOLLinear(512, 10)).eval()
    right = runpy.run_path(str(HERE / "right_calls.py"))
    right["layers"](x)
    assert all(
        isinstance(result, torch.Tensor) for result in [*right["functions"](x), *right["losses_of"](net(x), y)]
    )
    right["certificates"](net, x, y)
    right["models_and_files"](net, x, tmp_path)
    assert "net.pt2" in capsys.readouterr().out


def test_the_users_script_runs(capsys):
    runpy.run_path(str(HERE / "user_script.py"), run_name="__main__")
    assert capsys.readouterr().out.startswith("loss ")
