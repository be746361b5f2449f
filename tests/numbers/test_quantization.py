"""fastrnn.quantize: numbers against the reference, equalities, and what a module must bear."""

import copy
import io
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

import fastrnn
from fastrnn import _C
from fastrnn.quantization import QuantizedCell, QuantizedLayer
from tests.cases import KINDS, Case
from tests.quantized_reference import int8, step
from tests.tolerances import error, quantized_floor

DTYPES = [torch.int8, torch.bfloat16]
# (batch, input_size, hidden_size): around groups of 2 and 4 terms, vectors of 16 and blocks of 64.
SHAPES = [(1, 1, 2), (2, 3, 7), (3, 16, 15), (4, 5, 16), (5, 4, 17), (6, 33, 64), (1, 40, 70),
          (9, 130, 33), (2, 65, 129)]  # fmt: skip


@pytest.fixture(params=_C.cpu_targets())
def any_target(request):
    """Every instruction set, also the one that differs in quantized layers alone."""
    previous = _C.set_cpu_target(request.param)
    yield request.param
    _C.set_cpu_target(previous)


def layer(kind, *sizes, dtype=torch.int8, **options):
    """`(fastrnn's layer, the same quantized)`, in eval mode."""
    case = Case(kind, 1, 1, *sizes, options=options)
    module = case.modules()[1].eval()
    return module, fastrnn.quantize(module, dtype, inplace=False)


def states_of(module, batch, scale=1.0):
    count = module.num_layers * (1 + module.bidirectional)
    h = scale * torch.randn(count, batch, getattr(module, "proj_size", 0) or module.hidden_size)
    c = scale * torch.randn(count, batch, module.hidden_size)
    return (h, c) if module.mode == "LSTM" else h


def tensors(result):
    output, states = result
    output = output.data if isinstance(output, PackedSequence) else output
    return [output, *(states if isinstance(states, tuple) else (states,))]


def assert_equal(actual, expected):
    for a, b in zip(tensors(actual), tensors(expected), strict=True):
        assert torch.equal(a, b), (a - b).abs().max()


def check_step(kind, dtype, shape, scale=1.0, change=None):
    """One step against the reference."""
    batch, input_size, hidden_size = shape
    module = Case(kind, 1, 1, input_size, hidden_size).modules()[1].eval()
    x = scale * torch.randn(batch, input_size)
    states = states_of(module, batch, scale)
    if change is not None:
        change(module, x, states)
    quantized = fastrnn.quantize(module, dtype, inplace=False)
    _, *actual = tensors(quantized(x[None], states))
    flat = [s[0] for s in (states if isinstance(states, tuple) else (states,))]
    expected = step(module, dtype, x, flat)
    margin = quantized_floor(module, dtype, x, flat)
    for a, b in zip(actual, expected, strict=True):
        assert error(a[0], b, 1.0) <= margin


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_step(any_target, kind, dtype, shape):
    check_step(kind, dtype, shape)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_relu"])
@pytest.mark.parametrize("scale", [1e-35, 1e-20, 1e-3, 30.0, 1e15])
def test_huge_and_tiny(any_target, kind, scale):
    for dtype in DTYPES:
        check_step(kind, dtype, (3, 20, 18), scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_zeros(any_target, dtype):
    def change(module, x, states):
        x[1] = 0
        states[0][0, 2] = 0
        with torch.no_grad():
            module.weight_hh_l0[5] = 0
            module.weight_ih_l0[:, 3] = 0
            module.weight_ih_l0[7] = 1e-33  # counts as zeros in int8

    check_step("lstm", dtype, (4, 9, 17), change=change)


@pytest.mark.parametrize("sizes", [(1, 3, 5), (2, 16, 64), (3, 131, 70), (5, 40, 129)], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_integer_sums_are_exact(any_target, sizes, threads):
    """With a 127 in every row all scales are 1, and a ReLU layer returns the sums themselves."""
    torch.set_num_threads(threads)
    batch, input_size, hidden_size = sizes
    module = fastrnn.RNN(input_size, hidden_size, nonlinearity="relu", bias=False)

    def whole(rows, columns):
        values = torch.randint(-127, 128, (rows, columns)).float()
        values[torch.arange(rows), torch.randint(columns, (rows,))] = 127.0
        return values

    x, h = whole(batch, input_size), whole(batch, hidden_size)
    w_ih, w_hh = whole(hidden_size, input_size), whole(hidden_size, hidden_size)
    w_ih[0], w_hh[0], x[0], h[0] = 127, 127, 127, -127  # the largest sums there are
    with torch.no_grad():
        module.weight_ih_l0.copy_(w_ih)
        module.weight_hh_l0.copy_(w_hh)
    _, h_n = fastrnn.quantize(module, inplace=False)(x[None], h[None])
    exact = x.long() @ w_ih.long().t() + h.long() @ w_hh.long().t()
    assert torch.equal(h_n[0].long(), exact.clamp(min=0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_calls_of_one_step(any_target, kind, dtype):
    """Together with test_step this is the whole sequence: chunks and tiles change no bit."""
    module, quantized = layer(kind, 9, 35, dtype=dtype)
    x, hx = torch.randn(23, 6, 9), states_of(module, 6)
    outputs, state = [], hx
    for row in x:
        output, state = quantized(row[None], state)
        outputs.append(output)
    assert_equal(quantized(x, hx), (torch.cat(outputs), state))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_layers_and_directions_are_layers(kind, dtype):
    module, quantized = layer(kind, 6, 20, dtype=dtype, num_layers=2, bidirectional=True)
    x, hx = torch.randn(5, 3, 6), states_of(module, 3)
    states = hx if isinstance(hx, tuple) else (hx,)
    output, finals = x, []
    for index in range(2):
        halves = []
        for direction, suffix in enumerate(("", "_reverse")):
            options = {"nonlinearity": module.nonlinearity} if "rnn" in kind else {}
            if module.mode == "LSTM":
                options["proj_size"] = module.proj_size
            one = type(module)(output.shape[-1], 20, **options).eval()
            weights = {n: getattr(module, n.replace("l0", f"l{index}") + suffix)
                       for n, _ in one.named_parameters()}  # fmt: skip
            one.load_state_dict(weights)
            at = 2 * index + direction
            start = tuple(s[at : at + 1] for s in states)
            start = start if module.mode == "LSTM" else start[0]
            turned = output.flip(0) if direction else output
            result, *final = tensors(fastrnn.quantize(one, dtype, inplace=False)(turned, start))
            halves.append(result.flip(0) if direction else result)
            finals.append(final)
        output = torch.cat(halves, 2)
    expected = tuple(torch.cat(s) for s in zip(*finals))
    assert_equal(quantized(x, hx), (output, expected))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [(5, 3, 3, 1), (2, 6, 1, 6, 3), (4,)], ids=str)
@pytest.mark.parametrize("hx", [True, False], ids=["hx", "no_hx"])
def test_packed_is_each_sequence_alone(kind, dtype, lengths, hx):
    module, quantized = layer(kind, 6, 21, dtype=dtype, bidirectional=True, num_layers=2)
    rows = [torch.randn(n, 6) for n in lengths]
    state = states_of(module, len(lengths)) if hx else None
    output, *finals = quantized(pack_sequence(rows, enforce_sorted=False), state)
    padded, _ = pad_packed_sequence(output)
    finals = finals[0] if module.mode == "LSTM" else finals
    for b, x in enumerate(rows):
        one = None
        if hx:
            parts = [s[:, b : b + 1].clone() for s in (state if module.mode == "LSTM" else [state])]
            one = tuple(parts) if module.mode == "LSTM" else parts[0]
        expected, *ends = tensors(quantized(x[:, None], one))
        assert torch.equal(padded[: len(x), b], expected[:, 0])
        for final, end in zip(finals, ends, strict=True):
            assert torch.equal(final[:, b], end[:, 0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(20, 1), (10, 3), (6, 33)], ids=str)
def test_threads_change_nothing(any_target, kind, dtype, shape):
    module, quantized = layer(kind, 70, 260, dtype=dtype, bidirectional=shape[1] == 3)
    x, hx = torch.randn(*shape, 70), states_of(module, shape[1])
    results = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        results.append(quantized(x, hx))
    for result in results[1:]:
        assert_equal(result, results[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_options_and_layouts(dtype):
    for bias, first, hx in itertools.product((True, False), repeat=3):
        module, quantized = layer("gru", 5, 18, dtype=dtype, bias=bias, batch_first=first)
        x = torch.randn(4, 3, 5)
        state = states_of(module, 4 if first else 3) if hx else None
        plain = copy.deepcopy(quantized)
        plain.batch_first = False
        output, h_n = plain(x.transpose(0, 1) if first else x, state)
        assert_equal(quantized(x, state), (output.transpose(0, 1) if first else output, h_n))
        zeros = torch.zeros(1, 4 if first else 3, 18)
        if not hx:
            assert_equal(quantized(x, zeros), quantized(x))
        wide = torch.randn(4, 3, 11)[..., 3:8]
        assert_equal(quantized(wide, state), quantized(wide.contiguous(), state))
    module, quantized = layer("lstm", 5, 18, dtype=dtype, proj_size=True)
    x, (h, c) = torch.randn(4, 5), states_of(module, 1)
    output, (h_n, c_n) = quantized(x, (h[:, 0], c[:, 0]))
    expected, (h_e, c_e) = quantized(x[:, None], (h, c))
    assert torch.equal(output, expected[:, 0])
    assert torch.equal(h_n, h_e[:, 0]) and torch.equal(c_n, c_e[:, 0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize("library", [nn, fastrnn], ids=["torch", "fastrnn"])
def test_cells_are_layers_of_one_step(dtype, name, library):
    options = {"nonlinearity": "relu"} if name == "RNNCell" else {}
    cell = getattr(library, name)(7, 19, **options)
    whole = getattr(fastrnn, name[:-4])(7, 19, **options)
    whole.load_state_dict({k + "_l0": v for k, v in cell.state_dict().items()})
    small, quantized = (fastrnn.quantize(m, dtype, inplace=False) for m in (cell, whole))
    assert isinstance(small, QuantizedCell)
    x, hx = torch.randn(3, 7), states_of(whole, 3)
    _, *expected = tensors(quantized(x[None], hx))
    state = tuple(s[0] for s in hx) if isinstance(hx, tuple) else hx[0]

    def listed(result):
        return list(result) if isinstance(result, tuple) else [result]

    for actual, e in zip(listed(small(x, state)), expected, strict=True):
        assert torch.equal(actual, e[0])
    one = tuple(s[1] for s in state) if isinstance(state, tuple) else state[1]
    for actual, e in zip(listed(small(x[1], one)), expected, strict=True):
        assert torch.equal(actual, e[0, 1])
    for actual, e in zip(listed(small(x)), tensors(quantized(x[None]))[1:], strict=True):
        assert torch.equal(actual, e[0])


@pytest.mark.parametrize("kind", KINDS)
def test_error_of_a_sequence(kind):
    """Against the layer itself: no more than rounding of weights and activations explains."""
    torch.manual_seed(3)
    for dtype, limit in ((torch.int8, 0.03), (torch.bfloat16, 0.01)):
        module, quantized = layer(kind, 40, 128, dtype=dtype)
        x = torch.randn(50, 4, 40)
        with torch.no_grad():
            exact = module(x)[0]
        difference = (quantized(x)[0] - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt()
        assert 0 < difference < limit


def test_nan_and_infinity(any_target):
    for dtype, value in itertools.product(DTYPES, (float("nan"), float("inf"))):
        module, quantized = layer("lstm", 5, 18, dtype=dtype)
        x = torch.randn(6, 3, 5)
        clean, _ = quantized(x)
        x[2, 1, 3] = value
        output, (h_n, c_n) = quantized(x)
        assert torch.equal(output[:, [0, 2]], clean[:, [0, 2]])  # rows do not meet
        assert torch.equal(output[:2], clean[:2])
        if dtype is torch.int8 or value != value:
            assert output[2:, 1].isnan().all() and h_n[0, 1].isnan().all()
        else:  # as the float layer: gates saturate
            with torch.no_grad():
                expected, _ = module(x)
            assert torch.equal(output[2, 1].isnan(), expected[2, 1].isnan())


# -- The model around it -------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.layers = nn.ModuleList([nn.LSTM(6, 8, 2, dropout=0.5), fastrnn.GRU(8, 8)])
        self.cell = nn.GRUCell(8, 8)
        self.again = self.layers[1]
        self.head = nn.Linear(8, 11)

    def forward(self, ids):
        self.layers[0].flatten_parameters()
        x, _ = self.layers[0](self.embedding(ids))
        x, h = self.again(self.layers[1](x)[0])
        return self.head(self.cell(x[-1], h[0]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_model(dtype):
    model, ids = Model(), torch.randint(11, (7, 3))
    before = copy.deepcopy(model.state_dict())
    small = fastrnn.quantize(model, dtype, inplace=False)
    assert model.training and not small.training
    assert isinstance(model.layers[0], nn.LSTM) and isinstance(small.layers[0], QuantizedLayer)
    assert small.again is small.layers[1] and isinstance(small.cell, QuantizedCell)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    model.eval()
    assert error(small(ids).detach(), model(ids).detach()) < 0.05
    assert sorted(n for n, _ in small.named_parameters()) == [
        "embedding.weight", "head.bias", "head.weight"]  # fmt: skip
    assert f"QuantizedLSTM(6, 8, num_layers=2, dropout=0.5, dtype={dtype})" in repr(small)
    same = fastrnn.quantize(model, dtype, inplace=True)
    assert same is model and torch.equal(model(ids), small(ids))
    assert fastrnn.quantize(small, dtype, inplace=False) is not small  # nothing left to do
    assert torch.equal(fastrnn.quantize(small, dtype, inplace=False)(ids), small(ids))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_copies(dtype):
    ids = torch.randint(11, (7, 3))
    small, other = (fastrnn.quantize(Model(), dtype, inplace=False) for _ in range(2))
    expected = small(ids)
    assert not torch.equal(other(ids), expected)
    buffer = io.BytesIO()
    torch.save(small.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    for loaded in (other, copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        assert torch.equal(loaded(ids), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtype_stays(dtype):
    quantized = layer("gru", 5, 7, dtype=dtype)[1]
    x = torch.randn(3, 2, 5)
    expected = quantized(x)
    for cast in (nn.Module.double, nn.Module.half, nn.Module.bfloat16, nn.Module.float):
        assert_equal(cast(quantized)(x), expected)
    assert quantized.to("meta").weight_ih_l0.is_meta
    output, h_n = quantized(x.to("meta"))
    assert output.shape == (3, 2, 7) and h_n.shape == (1, 2, 7)


def test_weights_are_smaller():
    module = fastrnn.LSTM(512, 512)
    full = sum(p.nbytes for p in module.parameters())
    for dtype, factor in ((torch.int8, 3.8), (torch.bfloat16, 1.99)):
        small = sum(b.nbytes for b in fastrnn.quantize(module, dtype, inplace=False).buffers())
        assert full / small > factor


def test_packing_keeps_every_weight():
    """Panels hold the integers, scales and sums that the reference finds."""
    module = fastrnn.RNN(5, 70)
    quantized = fastrnn.quantize(module, inplace=False)
    integers, scales = int8(module.weight_hh_l0.detach())
    panels = quantized.weight_hh_l0  # [blocks, groups, 4, 16, 4]
    rows = panels.permute(0, 2, 3, 1, 4).reshape(128, 72)
    assert torch.equal(rows[:70, :70].double(), integers) and not rows[70:].any()
    assert torch.equal(quantized.weight_hh_l0_scales.flatten()[:70].double(), scales[:, 0])
    sums = quantized.weight_hh_l0_sums.flatten()[:70]
    assert torch.equal(sums.double(), 128 * integers.sum(1))


def test_parametrized_weights_and_hooks():
    module = parametrizations.weight_norm(nn.LSTM(4, 6), "weight_hh_l0").eval()
    with torch.no_grad():
        module.parametrizations.weight_hh_l0.original0.mul_(3)
    plain = nn.LSTM(4, 6).eval()
    plain.load_state_dict({n: getattr(module, n) for n in plain.state_dict()})
    x = torch.randn(3, 2, 4)
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    assert_equal(*(fastrnn.quantize(m, inplace=False)(x) for m in (module, plain)))
    assert len(calls) == 1


class Peephole(nn.LSTM):
    pass


def test_what_is_left_alone():
    model = nn.ModuleList([Peephole(2, 3), nn.GRU(2, 3), nn.GRU(2, 3)])
    model[1].forward = lambda *_: None
    with pytest.warns(UserWarning) as warned:
        small = fastrnn.quantize(model, inplace=False)
    assert [type(m) for m in small] == [Peephole, nn.GRU, QuantizedLayer]
    assert {str(w.message)[:10] for w in warned} == {"quantize: "}
    assert "0 left alone: Peephole is a subclass" in str(warned[0].message)
    assert "1 left alone: its forward was replaced" in str(warned[1].message)


def test_inplace_or_a_copy():
    model = nn.ModuleList([nn.GRU(2, 3)])
    with pytest.warns(FutureWarning, match="expected inplace to be given"):
        small = fastrnn.quantize(model)
    assert isinstance(model[0], nn.GRU) and isinstance(small[0], QuantizedLayer)
    assert fastrnn.quantize(model, inplace=True) is model and isinstance(model[0], QuantizedLayer)


# -- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "message", "call"),
    [
        (TypeError, "torch.nn.Module, got int", lambda: fastrnn.quantize(3, inplace=False)),
        (ValueError, "got torch.float16",
         lambda: fastrnn.quantize(nn.LSTM(2, 3), torch.float16, inplace=False)),
        (ValueError, "weight_ih_l0 with values, got meta",
         lambda: fastrnn.quantize(nn.LSTM(2, 3, device="meta"), inplace=False)),
        (ValueError, "131,072 columns in weight_ih, got 131,073",
         lambda: fastrnn.quantize(nn.RNNCell(2**17 + 1, 1), inplace=False)),
    ],
)  # fmt: skip
def test_quantize_raises(kind, message, call):
    with pytest.raises(kind, match=message):
        call()


def test_weights_that_are_not_finite():
    model = nn.Sequential(nn.GRU(2, 3))
    with torch.no_grad():
        model[0].bias_hh_l0[1] = float("nan")
    with pytest.raises(ValueError, match="quantize: 0: expected bias_hh_l0 to be finite"):
        fastrnn.quantize(model, inplace=False)


@pytest.mark.parametrize(
    ("kind", "message", "arguments"),
    [
        (AttributeError, "expected input to be a Tensor", ([1.0],)),
        (ValueError, r"input of shape \(seq_len, batch, .*, got \(4,\)", (torch.zeros(4),)),
        (ValueError, "torch.float32, got torch.float64", (torch.zeros(3, 2, 4).double(),)),
        (RuntimeError, "input_size = 4, got shape", (torch.zeros(3, 2, 5),)),
        (RuntimeError, "seq_len > 0, got input of shape", (torch.zeros(0, 2, 4),)),
        (RuntimeError, r"h_0 of shape .* = \(1, 2, 6\), got \(1, 3, 6\)",
         (torch.zeros(3, 2, 4), (torch.zeros(1, 3, 6), torch.zeros(1, 2, 6)))),
        (RuntimeError, r"c_0 of shape .* = \(1, 2, 6\), got \(1, 2, 5\)",
         (torch.zeros(3, 2, 4), (torch.zeros(1, 2, 6), torch.zeros(1, 2, 5)))),
        (RuntimeError, "hx of dtype torch.float32, got torch.float64",
         (torch.zeros(3, 2, 4), (torch.zeros(1, 2, 6).double(), torch.zeros(1, 2, 6)))),
        (RuntimeError, "hx of 2 dimensions .* for 2-D input",
         (torch.zeros(3, 4), (torch.zeros(1, 1, 6), torch.zeros(1, 1, 6)))),
    ],
)  # fmt: skip
def test_calls_raise(kind, message, arguments):
    with pytest.raises(kind, match=message):
        fastrnn.quantize(nn.LSTM(4, 6), inplace=False)(*arguments)
    ours = fastrnn.LSTM(4, 6)
    with pytest.raises(kind):  # the layer itself has the same type of error
        ours(*arguments)


@pytest.mark.parametrize(
    ("kind", "message", "arguments"),
    [
        (AttributeError, "expected input to be a Tensor", ([1.0],)),
        (ValueError, "1 or 2 dimensions, got 3", (torch.zeros(1, 2, 4),)),
        (RuntimeError, "input_size = 4, got shape", (torch.zeros(2, 5),)),
        (RuntimeError, r"h of hx of shape \(2, 6\), got \(3, 6\)",
         (torch.zeros(2, 4), torch.zeros(3, 6))),
        (AttributeError, "expected hx to be a Tensor, got tuple",
         (torch.zeros(2, 4), (torch.zeros(2, 6), torch.zeros(2, 6)))),
    ],
)  # fmt: skip
def test_calls_of_cells_raise(kind, message, arguments):
    with pytest.raises(kind, match=message):
        fastrnn.quantize(nn.GRUCell(4, 6), inplace=False)(*arguments)


def test_training_and_backward_raise():
    quantized = fastrnn.quantize(nn.LSTM(4, 6), inplace=False)
    x = torch.randn(3, 2, 4, requires_grad=True)
    output, _ = quantized(x)
    with pytest.raises(RuntimeError, match="a quantized layer has no backward"):
        output.sum().backward()
    with torch.no_grad():
        assert torch.equal(quantized(x)[0], output)
    quantized.train()
    with pytest.raises(RuntimeError, match="for inference: call eval"):
        quantized(x)


def test_autocast():
    quantized = fastrnn.quantize(nn.GRU(4, 6), inplace=False)
    x = torch.randn(3, 2, 4).bfloat16()
    with pytest.raises(ValueError, match="torch.float32, got torch.bfloat16"):
        quantized(x)
    with torch.autocast("cpu"):
        output, _ = quantized(x)
    assert torch.equal(output, quantized(x.float())[0])


# -- Graphs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compile_and_export(dtype):
    small = fastrnn.quantize(nn.LSTM(4, 6, 2, bidirectional=True), dtype, inplace=False)
    x = torch.randn(5, 3, 4)
    expected = small(x)
    with torch.no_grad():
        assert_equal(torch.compile(small, fullgraph=True, backend="aot_eager")(x), expected)
    shapes = ({0: torch.export.Dim("T"), 1: torch.export.Dim("B")}, None)
    program = torch.export.export(small, (x,), dynamic_shapes=shapes[:1])
    y = torch.randn(7, 2, 4)
    assert_equal(program.module()(y), small(y))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16])
def test_forward_mode_is_refused(dtype):
    """It would be silently zero."""
    layer, x = fastrnn.quantize(fastrnn.LSTM(4, 6), dtype, inplace=False), torch.randn(3, 2, 4)
    with pytest.raises(RuntimeError, match="QuantizedLSTM: a quantized layer has no forward mode"):
        torch.func.jvp(lambda x: layer(x)[0], (x,), (torch.ones_like(x),))
    cell = fastrnn.quantize(fastrnn.GRUCell(4, 6), dtype, inplace=False)
    with forward_ad.dual_level():
        cell(x[0])
        with pytest.raises(RuntimeError, match="no forward mode"):
            cell(forward_ad.make_dual(x[0], x[1]))


@pytest.mark.parametrize("sizes", [(4, 7), (3, 6)])
def test_state_of_other_sizes(sizes):
    """Panels of nearly equal sizes have equal shapes."""
    other = fastrnn.quantize(fastrnn.LSTM(*sizes), inplace=False).state_dict()
    with pytest.raises(RuntimeError, match=r"= \(4, 6, 0\), got one of"):
        fastrnn.quantize(fastrnn.LSTM(4, 6), inplace=False).load_state_dict(other)


@pytest.mark.parametrize(
    "make",
    [lambda: nn.LSTM(2, 3, dtype=torch.complex64), lambda: nn.GRUCell(0, 6),
     lambda: nn.GRUCell(3, 0)],
)  # fmt: skip
def test_weights_that_have_no_integers(make):
    with pytest.raises(ValueError, match="to be real and not empty"):
        fastrnn.quantize(make(), inplace=False)


def test_states_on_meta():
    layer, x = fastrnn.quantize(fastrnn.GRU(4, 6), inplace=False), torch.randn(3, 2, 4)
    with pytest.raises(RuntimeError, match="expected all tensors on one device, got states"):
        layer(x, torch.zeros(1, 2, 6, device="meta"))


def test_a_dreamer_cell_is_left_alone_with_a_warning():
    with pytest.warns(UserWarning, match="DreamerGRUCell is a subclass"):
        fastrnn.quantize(fastrnn.variants.DreamerGRUCell(3, 4), inplace=False)
