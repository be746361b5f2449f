#!/usr/bin/env bash
# torch 2.13.0 (CPU): an operator of libtorch's stable ABI that takes a str leaks it at every call.
#
# TORCH_BOX turns the str argument into a std::string of the kernel's. The header that does it
# (torch/csrc/stable/stableivalue_conversions.h) makes a string of its own on the heap, returns a
# copy, and nobody frees the first. The same operator by TORCH_LIBRARY leaks nothing. It is in the
# header, so it is compiled into the extension: a torch that is mended does not help one that was
# built before.
#
# Seen: about 1,050 bytes a call with a str of 1,000 characters, and none by TORCH_LIBRARY.
# What it means for fastrnn: operators take the name of a cell as a str; a port to the stable ABI has
# to take a handle of its own, or build against newer headers (docs/decisions.md).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
cat > "$folder/stable.cpp" << 'CPP'
#include <torch/csrc/stable/library.h>

#include <string>

int64_t length(std::string text) { return static_cast<int64_t>(text.size()); }
STABLE_TORCH_LIBRARY(finding_stable, m) { m.def("length(str text) -> int"); }
STABLE_TORCH_LIBRARY_IMPL(finding_stable, CompositeExplicitAutograd, m) {
  m.impl("length", TORCH_BOX(&length));
}
CPP
cat > "$folder/plain.cpp" << 'CPP'
#include <torch/library.h>

int64_t length(c10::string_view text) { return static_cast<int64_t>(text.size()); }
TORCH_LIBRARY(finding_plain, m) { m.def("length(str text) -> int", &length); }
CPP
torch=$("$folder/venv/bin/python" -c 'import os, torch; print(os.path.dirname(torch.__file__))')
for name in stable plain; do
    g++ -O1 -std=c++20 -fPIC -shared -I"$torch/include" -I"$torch/include/torch/csrc/api/include" \
        "$folder/$name.cpp" -o "$folder/$name.so" -L"$torch/lib" -ltorch -ltorch_cpu -lc10
done
"$folder/venv/bin/python" - "$folder" << 'PYTHON'
import sys

import torch

assert torch.__version__.startswith("2.13.0"), torch.__version__


def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096


def bytes_a_call(name):
    torch.ops.load_library(f"{sys.argv[1]}/{name}.so")
    length, text = getattr(torch.ops, f"finding_{name}").length.default, "x" * 1000
    assert length(text) == 1000
    for _ in range(2000):
        length(text)
    before, calls = resident(), 50_000
    for _ in range(calls):
        length(text)
    return (resident() - before) / calls


stable, plain = bytes_a_call("stable"), bytes_a_call("plain")
print(f"bytes a call: stable ABI {stable:.0f}, TORCH_LIBRARY {plain:.0f}")
assert stable > 900 and plain < 20, "the behaviour has changed"
PYTHON
