"""Installations contain what they should: the core without the extras, the command line, and editable installs."""

import ast
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastlip
from fastlip import _extras

ROOT = Path(__file__).resolve().parents[1]
CORE = {"torch", "numpy", "triton"}  # triton's own import fails inside the dispatcher, which then leaves it out

# The first lines of a program that finds no package of an extra, as if none were installed.
BLOCKED = f"""
import sys
sys.modules.update(dict.fromkeys({sorted({*_extras.EXTRAS, "scipy", "tensorboard"})!r}))
"""


def python(*arguments, cwd=None, **environment):
    search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": search, **environment}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)


def without_extras(code):
    process = python("-c", BLOCKED + code)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_the_core_needs_torch_and_numpy_alone():
    of_triton = ("triton_kernels", "triton_launch", "_triton", "on_chip")
    modules = [
        str(path.relative_to(ROOT).with_suffix("")).replace(os.sep, ".").removesuffix(".__init__")
        for path in sorted((ROOT / "fastlip").rglob("*.py"))
        if path.parent.name != "cli" and not path.stem.endswith(of_triton)
    ]
    code = f"""
import importlib
for name in {modules!r}:
    importlib.import_module(name)
"""
    without_extras(code)


def test_a_model_trains_and_is_certified_without_the_extras():
    code = """
import torch, fastlip
model = fastlip.models.lip_conv_net("aol", width=2, image_size=8, in_channels=1, layers_per_block=1)
x, y = torch.rand(8, 1, 8, 8), torch.arange(8) % 10
fastlip.losses.OffsetCrossEntropy(0.1, 0.25)(model(x), y).backward()
model.eval()
fastlip.audit(model, (1, 8, 8)), fastlip.certify(model, [(x, y)], eps=[0.1])
fastlip.attack(model, [(x, y)], [0.1], steps=1, restarts=1), fastlip.export(model, (1, 8, 8))
try:
    fastlip.certify(model, [(x, y)], progress=True)
except ModuleNotFoundError as error:
    print(error)
try:
    fastlip.data.load("digits", "", 0)
except ModuleNotFoundError as error:
    print(error)
"""
    lines = without_extras(code).splitlines()
    assert lines == [
        'progress=True: tqdm is not installed: pip install "fastlip[train]"',
        'the digits: scikit-learn is not installed: pip install "fastlip[train]"',
    ]


def test_the_command_line_without_its_extra_is_one_line():
    code = "sys.argv = ['fastlip', '--help']\nfrom fastlip.__main__ import main\nmain()"
    process = python("-c", BLOCKED + code)
    assert process.returncode == 1
    assert process.stderr == 'Error: the command line: click is not installed: pip install "fastlip[train]"\n'


def test_a_command_that_lacks_a_package_is_one_line(cli, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    code, _, errors = cli("train", "--epochs=1", "--out=run")
    assert (code, errors) == (
        1,
        'Error: the digits: scikit-learn is not installed: pip install "fastlip[train]"\n',
    )


def imported(tree):
    """The modules that a program imports when it runs; what a type checker alone imports is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from imported(node)


def test_every_import_is_of_the_core_or_of_an_extra_that_installs_it():
    known = {*sys.stdlib_module_names, *CORE, "fastlip", "orthogonium", "deel", *_extras.EXTRAS}
    for path in (ROOT / "fastlip").rglob("*.py"):
        for name in imported(ast.parse(path.read_text(encoding="utf-8"))):
            assert name.partition(".")[0] in known, f"{path}: {name}"
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for package, extra in _extras.EXTRAS.values():
        (listed,) = re.findall(rf"^{extra} = \[(.*?)\]", text, re.M | re.S)
        assert f'"{package}' in listed, f"{package} is not in [{extra}]"


def test_help_imports_no_torch():
    for arguments in (["--help"], ["-h"], ["--version"], []):
        code = f"""
import json, sys
sys.argv = ["fastlip", *{arguments!r}]
from fastlip.__main__ import main
try:
    main()
finally:
    print(json.dumps([name for name in sys.modules if name.partition(".")[0] in ("torch", "numpy")]))
"""
        process = python("-c", code)
        assert process.returncode == 0, process.stderr
        *text, modules = process.stdout.splitlines()
        assert json.loads(modules) == []
        assert text
        if arguments != ["--version"]:
            assert any(line.split()[:2] == ["train", "Trains"] for line in text)


def test_a_wrong_command_names_the_one_that_was_meant(cli):
    code, _, errors = cli("trian")
    assert code == 2
    assert errors.startswith("Error: No such command 'trian'")
    assert errors.count("\n") == 1


def test_dir_is_all():
    assert dir(fastlip) == sorted(fastlip.__all__)
    assert {"Certificate", "Audit", "AttackResult", "hub", "data"} <= set(fastlip.__all__)
    for name in fastlip.__all__:
        assert getattr(fastlip, name) is not None
    assert not hasattr(fastlip, "no_such_name")


def test_modules_of_the_package_are_its_attributes():
    code = "import fastlip; print(fastlip.certification.Audit is fastlip.Audit)"
    process = python("-c", code)
    assert process.stdout == "True\n", process.stderr


def test_operators_are_registered_after_torch_is_imported():
    process = python("-c", "import torch, fastlip; print(torch.ops.fastlip.maxmin_forward)")
    assert process.returncode == 0, process.stderr


@pytest.fixture
def clone():
    """The editable installation of this folder; what a build leaves in the folder itself is no installation."""
    for distribution in importlib.metadata.distributions(name="fastlip"):
        origin = json.loads(distribution.read_text("direct_url.json") or "{}")
        if origin.get("dir_info", {}).get("editable") and origin["url"] == ROOT.as_uri():
            return distribution
    pytest.skip("this folder is not installed as editable")


def test_an_editable_install_is_a_folder_on_the_path(clone):
    (path,) = (file.locate() for file in clone.files if file.suffix == ".pth")
    assert Path(path).read_text().strip() == str(ROOT)


def test_the_folder_that_holds_the_clone_imports_the_package(clone, tmp_path):
    (tmp_path / "fastlip").symlink_to(ROOT)
    program = "import fastlip; print(fastlip.nn.__name__)"
    (tmp_path / "train.py").write_text(program)
    (tmp_path / "test_it.py").write_text("import fastlip\n\ndef test_it():\n    assert fastlip.nn.AOLConv2d\n")
    for command in (["-c", program], ["train.py"], ["-m", "train"], ["-m", "fastlip", "--version"]):
        process = python(*command, cwd=tmp_path, PYTHONPATH="")
        assert process.returncode == 0, process.stderr
    process = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py", cwd=tmp_path, PYTHONPATH="")
    assert process.returncode == 0, process.stdout


@pytest.fixture(scope="module")
def build():
    """setup.py as a module."""
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("fastlip_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_build_for_this_machine_has_what_the_package_loads_here(build):
    compiler, reason = build.find_compiler()
    if compiler is None:
        pytest.skip(reason)
    expected = {
        "AVX512": {"default", "avx512", "narrow"},
        "AVX2": {"default", "avx2"},
    }.get(torch.backends.cpu.get_cpu_capability(), {"default"})
    assert build.modules_of_machine(compiler) == expected
    assert expected <= set(build.cpu_modules())


def test_a_wrong_choice_of_instruction_sets_is_refused(build, monkeypatch):
    monkeypatch.setenv("FASTLIP_ISA", "avx3")
    with pytest.raises(SystemExit, match="FASTLIP_ISA='avx3': allowed are auto, all, machine"):
        build.choice("FASTLIP_ISA", ("auto", "all", "machine"))
