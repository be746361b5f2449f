"""torch.compile: one graph without a break, eager's numbers, and no compilation per length."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastrnn
from tests.cases import CELLS, KINDS, LAYERS, Case

# Options of layers, as (options, packed lengths).
SETTINGS = [
    ({}, ()),
    ({"bias": False, "batch_first": True}, ()),
    ({"num_layers": 2, "bidirectional": True, "dropout": 0.5}, ()),
    ({"bidirectional": True}, (2, 5, 3)),
]


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tensors_of(result):
    """Tensors of a result, those of a PackedSequence without its sizes and orders."""
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, PackedSequence):
        return [result.data]
    if result is None:
        return []
    return [t for part in result for t in tensors_of(part)]


def outputs_and_gradients(call, arguments, sources):
    torch.manual_seed(3)  # of dropout
    outputs = tensors_of(call(*arguments))
    loss = sum(t.float().square().sum() for t in outputs if t.requires_grad)
    gradients = torch.autograd.grad(loss, sources)
    return [t.detach() for t in outputs], list(gradients)


def assert_same(module, compiled, arguments, sources=()):
    sources = [*sources, *module.parameters()]
    expected = outputs_and_gradients(module, arguments, sources)
    actual = outputs_and_gradients(compiled, arguments, sources)
    torch.testing.assert_close(actual, expected)


def compiled_of(module, backend="aot_eager", **options):
    """`(compiled, counter)`: the counter's frame_count is how often a graph was compiled."""
    counter = CompileCounterWithBackend(backend)
    return torch.compile(module, fullgraph=True, backend=counter, **options), counter


@pytest.mark.parametrize(("dynamic", "hx"), [(False, True), (True, False)], ids=str)
@pytest.mark.parametrize(("options", "lengths"), SETTINGS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_layers(kind, options, lengths, hx, dynamic):
    case = Case(kind, options=options, lengths=lengths, hx=hx)
    _, module = case.modules()
    data = case.data()
    states = tuple(data.states or ())
    input, rows = data.inputs[0], data.inputs[0]
    if lengths:
        input = pack_sequence(data.inputs, enforce_sorted=False)
        rows = input.data
    sources = [t.requires_grad_() for t in (rows, *states)]
    arguments = (input, *((states if case.name == "LSTM" else states[0],) if hx else ()))
    compiled, _ = compiled_of(module, dynamic=dynamic)
    assert_same(module, compiled, arguments, sources)
    with torch.no_grad():
        module.eval()
        torch.testing.assert_close(tensors_of(compiled(*arguments)), tensors_of(module(*arguments)))


@pytest.mark.parametrize("name", CELLS)
def test_cells(name):
    for batch in ((5,), ()):
        module = getattr(fastrnn, name)(3, 4)
        x, h = torch.randn(*batch, 3).requires_grad_(), torch.randn(*batch, 4).requires_grad_()
        compiled, _ = compiled_of(module)
        assert_same(module, compiled, (x,), [x])
        assert_same(module, compiled, (x, (h, h) if name == "LSTMCell" else h), [x, h])


OPTIONS = {
    "resets": {"resets": torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) < 0.3},
    "lengths": {"lengths": torch.tensor([2, 4, 1, 0, 3])},
    "states": {"return_states": True},
}
OPTIONS["all"] = OPTIONS["resets"] | OPTIONS["lengths"] | OPTIONS["states"] | {"reset_to": "hx"}


@pytest.mark.parametrize(("dynamic", "hx"), [(False, True), (True, False)], ids=str)
@pytest.mark.parametrize("asked", OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_options(kind, asked, hx, dynamic):
    case = Case(kind, options={"num_layers": 2, "bidirectional": True}, hx=hx)
    _, module = case.modules()
    data = case.data()
    states = tuple(data.states or ())
    sources = [t.requires_grad_() for t in (*data.inputs, *states)]
    arguments = (*data.inputs, *((states if case.name == "LSTM" else states[0],) if hx else ()))

    def call(*arguments):
        return module(*arguments, **OPTIONS[asked])

    compiled, _ = compiled_of(call, dynamic=dynamic)
    sources += module.parameters()
    expected = outputs_and_gradients(call, arguments, sources)
    torch.testing.assert_close(outputs_and_gradients(compiled, arguments, sources), expected)
    with torch.no_grad():
        torch.testing.assert_close(tensors_of(compiled(*arguments)), tensors_of(call(*arguments)))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_no_compilation_per_mask(name, backend):
    """However many segments there are, and whatever the lengths."""
    module = getattr(fastrnn, name)(3, 4)
    compiled, counter = compiled_of(module, backend, dynamic=False)
    x = torch.randn(6, 5, 3)
    for share in (0.3, 0.0, 1.0, 0.1):
        options = {"resets": torch.rand(6, 5) < share}
        options["lengths"] = torch.randint(0, 7, (5,))
        for result in (compiled, module):
            module.zero_grad()
            result(x, **options)[0].square().sum().backward()
            if result is compiled:
                found = [p.grad.clone() for p in module.parameters()]
        torch.testing.assert_close(found, [p.grad for p in module.parameters()])
    assert counter.frame_count == 1


def test_unbatched():
    module = fastrnn.LSTM(3, 4, 2)
    x, h = torch.randn(5, 3).requires_grad_(), torch.randn(2, 4).requires_grad_()
    compiled, _ = compiled_of(module, dynamic=True)
    assert_same(module, compiled, (x, (h, h)), [x, h])


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_no_compilation_per_size(name):
    """A size that changes is compiled for once more, with that size left open, and never again."""
    module = getattr(fastrnn, name)(3, 4)
    compiled, counter = compiled_of(module)
    sizes = [(5, 4), (6, 4), (6, 7)] if name in LAYERS else [(4,), (7,)]
    others = [(9, 8), (3, 11), (40, 2), (2, 40)] if name in LAYERS else [(8,), (2,), (40,)]
    for i, size in enumerate((*sizes, *others)):
        assert_same(module, compiled, (torch.randn(*size, 3),))
        assert counter.frame_count == min(i + 1, len(sizes)), size
    torch._dynamo.reset()
    compiled, counter = compiled_of(module, dynamic=True)
    for size in (*sizes, *others):
        assert_same(module, compiled, (torch.randn(*size, 3),))
    assert counter.frame_count == 1


def test_no_compilation_per_packed_lengths():
    module = fastrnn.GRU(3, 4)
    compiled, counter = compiled_of(module, dynamic=True)
    # No two sizes of the first call are equal: dynamo would take them for one.
    for lengths in ((2, 5), (4, 4, 4), (3, 6, 2, 2), (7, 1)):
        packed = pack_sequence([torch.randn(n, 3) for n in lengths], enforce_sorted=False)
        assert_same(module, compiled, (packed,))
    assert counter.frame_count == 1


def test_packed_states_are_checked_in_the_graph():
    """The batch of packed data is known when the graph runs only: then the operator compares."""
    compiled, _ = compiled_of(fastrnn.GRU(3, 4))
    packed = pack_sequence([torch.randn(n, 3) for n in (5, 3)])
    compiled(packed, torch.randn(1, 2, 4))
    with pytest.raises(RuntimeError, match="gru.*h0"):
        compiled(packed, torch.randn(1, 3, 4))


def test_a_layer_is_one_node():
    """Graphs, and so compile times, do not grow with the sequence: six layers are six calls."""
    module, counts = fastrnn.LSTM(3, 4, 6), []
    for seq_len in (2, 200):
        compiled, counter = compiled_of(module, dynamic=False)
        compiled(torch.randn(seq_len, 2, 3))
        (graph,) = counter.graphs
        nodes = [node for node in graph.graph.nodes if node.op != "placeholder"]
        counts.append(len(nodes))
        torch._dynamo.reset()
    assert counts[0] == counts[1] < 60


class Everything(nn.Module):
    """All recurrences in one graph, for inductor takes seconds for each."""

    def __init__(self):
        super().__init__()
        self.lstm = fastrnn.LSTM(3, 4, 2, bidirectional=True, proj_size=2, batch_first=True)
        self.gru = fastrnn.GRU(4, 4, bias=False)
        self.rnn = fastrnn.RNN(4, 3, nonlinearity="relu")
        self.lstm_cell = fastrnn.LSTMCell(3, 4)
        self.gru_cell = fastrnn.GRUCell(4, 5)
        self.rnn_cell = fastrnn.RNNCell(5, 6)

    def forward(self, x, packed, h0):
        y, (_, c_n) = self.lstm(x)
        y, h_n = self.rnn(self.gru(y.tanh(), h0)[0].relu())
        y = self.rnn_cell(self.gru_cell(self.lstm_cell(y.flatten(0, 1))[0]))
        return y, c_n, h_n, self.gru(packed)[0].data


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_inductor(dynamic):
    module = Everything()
    packed = pack_sequence([torch.randn(n, 4) for n in (2, 9, 1, 3, 1, 1, 1)], enforce_sorted=False)
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic)
    for sizes in ((5, 6), (8, 10)) if dynamic else ((5, 6),):
        h0 = torch.randn(1, sizes[1], 4).requires_grad_()
        assert_same(module, compiled, (torch.randn(*sizes, 3), packed, h0), [h0])


def test_reduce_overhead():
    """Results of a call outlive the next ones, and training goes on."""
    module = fastrnn.GRU(3, 4)
    compiled = torch.compile(module, fullgraph=True, mode="reduce-overhead")
    xs = [torch.randn(5, 2, 3) for _ in range(4)]
    results = [compiled(x)[0] for x in xs]
    for x, result in zip(xs, results):
        torch.testing.assert_close(result, module(x)[0])
        assert_same(module, compiled, (x,))


@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_autocast(kind):
    """Eager's dtypes and numbers, with autocast around the call and inside the graph."""
    if kind in CELLS:
        module = getattr(fastrnn, kind)(6, 17)
        call, x = module, torch.randn(5, 6)
    else:
        _, module = Case(kind).modules()
        call, x = module, torch.randn(4, 5, 6)

    def inside(x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return call(x)

    for function in (inside, call):
        compiled, _ = compiled_of(function)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            sources = list(module.parameters())
            expected = outputs_and_gradients(function, (x,), sources)
            actual = outputs_and_gradients(compiled, (x,), sources)
        torch.testing.assert_close(actual, expected)  # dtypes too


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_of_packed_data(name):
    module = getattr(fastrnn, name)(3, 4)
    compiled, _ = compiled_of(module)
    for lengths in ((2, 4, 1), (3, 3)):
        packed = pack_sequence([torch.randn(n, 3) for n in lengths], enforce_sorted=False)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected, actual = tensors_of(module(packed)), tensors_of(compiled(packed))
        # Lengths are not known to the graph: an LSTM's count as different.
        exact = name != "LSTM" or lengths == (2, 4, 1)
        tolerance = {} if exact else {"rtol": 1e-2, "atol": 1e-2, "check_dtype": False}
        torch.testing.assert_close(actual, expected, **tolerance)


def test_parametrized_and_converted():
    module = nn.Sequential(nn.LSTM(3, 4))
    parametrizations.weight_norm(module[0], "weight_hh_l0")
    fastrnn.convert(module)
    compiled, counter = compiled_of(module)
    assert_same(module, compiled, (torch.randn(5, 2, 3),))
    assert counter.frame_count == 1


def test_conversion_after_compilation():
    """The class of the module is part of what was compiled for."""
    module = nn.GRU(3, 4)
    compiled = torch.compile(module, backend="aot_eager")
    x = torch.randn(5, 2, 3)
    expected = compiled(x)
    fastrnn.convert(module)
    seen = []
    handle = module.register_forward_hook(lambda m, *_: seen.append(type(m)))
    torch.testing.assert_close(compiled(x), expected)
    handle.remove()
    assert seen == [fastrnn.GRU]


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_func_of_a_module_whose_parameters_record(name):
    """torch.func's level is the input's alone, which needs_input_grad does not tell of here."""
    module = getattr(fastrnn, name)(3, 4)
    x = torch.randn(5, 2, 3)

    def gradient(x):
        return torch.func.grad(lambda x: module(x)[0].square().sum())(x)

    expected = gradient(x)
    assert expected.abs().max() > 0
    compiled = torch.compile(gradient, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
