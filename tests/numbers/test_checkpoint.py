"""checkpoint_every: gradients of the plain layer, less memory, and what falls back."""

import copy
import pickle

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from fastrnn.functional import gru
from tests.cases import KINDS, Case, results
from tests.tolerances import error


def pair(case, every, dtype=torch.float64):
    """`(plain, checkpointed)` layers with the same weights."""
    plain = case.modules(dtype)[1]
    other = copy.deepcopy(plain)
    other.checkpoint_every = every
    return plain, other


def compare(case, every, dtype=torch.float64, limit=1e-12):
    plain, other = pair(case, every, dtype)
    data = case.data(dtype)
    expected, actual = (
        results(m, dict(m.named_parameters()), data, m.mode == "LSTM") for m in (plain, other)
    )
    for name, value in expected.items():
        assert error(actual[name], value) <= limit, name
    return plain, other, data


@pytest.fixture
def operators(monkeypatch):
    """Counts calls of layer_forward by whether they save."""
    from fastrnn._layer import ops

    calls, real = {True: 0, False: 0}, ops.layer_forward

    def count(*arguments):
        calls[arguments[-1]] += 1
        return real(*arguments)

    monkeypatch.setattr(ops, "layer_forward", count)
    return calls


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("every", [1, 3, 4, 11])
@pytest.mark.parametrize("hx", [True, False], ids=["hx", "no_hx"])
def test_gradients(operators, kind, every, hx):
    case = Case(kind, 12, 3, 5, 17, hx=hx)
    compare(case, every)
    chunks = -(-12 // every)
    # The plain layer saves once; each chunk runs once without saving and once with.
    assert operators == {True: 1 + chunks, False: chunks}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_layers_and_directions(operators, kind, bias):
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": bias}
    compare(Case(kind, 10, 3, 5, 9, options=options), 4)
    assert operators == {True: 2 + 2 * 2 * 3, False: 2 * 2 * 3}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dtypes(cpu_target, kind, dtype):
    limit = 8 * torch.finfo(dtype).eps  # of sums in another order; a state kept in 16 bits too
    compare(Case(kind, 40, 9, 20, 33, options={"bidirectional": True}), 16, dtype, limit)


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_of_forward_changes(kind):
    """Chunks of 8 rows and more are computed as the whole is: not one bit differs."""
    plain, other = pair(Case(kind, 30, 9, 20, 33), 10, torch.float32)
    x = torch.randn(30, 9, 20)
    (a, states), (b, others) = plain(x), other(x)
    assert torch.equal(a, b)
    for s, o in zip(*(s if isinstance(s, tuple) else (s,) for s in (states, others))):
        assert torch.equal(s, o)


@pytest.mark.parametrize("which", ["output", "h_n", "c_n"])
def test_one_gradient_comes_in(which):
    plain, other = pair(Case("lstm", 9, 2, 3, 5), 4)
    found = []
    for module in (plain, other):
        x = torch.linspace(-1, 1, 54).double().view(9, 2, 3).requires_grad_()
        output, (h_n, c_n) = module(x)
        {"output": output, "h_n": h_n, "c_n": c_n}[which].sum().backward()
        found.append([x.grad, *(p.grad for p in module.parameters())])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("frozen", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0", "all", "input"])
def test_frozen(frozen):
    plain, other = pair(Case("gru", 9, 2, 3, 5), 4)
    found = []
    for module in (plain, other):
        for name, p in module.named_parameters():
            p.requires_grad_(frozen not in (name, "all"))
        x = torch.ones(9, 2, 3).double().requires_grad_(frozen != "input")
        module(x)[0].sum().backward()
        found.append([x.grad, *(p.grad for p in module.parameters())])
    for a, b in zip(*found):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives(kind):
    case = Case(kind, 6, 2, 3, 4, options={"bidirectional": True})
    plain, other = pair(case, 4)
    data = case.data(torch.float64)
    found = []
    for module in (plain, other):
        x = data.inputs[0].clone().requires_grad_()
        sources = [x, *module.parameters()]
        loss = module(x, tuple(data.states) if module.mode == "LSTM" else data.states[0])[0]
        first = torch.autograd.grad((loss * data.losses[0]).sum(), sources, create_graph=True)
        second = torch.autograd.grad(sum((g * g).sum() for g in first), sources)
        found.append([*first, *second])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b)


def through_states(module, x, hx):
    _, hx = module(x, hx)
    return module(x, hx)


def through_input(module, x, hx):
    return module(x * module.weight_hh_l0.sum(), hx)


def twice(module, x, hx):
    """One tensor, computed from a weight, as both states."""
    if module.mode != "LSTM":
        return module(x, hx * module.weight_hh_l0.sum())
    h = hx[0] * module.weight_hh_l0.sum()
    return module(x, (h, h))


def tied(module, x, hx):
    module.weight_hh_l0_reverse = module.weight_hh_l0
    return module(x, hx)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("call", [through_states, through_input, twice, tied])
def test_first_order_with_graph_where_arguments_share_history(name, call):
    """create_graph counts no path through another argument twice."""
    module = getattr(fastrnn, name)(3, 4, bidirectional=True, checkpoint_every=2).double()
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    h = torch.randn(2, 2, 4, dtype=torch.float64, requires_grad=True)
    hx = (h, h) if name == "LSTM" else h
    results = {}
    for every in (2, None):
        module.checkpoint_every = every
        sources = [x, h, *module.parameters()]
        first = torch.autograd.grad(
            call(module, x, hx)[0].square().sum(), sources, create_graph=True, allow_unused=True
        )
        first = [g for g in first if g is not None]
        total = sum(g.square().sum() for g in first)
        second = torch.autograd.grad(total, sources, allow_unused=True)
        results[every] = [*first, *(g for g in second if g is not None)]
    for a, b in zip(results[2], results[None], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_gradcheck():
    layer = fastrnn.LSTM(2, 3, bidirectional=True, dtype=torch.float64, checkpoint_every=2)
    x = torch.randn(5, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x)[0], (x,))
    assert torch.autograd.gradgradcheck(lambda x: layer(x)[0], (x,))


def test_twice_and_in_place():
    """Backward twice, and outputs changed in between, as with the plain layer."""
    plain, other = pair(Case("gru", 9, 2, 3, 5), 4)
    x = torch.randn(9, 2, 3).double().requires_grad_()
    expected = torch.autograd.grad(plain(x)[0].sum(), x)[0]
    output, h_n = other(x)
    loss = output.sum()
    with torch.no_grad():
        output.zero_()
        h_n.zero_()
    for _ in range(2):
        torch.testing.assert_close(torch.autograd.grad(loss, x, retain_graph=True)[0], expected)


def test_what_keeps_everything(operators, through_operators):
    layer = fastrnn.GRU(3, 4, checkpoint_every=2)
    rows = [torch.randn(n, 3) for n in (5, 3)]
    layer(pack_sequence(rows))
    assert operators == {True: 1, False: 0}
    layer(torch.randn(2, 1, 3))  # no longer than a chunk
    assert operators == {True: 2, False: 0}
    with torch.no_grad():
        layer(torch.randn(5, 1, 3))
    assert operators == {True: 2, False: 1}
    x = torch.randn(5, 1, 3)
    plain = copy.deepcopy(layer)
    plain.checkpoint_every = None
    tangents = [
        torch.func.jvp(lambda x, m=m: m(x)[0], (x,), (torch.ones_like(x),)) for m in (layer, plain)
    ]
    for a, b in zip(*tangents):
        torch.testing.assert_close(a, b)


def kept_bytes(layer, x):
    kept = []

    def pack(tensor):
        kept.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x)
    return sum(kept)


def test_saved_memory():
    """What autograd keeps: input, weights, and states of every k-th step."""
    sizes = {}
    for every in (None, 50):
        layer = fastrnn.LSTM(8, 32, checkpoint_every=every)
        x = torch.randn(1000, 4, 8)
        sizes[every] = kept_bytes(layer, x) - x.nbytes
    assert sizes[None] > 20 * sizes[50]


def test_module_surface():
    layer = fastrnn.LSTM(3, 4, checkpoint_every=7)
    assert layer.checkpoint_every == 7 and fastrnn.LSTM(3, 4).checkpoint_every is None
    assert pickle.loads(pickle.dumps(layer)).checkpoint_every == 7
    assert copy.deepcopy(layer).checkpoint_every == 7
    output, _ = layer(torch.randn(20, 3))
    assert output.shape == (20, 4)
    x = torch.randn(9, 2, 3).requires_grad_()
    params = list(fastrnn.GRU(3, 4).parameters())
    a, b = (gru(x, None, params, checkpoint_every=k)[0] for k in (None, 2))
    torch.testing.assert_close(
        torch.autograd.grad(a.sum(), x)[0], torch.autograd.grad(b.sum(), x)[0]
    )


@pytest.mark.parametrize("every", [0, -1, 2.0, True, "k"])
def test_errors(every):
    for name in ("LSTM", "GRU", "RNN"):
        with pytest.raises(ValueError, match=f"{name.lower()}: expected checkpoint_every to be"):
            getattr(fastrnn, name)(2, 3, checkpoint_every=every)
    params = list(fastrnn.GRU(2, 3).parameters())
    with pytest.raises(ValueError, match="gru: expected checkpoint_every to be None or steps"):
        gru(torch.zeros(4, 1, 2), None, params, checkpoint_every=every)


@pytest.mark.parametrize("kind", KINDS)
def test_compile(kind):
    case = Case(kind, 9, 2, 3, 5, options={"bidirectional": True})
    plain, other = pair(case, 4)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    found = []
    for module, call in ((plain, plain), (other, compiled)):
        x = torch.linspace(-1, 1, 54).double().view(9, 2, 3).requires_grad_()
        output, _ = call(x)
        output.sum().backward()
        found.append([output, x.grad, *(p.grad for p in module.parameters())])
    for a, b in zip(*found):
        torch.testing.assert_close(a, b)


def test_chunks_of_a_stream():
    """Truncated backpropagation, the pattern of docs/long_sequences.md, is what it says it is."""
    layer = fastrnn.LSTM(3, 5).double()
    x = torch.randn(12, 2, 3).double()
    state, total = None, [torch.zeros_like(p) for p in layer.parameters()]
    outputs = []
    for chunk in x.split(4):
        output, state = layer(chunk, state)
        state = tuple(s.detach() for s in state)
        outputs.append(output.detach())
        for sum_, g in zip(total, torch.autograd.grad(output.sum(), list(layer.parameters()))):
            sum_ += g
    whole, _ = layer(x)
    torch.testing.assert_close(torch.cat(outputs), whole)
    # Each chunk's gradient alone: that of the last 4 steps from a constant state.
    hx = None
    expected = [torch.zeros_like(p) for p in layer.parameters()]
    for begin in (0, 4, 8):
        if begin:
            with torch.no_grad():
                _, hx = layer(x[:begin])
        output, _ = layer(x[begin : begin + 4], hx)
        for e, g in zip(expected, torch.autograd.grad(output.sum(), list(layer.parameters()))):
            e += g
    for a, b in zip(total, expected):
        torch.testing.assert_close(a, b)
