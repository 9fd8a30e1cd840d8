#!/usr/bin/env bash
# Everything that needs a GPU, on a bare machine: a Python with its own CUDA build of torch, nvcc, a C++ compiler, no
# network, perhaps no git and no package of ours.
#
#     benchmarks/run_gpu.sh [-o FOLDER] [-k OP[:REGEX]] [-m MINUTES] [PART ...]
#
# Parts, by default all of them but rest, one after the other; each builds in place first where nothing is built:
#   suite     the tests that run on the device
#   kernels   bandwidth and FLOP rates beside floors and eager torch; every op's cases, behind the agreement gate
#   networks  steps of networks: fused, its reference, compiled as a whole, captured in a CUDA graph
#   ncu       hardware counters of the kernels of OP (default maxmin) whose names REGEX (default OP) matches
#   rest      the suite's other tests, on the CPU
#
# A part ends within MINUTES (default 9.5): what is left of that is each step's limit, and a step that fails or runs
# out of time says so and leaves the later ones to run. FOLDER (default $OUT, or benchmarks/results/gpu) gets at most
# eight files: a log for each part, steps.txt with the exit status and seconds of each step, doctor.json, kernels.json,
# ops.json and networks.jsonl. COMMIT names the commit where git cannot. The exit status is 1 if any step failed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
out=${OUT:-benchmarks/results/gpu} kernel=maxmin minutes=9.5
while getopts "o:k:m:" option; do
  case $option in
    o) out=$OPTARG ;;
    k) kernel=$OPTARG ;;
    m) minutes=$OPTARG ;;
    *) exit 2 ;;
  esac
done
shift $((OPTIND - 1))
parts=("$@")
[ $# -gt 0 ] || parts=(suite kernels networks ncu)
for part in "${parts[@]}"; do
  case $part in
    suite | kernels | networks | ncu | rest) ;;
    *) echo "run_gpu.sh: part $part: allowed are suite, kernels, networks, ncu, rest" >&2 && exit 2 ;;
  esac
done
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
python=${PYTHON:-python3}
budget=$(awk "BEGIN { print int(60 * $minutes) }")
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
commit=${COMMIT:-$(git rev-parse HEAD 2> /dev/null || echo unknown)}
failed=0

# step NAME SECONDS COMMAND...: runs it within the seconds that it and its part may take, and records how it went.
step() {
  local name=$1 limit=$2 left=$((started + budget - SECONDS)) begun=$SECONDS status
  shift 2
  limit=$((left < limit ? left : limit))
  echo "=== $part: $name: $*"
  if [ "$limit" -le 0 ]; then
    status="no time left"
  else
    timeout -s INT -k 15 "$limit" "$@"
    status=$?
    [ $status -eq 124 ] && status="out of time after $limit s"
  fi
  [ "$status" = 0 ] || failed=1
  echo "$part $name: $status ($((SECONDS - begun)) s)" | tee -a "$out/steps.txt"
  [ "$status" = 0 ]
}

has() { $python -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }

build() {
  local name
  for name in torch numpy pybind11 ninja setuptools pytest hypothesis pytest_benchmark sklearn click tqdm PIL jinja2; do
    has "$name" || echo "$part this Python lacks $name: what needs it fails below" | tee -a "$out/steps.txt"
  done
  # From an empty folder: an old setuptools cannot read pyproject.toml, which setup.py does without.
  local empty
  empty=$(mktemp -d)
  step build 420 env -C "$empty" FASTLIP_CUDA=require "$python" "$PWD/setup.py" -q build_ext --build-lib "$PWD"
  step doctor 60 sh -c "$python -m fastlip doctor --json > '$out/doctor.json'"
}

# Warnings are errors in the project; those of another machine's packages are listed instead.
tests() {
  local plugins=(-p no:cacheprovider -W default)
  if has xdist; then plugins+=(-p xdist.plugin -n "$workers"); fi
  step "$1" 540 "$python" -m pytest -q -ra "${plugins[@]}" "${@:2}"
}

suite() {
  workers=4
  tests device --device cuda tests/gpu/test_whole_step.py tests/ops
}

kernels() {
  local op
  for op in copy maxmin gram_rowsum sll_layer cayley spectral_conv conv_chain; do
    step "report_$op" 90 "$python" benchmarks/gpu_report.py --only "$op" --commit "$commit" --output "$out/kernels.json"
  done
  step ops 240 "$python" -m pytest -q -W default -p no:cacheprovider -p pytest_benchmark.plugin benchmarks/bench_ops.py \
    -k "not compiled" --benchmark-only --device cuda --benchmark-json "$out/ops.json"
  step never_slower 240 "$python" benchmarks/never_slower.py --device cuda --eager
}

network() {
  local name=$1
  shift
  step "$name" 120 sh -c "$python -m fastlip bench --device cuda --json \"\$@\" > '$out/.network.json'" sh "$@" &&
    $python -c 'import json, sys; print(json.dumps(json.load(sys.stdin)))' < "$out/.network.json" >> "$out/networks.jsonl"
  rm -f "$out/.network.json"
}

networks() {
  local method size
  for size in XS S; do
    for method in aol sll cpl cayley; do
      local options=(--size "$size" --method "$method")
      if [ "$method" = cpl ]; then options+=(--option training_sigma=power); fi
      network "${size}_$method" "${options[@]}" --contestant fused --contestant reference
      network "${size}_${method}_graph" "${options[@]}" --contestant fused --contestant "fused CUDA graph"
    done
  done
  for method in aol sll cpl cayley; do
    network "XS_${method}_compiled" --size XS --method "$method" --contestant fused --contestant "fused compiled"
  done
  for method in aoc bcop soc lot; do
    network "XS_$method" --size XS --method "$method" --contestant fused --contestant reference
  done
}

ncu_of_kernel() {
  step ncu 400 ncu --clock-control none --set full --kernel-name "regex:${kernel#*:}" --launch-count 2 \
    "$python" benchmarks/gpu_report.py --only "${kernel%%:*}" --rounds 1
}

rest() {
  workers=8
  tests cpu tests --ignore tests/ops
}

for part in "${parts[@]}"; do
  started=$SECONDS
  {
    build
    case $part in
      ncu) ncu_of_kernel ;;
      *) $part ;;
    esac
  } > >(tee "$out/$part.log") 2>&1
done
echo "=== steps" && cat "$out/steps.txt"
exit $failed
