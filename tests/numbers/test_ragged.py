"""Ragged rows, one sequence behind the other: cu_seqlens and torch's NestedTensor."""

import copy

import pytest
import torch
from torch import nn

import fastrnn
from fastrnn import functional, variants
from tests.options import pieces

LENGTHS = (4, 0, 7, 1, 4)
F, H = 3, 5
LAYERS = {
    "LSTM": (fastrnn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "LSTM-projected": (fastrnn.LSTM, {"proj_size": 2, "batch_first": True}),
    "GRU": (fastrnn.GRU, {"bidirectional": True, "batch_first": True}),
    "RNN": (fastrnn.RNN, {"nonlinearity": "relu", "num_layers": 2}),
    "LSTM-layer_norm": (variants.LSTM, {"layer_norm": True, "bidirectional": True}),
    "Dreamer": (variants.DreamerGRU, {"num_layers": 2}),
    "Peephole": (variants.PeepholeLSTM, {}),
}


def layer(name, dtype=torch.float64):
    cls, options = LAYERS[name]
    return cls(F, H, **options, dtype=dtype)


def data(module, lengths=LENGTHS, dtype=torch.float64):
    """Ragged rows, cu_seqlens, and states that no row shares."""
    rows = torch.randn(sum(lengths), F, dtype=dtype, requires_grad=True)
    indices = module.num_layers * (2 if module.bidirectional else 1)
    sizes = (module.proj_size or H, H)[: 2 if "LSTM" in module.mode else 1]
    states = [torch.randn(indices, len(lengths), s, dtype=dtype, requires_grad=True) for s in sizes]
    return rows, torch.tensor([0, *lengths]).cumsum(0), states


def hx_of(states):
    return tuple(states) if len(states) > 1 else states[0]


def padded(rows, lengths, batch_first):
    """Ragged rows as a batch, through autograd; nonsense where there is none."""
    batch = torch.full((len(lengths), max(lengths), rows.shape[1]), 9.0, dtype=rows.dtype)
    for b, part in enumerate(rows.split(lengths)):
        batch[b, : lengths[b]] = part
    return batch if batch_first else batch.transpose(0, 1)


def ragged(batch, lengths, batch_first):
    batch = batch if batch_first else batch.transpose(0, 1)
    return torch.cat([batch[b, :n] for b, n in enumerate(lengths)])


def leaves(output, hx):
    return [output, *(hx if isinstance(hx, tuple) else (hx,))]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("with_hx", [False, True])
def test_as_lengths(name, with_hx):
    """The numbers of a padded batch with lengths, gradients included."""
    module = layer(name)
    rows, cu_seqlens, states = data(module)
    hx, wanted = (hx_of(states), states) if with_hx else (None, [])
    first = module.batch_first
    found = module(rows, hx, cu_seqlens=cu_seqlens)
    output, final = module(padded(rows, LENGTHS, first), hx, lengths=LENGTHS)
    expected = ragged(output, LENGTHS, first), final
    gradients = []
    for results in (found, expected):
        results = leaves(*results)
        torch.manual_seed(1)
        loss = sum((r * torch.randn_like(r)).sum() for r in results)
        arguments = [rows, *wanted, *module.parameters()]
        gradients.append([*results, *torch.autograd.grad(loss, arguments)])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert with_hx or not any(r[:, 1].any() for r in leaves(*found)[1:])  # it has no step


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("reset_to", ["zeros", "hx"])
def test_resets_and_states(name, reset_to):
    """Each sequence alone, with its pieces and the states of its steps."""
    module = layer(name)
    module.batch_first = False
    rows, cu_seqlens, states = data(module)
    resets = torch.rand(len(rows)) < 0.4
    options = {"reset_to": reset_to, "return_states": True, "cu_seqlens": cu_seqlens}
    output, final, each = module(rows, hx_of(states), resets=resets, **options)
    final = leaves(output, final)[1:]
    for b, (begin, end) in enumerate(zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist())):
        own = [s[:, b : b + 1] for s in states]
        if begin == end:
            assert all(torch.equal(f[:, b], s[:, 0]) for f, s in zip(final, own))
            continue
        arguments = rows[begin:end, None], hx_of(own), resets[begin:end, None], reset_to
        expected, last = pieces(module, *arguments)
        torch.testing.assert_close(output[begin:end], expected[:, 0])
        for f, e in zip(final, leaves(expected, last)[1:], strict=True):
            torch.testing.assert_close(f[:, b], e[:, 0])
        alone = module(*arguments[:2], resets=arguments[2], reset_to=reset_to, return_states=True)
        for a, e in zip(each, alone[2], strict=True):
            assert (a is None) == (e is None)
            if a is not None:
                torch.testing.assert_close(a[:, begin:end], e[:, :, 0])


def test_kinds_of_borders():
    module = layer("GRU")
    rows, cu_seqlens, _ = data(module)
    expected = module(rows, cu_seqlens=cu_seqlens)
    for other in (cu_seqlens.int(), cu_seqlens.tolist(), cu_seqlens.numpy()):
        assert all(map(torch.equal, module(rows, cu_seqlens=other), expected))
    params = [p for _, p in module.named_parameters()]
    options = {"bidirectional": True, "cu_seqlens": cu_seqlens}
    assert all(map(torch.equal, functional.gru(rows, None, params, **options), expected))


@pytest.mark.parametrize("lengths", [(3,), (0,), (0, 0), (1, 1, 1), (1, 0)], ids=str)
def test_few_rows(lengths):
    module = layer("LSTM")
    rows, cu_seqlens, states = data(module, lengths)
    output, final = module(rows, hx_of(states), cu_seqlens=cu_seqlens)
    assert output.shape == (sum(lengths), 2 * H)
    batch = torch.zeros(1, len(lengths), F, dtype=torch.float64)
    if sum(lengths):
        batch = padded(rows, lengths, False)
    expected, last = module(batch, hx_of(states), lengths=torch.tensor(lengths))
    torch.testing.assert_close(output, ragged(expected, lengths, False))
    for f, e in zip(final, last):
        torch.testing.assert_close(f, e)
    torch.autograd.grad(final[1].sum() + output.sum(), [rows, *states])


@pytest.mark.parametrize("name", LAYERS)
def test_nested_tensors(name):
    module = layer(name)
    rows, cu_seqlens, states = data(module)
    expected = leaves(*module(rows, hx_of(states), cu_seqlens=cu_seqlens))
    nested = torch.nested.nested_tensor_from_jagged(rows, cu_seqlens)
    output, final = module(nested, hx_of(states))
    assert output.is_nested and output.shape[:2] == nested.shape[:2]
    assert torch.equal(output.offsets(), cu_seqlens)
    found = leaves(output.values(), final)
    assert all(map(torch.equal, found, expected))
    # What follows a layer adds and multiplies ragged tensors of one shape.
    loss = (output * output).sum() + nested.sum() + sum(f.sum() for f in found[1:])
    known = (expected[0] ** 2).sum() + rows.sum() + sum(f.sum() for f in expected[1:])
    for a, b in zip(*(torch.autograd.grad(x, [rows, *states]) for x in (loss, known)), strict=True):
        torch.testing.assert_close(a, b)


def test_derivatives():
    module = layer("LSTM")
    rows, cu_seqlens, states = data(module, (2, 0, 3))

    def call(rows, *states):
        return tuple(leaves(*module(rows, states, cu_seqlens=cu_seqlens)))

    assert torch.autograd.gradcheck(call, (rows, *states), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, (rows, *states))
    many = torch.stack([rows, -rows]).detach()
    expected = [call(r, *states)[0] for r in many]
    mapped = torch.func.vmap(lambda r: call(r, *states)[0])(many)
    torch.testing.assert_close(mapped, torch.stack(expected))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16], ids=str)
def test_quantized(dtype):
    module = fastrnn.quantize(layer("LSTM", torch.float32), dtype, inplace=False)
    rows, cu_seqlens, states = data(module, dtype=torch.float32)
    rows, hx = rows.detach(), hx_of([s.detach() for s in states])
    found = leaves(*module(rows, hx, cu_seqlens=cu_seqlens))
    output, final = module(padded(rows, LENGTHS, False), hx, lengths=LENGTHS)
    assert all(map(torch.equal, found, leaves(ragged(output, LENGTHS, False), final)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype):
    module = layer("GRU", torch.float32)
    rows, cu_seqlens, _ = data(module, dtype=torch.float32)
    with torch.autocast("cpu", dtype):
        found = leaves(*module(rows, cu_seqlens=cu_seqlens))
        output, final = module(padded(rows, LENGTHS, True), lengths=LENGTHS)
    assert all(map(torch.equal, found, leaves(ragged(output, LENGTHS, True), final)))


class Model(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.rnn = module

    def forward(self, rows, cu_seqlens):
        return self.rnn(rows, cu_seqlens=cu_seqlens)[0]


def test_compile():
    """One graph for all lengths, of rows and of nested tensors."""
    module = layer("LSTM")
    compiled = torch.compile(Model(module), fullgraph=True, dynamic=True)
    nested = torch.compile(lambda x: module(x)[0] * 2, fullgraph=True, dynamic=True)
    for lengths in (LENGTHS, (3, 5), (2, 2, 6, 1)):
        rows, cu_seqlens, _ = data(module, lengths)
        expected = module(rows, cu_seqlens=cu_seqlens)[0]
        known = torch.autograd.grad(expected.square().sum(), rows)[0]
        torch.testing.assert_close(compiled(rows, cu_seqlens), expected)
        found = nested(torch.nested.nested_tensor_from_jagged(rows, cu_seqlens))
        torch.testing.assert_close(found.values(), 2 * expected)
        d_rows = torch.autograd.grad(found.values().square().sum() / 4, rows)[0]
        torch.testing.assert_close(d_rows, known)


def test_export():
    model = Model(layer("GRU", torch.float32)).eval()
    rows, cu_seqlens, _ = data(model.rnn, dtype=torch.float32)
    dims = {0: torch.export.Dim("rows")}, {0: torch.export.Dim("borders", min=3)}
    program = torch.export.export(model, (rows, cu_seqlens), dynamic_shapes=dims)
    rows, cu_seqlens, _ = data(model.rnn, (2, 9, 0), torch.float32)
    torch.testing.assert_close(program.module()(rows, cu_seqlens), model(rows, cu_seqlens))


def test_meta():
    module = copy.deepcopy(layer("LSTM")).to("meta")
    rows, cu_seqlens, _ = data(module)
    output, (h_n, c_n) = module(rows.to("meta"), cu_seqlens=cu_seqlens)
    assert output.is_meta and output.shape == (len(rows), 2 * H)
    assert h_n.shape == c_n.shape == (4, len(LENGTHS), H)


ROWS, BORDERS = torch.zeros(6, F), [0, 2, 6]
WRONG = {
    "3-D input": (ValueError, r"input of shape \(sum of lengths, input_size\)",
                  lambda m: m(ROWS[:, None], cu_seqlens=BORDERS)),
    "rows": (RuntimeError, "from 0 to the number of rows, 6, .* got from 0 to 5",
             lambda m: m(ROWS, cu_seqlens=[0, 2, 5])),
    "begin": (RuntimeError, "got from 1 to 6", lambda m: m(ROWS, cu_seqlens=[1, 2, 6])),
    "order": (RuntimeError, "none below the one before",
              lambda m: m(ROWS, cu_seqlens=[0, 4, 2, 6])),
    "no sequence": (RuntimeError, r"shape \(batch \+ 1,\) with batch > 0, got \(1,\)",
                    lambda m: m(ROWS[:0], cu_seqlens=[0])),
    "2-D": (RuntimeError, r"got \(1, 3\)", lambda m: m(ROWS, cu_seqlens=[BORDERS])),
    "floats": (RuntimeError, "cu_seqlens as integers",
               lambda m: m(ROWS, cu_seqlens=[0.0, 2.0, 6.0])),
    "a word": (TypeError, "cu_seqlens to be a Tensor", lambda m: m(ROWS, cu_seqlens="0 2 6")),
    "lengths too": (ValueError, "lengths or cu_seqlens, got both",
                    lambda m: m(ROWS, cu_seqlens=BORDERS, lengths=[2, 4])),
    "packed": (ValueError, "expected padded input with cu_seqlens, got packed",
               lambda m: m(nn.utils.rnn.pack_sequence([ROWS]), cu_seqlens=BORDERS)),
    "resets": (RuntimeError, r"resets of shape \(sum of lengths,\) = \(6,\), got \(6, 1\)",
               lambda m: m(ROWS, cu_seqlens=BORDERS, resets=torch.zeros(6, 1, dtype=torch.bool))),
    "hx": (RuntimeError, r"h_0 of shape .* = \(2, 2, 5\), got \(2, 3, 5\)",
           lambda m: m(ROWS, torch.zeros(2, 3, H), cu_seqlens=BORDERS)),
    "features": (RuntimeError, "input_size = 3", lambda m: m(ROWS[:, :2], cu_seqlens=BORDERS)),
    "nested with cu_seqlens": (
        ValueError, "cu_seqlens=None with a NestedTensor",
        lambda m: m(torch.nested.nested_tensor_from_jagged(ROWS, torch.tensor(BORDERS)),
                    cu_seqlens=BORDERS)),
    "nested 4-D": (
        RuntimeError, r"NestedTensor of shape \(batch, lengths, input_size\)",
        lambda m: m(torch.nested.nested_tensor_from_jagged(ROWS[..., None],
                                                           torch.tensor(BORDERS)))),
    "nested, strided": (
        RuntimeError, "expected input to be a dense tensor",
        lambda m: m(torch.nested.nested_tensor([ROWS, ROWS[:2]], layout=torch.strided))),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_errors(wrong):
    error, message, call = WRONG[wrong]
    with pytest.raises(error, match=message):
        call(layer("GRU", torch.float32))
