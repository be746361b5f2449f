#!/bin/bash
# Measures on a machine with a GPU, from a bundle that bundle.sh made:
#   bash .gpu/run.sh RESULTS_FOLDER [arguments of python -m benchmarks.gpu]
# Works on a copy, in a temporary folder. Where Python, torch, CUDA or the GPU are not those that
# the bundle was compiled for, what was compiled is left out, and the first stage compiles it there.
# PYTHON3 names another python3.
set -uo pipefail

python=${PYTHON3:-python3}

# What compiled code depends on, in one line. torch is not imported: that would take seconds.
versions() {
    "$python" - << 'PYTHON'
import importlib.util, pathlib, runpy, sys

torch = importlib.util.find_spec("torch")
if torch is None:
    sys.exit(f"{sys.executable} has no torch")
facts = runpy.run_path(str(pathlib.Path(torch.origin).with_name("version.py")))
python, cuda = ".".join(map(str, sys.version_info[:2])), (facts["cuda"] or "none").split(".")[0]
print(f"Python {python}, torch {facts['__version__'].split('+')[0]}, CUDA {cuda}")
PYTHON
}

# As TORCH_CUDA_ARCH_LIST has it: of compute capability 9.0 the instructions of that one alone too.
architecture() {
    nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2> /dev/null | head -1 |
        sed 's/^9\.0$/9.0a/'
}

if [ "${1:-}" = --versions ]; then
    versions
    exit
elif [ $# -lt 1 ]; then
    sed -n '2,3s/^# \{0,1\}//p' "$0"
    exit 2
fi

bundle=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
results=$(cd "$1" && pwd)
shift
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp -r "$bundle/project" "$folder/fastrnn"
cd "$folder/fastrnn" || exit 1
FASTRNN_COMMIT=$(cat "$bundle/commit")
export FASTRNN_COMMIT CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}

compiled_for=$(cat "$bundle/compiled_for")
gpu=$(architecture)
here="$(versions), ${gpu:-${compiled_for##*, }}" || exit 1
echo "commit $FASTRNN_COMMIT, compiled for $compiled_for; here: $here" | tee "$results/bundle.txt"
if [ "$here" != "$compiled_for" ]; then
    echo "not compiled for this machine: the first stage compiles" | tee -a "$results/bundle.txt"
    rm -f fastrnn/_C.*.so benchmarks/gpu/prims
fi
"$python" -m benchmarks.gpu --out "$results" "$@"
