#!/bin/sh
# Builds the C++ kernels with AddressSanitizer in a copy of the source folder and runs the tests of wrapped tensors there.
#
#   tools/sanitize.sh [FOLDER]     (default: build/sanitized; needs gcc and the test requirements)
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$root/build/sanitized}
mkdir -p "$folder"
cp -r "$root/fastlip" "$root/csrc" "$root/tests" "$root/setup.py" "$root/pyproject.toml" "$root/conftest.py" \
  "$root/README.md" "$root/LICENSE" "$folder"
rm -f "$folder"/fastlip/_native*.so
cd "$folder"
printf '#!/bin/sh\nexec g++ -fsanitize=address -g "$@"\n' > cxx
chmod +x cxx
FASTLIP_CUDA=off CXX="$folder/cxx" python setup.py build_ext --inplace
# The interpreter and torch keep memory until the process ends; libasan wants to see the C++ library when it starts.
libraries="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so.6)"
ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$libraries" PYTHONPATH="$folder" \
  python -m pytest -q -p no:cacheprovider -m "slow or not slow" tests/ops/test_wrappers.py
