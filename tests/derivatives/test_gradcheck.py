"""Numerical derivatives in float64, first and second, of the layers and of the cells."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastrnn
from tests.cases import CELLS, KINDS, Case

SETTINGS = {
    "plain": {},
    "no_bias": {"options": {"bias": False}},
    "no_hx": {"hx": False},
    "bidirectional": {"options": {"bidirectional": True}},
    "stacked": {"options": {"num_layers": 2, "bidirectional": True, "batch_first": True}},
    "packed": {"lengths": (2, 3, 1), "options": {"bidirectional": True}},
    "one_step": {"seq_len": 1},
}


def leaf(tensor):
    return tensor.detach().double().requires_grad_()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_layers(kind, setting):
    case = Case(kind, **{"seq_len": 3, "batch": 2, "input_size": 2, "hidden_size": 3, **setting})
    _, module = case.modules(torch.float64)
    data = case.data(torch.float64)
    names = [name for name, _ in module.named_parameters()]
    inputs, states = len(data.inputs), len(data.states or [])

    def call(*tensors):
        input, hx = tensors[:inputs], tensors[inputs : inputs + states]
        input = pack_sequence(input, enforce_sorted=False) if data.packed else input[0]
        hx = None if not hx else tuple(hx) if case.name == "LSTM" else hx[0]
        weights = dict(zip(names, tensors[inputs + states :], strict=True))
        output, final = torch.func.functional_call(module, weights, (input, hx))
        output = output.data if isinstance(output, PackedSequence) else output
        return output, *(final if case.name == "LSTM" else (final,))

    tensors = [leaf(t) for t in (*data.inputs, *(data.states or []), *module.parameters())]
    # Away from the kink of relu, whose one-sided slopes no difference quotient has.
    forward = not data.packed  # torch's pack_sequence has none; test_second_order packs before
    assert gradcheck(call, tensors, check_forward_ad=forward, fast_mode=True)
    assert gradgradcheck(call, tensors, check_fwd_over_rev=forward, fast_mode=True)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (2,)], ids=["unbatched", "batched"])
def test_cells(name, bias, batch):
    module = getattr(fastrnn, name)(2, 3, bias=bias, dtype=torch.float64)
    names = [n for n, _ in module.named_parameters()]
    states = 2 if name == "LSTMCell" else 1

    def call(input, *rest):
        hx = rest[:states] if states == 2 else rest[0]
        weights = dict(zip(names, rest[states:], strict=True))
        return torch.func.functional_call(module, weights, (input, hx))

    tensors = [torch.randn(*batch, 2), *(torch.randn(*batch, 3) for _ in range(states))]
    leaves = [leaf(t) for t in (*tensors, *module.parameters())]
    assert gradcheck(call, leaves, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(call, leaves, check_fwd_over_rev=True, fast_mode=True)
