"""Builds the kernels under csrc/ with ninja: one CPU module per instruction set, one CUDA module.

Sources are discovered: csrc/<op>/<op>_cpu.cpp and csrc/<op>/<op>_cuda.cu. Nothing here needs torch.

FASTLIP_CUDA=auto|off|require decides the CUDA module (auto: built where nvcc is found).
FASTLIP_ISA=auto|all|machine decides the CPU modules. all: one for each instruction set. machine: the baseline and the
best set that this machine runs. auto: machine for an editable install, all for a wheel, which runs elsewhere.

Without a C++ compiler the package installs without kernels; `fastlip doctor` says so.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
COMMON = ["csrc/common/runtime.cpp", "csrc/module.cpp"]
FLAGS = "-std=c++20 -O3 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -Wall -Wextra -Wno-psabi -Icsrc"
GENCODE = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90a,code=sm_90a",
    "-gencode=arch=compute_90,code=compute_90",
]
AVX2 = "-mavx2 -mfma -mf16c -mbmi -mbmi2"
# Only code that asks for 64-byte vectors gets them: a single one slows the core down for microseconds.
AVX512 = f"{AVX2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mprefer-vector-width=256"
X86_SETS = {"avx2": AVX2, "avx512": AVX512}
# For little work on a machine with AVX-512: the AVX2 kernels of these ops (kernels/common/binding.py, narrow_kernel).
NARROW, NARROW_OPS = "narrow", ("gram_rowsum",)
if sys.platform == "darwin":
    LINK = "-bundle -undefined dynamic_lookup"
else:
    LINK = "-shared -Wl,--gc-sections"


def choice(variable, allowed):
    """The value of an environment variable; the first one that is allowed by default."""
    value = os.environ.get(variable, allowed[0])
    if value not in allowed:
        raise SystemExit(f"{variable}={value!r}: allowed are {', '.join(allowed)}")
    return value


def is_x86():
    return platform.machine() in ("x86_64", "AMD64")


def cpu_modules():
    """Instruction set and flags of each CPU module; the package picks the best one the machine runs."""
    return {"default": "", **({**X86_SETS, NARROW: AVX2} if is_x86() else {})}


def modules_of_machine(compiler):
    """The CPU modules for this machine: the baseline, and the best set that the compiler finds it to run."""
    command = [compiler, "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
    macros = subprocess.run(command, capture_output=True, text=True).stdout.split() if is_x86() else []
    able = [name for name, flags in X86_SETS.items() if {macro(flag) for flag in extensions_in(flags)} <= {*macros}]
    return {"default", *able[-1:], *([NARROW] if "avx512" in able else [])}


def extensions_in(flags):
    return [flag for flag in flags.split() if "prefer" not in flag]


def macro(flag):
    """What the compiler defines where it may use an extension: __AVX2__ for -mavx2."""
    return f"__{flag.removeprefix('-m').upper()}__"


def cuda_mode():
    return choice("FASTLIP_CUDA", ("auto", "off", "require"))


def cuda_home():
    """The CUDA toolkit to build with, or None; a request that cannot be met stops the build."""
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if cuda_mode() == "require" and nvcc is None:
        raise SystemExit("FASTLIP_CUDA=require, but no nvcc was found on PATH or in /usr/local/cuda/bin")
    if cuda_mode() == "off" or nvcc is None:
        return None
    # nvcc on PATH may be a script elsewhere: it knows its toolkit itself.
    dryrun = subprocess.run([nvcc, "-dryrun", "-c", "x.cu"], capture_output=True, text=True).stderr
    top = next((line.split("=", 1)[1] for line in dryrun.splitlines() if line.startswith("#$ TOP=")), None)
    return Path(top).resolve() if top else Path(nvcc).resolve().parents[1]


def find_compiler():
    """The C++ compiler, or None with the reason why kernels cannot be compiled here."""
    candidates = (os.environ.get("CXX", ""), "g++", "c++", "clang++")
    compiler = next((path for path in map(shutil.which, candidates) if path), None)
    if compiler is None:
        return None, "no C++ compiler found"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return None, "Python's own headers (Python.h) are not installed"
    return compiler, ""


def sources(suffix):
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob(f"*/*{suffix}"))


def one_unit(path, files):
    """Path of a file that includes all of them: templates they share are compiled once, in half the CPU time."""
    text = "".join(f'#include "{ROOT / file}"\n' for file in files)
    if not path.exists() or path.read_text() != text:  # a newer file would be compiled again
        path.write_text(text)
    return path


class Ninja:
    """Writes one build.ninja for every module and runs it; object files stay for the next build."""

    def __init__(self, compiler, folder):
        self.compiler = compiler
        self.folder = folder
        self.lines = [f"builddir = {folder}", f"cxx = {compiler}"]
        self.outputs = []

    def rule(self, name, command, depfile=True):
        tail = "\n  depfile = $out.d\n  deps = gcc" if depfile else ""
        self.lines.append(f"rule {name}\n  command = {command}{tail}\n  description = {name} $out")

    def compile(self, rule, source, tag, **variables):
        out = f"{self.folder}/{tag}/{Path(source).name}.o"
        self.lines.append(f"build {out}: {rule} {source}")
        self.lines += [f"  {key} = {value}" for key, value in variables.items()]
        return out

    def link(self, target, objects, libraries=""):
        self.lines.append(f"build {target}: link {' '.join(objects)}\n  libraries = {libraries}")
        self.outputs.append(str(target))

    def run(self):
        """The outputs that were built; a failure is one of the CUDA module under FASTLIP_CUDA=auto, or raises."""
        import ninja

        file = self.folder / "build.ninja"
        file.write_text("\n".join([*self.lines, f"default {' '.join(self.outputs)}", ""]))
        command = [str(Path(ninja.BIN_DIR) / "ninja"), "-f", str(file)]
        if subprocess.run([*command, "-k", "0"], cwd=ROOT).returncode == 0:
            return self.outputs
        optional = () if cuda_mode() == "require" else ("_cuda",)
        required = [path for path in self.outputs if not Path(path).name.startswith(optional)]
        if subprocess.run([*command, *required], cwd=ROOT).returncode != 0:
            raise SystemExit("fastlip: the kernels could not be compiled (see above)")
        print("fastlip: the CUDA kernels could not be compiled (see above); installing without them")
        return required


def module_flags(name, instruction_set, flags):
    return f"{flags} -DFASTLIP_MODULE={name} -DFASTLIP_INSTRUCTION_SET='\"{instruction_set}\"'"


class BuildKernels(build_ext):
    """Compiles what setup() declared as extensions, with ninja instead of one file after another."""

    def build_extensions(self):
        compiler, reason = find_compiler()
        if compiler is None:
            if cuda_mode() == "require":
                raise SystemExit(f"FASTLIP_CUDA=require, but {reason}")
            print(f"fastlip: {reason}; installing without native kernels")
            self.extensions = []
            return
        folder = ROOT / "build" / f"{sysconfig.get_config_var('SOABI')}"
        folder.mkdir(parents=True, exist_ok=True)
        targets = {item.name: Path(self.get_ext_fullpath(item.name)).resolve() for item in self.extensions}
        targets = {name: target for name, target in targets.items() if self.is_wanted(name, target, compiler)}
        built = self.write_and_run(Ninja(compiler, folder), targets)
        self.extensions = [item for item in self.extensions if str(targets.get(item.name)) in built]

    def run(self):
        # setuptools builds elsewhere and copies: while it does, the option says that nothing is in place.
        self.in_source = bool(self.inplace or self.editable_mode)
        super().run()

    def for_this_machine(self):
        """Whether the CPU modules are those of this machine only."""
        mode = choice("FASTLIP_ISA", ("auto", "all", "machine"))
        return mode == "machine" or (mode == "auto" and self.in_source)

    def is_wanted(self, full_name, target, compiler):
        """Whether a module is built; those that lie in the source folder already are kept up to date."""
        name = full_name.rpartition("_native_")[2]
        if name not in cpu_modules() or not self.for_this_machine():
            return True
        return name in modules_of_machine(compiler) or (self.in_source and (ROOT / "fastlip" / target.name).exists())

    def write_and_run(self, ninja, targets):
        version = subprocess.run([ninja.compiler, "-dumpfullversion"], capture_output=True, text=True).stdout.strip()
        python = Path(sysconfig.get_path("include")).resolve()
        compiler_text = f"-DFASTLIP_COMPILER='\"{Path(ninja.compiler).name} {version}\"'"
        ninja.rule(
            "cxx",
            f"$cxx {FLAGS} -isystem {python} {compiler_text} $flags -MMD -MF $out.d -c $in -o $out",
        )
        ninja.rule("link", f"$cxx {LINK} $in -o $out $libraries", depfile=False)
        for full_name, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            name = full_name.rpartition(".")[2]
            if name == "_cuda":
                self.add_cuda(ninja, target, name)
            else:
                self.add_cpu(ninja, target, name, name.removeprefix("_native_"))
        return ninja.run()

    def add_cpu(self, ninja, target, name, instruction_set):
        flags = module_flags(name, instruction_set, cpu_modules()[instruction_set])
        if instruction_set == "default" and self.for_this_machine() and len(modules_of_machine(ninja.compiler)) > 1:
            flags += " -O1"  # this machine runs a better module: half the time of compiling is enough
        kernels = sources("_cpu.cpp")
        if instruction_set == NARROW:
            kernels = [source for source in kernels if Path(source).parent.name in NARROW_OPS]
        unit = one_unit(ninja.folder / f"{name}.cpp", COMMON + kernels)
        ninja.link(target, [ninja.compile("cxx", unit, name, flags=flags)], "-lpthread")

    @staticmethod
    def add_cuda(ninja, target, name):
        home = cuda_home()
        host = FLAGS.replace("-std=c++20", "").replace("-Icsrc", "")
        ninja.rule(
            "nvcc",
            f"{home}/bin/nvcc -ccbin $cxx -std=c++20 -O3 -Icsrc --threads 2 {' '.join(GENCODE)}"
            f' -Xcompiler "{host}" -MMD -MF $out.d -c $in -o $out',
        )
        version = subprocess.run([f"{home}/bin/nvcc", "--version"], capture_output=True, text=True).stdout
        found = re.search(r"release (\d+\.\d+)", version)
        # The driver must know this CUDA (fastlip/kernels/common/gpu.py).
        flags = module_flags(name, f"CUDA {found[1] if found else ''}", "")
        objects = [ninja.compile("cxx", source, name, flags=flags) for source in COMMON]
        objects += [ninja.compile("nvcc", source, name) for source in sources("_cuda.cu")]
        # The runtime's symbols stay inside: torch brings its own copy. It is in lib where pip installed the toolkit.
        libraries = f"-L{home}/lib64 -L{home}/lib -lcudart_static -ldl -lrt -lpthread -Wl,--exclude-libs,ALL"
        ninja.link(target, objects, libraries)


def extension_names():
    names = [f"_native_{name}" for name in cpu_modules()]
    return [*names, "_cuda"] if cuda_home() is not None and sources("_cuda.cu") else names


if __name__ == "__main__":
    setup(
        ext_modules=[Extension(f"fastlip.{name}", []) for name in extension_names()],
        cmdclass={"build_ext": BuildKernels},
    )
