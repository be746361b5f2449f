"""Outputs and every gradient against torch.nn and the float64 reference (tolerances.py)."""

import pytest
import torch

from tests.cases import KINDS, OPTIONS, PACKED, SHAPES, Case, check


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
