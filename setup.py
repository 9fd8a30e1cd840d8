"""Builds the kernels under csrc/ with ninja: one CPU module per instruction set, one CUDA module.

Sources are discovered: csrc/<op>/<op>_cpu.cpp and csrc/<op>/<op>_cuda.cu. Nothing here needs torch.
FASTLIP_CUDA=auto|off|require decides the CUDA module (auto: built where nvcc is found).
Without a C++ compiler the package installs without kernels; `fastlip doctor` says so.
"""

import os
import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pybind11
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


def instruction_sets():
    """Name and flags of each CPU module; the package picks the best one the machine runs."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    return {"default": "", **(X86_SETS if x86 else {})}


def cuda_mode():
    mode = os.environ.get("FASTLIP_CUDA", "auto")
    if mode not in ("auto", "off", "require"):
        raise SystemExit(f"FASTLIP_CUDA={mode!r}: allowed are auto, off, require")
    return mode


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


class Ninja:
    """Writes one build.ninja for every module and runs it; object files stay for the next build."""

    def __init__(self, compiler, folder):
        self.compiler = compiler
        self.folder = folder
        self.lines = [f"builddir = {folder}", f"cxx = {compiler}"]
        self.outputs = []

    def include_flags(self):
        # A link with a fixed name: an isolated build's own path changes each time and would rebuild everything.
        link = self.folder / "pybind11"
        link.unlink(missing_ok=True)
        link.symlink_to(Path(pybind11.get_include()).resolve())
        python = Path(sysconfig.get_path("include")).resolve()
        return f"-isystem {link} -isystem {python}"

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
        built = self.write_and_run(Ninja(compiler, folder), targets)
        self.extensions = [item for item in self.extensions if str(targets[item.name]) in built]

    def write_and_run(self, ninja, targets):
        version = subprocess.run([ninja.compiler, "-dumpfullversion"], capture_output=True, text=True).stdout.strip()
        compiler_text = f"-DFASTLIP_COMPILER='\"{Path(ninja.compiler).name} {version}\"'"
        ninja.rule(
            "cxx",
            f"$cxx {FLAGS} {ninja.include_flags()} {compiler_text} $flags -MMD -MF $out.d -c $in -o $out",
        )
        ninja.rule("link", "$cxx -shared -Wl,--gc-sections $in -o $out $libraries", depfile=False)
        for full_name, target in targets.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            name = full_name.rpartition(".")[2]
            if name == "_cuda":
                self.add_cuda(ninja, target, name)
            else:
                self.add_cpu(ninja, target, name, name.removeprefix("_native_"))
        return ninja.run()

    @staticmethod
    def add_cpu(ninja, target, name, instruction_set):
        flags = module_flags(name, instruction_set, instruction_sets()[instruction_set])
        objects = [ninja.compile("cxx", source, name, flags=flags) for source in COMMON + sources("_cpu.cpp")]
        ninja.link(target, objects, "-lpthread")

    @staticmethod
    def add_cuda(ninja, target, name):
        home = cuda_home()
        host = FLAGS.replace("-std=c++20", "").replace("-Icsrc", "")
        ninja.rule(
            "nvcc",
            f"{home}/bin/nvcc -ccbin $cxx -std=c++20 -O3 -Icsrc --threads 2 {' '.join(GENCODE)}"
            f' -Xcompiler "{host}" -MMD -MF $out.d -c $in -o $out',
        )
        flags = module_flags(name, "cuda", "")
        objects = [ninja.compile("cxx", source, name, flags=flags) for source in COMMON]
        objects += [ninja.compile("nvcc", source, name) for source in sources("_cuda.cu")]
        # The runtime's symbols stay inside: torch brings its own copy.
        libraries = f"-L{home}/lib64 -lcudart_static -ldl -lrt -lpthread -Wl,--exclude-libs,ALL"
        ninja.link(target, objects, libraries)


names = [f"_native_{name}" for name in instruction_sets()]
if cuda_home() is not None and sources("_cuda.cu"):
    names.append("_cuda")
setup(
    ext_modules=[Extension(f"fastlip.{name}", []) for name in names],
    cmdclass={"build_ext": BuildKernels},
)
