"""NaN, infinity, saturated gates, denormals: as torch.nn, and confined to their own rows."""

import pytest
import torch

import fastrnn
from tests.cases import KINDS, Case
from tests.fuzz import compare

SPECIAL = {"nan": torch.nan, "inf": torch.inf, "minus_inf": -torch.inf, "large": 1e4}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", SPECIAL.values(), ids=SPECIAL)
@pytest.mark.parametrize("where", ["input", "state", "weight"])
def test_special_values(cpu_target, kind, value, where):
    case = Case(kind, batch=7, hidden_size=18)
    theirs, ours = case.modules()
    data = case.data()
    if where == "input":
        data.inputs[0][1, 3, 2] = value
    elif where == "state":
        data.states[-1][0, 3, 5] = value
    else:
        for module in (theirs, ours):
            with torch.no_grad():
                module.weight_ih_l0[4, 1] = value
    compare(theirs, ours, data, case.seq_len)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_in_its_sequence(cpu_target, kind):
    case = Case(kind, batch=7, hidden_size=33)
    _, module = case.modules()
    x = case.data().inputs[0]
    clean, _ = module(x)
    x[2, 3, 0] = torch.nan
    output, _ = module(x)
    others = [0, 1, 2, 4, 5, 6]
    assert torch.equal(output[:, others], clean[:, others])
    assert torch.equal(output[:2], clean[:2])
    assert output[2:, 3].isnan().all()


def test_saturated_gates(cpu_target):
    """Arguments beyond where exp overflows or underflows."""
    for value in (20.0, 90.0, 200.0, 1e4, 3e38):
        for sign in (1, -1):
            module = fastrnn.LSTM(1, 17)
            with torch.no_grad():
                module.weight_ih_l0.fill_(sign * value)
            y, (h, c) = module(torch.ones(3, 2, 1, requires_grad=True))
            assert y.isfinite().all() and c.isfinite().all()
            y.sum().backward()
            assert all(p.grad.isfinite().all() for p in module.parameters())


def test_denormal_mode_is_restored(cpu_target):
    """Kernels flush denormals; the caller's arithmetic must not."""
    tiny = torch.tensor([1e-40])
    assert (tiny * 0.5).item() > 0
    module = fastrnn.LSTM(64, 64)
    y, _ = module(torch.randn(20, 16, 64, requires_grad=True))
    assert (tiny * 0.5).item() > 0
    y[-1].sum().backward()
    assert (tiny * 0.5).item() > 0
