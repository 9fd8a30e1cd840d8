#!/usr/bin/env bash
# Everything that needs a GPU, on a bare machine: a Python with its own CUDA build of torch, nvcc, a C++ compiler, no
# network, perhaps no git and no package of ours. benchmarks/gpu_parts.py has the parts and says what each one does.
#
#     benchmarks/run_gpu.sh [-o FOLDER] [--dry-run] [PART ...]
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
exec "${PYTHON:-python3}" benchmarks/gpu_parts.py "$@"
