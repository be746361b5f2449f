"""The surface of torch.nn's classes, and what libraries do to them."""

import abc
import copy
import inspect
import io
import pickle
from typing import get_overloads

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from tests.cases import CELLS, LAYERS

CONSTRUCTIONS = [
    (name, arguments, options)
    for name in LAYERS
    for arguments, options in [
        ((3, 4), {}),
        ((3, 4, 2), {"bidirectional": True, "dropout": 0.25}),
        ((3, 4), {"bias": False, "batch_first": True}),
        ((3, 4), {"dtype": torch.float64, "device": "cpu"}),
    ]
]
CONSTRUCTIONS += [
    ("LSTM", (3, 4, 2, True, False, 0.5, True, 2), {}),
    ("LSTM", (3, 4), {"proj_size": 2, "bias": False}),
    ("GRU", (3, 4, 2, False, True, 0.5, True), {}),
    ("RNN", (3, 4, 2, "relu", False, True, 0.5, True), {}),
    ("RNN", (3, 4), {"nonlinearity": "relu"}),
    ("LSTMCell", (3, 4), {}),
    ("GRUCell", (3, 4, False), {}),
    ("RNNCell", (3, 4, True, "relu"), {"dtype": torch.float64}),
    ("RNNCell", (3, 4), {"nonlinearity": "tanh", "bias": False}),
]


def build(name, *arguments, **options):
    """Both libraries' modules from the same seed."""
    modules = []
    for library in (nn, fastrnn):
        torch.manual_seed(1)
        modules.append(getattr(library, name)(*arguments, **options))
    return modules


def output(module, *arguments):
    result = module(*arguments)
    return result[0] if isinstance(result, tuple) else result


def input_of(name):
    return torch.randn(5, 3) if name in CELLS else torch.randn(2, 5, 3)


@pytest.mark.parametrize(("name", "arguments", "options"), CONSTRUCTIONS, ids=str)
def test_construction(name, arguments, options):
    theirs, ours = build(name, *arguments, **options)
    assert repr(ours) == repr(theirs)
    state, expected = ours.state_dict(), theirs.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[k], expected[k]) for k in state)  # the same initialisation
    assert all(state[k].dtype == expected[k].dtype for k in state)
    theirs.load_state_dict(state, strict=True)
    ours.load_state_dict(expected, strict=True)
    public = {k for k in vars(theirs) if not k.startswith("_")}
    assert public <= set(vars(ours))
    assert all(getattr(ours, k) == getattr(theirs, k) for k in public)


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_class(name):
    ours, theirs = getattr(fastrnn, name), getattr(nn, name)
    assert isinstance(ours.__doc__, str)
    assert issubclass(ours, nn.RNNCellBase if name in CELLS else nn.RNNBase)
    public = {k for k in dir(theirs) if not k.startswith("_")}
    assert public <= set(dir(ours))
    parameters = inspect.signature(ours.forward).parameters.values()
    shared = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    assert shared == list(inspect.signature(theirs.forward).parameters)
    for key, value in vars(ours).items():  # what wrappers do
        if key not in ("__dict__", "__weakref__"):
            setattr(type("Copy", (ours,), {}), key, value)


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_copies(name):
    module = getattr(fastrnn, name)(3, 4)
    x = input_of(name)
    expected = output(module, x)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    copies = [
        copy.deepcopy(module),
        copy.copy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(file, weights_only=False),
    ]
    for other in copies:
        assert torch.equal(output(other, x), expected)
        assert repr(other) == repr(module)
    copies[0].weight_ih if name in CELLS else copies[0].flatten_parameters()
    next(copies[0].parameters()).data.zero_()
    assert torch.equal(output(module, x), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_weight_lists(name):
    theirs, ours = build(name, 3, 4, 2, bidirectional=True)
    ours.flatten_parameters()
    assert ours._flat_weights_names == theirs._flat_weights_names
    assert ours._all_weights == theirs._all_weights
    assert all(a is b for a, b in zip(ours._flat_weights, ours.parameters(), strict=True))
    weights = [w for group in ours.all_weights for w in group]
    assert all(a is b for a, b in zip(weights, ours.parameters(), strict=True))
    ours.flatten_parameters = lambda: None  # libraries replace it
    ours.double()
    assert output(ours, input_of(name).double()).dtype == torch.float64


@pytest.mark.parametrize("name", LAYERS + CELLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_to(name, dtype):
    module = getattr(fastrnn, name)(3, 4).to(dtype)
    assert output(module, input_of(name).to(dtype)).dtype == dtype


@pytest.mark.parametrize("name", LAYERS)
def test_subclass(name):
    base = getattr(fastrnn, name)

    class Mixin:
        def forward(self, input, hx=None):
            self.calls = getattr(self, "calls", 0) + 1
            return super().forward(input, hx=hx)

    class Sub(Mixin, base, abc.ABC):
        def __init__(self, size):
            super().__init__(input_size=3, hidden_size=size)

        def forward(self, x, hx=None):
            return super().forward(x, hx=hx)

    module = Sub(4)
    x, h = torch.randn(2, 5, 3), torch.randn(1, 5, 4)
    hx = (h, h) if name == "LSTM" else h
    plain = base(3, 4)
    plain.load_state_dict(module.state_dict())
    assert torch.equal(output(module, x, hx), plain(input=x, hx=hx)[0])
    assert module.calls == 1 and isinstance(module, nn.RNNBase)


# -- Weights are read at each call. Each idiom changes the weights of both modules alike. -------


def _weight(module):
    return next(name for name, _ in module.named_parameters() if "weight_hh" in name)


def assign_data(module):
    parameter = getattr(module, _weight(module))
    parameter.data = parameter.data.flip(0).clone()


def set_storage(module):
    parameter = getattr(module, _weight(module))
    with torch.no_grad():
        parameter.set_(parameter.data.flip(0).clone())


def reassign(module):
    name = _weight(module)
    setattr(module, name, nn.Parameter(getattr(module, name).data * 2))


def weight_drop(module):
    name = _weight(module)
    raw = getattr(module, name)
    del module._parameters[name]
    module.register_parameter(name + "_raw", nn.Parameter(raw.data))
    setattr(module, name, getattr(module, name + "_raw") * 0.5)


def plain_in_parameters(module):
    name = _weight(module)
    module._parameters[name] = module._parameters[name].detach() * 0.5


def edit_bias(module):
    bias = next(p for n, p in module.named_parameters() if "bias_hh" in n)
    with torch.no_grad():
        bias[1:3].fill_(1.0)


def parametrized(module):
    class Half(nn.Module):
        def forward(self, w):
            return w / 2

    parametrize.register_parametrization(module, _weight(module), Half())


def weight_normed(module):
    name = _weight(module)
    parametrizations.weight_norm(module, name)
    with torch.no_grad():
        module.parametrizations[name].original0.mul_(2)


def old_weight_normed(module):
    name = _weight(module)
    nn.utils.weight_norm(module, name)
    with torch.no_grad():
        getattr(module, name + "_g").mul_(2)


def pruned(module):
    prune.l1_unstructured(module, _weight(module), amount=0.5)


def shared(module):
    other = copy.deepcopy(module)
    setattr(module, _weight(module), getattr(other, _weight(module)))
    with torch.no_grad():
        getattr(other, _weight(module)).mul_(-1)


def sampled(module):
    """A descriptor that computes the weight at each access."""
    name = _weight(module)
    raw = module._parameters.pop(name)

    def get(self):
        return raw * 3

    module.__class__ = type(type(module).__name__, (type(module),), {name: property(get)})


def optimizer_step(module):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


IDIOMS = [
    assign_data, set_storage, reassign, weight_drop, plain_in_parameters, edit_bias, parametrized,
    weight_normed, old_weight_normed, pruned, shared, sampled, optimizer_step,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", LAYERS + CELLS)
@pytest.mark.parametrize("idiom", IDIOMS, ids=lambda f: f.__name__)
def test_weights_are_read_afresh(name, idiom):
    theirs, ours = build(name, 3, 4)
    h = torch.randn(5, 4) if name in CELLS else torch.randn(1, 5, 4)
    arguments = input_of(name), ((h, h) if name.startswith("LSTM") else h)
    before = output(ours, *arguments)
    torch.testing.assert_close(before, output(theirs, *arguments))
    for module in (theirs, ours):
        idiom(module)
    after = output(ours, *arguments)
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, output(theirs, *arguments))


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_functional_call(name):
    theirs, ours = build(name, 3, 4)
    x = input_of(name)
    weights = {k: 2 * v for k, v in ours.named_parameters()}
    expected = torch.func.functional_call(theirs, weights, x)
    actual = torch.func.functional_call(ours, weights, x)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(output(ours, x), output(theirs, x))  # and back again


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_func_grad(name):
    theirs, ours = build(name, 3, 4)
    x = input_of(name)
    gradients = []
    for module in (theirs, ours):
        with torch.backends.mkldnn.flags(enabled=False):  # torch.nn's fused LSTM has no torch.func
            gradients.append(
                torch.func.grad(
                    lambda w, m=module: output(torch.func.functional_call, m, w, x).sum()
                )(dict(module.named_parameters()))
            )
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("name", LAYERS)
def test_weight_deleted(name):
    """As in torch.nn, the tensor it was last is used until something takes its place."""
    theirs, ours = build(name, 3, 4)
    for module in (theirs, ours):
        del module.weight_hh_l0
    x = input_of(name)
    torch.testing.assert_close(output(ours, x), output(theirs, x))


@pytest.mark.parametrize("name", LAYERS)
def test_packed_results(name):
    theirs, ours = build(name, 3, 4, bidirectional=True)
    packed = pack_sequence([torch.randn(n, 3) for n in (2, 4, 1)], enforce_sorted=False)
    expected, _ = theirs(packed)
    actual, _ = ours(packed)
    assert type(actual) is type(expected)
    torch.testing.assert_close(actual.data, expected.data)
    for a, b in zip(actual[1:], expected[1:]):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", LAYERS)
def test_output_layout(name):
    for options in ({}, {"batch_first": True, "bidirectional": True, "num_layers": 2}):
        theirs, ours = build(name, 3, 4, **options)
        x = input_of(name)
        assert output(ours, x).stride() == output(theirs, x).stride()


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_meta(name):
    theirs = getattr(nn, name)(3, 4, device="meta")
    ours = getattr(fastrnn, name)(3, 4, device="meta")
    x = input_of(name).to("meta")
    assert output(ours, x).shape == output(theirs, x).shape
    assert output(ours, x).device.type == "meta"
    moved = ours.to_empty(device="cpu")
    moved.reset_parameters()
    assert output(moved, input_of(name)).isfinite().all()


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_what_has_no_kernels_is_torchs(name, monkeypatch):
    """Other devices and dtypes run torch's implementation, whatever torch.nn has become."""
    from fastrnn._layer import ops

    theirs, ours = build(name, 3, 4)
    x = input_of(name)
    h = torch.randn(5, 4) if name in CELLS else torch.randn(1, 5, 4)
    hx = (h, h) if name.startswith("LSTM") else h
    expected = [theirs(x), theirs(x, hx)]
    packed = pack_sequence([torch.randn(n, 3) for n in (2, 4, 1)], enforce_sorted=False)
    packed_expected = None if name in CELLS else theirs(packed)[0].data
    monkeypatch.setattr(ops, "DTYPES", frozenset())
    monkeypatch.setattr(nn, name, getattr(fastrnn, name))
    torch.testing.assert_close([ours(x), ours(x, hx)], expected, rtol=0, atol=0)
    if name in LAYERS:
        assert torch.equal(ours(packed)[0].data, packed_expected)


# -- Autocast --------------------------------------------------------------------------------


def dtypes(result):
    if isinstance(result, torch.Tensor):
        return [result.dtype]
    return [d for part in result for d in dtypes(part)]


@pytest.mark.parametrize("options", [{}, {"proj_size": 2}, {"num_layers": 2}], ids=str)
@pytest.mark.parametrize("name", LAYERS + CELLS)
@pytest.mark.parametrize("state", [None, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_autocast_dtypes(name, options, state, weights):
    if (name in CELLS and options) or (name != "LSTM" and "proj_size" in options):
        options = {}
    theirs, ours = build(name, 3, 4, dtype=weights, **options)
    state = weights if state and weights is torch.float64 else state  # float64 mixes with nothing
    x, hx = input_of(name).to(weights), None
    if state is not None:
        layers = options.get("num_layers", 1)
        sizes = [options.get("proj_size", 4), 4]
        shape = (5,) if name in CELLS else (layers, 5)
        states = tuple(torch.randn(*shape, s, dtype=state) for s in sizes)
        hx = states if name.startswith("LSTM") else states[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, actual = theirs(x, hx), ours(x, hx)
        assert dtypes(actual) == dtypes(expected)
        if name in LAYERS and hx is None:
            packed = pack_sequence([torch.randn(2, 3, dtype=weights)])
            assert dtypes(ours(packed)[0].data) == dtypes(theirs(packed)[0].data)
            assert dtypes(ours(packed)[1]) == dtypes(theirs(packed)[1])
        output(ours, x, hx).float().sum().backward()  # backward inside autocast
    assert all(p.grad.dtype == weights for p in ours.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_numbers(name):
    _, ours = build(name, 3, 4)
    x = input_of(name)
    expected = output(ours, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = output(ours, x)
    # Weights and input were rounded to bfloat16's 8 bits.
    torch.testing.assert_close(actual.float(), expected, rtol=2e-2, atol=2e-2)


# -- Dropout ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_draws_what_torch_draws(name, batch_first):
    options = {"num_layers": 3, "dropout": 0.5, "batch_first": batch_first, "bidirectional": True}
    theirs, ours = build(name, 3, 4, **options)
    x = torch.randn(6, 5, 3)
    results = []
    for module in (theirs, ours):
        torch.manual_seed(5)
        results.append(output(module, x))
    torch.testing.assert_close(results[1], results[0])
    assert not torch.equal(results[1], output(ours, x))
    ours.eval()
    assert torch.equal(output(ours, x), output(ours, x))


def test_dropout_statistics():
    """The first layer's outputs are 1, so that the second's inputs are 0 or 1/(1-p)."""
    module = fastrnn.RNN(1, 64, 2, "relu", dropout=0.25)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.zero_()
            if name == "bias_ih_l0":
                parameter.fill_(1.0)
            if name == "weight_ih_l1":
                parameter.copy_(torch.eye(64))
    y, _ = module(torch.zeros(50, 20, 1))
    assert set(y.unique().tolist()) <= {0.0, torch.tensor(1 / 0.75).item()}
    kept = (y > 0).double().mean().item()
    assert abs(kept - 0.75) < 5 * (0.75 * 0.25 / y.numel()) ** 0.5  # five standard deviations


def test_dropout_of_everything():
    module = fastrnn.GRU(3, 4, 2, dropout=1.0)
    theirs = nn.GRU(3, 4, 2, dropout=1.0)
    theirs.load_state_dict(module.state_dict())
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(module(x), theirs(x))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("sizes", [(0, 7), (5, 0), (0, 0)], ids=str)
def test_cells_of_size_zero(name, sizes):
    theirs, ours = getattr(nn, name)(*sizes), getattr(fastrnn, name)(*sizes)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, sizes[0])
    results = []
    for module in (theirs, ours):
        h = module(x)
        h = h if isinstance(h, torch.Tensor) else h[0]
        h.sum().backward()
        results.append([h.detach(), *(p.grad for p in module.parameters())])
    torch.testing.assert_close(results[1], results[0])


def test_cell_state_of_wider_dtype():
    """A c in float64 beside an h in float32 promotes the result, as in torch.nn."""
    theirs, ours = nn.LSTMCell(3, 4), fastrnn.LSTMCell(3, 4)
    ours.load_state_dict(theirs.state_dict())
    x, h, c = torch.randn(2, 3), torch.randn(2, 4), torch.randn(2, 4, dtype=torch.float64)
    torch.testing.assert_close(ours(x, (h, c)), theirs(x, (h, c)))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("converted", [False, True])
def test_flat_weights_that_are_assigned(name, converted):
    """A list of other tensors is what a layer computes with, until an attribute changes."""
    theirs = getattr(nn, name)(3, 4, 2, bidirectional=True)
    if converted:
        ours = copy.deepcopy(theirs)
    else:
        ours = getattr(fastrnn, name)(3, 4, 2, bidirectional=True)
        ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 2, 3)

    def check():
        torch.testing.assert_close(ours(x)[0], theirs(x)[0], rtol=1e-5, atol=1e-6)
        return theirs(x)[0].detach()

    for module in (theirs, ours):
        module._flat_weights = [0.5 * w.detach() for w in module._flat_weights]
    if converted:
        fastrnn.convert(ours)
    seen = [check()]
    copied = [copy.deepcopy(module)(x)[0] for module in (theirs, ours)]
    torch.testing.assert_close(*copied, rtol=1e-5, atol=1e-6)
    for module in (theirs, ours):  # what changes an element of it, too
        module._flat_weights[0] = 2 * module._flat_weights[0]
    seen.append(check())
    for module in (theirs, ours):
        with torch.no_grad():
            module.weight_hh_l0.fill_(0.3)  # in place: the list goes on without it
    seen.append(check())
    for module in (theirs, ours):
        module.weight_hh_l1 = nn.Parameter(0.1 * module.weight_hh_l1.detach())
    seen.append(check())
    for module in (theirs, ours):
        module._flat_weights = [w * 0 for w in module._flat_weights]
    seen.append(check())
    assert not seen[-1].any()
    for module in (theirs, ours):
        module.double().float()
    seen.append(check())
    assert [torch.equal(a, b) for a, b in zip(seen, seen[1:])] == [False, True, False, False, False]
    if converted:
        fastrnn.restore(ours)
        check()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("hx", [True, False])
def test_autocast_dtypes_of_what_torch_nn_composes(name, weights, batch, hx):
    """Of an empty batch, and of a float16 LSTM, torch.nn makes an LSTM of operations."""
    theirs, ours = build(name, 3, 4, dtype=weights)
    h = torch.zeros(1, batch, 4) if hx else None
    h = (h, h) if hx and name == "LSTM" else h
    x = torch.randn(5, batch, 3).to(weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert dtypes(ours(x, h)) == dtypes(theirs(x, h))


@pytest.mark.parametrize("name", LAYERS)
def test_a_subclass_may_change_states(name):
    """permute_hidden is called where torch.nn calls it: without a permutation too."""

    def changed(library):
        class Changed(getattr(library, name)):
            def permute_hidden(self, hx, permutation):
                hx = super().permute_hidden(hx, permutation)
                return tuple(2 * s for s in hx) if isinstance(hx, tuple) else 2 * hx

        torch.manual_seed(0)
        return Changed(3, 4)

    theirs, ours = changed(nn), changed(fastrnn)
    x, h = torch.randn(5, 2, 3), torch.randn(1, 2, 4)
    packed = pack_sequence([x[:, 0], x[:3, 1]])
    for given in (None, (h, h) if name == "LSTM" else h):
        alone = None if given is None else of_first_row(given)
        for input, hx in ((x, given), (packed, given), (x[:, 0], alone)):
            for a, b in zip(leaves(ours(input, hx)), leaves(theirs(input, hx)), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def of_first_row(hx):
    return tuple(s[:, 0] for s in hx) if isinstance(hx, tuple) else hx[:, 0]


def leaves(results):
    return [t for t in torch.utils._pytree.tree_leaves(tuple(results)) if torch.is_tensor(t)]


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_signatures(name):
    """What help and inspect show: torch.nn's arguments, and one more of layers."""
    ours = inspect.signature(getattr(fastrnn, name)).parameters
    theirs = inspect.signature(getattr(nn, name)).parameters
    if name in CELLS:
        assert list(ours) == list(theirs)
        return
    constructor = get_overloads(getattr(nn, name).__init__)[0]
    expected = [p for p in inspect.signature(constructor).parameters if p != "self"]
    assert list(ours) == [*expected, "checkpoint_every"]
    defaults = {p: v.default for p, v in ours.items() if v.default is not inspect.Parameter.empty}
    module = getattr(fastrnn, name)(3, 4)
    for option, default in defaults.items():
        if option not in ("device", "dtype"):
            assert getattr(module, option) == default, option


def test_flatten_parameters_is_for_what_cudnn_has(monkeypatch):
    """cuDNN's name of any other cell is an error, which `.cuda()` would raise."""
    flattened = []
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda self: flattened.append(self.mode))
    layers = [fastrnn.LSTM(3, 4), fastrnn.GRU(3, 4), fastrnn.RNN(3, 4, nonlinearity="relu")]
    layers += [fastrnn.variants.CoupledLSTM(3, 4), fastrnn.variants.PeepholeLSTM(3, 4)]
    flattened.clear()
    for layer in layers:
        layer.flatten_parameters()
    assert flattened == ["LSTM", "GRU", "RNN_RELU"]
