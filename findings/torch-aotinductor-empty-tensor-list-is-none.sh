#!/usr/bin/env bash
# torch 2.13.0 (CPU): in a package made by AOTInductor, an operator that was given an empty list of
# tensors is given None.
#
# A custom operator takes `Tensor[] extra`, and the exported program calls it with []. The eager
# module and the exported program give it []. The package's proxy executor stores the argument as
# `as_tensors: []`, fills in only lists with an element, and leaves None on the stack: an operator
# in Python sees None in place of its list, and one in C++ that takes a list fails ("isTensorList()
# INTERNAL ASSERT FAILED"), at the first call, not when the package is made. A list with an element
# arrives, and an optional list (`Tensor[]?`) that is None arrives as None.
#
# Seen: eager list, exported list, packaged NoneType.
# What it means for fastrnn: initial states are `Tensor[]? states`, None for zeros and never empty
# (csrc/ops.cpp); tests/graphs/test_export.py packages layers without initial states.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy setuptools
"$folder/venv/bin/python" - "$folder" << 'PYTHON'
import sys
import warnings

import torch

warnings.simplefilter("ignore")
assert torch.__version__.startswith("2.13.0"), torch.__version__
seen = []


def shift(x, extra):
    seen.append(type(extra).__name__)
    return x + 1 + sum(extra or [])


library = torch.library.Library("finding", "DEF")
library.define("shift(Tensor x, Tensor[] extra) -> Tensor")
library.impl("shift", shift, "CPU")
torch.library.register_fake("finding::shift")(lambda x, extra: torch.empty_like(x))


class Model(torch.nn.Module):
    def __init__(self, count):
        super().__init__()
        self.count = count

    def forward(self, x):
        return torch.ops.finding.shift(x.sin(), [x] * self.count).cos()


def types(count):
    """What the operator is given by the module, the exported program and the package."""
    model, x = Model(count), torch.randn(3, 4)
    program = torch.export.export(model, (x,))
    path = torch._inductor.aoti_compile_and_package(program, package_path=f"{sys.argv[1]}/{count}.pt2")
    calls = model, program.module(), torch._inductor.aoti_load_package(path)
    seen.clear()
    for call in calls:
        call(x)
    return list(seen)


empty, one = types(0), types(1)
print("empty list:", *empty, "| list of one:", *one)
assert empty == ["list", "list", "NoneType"], "the behaviour has changed"
assert one == ["list", "list", "list"], "the behaviour has changed"
PYTHON
