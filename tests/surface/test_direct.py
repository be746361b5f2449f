"""Inference past the dispatcher (csrc/direct.cpp): the same bits, and only where nobody looks."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastrnn
from fastrnn import functional
from fastrnn._layer import extension
from fastrnn._stack import packing
from fastrnn.modules import _CELL_WEIGHTS

T, B, F, H = 5, 3, 4, 6
LAYERS = {
    "LSTM": (fastrnn.LSTM, "lstm", {}),
    "LSTM-stack": (fastrnn.LSTM, "lstm", {"num_layers": 3, "bidirectional": True, "dropout": 0.5}),
    "LSTM-projected": (fastrnn.LSTM, "lstm", {"proj_size": 2, "num_layers": 2}),
    "GRU-first": (fastrnn.GRU, "gru", {"batch_first": True, "num_layers": 2, "bias": False}),
    "RNN-relu": (fastrnn.RNN, "rnn_relu", {"nonlinearity": "relu", "bidirectional": True}),
    "RNN": (fastrnn.RNN, "rnn_tanh", {}),
}
CELLS = {
    "LSTMCell": (fastrnn.LSTMCell, "lstm", {}),
    "GRUCell": (fastrnn.GRUCell, "gru", {"bias": False}),
    "RNNCell": (fastrnn.RNNCell, "rnn_relu", {"nonlinearity": "relu"}),
}


def layer(name, dtype=torch.float32):
    cls, _, options = LAYERS[name]
    return cls(F, H, **options, dtype=dtype).eval()


def data(module, dtype=torch.float32):
    x = torch.randn(B, T, F) if module.batch_first else torch.randn(T, B, F)
    indices = module.num_layers * (2 if module.bidirectional else 1)
    sizes = [module.proj_size or H, H][: 2 if module.mode == "LSTM" else 1]
    states = tuple(torch.randn(indices, B, size, dtype=dtype) for size in sizes)
    return x.to(dtype), states if len(states) > 1 else states[0]


def direct(module, x, hx=None):
    return extension.direct_layer(module.__dict__, module.mode.lower(), x, hx)


def flat(results):
    output, hx = results
    return [output, *(hx if isinstance(hx, tuple) else (hx,))]


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("with_hx", [False, True])
def test_layers(name, dtype, with_hx, monkeypatch):
    module = layer(name, dtype)
    x, hx = data(module, dtype)
    hx = hx if with_hx else None
    with torch.no_grad():
        found = flat(direct(module, x, hx))
        assert all(map(torch.equal, flat(module(x, hx)), found))
        monkeypatch.setattr(packing, "PLAIN", set())
        expected = flat(module(x, hx))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b) and a.stride() == b.stride() and not a.requires_grad
    with torch.inference_mode():
        assert flat(direct(module, x, hx))[0].is_inference()


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("with_hx", [False, True])
def test_cells(name, with_hx):
    cls, kind, options = CELLS[name]
    cell = cls(F, H, **options)
    x, h, c = torch.randn(B, F), torch.randn(B, H), torch.randn(B, H)
    hx = (h, c) if kind == "lstm" else h
    hx = hx if with_hx else None
    weights = [getattr(cell, name) for name in _CELL_WEIGHTS]
    more = {"nonlinearity": "relu"} if kind == "rnn_relu" else {}
    with torch.no_grad():
        found = extension.direct_cell(cell.__dict__, kind, _CELL_WEIGHTS, x, hx)
        expected = getattr(
            functional, f"{kind[:4].strip('_')}_cell" if kind != "rnn_relu" else "rnn_cell"
        )(x, hx, *weights, **more)
        called = cell(x, hx)
    for results in (found, called):
        pairs = zip(results, expected) if kind == "lstm" else [(results, expected)]
        assert all(torch.equal(a, b) for a, b in pairs)
        assert isinstance(results, tuple) == (kind == "lstm")


def test_flags_that_are_no_bool(monkeypatch):
    """Attributes that were set to what Python takes for true."""
    module = fastrnn.GRU(F, H, bidirectional=True).eval()
    module.bidirectional = module.batch_first = 1
    x = torch.randn(B, T, F)
    with torch.no_grad():
        found = flat(direct(module, x))
        monkeypatch.setattr(packing, "PLAIN", set())
        assert all(map(torch.equal, found, flat(module(x))))

    class Neither:
        def __bool__(self):
            raise ValueError("neither")

    module.batch_first = Neither()
    with torch.no_grad():
        assert direct(module, x) is None


def test_views_and_strides():
    module = layer("LSTM")
    wide = torch.randn(T, B, 2 * F)[..., ::2]
    with torch.no_grad():
        assert torch.equal(direct(module, wide)[0], direct(module, wide.contiguous())[0])


class Functions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Dispatched(TorchDispatchMode):
    seen = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        Dispatched.seen += "layer_forward" in str(function)
        return function(*args, **(kwargs or {}))


class Sub(torch.Tensor):
    pass


def _replaced(module, x):
    del module.weight_hh_l0
    module.weight_hh_l0 = torch.zeros(4 * H, H)
    return direct(module, x)


def _assigned(module, x):
    module._flat_weights = [w.detach() * 0 for w in module._flat_weights]
    return direct(module, x)


def _dual(module, x):
    with forward_ad.dual_level():
        return direct(module, forward_ad.make_dual(x, torch.ones_like(x)))


def _within(context):
    def call(module, x):
        with context():
            return direct(module, x)

    return call


def _mapped(module, x):
    found = []
    torch.func.vmap(lambda x: (found.append(direct(module, x)), x)[1])(x[None])
    return found[0]


def _training(module, x):
    module = layer("LSTM-stack").train()
    return direct(module, x)


# What a kernel alone cannot do, or what somebody wants to see.
LONG = {
    "gradients": lambda m, x: _within(torch.enable_grad)(m, x),
    "input's gradient": lambda m, x: _within(torch.enable_grad)(
        m.requires_grad_(False), x.requires_grad_()),
    "forward mode": _dual,
    "autocast": _within(lambda: torch.autocast("cpu", torch.bfloat16)),
    "a function mode": _within(Functions),
    "a dispatch mode": _within(Dispatched),
    "profiler": _within(torch.profiler.profile),
    "vmap": _mapped,
    "a subclass": lambda m, x: direct(m, x.as_subclass(Sub)),
    "dropout": _training,
    "a weight that is no parameter": _replaced,
    "assigned weights": _assigned,
    "no batch": lambda m, x: direct(m, x[:, 0]),
    "an empty batch": lambda m, x: direct(m, x[:, :0]),
    "a dtype": lambda m, x: direct(m, x.double()),
    "features": lambda m, x: direct(m, x[..., :2]),
    "hx of another shape": lambda m, x: direct(m, x, (torch.zeros(1, B, H), torch.zeros(1, 1, H))),
    "hx of other layers": lambda m, x: direct(m, x, (torch.zeros(2, B, H),) * 2),
    "hx of one": lambda m, x: direct(m, x, torch.zeros(1, B, H)),
    "hx in a list": lambda m, x: direct(m, x, [torch.zeros(1, B, H)] * 2),
    "a device": lambda m, x: direct(m.to("meta"), x.to("meta")),
    "no tensor": lambda m, x: direct(m, [1.0]),
    "sparse": lambda m, x: direct(m, x.to_sparse()),
    "conjugated": lambda m, x: direct(m, torch.zeros(T, B, F, dtype=torch.cfloat).conj().imag),
    "tracing": lambda m, x: [],
}  # fmt: skip


@pytest.mark.parametrize("case", LONG)
def test_the_long_way(case):
    module = layer("LSTM")
    with torch.no_grad():
        x = torch.randn(T, B, F)
        assert direct(module, x) is not None
        if case != "tracing":
            assert LONG[case](module, x) is None
            return
        found = []
        call = lambda x: (found.append(direct(module, x)), x * 2)[1]  # noqa: E731
        torch.jit.trace(call, x, check_trace=False)
    assert found == [None]


def test_modes_see_the_operator():
    module = layer("LSTM")
    with torch.no_grad(), Dispatched():
        module(torch.randn(T, B, F))
    assert Dispatched.seen


def test_subclasses_and_variants_are_not_known():
    class Mine(fastrnn.LSTM):
        def permute_hidden(self, hx, permutation):
            raise AssertionError("seen")

    with torch.no_grad(), pytest.raises(AssertionError, match="seen"):
        Mine(F, H)(torch.randn(T, B, F), (torch.zeros(1, B, H),) * 2)
    assert not {fastrnn.variants.LSTM, fastrnn.variants.DreamerGRU, nn.LSTM} & packing.PLAIN


def test_after_a_change_of_weights():
    module = layer("GRU-first")
    x, hx = data(module)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)
        module.weight_ih_l0 = nn.Parameter(module.weight_ih_l0 + 1)
        other.load_state_dict(module.state_dict())
        assert all(map(torch.equal, flat(module(x, hx)), flat(other(x, hx))))


def test_wrong_arguments_of_the_extension():
    for arguments in ((), (1, 2, 3, 4), ({}, "lstm", torch.ones(1, 1, 1), None), ({}, 3, 4, 5)):
        assert extension.direct_layer(*arguments) is None
    for arguments in ((), (1, 2, 3, 4, 5), ({}, "lstm", (), torch.ones(1, 1), None)):
        assert extension.direct_cell(*arguments) is None
