"""What should be identical is compared for equality, not closeness."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import fastrnn
from tests.cases import CELLS, KINDS, LAYERS, Case, module_results


def assert_same(a, b):
    """Dicts of tensors, equal bit for bit up to the sign of zero; NaN equals NaN."""
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name].isnan(), b[name].isnan()), name
        assert torch.equal(a[name].nan_to_num(), b[name].nan_to_num()), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [(), (2, 5, 3)], ids=["padded", "packed"])
def test_no_hx_is_zeros(cpu_target, kind, lengths):
    case = Case(kind, lengths=lengths, options={"num_layers": 2, "bidirectional": True})
    _, module = case.modules()
    data = case.data()
    data.states = [torch.zeros_like(s) for s in data.states]
    zeros = module_results(module, data)
    data.states = None
    none = module_results(module, data)
    assert_same({k: zeros[k] for k in none}, none)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_first_is_transpose(kind):
    case = Case(kind, options={"num_layers": 2, "bidirectional": True})
    _, module = case.modules()
    data = case.data()
    expected = module_results(module, data)
    module.batch_first = True
    data.inputs = [data.inputs[0].transpose(0, 1).contiguous()]
    data.losses[0] = data.losses[0].transpose(0, 1)
    actual = module_results(module, data)
    for name in ("output", "d_input0"):
        actual[name] = actual[name].transpose(0, 1)
    assert_same(actual, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 6], ids="batch{}".format)
def test_unbatched_is_batch_of_one(kind, batch):
    case = Case(kind, seq_len=6, batch=batch, options={"num_layers": 2, "bidirectional": True})
    _, module = case.modules()
    data = case.data()
    input, pair = data.inputs[0][:, 0], case.name == "LSTM"
    states = [s[:, 0] for s in data.states]
    flat = module(input, tuple(states) if pair else states[0])
    states = [s[:, :1] for s in data.states]
    full = module(input.unsqueeze(1), tuple(states) if pair else states[0])
    assert torch.equal(flat[0], full[0].squeeze(1))
    for a, b in zip(flat[1], full[1]) if pair else [(flat[1], full[1])]:
        assert torch.equal(a, b.squeeze(1))
    module.batch_first = True  # without a batch, there is nothing to be first
    states = [s[:, 0] for s in data.states]
    assert torch.equal(module(input, tuple(states) if pair else states[0])[0], flat[0])


@pytest.mark.parametrize("kind", KINDS)
def test_equal_lengths_are_padded(kind):
    case = Case(kind, seq_len=5, options={"bidirectional": True})
    _, module = case.modules()
    data = case.data()
    hx = tuple(data.states) if case.name == "LSTM" else data.states[0]
    output, _ = module(data.inputs[0], hx)
    packed = pack_padded_sequence(data.inputs[0], [5] * 5)
    assert torch.equal(module(packed, hx)[0].data, output.flatten(0, 1))


@pytest.mark.parametrize("name", CELLS)
def test_cell_is_layer_of_one_step(name):
    cell = getattr(fastrnn, name)(6, 17)
    layer = getattr(fastrnn, name[:-4])(6, 17)
    layer.load_state_dict({f"{k}_l0": v for k, v in cell.state_dict().items()})
    x, states = torch.randn(5, 6), [torch.randn(5, 17) for _ in range(2)]
    hx = tuple(states) if name == "LSTMCell" else states[0]
    hx1 = tuple(s[None] for s in states) if name == "LSTMCell" else states[0][None]
    actual, (_, expected) = cell(x, hx), layer(x[None], hx1)
    for a, b in zip(actual, expected) if name == "LSTMCell" else [(actual, expected)]:
        assert torch.equal(a, b.squeeze(0))


VIEWS = {
    "slice_of_wider": lambda t: torch.cat([torch.full_like(t, torch.nan), t], -1)[
        ..., t.shape[-1] :
    ],
    "every_other": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "transposed": lambda t: t.mT.contiguous().mT,
    "permuted": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_strides(cpu_target, kind, view):
    case = Case(kind, options={"bidirectional": True})
    _, module = case.modules()
    data = case.data()
    pair = case.name == "LSTM"
    runs = []
    for change in (torch.clone, view):
        tensors = [change(t).detach().requires_grad_() for t in (*data.inputs, *data.states)]
        if change is view:
            with torch.no_grad():
                tensors = [view(t).requires_grad_() for t in (*data.inputs, *data.states)]
        output, final = module(tensors[0], tuple(tensors[1:]) if pair else tensors[1])
        outputs = [output, *(final if pair else (final,))]
        gradients = torch.autograd.grad(
            outputs, [*tensors, *module.parameters()], [change(w) for w in data.losses]
        )
        runs.append(dict(enumerate((*outputs, *gradients))))
    assert_same(*runs)


@pytest.mark.parametrize("name", LAYERS)
def test_expanded(name):
    module = getattr(fastrnn, name)(6, 17)
    x = torch.randn(1, 1, 6).expand(4, 3, 6)
    h = torch.randn(1, 1, 17).expand(1, 3, 17)
    hx = (h, h) if name == "LSTM" else h
    copies = (h.clone(), h.clone()) if name == "LSTM" else h.clone()
    output, expected = module(x, hx)[0], module(x.clone(), copies)[0]
    assert torch.equal(output, expected)
    gradients = [torch.autograd.grad(o.sum(), module.parameters()) for o in (output, expected)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


# How threads share the work: over rows, over hidden units, over directions too.
TEAMS = {
    "rows": {"seq_len": 9, "batch": 33, "input_size": 33, "hidden_size": 64},
    "units": {"seq_len": 6, "batch": 1, "input_size": 64, "hidden_size": 256},
    "both": {"seq_len": 7, "batch": 5, "input_size": 64, "hidden_size": 130},
    "packed": {"lengths": (9, 2, 7, 7, 5), "input_size": 64, "hidden_size": 130},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", TEAMS.values(), ids=TEAMS)
def test_threads_and_repeats(cpu_target, kind, sizes):
    """The number of threads does not matter to any result, nor does the run."""
    case = Case(kind, **sizes, options={"bidirectional": sizes["hidden_size"] == 130})
    _, module = case.modules()
    data, runs = case.data(), []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        runs.append(module_results(module, data))
    for run in runs[1:]:
        # d_w_hr is a product of torch's, which may round otherwise with other threads.
        for name in [n for n in run if "weight_hr" in n]:
            torch.testing.assert_close(run[name], runs[0][name])
            run[name] = runs[0][name]
        assert_same(runs[0], run)


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_do_not_matter(cpu_target, kind):
    """A sequence's result is the same whatever shares the batch, and so whatever tile holds it."""
    case = Case(kind, batch=13, hidden_size=33)
    _, module = case.modules()
    data = case.data()
    pair = case.name == "LSTM"
    full, _ = module(data.inputs[0], tuple(data.states) if pair else data.states[0])
    for count in (2, 5, 7):
        states = [s[:, :count] for s in data.states]
        part, _ = module(data.inputs[0][:, :count], tuple(states) if pair else states[0])
        assert torch.equal(part, full[:, :count]), count


@pytest.mark.parametrize("kind", KINDS)
def test_zero_batch(kind):
    case = Case(kind, batch=0, options={"num_layers": 2, "bidirectional": True})
    theirs, ours = case.modules()
    data = case.data()
    expected = module_results(theirs, data)
    # torch.nn's oneDNN gives undefined gradients here; zeros are what every other batch says.
    for name, tensor in module_results(ours, data).items():
        assert tensor.shape == expected[name].shape and not tensor.any(), name


def test_more_steps_than_16_bits(cpu_target):
    """T > 65,535: the same numbers as the sequence in two parts."""
    seq_len, half = 70_001, 40_000
    for name in LAYERS:
        module = getattr(fastrnn, name)(2, 3)
        x = torch.randn(seq_len, 1, 2)
        output, final = module(x)
        first, state = module(x[:half])
        second, last = module(x[half:], state)
        assert torch.equal(output, torch.cat([first, second])), name
        final, last = (final, last) if name == "LSTM" else ((final,), (last,))
        assert all(torch.equal(a, b) for a, b in zip(final, last)), name
        output.sum().backward()
        assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_packed_order(name):
    """Sorted, unsorted and enforce_sorted=False give each sequence the same result."""
    module = getattr(fastrnn, name)(6, 17, bidirectional=True)
    sequences = [torch.randn(n, 6) for n in (5, 4, 2)]
    h = torch.randn(2, 3, 17)
    hx = (h, h.tanh()) if name == "LSTM" else h
    expected, final = module(pack_sequence(sequences), hx)
    actual, same = module(pack_sequence(sequences, enforce_sorted=False), hx)
    assert torch.equal(actual.data, expected.data)
    order = [2, 0, 1]
    shuffled = tuple(s[:, order] for s in hx) if name == "LSTM" else hx[:, order]
    packed = pack_sequence([sequences[i] for i in order], enforce_sorted=False)
    actual, other = module(packed, shuffled)
    assert torch.equal(actual.data, expected.data)
    assert torch.equal(actual.batch_sizes, expected.batch_sizes)
    assert torch.equal(actual.unsorted_indices, packed.unsorted_indices)
    states = [(final, same, other)] if name != "LSTM" else list(zip(final, same, other))
    for a, b, c in states:
        assert torch.equal(a, b) and torch.equal(a[:, order], c)
