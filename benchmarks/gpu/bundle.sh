#!/bin/bash
# Makes .gpu/ in the repository's root: what a machine with a GPU needs to start at once, without
# compiling and without a network. `make gpu-bundle PYTHON=python3.12 TORCH=2.11.0` runs it, on a
# machine that needs nvcc of the same CUDA major version as that torch, but no GPU.
#
#   .gpu/project/      the work tree, with fastrnn/_C.*.so and benchmarks/gpu/prims compiled
#   .gpu/compiled_for  Python, torch, CUDA and GPU of that machine
#   .gpu/commit        where the work tree stood
#   .gpu/run.sh        what to start there: bash .gpu/run.sh RESULTS_FOLDER
#
# The work tree, not HEAD: what is tried on a GPU is mostly not committed yet, and whoever wants a
# commit checks it out. Ignored files stay behind.
#
# FASTRNN_GPU_BUILD keeps Python's environment (5 GB, most of it torch's CUDA libraries) and the
# objects between calls: the first call takes about 15 minutes on two cores, another one compiles
# what changed. FASTRNN_GPU_ARCH: TORCH_CUDA_ARCH_LIST, 9.0a (H100, H200) by default.
set -euo pipefail
cd "$(dirname "$0")/../.."

: "${PYTHON:=python3.12}" "${TORCH:=2.11.0}" "${CUDA_HOME:=/usr/local/cuda}"
build=${FASTRNN_GPU_BUILD:-${TMPDIR:-/tmp}/fastrnn-gpu-build}
arch=${FASTRNN_GPU_ARCH:-9.0a}
# make exports one, a call without make does not, and another name means compiling everything anew.
unset CXX
most_mib=60 # of the 64 that travel to the machine, the work tree among them

# pyenv puts a command of every Python on PATH, and those that are not active fail.
if ! "$PYTHON" -c '' 2> /dev/null; then
    PYTHON=$(ls -d ~/.pyenv/versions/*/bin/"$(basename "$PYTHON")" 2> /dev/null | tail -1)
    [ -n "$PYTHON" ] || { echo "gpu-bundle: no such Python; name one: PYTHON=python3.12"; exit 1; }
fi
[ -x "$CUDA_HOME/bin/nvcc" ] || { echo "gpu-bundle: no nvcc in CUDA_HOME=$CUDA_HOME"; exit 1; }

echo "gpu-bundle: torch $TORCH for $("$PYTHON" --version) in $build"
venv=$build/venv-$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-torch$TORCH
if [ ! -e "$venv/.installed" ]; then
    mkdir -p "$build"
    free=$(df --output=avail -BG "$build" | tail -1 | tr -dc 0-9)
    [ "$free" -ge 12 ] || { echo "gpu-bundle: $build needs 12 GB free, there are $free"; exit 1; }
    "$PYTHON" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet "torch==$TORCH" numpy ninja 'setuptools>=77.0.3' \
        pytest
    touch "$venv/.installed"
fi

# Files keep their times, so that ninja compiles what changed alone. A source that is gone must go:
# setup.py takes what it finds.
project=$build/project
mkdir -p "$project"
find "$project" -mindepth 1 -maxdepth 1 ! -name build -exec rm -rf {} +
git ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do if [ -e "$file" ]; then printf '%s\0' "$file"; fi; done |
    tar -c --null --files-from=- | tar -x -C "$project"

echo "gpu-bundle: compiling for $arch (log: $build/build.txt)"
started=$SECONDS
# torch takes nvcc from CUDA_HOME and ninja from PATH; without ninja it compiles file by file.
(
    cd "$project"
    PATH=$venv/bin:$CUDA_HOME/bin:$PATH CUDA_HOME=$CUDA_HOME FASTRNN_CUDA=1 \
        TORCH_CUDA_ARCH_LIST=$arch MAX_JOBS=${MAX_JOBS:-$(nproc)} \
        nice "$venv/bin/python" setup.py --quiet build_ext --inplace
) > "$build/build.txt" 2>&1 || { tail -40 "$build/build.txt"; exit 1; }
"$CUDA_HOME/bin/nvcc" -std=c++17 -O3 -arch="sm_${arch/./}" \
    -o "$project/benchmarks/gpu/prims" "$project/benchmarks/gpu/prims.cu"
echo "gpu-bundle: compiled in $((SECONDS - started)) s"

rm -rf .gpu
mkdir .gpu
# Without build/ and .gitignore, which would hide the compiled files from whoever copies .gpu.
tar -c -C "$project" --exclude=./build --exclude=./.gitignore . |
    tar -x -C .gpu --one-top-level=project
strip --strip-unneeded .gpu/project/fastrnn/_C.*.so
cp benchmarks/gpu/run.sh .gpu/
changes=$(git status --porcelain | wc -l)
{
    git rev-parse HEAD
    [ "$changes" = 0 ] || echo "and $changes changed files"
} | paste -sd ' ' > .gpu/commit
echo "$(PYTHON3=$venv/bin/python bash .gpu/run.sh --versions), $arch" > .gpu/compiled_for

# It must load where nothing else of this checkout is.
(
    cd .gpu/project
    "$venv/bin/python" -B - << 'PYTHON'
import torch, fastrnn
assert torch._C._dispatch_has_kernel_for_dispatch_key("fastrnn::layer_forward", "CUDA")
print("gpu-bundle: loads:", fastrnn.__file__)
PYTHON
)
size=$(du -sm --apparent-size .gpu | cut -f1)
echo "gpu-bundle: .gpu is $size MiB, for $(cat .gpu/compiled_for), of $(cat .gpu/commit)"
[ "$size" -le $most_mib ] || { echo "gpu-bundle: more than $most_mib MiB cannot travel"; exit 1; }
