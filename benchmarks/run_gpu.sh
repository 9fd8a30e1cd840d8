#!/usr/bin/env bash
# Everything that needs a GPU, in one call: builds in place, runs the suite on the device, the benchmarks, and the
# hardware counters of one kernel. Needs a torch built with CUDA, nvcc, pytest, hypothesis, pytest-benchmark, pybind11
# and ninja; no network.
#
#     benchmarks/run_gpu.sh [FOLDER] [KERNEL]
#
# Results go to FOLDER (default $OUT, or benchmarks/results/gpu); KERNEL is a regular expression for ncu (default
# maxmin). The exit status is that of the tests; benchmarks of an op run only behind its agreement gate.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-${OUT:-benchmarks/results/gpu}}
kernel=${2:-maxmin}
python=${PYTHON:-python3}
mkdir -p "$out"

missing=$($python -c '
import importlib.util
names = ("torch", "pytest", "hypothesis", "pytest_benchmark", "pybind11", "ninja", "sklearn", "click", "tqdm")
print(*[name for name in names if importlib.util.find_spec(name) is None])')
if [ -n "$missing" ]; then
  echo "run_gpu.sh: this Python lacks: $missing" >&2
  exit 2
fi
set -x
FASTLIP_CUDA=require $python setup.py -q build_ext --inplace || exit 1
export PYTHONPATH=$PWD
$python -m fastlip doctor --json > "$out/doctor.json"
$python -m pytest tests -q --device cuda > "$out/tests.txt" 2>&1
status=$?
tail -5 "$out/tests.txt"
$python benchmarks/gpu_report.py --output "$out/kernels.json"
$python -m pytest benchmarks -q --benchmark-only --device cuda --benchmark-json "$out/ops.json" > "$out/benchmarks.txt" 2>&1
for size in XS S; do
  $python -m fastlip bench --device cuda --size $size --contestant fused --contestant reference --contestant compiled \
    --json > "$out/steps_$size.json"
done
if command -v ncu > /dev/null; then
  ncu --clock-control none --set full --kernel-name "regex:$kernel" --launch-count 2 \
    $python benchmarks/gpu_report.py --rounds 1 > "$out/ncu_$kernel.txt" 2>&1
fi
exit $status
