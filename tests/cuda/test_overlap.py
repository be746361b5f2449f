"""Layers in a wavefront (_stack/overlap.py): numbers on CPU tensors, order on recorded streams.

What streams do on a device, tests/cuda/test_cuda.py sees.
"""

import contextlib
import itertools

import pytest
import torch
from torch import nn

import fastrnn
from fastrnn import _C
from fastrnn._stack import overlap, stack
from fastrnn._stack.plain import PLAIN

DEVICES = _C.cuda_devices()
CELLS = {"LSTM": PLAIN["lstm"], "GRU": PLAIN["gru"], "RNN": PLAIN["rnn_tanh"]}


def wavefront(module, cell, x, states, chunks, dropout=0.0):
    params = list(module.parameters())
    return layers(cell.layer, x, states, params, module.num_layers, dropout, chunks)


def layers(run, x, states, params, num_layers, dropout, chunks):
    each = len(params) // num_layers
    params = [params[i * each : (i + 1) * each] for i in range(num_layers)]
    before = stack.Dropout(dropout) if dropout else None
    call = stack.Call(num_layers, True, False, before, False, None, None, None)
    return overlap.layers(chunks, params, call, run, x, None, states)[:2]


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(
    ("seq_len", "num_layers", "chunks", "bias", "hx"),
    [
        (11, 2, 2, True, True),
        (4, 3, 4, False, True),
        (9, 4, 8, True, False),
        (17, 2, 4, True, False),
    ],
)
def test_equals_the_plain_stack(name, seq_len, num_layers, chunks, bias, hx):
    torch.manual_seed(0)
    module = getattr(nn, name)(3, 5, num_layers, bias=bias, dtype=torch.float64)
    cell = CELLS[name]
    x = torch.randn(seq_len, 2, 3, dtype=torch.float64, requires_grad=True)
    h = [
        torch.randn(num_layers, 2, 5, dtype=torch.float64, requires_grad=True)
        for _ in range(2 if name == "LSTM" else 1)
    ]
    expected = module(x, (tuple(h) if name == "LSTM" else h[0]) if hx else None)
    output, states = wavefront(module, cell, x, h if hx else [None] * len(h), chunks)
    theirs = [expected[0], *(expected[1] if name == "LSTM" else expected[1:])]
    sources = [x, *(h if hx else ()), *module.parameters()]
    weights = [torch.randn_like(t) for t in theirs]
    for a, b in zip((output, *states), theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    gradients = [
        torch.autograd.grad([(t * w).sum() for t, w in zip(r, weights, strict=True)], sources)
        for r in ((output, *states), theirs)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_dropout_is_between_layers():
    module = fastrnn.LSTM(3, 4, 2)
    x = torch.randn(8, 2, 3)
    everything = wavefront(module, CELLS["LSTM"], x, [None, None], 4, dropout=1.0)
    with torch.no_grad():
        module.weight_ih_l1.zero_()
    torch.testing.assert_close(everything, wavefront(module, CELLS["LSTM"], x, [None, None], 4))


# -- Order: every stream carries what it has waited for ------------------------------------------


class Stream:
    """Knows what has happened before whatever it is given next."""

    def __init__(self, device=None):
        self.past = set()

    def wait_stream(self, other):
        self.past |= other.past

    def record_event(self):
        return frozenset(self.past)

    def wait_event(self, event):
        self.past |= event


class Deaf(Stream):
    def wait_event(self, event):
        pass


class Module:
    """Stands for torch.cuda."""

    def __init__(self, stream):
        self.Stream = stream
        self.now = self.home = Stream()
        self.home.past.add("call")

    def current_stream(self, device=None):
        return self.now

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.now = self.now, stream
        yield
        self.now = before


def breaches(monkeypatch, stream, num_layers, chunks):
    """Runs a wavefront; what was read before it was there, as text."""
    module, found, written = Module(stream), [], {}
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    numbers = itertools.count()

    def layer(x, batch_sizes, states, params, bidirectional):
        past = module.now.past
        reads = [written.get(t.data_ptr(), "call") for t in (x, *states) if t is not None]
        found.extend(f"{r} unseen" for r in reads if r not in past)
        event = next(numbers)
        past.add(event)
        results = x + 1, x[-1:] + 2
        written.update((t.data_ptr(), event) for t in results)
        alive.append(results)  # memory given out again would hide what it held
        return results

    alive = []
    overlap._lanes.cache_clear()
    x, h = torch.zeros(9, 2, 3), torch.zeros(num_layers, 2, 3)
    output, _ = layers(layer, x, [h], [None] * 2 * num_layers, num_layers, 0.0, chunks)
    overlap._lanes.cache_clear()
    torch.testing.assert_close(output, x + num_layers)
    found.extend(f"{e} not waited for" for e in range(next(numbers)) if e not in module.home.past)
    return found


@pytest.mark.parametrize(("num_layers", "chunks"), [(2, 2), (3, 2), (2, 8), (4, 4), (5, 9)])
def test_nothing_is_read_before_it_is_there(monkeypatch, num_layers, chunks):
    assert breaches(monkeypatch, Stream, num_layers, chunks) == []


def test_a_missing_wait_would_be_found(monkeypatch):
    assert breaches(monkeypatch, Deaf, 3, 4)


# -- Where it pays -------------------------------------------------------------------------------


def pays(cell="lstm", dtype="bfloat16", hidden_size=512, seq_len=2048, batch=8, num_layers=2,
         training=True, host_us=0.0, device="H200 (sm_90)"):  # fmt: skip
    return overlap.chunks_that_pay(
        cell, dtype, False, hidden_size, seq_len, batch, num_layers, training, host_us,
        DEVICES[device],
    )  # fmt: skip


def test_pays_where_steps_outweigh_launches():
    assert pays() > 1
    assert pays(host_us=150.0, seq_len=16384) > 1
    assert pays(host_us=150.0, seq_len=64) == 1
    assert pays(seq_len=1) == 1
    assert pays(dtype="float64") == 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("hidden_size", [64, 256, 500, 1024, 2048])
def test_only_where_all_layers_fit(device, cell, hidden_size):
    limits = DEVICES[device]
    for batch, num_layers, training in itertools.product((1, 8, 64, 256), (2, 4), (False, True)):
        chunks = pays(cell, hidden_size=hidden_size, batch=batch, num_layers=num_layers,
                      training=training, device=device)  # fmt: skip
        for backward in (False, True)[: 1 + training]:
            plan = _C.cuda_plan(cell, backward, "bfloat16", False, hidden_size, batch, 1, False,
                                2048 // chunks, limits)  # fmt: skip
            fits = num_layers * plan["blocks"] * plan["replicas"] <= limits[1]
            assert chunks == 1 or (plan["regime"] in ("cluster", "grid") and fits)


def test_not_without_cooperative_launches(monkeypatch):
    monkeypatch.setenv("FASTRNN_CUDA_COOPERATIVE", "0")
    overlap.chunks_that_pay.cache_clear()
    assert pays(device="A100 (sm_80)") == 1
    monkeypatch.delenv("FASTRNN_CUDA_COOPERATIVE")
    overlap.chunks_that_pay.cache_clear()
    assert pays(device="A100 (sm_80)") > 1
