"""Every operator of the namespace: opcheck, fake kernels, and what csrc/ops.cpp says of it."""

import re
from pathlib import Path

import pytest
import torch
from torch.library import opcheck

from tests.arguments import (
    WITH_INSIDE,
    arguments_of,
    arguments_with_inside,
    operators,
    overload,
    tensors_in,
)
from tests.cases import NO_PROJ

ROOT = Path(__file__).parents[2]


def test_each_argument_is_explained():
    """csrc/ops.cpp says of every operator, and of every tensor that it takes, what it is."""
    text = (ROOT / "csrc" / "ops.cpp").read_text()
    explained = re.findall(r"^  // .*\n(?:  m\.def\(.*\n)*?  m\.def\(\"(\w+)\(", text, re.M)
    for found in (re.findall(r"m\.def\(\"(\w+)\(", text), explained):
        kernels = [name for name in found if not name.endswith(("_recorded", "_of_lengths"))]
        assert sorted(kernels) == operators()
    twins = {"layer_forward": "layer", "gather_rows": "rows", "drop_weights": "drop"}
    for name, twin in twins.items():  # of csrc/recorded.cpp
        schema, other = (str(overload(n)._schema) for n in (name, f"{twin}_recorded"))
        assert schema.partition("(")[2] == other.partition("(")[2]
    comments = " ".join(re.findall(r"^ *//(.*)$", text, re.M))
    words = {*re.findall(r"\w+", comments)}
    for name in operators():
        for argument in overload(name)._schema.arguments:
            if "Tensor" in str(argument.type):
                stem = argument.name.removeprefix("t_").removeprefix("d_")
                assert stem in words or argument.name in words, (name, argument.name)


@pytest.mark.parametrize("name", operators())
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "two"])
@pytest.mark.parametrize("proj", [False, True], ids=["plain", "proj"])
def test_opcheck(name, packed, bidirectional, proj):
    arguments = arguments_of(name, packed, bidirectional, proj)
    # Without tensors that require gradients: those are the Function's, not the operators'.
    opcheck(overload(name), tuple(arguments.values()))


@pytest.mark.parametrize("name", WITH_INSIDE)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "two"])
@pytest.mark.parametrize("cell", NO_PROJ)
@pytest.mark.parametrize("norm", ["none", "recurrent", "joint"])
def test_opcheck_with_options_inside(name, packed, bidirectional, cell, norm):
    arguments = arguments_with_inside(name, packed, bidirectional, cell, norm)
    opcheck(overload(name), tuple(arguments.values()))


@pytest.mark.parametrize(
    "name", sorted({*operators()} - {"segments"})
)  # sizes that depend on values
def test_fake_without_saving_or_states(name):
    """Absent optional arguments: the fake kernel's shapes are the kernel's."""
    arguments = arguments_of(name, False, True)
    for argument in overload(name)._schema.arguments[: len(arguments)]:  # the rest has defaults
        required = (
            "d_output", "input", "hidden", "gates", "cells", "t_gates", "t_hidden", "t_cells",
            "d_cell_c",
        )  # fmt: skip
        if str(argument.type) == "Optional[Tensor]" and argument.name not in required:
            arguments[argument.name] = None
        if argument.name == "states":
            arguments[argument.name] = [None for _ in arguments[argument.name]]
        if argument.name == "save":
            arguments[argument.name] = False
    arguments = list(arguments.values())
    meta = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), arguments)
    results = [tensors_in(overload(name)(*given)) for given in (arguments, meta)]
    for real, fake in zip(*results, strict=True):
        assert real.shape == fake.shape and real.dtype == fake.dtype
        assert real.stride() == fake.stride()


@pytest.mark.parametrize("name", operators())
def test_no_operator_changes_or_returns_its_arguments(name):
    arguments = arguments_of(name, True, True)
    tensors = tensors_in(arguments)
    before = [t.clone() for t in tensors]
    results = tensors_in(overload(name)(*arguments.values()))
    assert all(torch.equal(a, b) for a, b in zip(tensors, before))
    storages = [t.untyped_storage().data_ptr() for t in (*tensors, *results) if t.numel()]
    assert len(set(storages)) == len(storages)


@pytest.mark.parametrize("columns", [1, 3, 15, 16, 17, 31, 33, 127, 255, 256, 257, 1000])
def test_gather_rows_of_any_size(columns):
    """Short rows are copied another way than long ones."""
    rows = torch.randint(0, 256, (2, 40, columns), dtype=torch.uint8)
    index = torch.randint(0, 40, (2, 30))
    index[:, ::7] = -1
    expected = torch.stack([r[i] for r, i in zip(rows, index)])
    expected[index < 0] = 0
    (actual,) = torch.ops.fastrnn.gather_rows([rows], [index])
    assert torch.equal(actual, expected)
    (actual,) = torch.ops.fastrnn.gather_rows([rows[1]], [index[1:].view(1, 5, 6)])
    assert torch.equal(actual, expected[1].view(5, 6, columns))
    for wrong in ([[40]], [[0], [1], [2]]):
        with pytest.raises(RuntimeError, match="gather_rows: expected"):
            torch.ops.fastrnn.gather_rows([rows], [torch.tensor(wrong)])


def test_targets():
    from fastrnn import _C

    targets = _C.cpu_targets()
    assert targets[0] == "generic" and set(targets) <= {
        "generic", "avx2", "avx512", "avx512_vnni",
    }  # fmt: skip
    assert _C.cpu_target() in targets
    with pytest.raises(Exception, match="(?i)target"):
        _C.set_cpu_target("abacus")
