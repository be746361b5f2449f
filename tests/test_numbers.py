"""Outputs and every gradient against torch.nn and the float64 reference (tolerances.py)."""

import itertools

import pytest
import torch

from tests.cases import KINDS, Case, module_results, reference_results
from tests.tolerances import assert_accurate

# Sizes straddle vectors and tiles; each hidden size meets several batches and lengths.
BATCHES, LENGTHS, INPUTS = (1, 2, 5, 6, 7, 13, 33), (1, 2, 9), (1, 3, 16, 40)
SHAPES = [
    (LENGTHS[(i + j) % 3], BATCHES[(3 * i + j) % 7], INPUTS[(i + j) % 4], hidden_size)
    for i, hidden_size in enumerate((1, 7, 15, 16, 17, 33, 64, 100))
    for j in (0, 1, 3)
]
OPTIONS = [
    {"num_layers": layers, "bidirectional": bidirectional, "bias": bias, "batch_first": first}
    for layers, bidirectional, bias, first in itertools.product(
        (1, 2), (False, True), (True, False), (False, True)
    )
]
PACKED = {
    "sorted": (5, 5, 3, 1),
    "unsorted": (2, 6, 1, 6, 3),
    "equal": (3, 3, 3),
    "single": (4,),
    "wide": tuple(1 + (7 * i) % 9 for i in range(33)),
}


def check(case, dtype=torch.float32, tf32=False, device="cpu"):
    theirs, ours = case.modules(dtype, device)
    data = case.data(dtype)
    there = data.to(device)
    steps = max(case.lengths) if case.lengths else case.seq_len
    layers = case.arguments.get("num_layers", 1)
    assert_accurate(
        module_results(ours, there),
        module_results(theirs, there),
        reference_results(theirs, data),
        dtype,
        steps * layers,
        data.losses,
        tf32=tf32,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(cpu_target, kind, shape):
    case = Case(kind, *shape)
    if not case.possible:  # a projection of hidden_size 1 cannot be smaller than it
        case = case.with_(hidden_size=2)
    check(case)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hx", [True, False], ids=["hx", "no_hx"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_options(kind, options, hx):
    check(Case(kind, options=options, hx=hx))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 3, 7), (9, 5, 16, 33), (4, 13, 5, 64)], ids=str)
def test_dtypes(cpu_target, kind, dtype, shape):
    check(Case(kind, *shape, options={"bidirectional": True}), dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("hx", [True, False], ids=["hx", "no_hx"])
def test_packed(cpu_target, kind, lengths, hx):
    options = {"bidirectional": True, "num_layers": 2}
    check(Case(kind, lengths=lengths, hx=hx, options=options))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", PACKED.values(), ids=PACKED)
def test_packed_float64(kind, lengths):
    check(Case(kind, lengths=lengths, options={"bidirectional": True}), torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(20, 32, 64, 128), (30, 1, 96, 256), (12, 70, 30, 130)], ids=str)
def test_several_threads(cpu_target, kind, shape):
    """Sizes that are worth several threads, over batch rows and over hidden units."""
    torch.set_num_threads(2)
    check(Case(kind, *shape, options={"bidirectional": shape[1] == 1}))
