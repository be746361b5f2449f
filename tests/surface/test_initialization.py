"""fastrnn.init_: what each option gives every gate of every layer and direction."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fastrnn
from tests.cases import GATES

LAYERS = [
    (library, name, options)
    for library in (nn, fastrnn)
    for name in GATES
    for options in ({}, {"num_layers": 2, "bidirectional": True})
]


def gate_blocks(layer, stem, gates):
    """Each gate's block of the weights whose names begin so."""
    return [b for n, p in layer.named_parameters() if n.startswith(stem) for b in p.chunk(gates)]


@pytest.mark.parametrize(("library", "name", "options"), LAYERS)
def test_every_gate_layer_and_direction(library, name, options):
    layer = getattr(library, name)(9, 16, **options)
    assert fastrnn.init_(layer) is layer
    gates = GATES[name]
    blocks = gate_blocks(layer, "weight_hh", gates)
    assert len(blocks) == gates * (4 if options else 1)
    for block in blocks:
        torch.testing.assert_close(block @ block.t(), torch.eye(16), atol=1e-5, rtol=0)
    assert len({block.sum().item() for block in blocks}) == len(blocks)  # each drawn anew
    for block in gate_blocks(layer, "weight_ih", gates):
        limit = math.sqrt(6 / (block.shape[0] + block.shape[1]))
        assert 0.8 * limit < block.abs().max() <= limit
    for suffix in {n[len("bias_ih") :] for n, _ in layer.named_parameters() if n[:7] == "bias_ih"}:
        total = getattr(layer, "bias_ih" + suffix) + getattr(layer, "bias_hh" + suffix)
        expected = torch.zeros(gates, 16)
        if gates > 1:
            expected[1] = 1.0  # f of i, f, g, o; z of r, z, n
        assert torch.equal(total.view(gates, 16), expected)


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize("library", [nn, fastrnn], ids=["torch", "fastrnn"])
def test_cells_have_the_layers_numbers(library, name):
    cell, layer = getattr(library, name)(5, 8), getattr(library, name[:-4])(5, 8)
    torch.manual_seed(4)
    fastrnn.init_(cell)
    torch.manual_seed(4)
    fastrnn.init_(layer)
    for key, value in cell.state_dict().items():
        assert torch.equal(value, layer.state_dict()[key + "_l0"])


def test_seed():
    a, b = fastrnn.LSTM(5, 8, 2), fastrnn.LSTM(5, 8, 2)
    for layer in (a, b):
        torch.manual_seed(1)
        fastrnn.init_(layer, chrono=50)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    fastrnn.init_(b, chrono=50)
    assert not torch.equal(a.weight_hh_l1, b.weight_hh_l1)
    assert not torch.equal(a.bias_ih_l0, b.bias_ih_l0)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_forget_bias(name):
    layer = getattr(fastrnn, name)(3, 6, bidirectional=True)
    before = {n: p.clone() for n, p in layer.named_parameters()}
    fastrnn.init_(layer, forget_bias=2.5, weight_ih=None, weight_hh=None, bias=None)
    for suffix in ("_l0", "_l0_reverse"):
        assert torch.equal(getattr(layer, "bias_ih" + suffix)[6:12], torch.full((6,), 2.5))
        assert not getattr(layer, "bias_hh" + suffix)[6:12].any()
        for stem in ("bias_ih", "bias_hh"):  # the other gates' biases stay, and the weights
            bias, old = getattr(layer, stem + suffix), before[stem + suffix]
            assert torch.equal(bias[:6], old[:6]) and torch.equal(bias[12:], old[12:])
        assert torch.equal(getattr(layer, "weight_hh" + suffix), before["weight_hh" + suffix])
        assert torch.equal(getattr(layer, "weight_ih" + suffix), before["weight_ih" + suffix])


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_chrono(name):
    h, longest = 1000, 200
    layer = getattr(fastrnn, name)(1, h, device="meta").to_empty(device="cpu")
    fastrnn.init_(layer, chrono=longest, weight_ih=None, weight_hh=None)
    keep = (layer.bias_ih_l0 + layer.bias_hh_l0)[h : 2 * h].detach()
    u = keep.exp()
    assert u.min() >= 1 - 1e-4 and u.max() <= longest - 1 + 1e-2
    # Uniform: the mean and the largest gap of 1,000 sorted numbers.
    assert abs(u.mean().item() / (longest / 2) - 1) < 0.05
    assert u.sort().values.diff().max() < 198 * 12 / 1000
    first = (layer.bias_ih_l0 + layer.bias_hh_l0)[:h].detach()
    assert torch.equal(first, -keep if name == "LSTM" else torch.zeros(h))
    assert not (layer.bias_ih_l0 + layer.bias_hh_l0)[2 * h :].any()


@pytest.mark.parametrize(
    ("scheme", "spread", "uniform"),
    [
        ("xavier_uniform", math.sqrt(2 / (400 + 100)), True),
        ("xavier_normal", math.sqrt(2 / (400 + 100)), False),
        ("kaiming_uniform", math.sqrt(1 / 100), True),
        ("kaiming_normal", math.sqrt(1 / 100), False),
    ],
)
def test_schemes(scheme, spread, uniform):
    layer = fastrnn.GRU(100, 400)
    fastrnn.init_(layer, weight_ih=scheme, weight_hh=None)
    for block in gate_blocks(layer, "weight_ih", 3):
        assert abs(block.std().item() / spread - 1) < 0.02
        assert (block.abs().max() <= spread * math.sqrt(3) * 1.001) == uniform
    relu = fastrnn.RNN(100, 400, nonlinearity="relu")
    fastrnn.init_(relu, weight_ih=scheme)
    factor = math.sqrt(2) if scheme[:2] == "ka" else 1
    assert abs(relu.weight_ih_l0.std().item() / (factor * spread) - 1) < 0.02


def test_projection_dtype_and_no_graph():
    layer = fastrnn.LSTM(6, 12, proj_size=5, dtype=torch.bfloat16)
    fastrnn.init_(layer, weight_hr="orthogonal")
    w = layer.weight_hr_l0.float()
    # Of weights that were rounded to bfloat16's 8 bits.
    torch.testing.assert_close(w @ w.t(), torch.eye(5), atol=0.02, rtol=0)
    for block in gate_blocks(layer, "weight_hh", 4):  # [12, 5]: orthonormal columns
        torch.testing.assert_close(
            block.float().t() @ block.float(), torch.eye(5), atol=0.02, rtol=0
        )
    assert all(p.requires_grad and p.is_leaf and p.grad_fn is None for p in layer.parameters())


def test_model_and_no_biases():
    model = nn.ModuleList([nn.Linear(3, 3), nn.LSTM(3, 4, bias=False), fastrnn.GRUCell(4, 4)])
    before = model[0].weight.clone()
    fastrnn.init_(model)
    assert torch.equal(model[0].weight, before)
    for block in (*model[1].weight_hh_l0.chunk(4), *model[2].weight_hh.chunk(3)):
        torch.testing.assert_close(block @ block.t(), torch.eye(4), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kind", "message", "make", "options"),
    [
        (TypeError, "torch.nn.Module, got str", lambda: "model", {}),
        (ValueError, "with recurrent layers or cells, got none", lambda: nn.Linear(1, 1), {}),
        (ValueError, "weight_hh to be None or of .* got 'random'", lambda: nn.GRU(1, 1),
         {"weight_hh": "random"}),
        (ValueError, "bias to be 'zeros' or None, got 'ones'", lambda: nn.GRU(1, 1),
         {"bias": "ones"}),
        (ValueError, "forget_bias or chrono, got both", lambda: nn.GRU(1, 1),
         {"forget_bias": 1.0, "chrono": 10}),
        (ValueError, "at least 2 steps, got 1", lambda: nn.GRU(1, 1), {"chrono": 1}),
        (ValueError, "with gates for chrono, got a RNN", lambda: nn.RNN(1, 1), {"chrono": 10}),
        (ValueError, "with biases for chrono", lambda: nn.GRU(1, 1, bias=False), {"chrono": 10}),
        (ValueError, "with biases for forget_bias", lambda: nn.GRU(1, 1, bias=False),
         {"forget_bias": 1.0}),
        (TypeError, "forget_bias to be None or a number", lambda: nn.LSTM(1, 2),
         {"forget_bias": "a"}),
        (TypeError, "chrono to be None or a number", lambda: nn.LSTM(1, 2), {"chrono": "a"}),
        (ValueError, "forget_bias to be finite", lambda: nn.LSTM(1, 2),
         {"forget_bias": float("nan")}),
        (ValueError, "chrono to be finite", lambda: nn.LSTM(1, 2), {"chrono": float("inf")}),
        (ValueError, "weight_hh to be None or of", lambda: nn.LSTM(1, 2),
         {"weight_hh": ["orthogonal"]}),
        (ValueError, "weight_hh_l0 of .* to be a parameter",
         lambda: parametrizations.weight_norm(nn.GRU(1, 2), "weight_hh_l0"), {}),
    ],
)  # fmt: skip
def test_errors(kind, message, make, options):
    module = make()
    before = [p.clone() for p in module.parameters()] if isinstance(module, nn.Module) else []
    with pytest.raises(kind, match=message):
        fastrnn.init_(module, **options)
    if before:  # nothing was changed
        assert all(torch.equal(a, b) for a, b in zip(before, module.parameters()))
