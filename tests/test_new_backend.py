"""The op and the backend that docs/extend/backend.md adds: its files, compiled and run in a copy of the package."""

import shutil
import subprocess
import sys
import sysconfig

import pytest
import torch
from test_documentation import BLOCKS, ROOT, check_output

from fastlip.kernels.common import binding

PAGE = BLOCKS["docs/extend/backend.md"]
KERNELS = ["csrc/common/runtime.cpp", "csrc/module.cpp"]


def build(folder):
    """The extension of this machine's instruction set, with the new kernels only."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ found")
    name = binding._MODULE_OF_CAPABILITY.get(torch.backends.cpu.get_cpu_capability(), "_native_default")
    target = folder / "fastlip" / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    flags = ["-std=c++20", "-O0", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
    foreign = ["-isystem", sysconfig.get_path("include")]
    about = [f"-DFASTLIP_MODULE={name}", '-DFASTLIP_INSTRUCTION_SET="test"', '-DFASTLIP_COMPILER="g++"']
    sources = [*(str(ROOT / source) for source in KERNELS), *map(str, folder.glob("csrc/*/*.cpp"))]
    command = [compiler, *flags, f"-I{ROOT / 'csrc'}", *foreign, *about, *sources, "-o", str(target)]
    subprocess.run(command, check=True)


def list_in_ops(path, line):
    """Adds the page's import and the name to the public functions."""
    text = path.read_text()
    assert text.count("__all__ = [\n") == 1
    path.write_text(text.replace("__all__ = [\n", f'{line}\n__all__ = [\n    "shrink",\n'))


def test_the_page_adds_an_op_with_a_kernel(tmp_path):
    shutil.copytree(ROOT / "fastlip", tmp_path / "fastlip", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for block in PAGE:
        if block.title:
            (tmp_path / block.title).parent.mkdir(parents=True, exist_ok=True)
            if block.title == "fastlip/ops.py":
                list_in_ops(tmp_path / block.title, block.code)
            else:
                (tmp_path / block.title).write_text(block.code)
    build(tmp_path)
    (check,) = (block for block in PAGE if block.language == "python" and not block.title)
    script = tmp_path / "check.py"
    script.write_text(check.code)
    process = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    check_output(process.stdout, check.expected)


def test_the_page_shows_every_file_of_the_folder():
    code = {block.title: block.code for block in PAGE if block.title.endswith(".py")}
    assert code.pop("fastlip/ops.py")
    assert set(code) == {f"fastlip/kernels/shrink/{name}.py" for name in ("api", "reference", "native", "cases")}
    for text in code.values():
        assert text.startswith('"""')
        assert max(map(len, text.splitlines())) <= 118
