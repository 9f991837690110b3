#!/usr/bin/env bash
# The C++ kernels under AddressSanitizer and UndefinedBehaviorSanitizer: a build of its own in
# build/sanitize, and the ops' tests on it. Usage: tests/sanitize.sh [PYTHON] [PYTEST ARGUMENTS]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=$(readlink -f "$(dirname "$(command -v "${1:-python3}")")")/$(basename "${1:-python3}")
shift || true
cxx=${CXX:-c++}
runtimes="$($cxx -print-file-name=libasan.so) $($cxx -print-file-name=libubsan.so)"
for runtime in $runtimes; do
  if [[ ! -e $runtime ]]; then
    echo "sanitize: $cxx has no sanitizer runtimes: install GCC's (apt install g++)" >&2
    exit 2
  fi
done

tree=build/sanitize
mkdir -p $tree
# The sources as they are, without what another build has left in them; objects are kept.
for part in csrc stc_kernels python/stc_numpy build_backend tests/ops tests/conftest.py setup.py \
  pyproject.toml MANIFEST.in README.md LICENSE; do
  rm -rf "${tree:?}/$part"
  mkdir -p "$(dirname $tree/$part)"
  cp -a $part $tree/$part
done
find $tree/stc_kernels $tree/python \( -name '*.so' -o -name _build_info.py \) -delete
cd $tree

flags="-fsanitize=address,undefined"
# Slower at -O1, but with lines to point at.
CXXFLAGS="-O1 -g -fno-omit-frame-pointer $flags -fno-sanitize-recover=undefined" LDFLAGS=$flags \
  "$python" setup.py -q build_ext --inplace

# Python itself is not built with the sanitizers, so their runtimes go in first; what it leaks at
# its end is not ours to judge.
LD_PRELOAD=$runtimes ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
  PYTHONPATH=. "$python" -m pytest -q -p no:cacheprovider tests/ops \
  --deselect tests/ops/test_robustness.py::test_memory_is_flat_over_ten_thousand_calls \
  --ignore tests/ops/test_memory.py --ignore tests/ops/test_registration.py "$@"
