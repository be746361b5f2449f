#!/usr/bin/env bash
# torch 2.13.0 (CPU): torch.jit.trace cannot record an operator with an argument `Tensor?[]`.
#
# Three operators that differ in the type of one list alone, none of them given a None. torch.export
# records all three. The tracer records `Tensor[]` and `Tensor?` and raises on `Tensor?[]`.
#
# Seen: traced, traced, "unsupported input list type: Tensor?"; exported, exported, exported.
# What it means for fastrnn: states are `Tensor?[] states` (csrc/ops.cpp), so under the tracer a layer
# runs torch's own implementation; tests/graphs/test_jit.py.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$folder/venv/bin/python" - << 'PYTHON'
import warnings

import torch

warnings.simplefilter("ignore")
assert torch.__version__.startswith("2.13.0"), torch.__version__
library = torch.library.Library("finding", "DEF")
types = {"list": "Tensor[]", "optional": "Tensor?", "list_of_optionals": "Tensor?[]"}


class Call(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, x, other):
        argument = other if self.name == "optional" else [other]
        return getattr(torch.ops.finding, self.name)(x, argument)


def run(x, other):
    return x.clone()


seen = {}
for name, type_ in types.items():
    library.define(f"{name}(Tensor x, {type_} other) -> Tensor")
    for key in ("CPU", "Meta"):
        library.impl(name, run, key)
    arguments = torch.ones(3), torch.ones(3)
    exported = torch.export.export(Call(name), arguments)
    assert torch.equal(exported.module()(*arguments), arguments[0])
    try:
        torch.jit.trace(Call(name), arguments)
        seen[type_] = "traced"
    except RuntimeError as error:
        seen[type_] = str(error).splitlines()[0]
    print(type_, seen[type_], "exported", sep=", ", flush=True)
assert seen["Tensor[]"] == seen["Tensor?"] == "traced", "the behaviour has changed"
assert "unsupported input list type: Tensor?" in seen["Tensor?[]"], "the behaviour has changed"
PYTHON
