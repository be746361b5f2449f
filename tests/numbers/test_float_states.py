"""float32 states beside weights of 16 bits: a sequence cut into calls is the whole sequence."""

import copy

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from fastrnn import variants

T, B, F, H = 12, 3, 5, 17
LAYERS = {
    "LSTM": (fastrnn.LSTM, {}),
    "LSTM-projected": (fastrnn.LSTM, {"proj_size": 4}),
    "GRU": (fastrnn.GRU, {}),
    "RNN": (fastrnn.RNN, {}),
    "LSTM-norm": (variants.LSTM, {"layer_norm": True}),
    "GRU-zoneout": (variants.GRU, {"zoneout": 0.2}),
    "Dreamer": (variants.DreamerGRU, {}),
    "Coupled": (variants.CoupledLSTM, {}),
    "Peephole": (variants.PeepholeLSTM, {}),
}
CELLS = {
    "LSTMCell": fastrnn.LSTMCell,
    "GRUCell": fastrnn.GRUCell,
    "RNNCell": fastrnn.RNNCell,
    "DreamerGRUCell": variants.DreamerGRUCell,
}
DTYPES = [torch.bfloat16, torch.float16]


def layer(name, dtype, **more):
    cls, options = LAYERS[name]
    return cls(F, H, **{"num_layers": 2, **options, **more}, dtype=dtype).eval()


def states_of(module, batch=B):
    sizes = [module.proj_size or H, H][: 1 + module.mode.startswith("LSTM")]
    states = tuple(torch.randn(module.num_layers, batch, size) for size in sizes)
    return states if len(states) > 1 else states[0]


def leaves(value):
    return [t for t in torch.utils._pytree.tree_leaves(value) if torch.is_tensor(t)]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cut_and_whole_agree(name, dtype):
    """Row by row, in the precision of float32; the output is rounded as without states."""
    module = layer(name, dtype)
    x, hx = torch.randn(T, B, F).to(dtype), states_of(module)
    whole, final = module(x, hx)
    assert whole.dtype is dtype and all(s.dtype is torch.float32 for s in leaves(final))
    for every in (1, 5):
        parts, state = [], hx
        for part in x.split(every):
            output, state = module(part, state)
            parts.append(output)
        # What differs in the last bits of float32 may be rounded to neighbours.
        rounding = {"rtol": torch.finfo(dtype).eps, "atol": 1e-5}
        torch.testing.assert_close(torch.cat(parts), whole, **rounding)
        for ours, right in zip(leaves(state), leaves(final), strict=True):
            torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-6)
    wide = copy.deepcopy(module).float()
    expected = wide(x.float(), hx)
    assert torch.equal(whole, expected[0].to(dtype))
    assert all(map(torch.equal, leaves(final), leaves(expected[1])))


def test_counter():
    """Open gates and a candidate of tanh(1/2), 2,000 steps: bfloat16 stops at 128."""
    module = fastrnn.LSTM(1, 1, dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.bias_ih_l0.copy_(torch.tensor([20.0, 20.0, 0.5, 20.0]))
    x, zeros = torch.zeros(2000, 1, 1, dtype=torch.bfloat16), torch.zeros(1, 1, 1)
    right = 2000 * torch.tanh(torch.tensor(0.5)).item()
    assert module(x)[1][1].item() == pytest.approx(right, rel=2**-8)
    for every in (2000, 100, 1):
        state = zeros, zeros
        for part in x.split(every):
            _, state = module(part, state)
        assert state[1].item() == pytest.approx(right, rel=1e-4), every


@pytest.mark.parametrize("name", LAYERS)
def test_gradients(name):
    """In the dtype of each leaf, those of the same layer in float32, rounded."""
    module = layer(name, torch.bfloat16)
    wide = copy.deepcopy(module).float()
    x, hx = torch.randn(T, B, F).bfloat16(), states_of(module)
    found = []
    for run, dtype in ((module, torch.bfloat16), (wide, torch.float32)):
        input = x.to(dtype).requires_grad_()
        state = [s.clone().requires_grad_() for s in leaves(hx)]
        output, final = run(input, tuple(state) if len(state) > 1 else state[0])
        loss = output.float().sum() + sum(s.sum() for s in leaves(final))
        found.append(torch.autograd.grad(loss, [input, *state, *run.parameters()]))
    for ours, right in zip(*found, strict=True):
        assert ours.dtype in (torch.bfloat16, torch.float32)
        torch.testing.assert_close(ours.float(), right, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "LSTM-norm"])
def test_packed_lengths_and_states(name):
    module = layer(name, torch.bfloat16)
    wide = copy.deepcopy(module).float()
    x, hx, lengths = torch.randn(T, B, F).bfloat16(), states_of(module), torch.tensor([5, T, 1])
    options = {"lengths": lengths, "resets": torch.rand(T, B) < 0.2, "return_states": True}
    found, expected = module(x, hx, **options), wide(x.float(), hx, **options)
    assert torch.equal(found[0], expected[0].bfloat16())
    for ours, right in zip(leaves(found[1:]), leaves(expected[1:]), strict=True):
        assert ours.dtype is torch.float32 and torch.equal(ours, right)
    rows = [x[:n, b] for b, n in enumerate(lengths.tolist())]
    found = module(pack_sequence(rows, enforce_sorted=False), hx)
    expected = wide(pack_sequence([r.float() for r in rows], enforce_sorted=False), hx)
    assert torch.equal(found[0].data, expected[0].data.bfloat16())
    assert all(map(torch.equal, leaves(found[1]), leaves(expected[1])))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cells(name, dtype):
    cell = CELLS[name](F, H, dtype=dtype)
    wide = copy.deepcopy(cell).float()
    x = torch.randn(B, F).to(dtype)
    hx = torch.randn(B, H) if name != "LSTMCell" else (torch.randn(B, H), torch.randn(B, H))
    for ours, right in zip(leaves(cell(x, hx)), leaves(wide(x.float(), hx)), strict=True):
        assert ours.dtype is torch.float32 and torch.equal(ours, right)


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.float64,) * 2], ids=str)
def test_other_mixtures_are_refused(dtypes):
    module = layer("LSTM", torch.bfloat16)
    hx = tuple(s.to(dtype) for s, dtype in zip(states_of(module), dtypes))
    with pytest.raises(RuntimeError, match="dtype"):
        module(torch.randn(T, B, F).bfloat16(), hx)


def test_compile():
    module = layer("GRU", torch.bfloat16)
    x, hx = torch.randn(T, B, F).bfloat16(), states_of(module)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for ours, right in zip(leaves(compiled(x, hx)), leaves(module(x, hx)), strict=True):
        assert torch.equal(ours, right)
