"""The oracle against torch.nn in float64, and its derivatives of second order."""

import pytest
import torch

from fastrnn import reference
from tests.cases import KINDS, Case, module_results, reference_results
from tests.tolerances import FLOAT64_TO_TORCH, error

SETTINGS = {
    "padded": {"options": {"num_layers": 2, "bidirectional": True}},
    "batch_first": {"options": {"batch_first": True, "bias": False}, "hx": False},
    "packed": {"lengths": (2, 5, 5, 1), "options": {"num_layers": 2, "bidirectional": True}},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_reference_equals_torch(kind, setting):
    case = Case(kind, **setting)
    theirs, _ = case.modules(torch.float64)
    data = case.data(torch.float64)
    actual, expected = reference_results(theirs, data), module_results(theirs, data)
    for name, tensor in expected.items():
        assert error(actual[name], tensor) <= FLOAT64_TO_TORCH, name


@pytest.mark.parametrize("kind", KINDS)
def test_cells_are_steps_of_layers(kind):
    case = Case(kind, seq_len=1)
    module, _ = case.modules(torch.float64)
    data = case.data(torch.float64)
    hx = tuple(s[0] for s in data.states) if case.name == "LSTM" else data.states[0][0]
    step = getattr(reference, case.name.lower() + "_cell")
    kind_options = {"nonlinearity": module.nonlinearity} if case.name == "RNN" else {}
    h = step(data.inputs[0][0], hx, *module.parameters(), **kind_options)
    h = h[0] if case.name == "LSTM" else h
    states = tuple(data.states) if case.name == "LSTM" else data.states[0]
    assert error(h, module(data.inputs[0], states)[0][0]) <= FLOAT64_TO_TORCH


def test_second_derivatives():
    weights = [torch.randn(*s, dtype=torch.float64) for s in ((6, 2), (6, 2), (6,), (6,))]
    x = torch.randn(2, 1, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: reference.gru(x, None, weights)[0], [x])
