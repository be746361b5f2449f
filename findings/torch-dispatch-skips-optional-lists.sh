#!/usr/bin/env bash
# torch 2.13.0 (CPU): the dispatcher does not look into an argument `Tensor[]?`.
#
# Which kernel an operator runs is told by the tensors among its arguments. Tensors in `Tensor[]` and
# in `Tensor?[]` count; those in `Tensor[]?`, an optional list, do not. The same call, whose first
# argument is a CPU tensor and whose list has a tensor on meta, runs the meta kernel of the first two
# and the CPU kernel of the third. torch.func.vmap over a tensor in the list alone calls the
# operator's batching rule for the first two; for the third the operator itself is called with what
# is still wrapped, which ends in an internal assertion.
#
# Seen: Tensor[] and Tensor?[] meta kernel, batching rule; Tensor[]? CPU kernel, RuntimeError.
# What it means for fastrnn: initial states are `Tensor?[] states`, a None for each (csrc/ops.cpp);
# tests/derivatives/test_func.py maps states alone, without a graph.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$folder/venv/bin/python" - << 'PYTHON'
import torch

assert torch.__version__.startswith("2.13.0"), torch.__version__
library, ran = torch.library.Library("finding", "DEF"), []
types = {"list": "Tensor[]", "list_of_optionals": "Tensor?[]", "optional_list": "Tensor[]?"}


def kernel(key):
    def run(x, others):
        ran.append(key)
        return torch.empty_like(x)

    return run


def rule(info, in_dims, x, others):
    ran.append("rule")
    return x.expand(info.batch_size, *x.shape), 0


seen = {}
for name, type_ in types.items():
    library.define(f"{name}(Tensor x, {type_} others) -> Tensor")
    for key in ("CPU", "Meta"):
        library.impl(name, kernel(key), key)
    torch.library.register_vmap(f"finding::{name}", rule, lib=library)
    op, x = getattr(torch.ops.finding, name), torch.ones(3)
    ran.clear()
    op(x, [torch.ones(3, device="meta")])
    try:
        torch.func.vmap(lambda t: op(x, [t]))(torch.ones(2, 3))
    except RuntimeError as error:
        ran.append("INTERNAL ASSERT" if "INTERNAL ASSERT" in str(error) else str(error))
    seen[type_] = tuple(ran)
    print(type_, *ran, sep=", ")
assert seen["Tensor[]"] == seen["Tensor?[]"] == ("Meta", "rule"), "the behaviour has changed"
assert seen["Tensor[]?"][0] == "CPU" and "INTERNAL ASSERT" in seen["Tensor[]?"], "it has changed"
PYTHON
