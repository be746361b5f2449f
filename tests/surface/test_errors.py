"""The same bad call on torch.nn's layer and ours: the same exception type, a better message."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastrnn
from tests.cases import CELLS, LAYERS

Z = torch.zeros
INT, F64 = torch.int64, torch.float64


def packed(sizes, *shape, dtype=torch.float32):
    return PackedSequence(Z(*shape, dtype=dtype), torch.tensor(sizes, dtype=INT))


def hx(name, *shape, **options):
    state = Z(*shape, **options)
    return (state, state) if name.startswith("LSTM") else state


# Calls f(name, module) of a layer with input_size 3 and hidden_size 4.
LAYER_CALLS = {
    "input_1d": lambda n, m: m(Z(3)),
    "input_4d": lambda n, m: m(Z(1, 1, 1, 3)),
    "input_size": lambda n, m: m(Z(2, 2, 5)),
    "input_size_unbatched": lambda n, m: m(Z(2, 5)),
    "input_float64": lambda n, m: m(Z(2, 2, 3, dtype=F64)),
    "input_int": lambda n, m: m(Z(2, 2, 3, dtype=INT)),
    "input_none": lambda n, m: m(None),
    "input_list": lambda n, m: m([1.0, 2.0]),
    "input_meta": lambda n, m: m(Z(2, 2, 3, device="meta")),
    "no_steps": lambda n, m: m(Z(0, 2, 3)),
    "no_steps_unbatched": lambda n, m: m(Z(0, 3)),
    "no_steps_no_batch": lambda n, m: m(Z(0, 0, 3)),
    "hx_2d": lambda n, m: m(Z(2, 2, 3), hx(n, 1, 4)),
    "hx_3d_unbatched": lambda n, m: m(Z(2, 3), hx(n, 1, 1, 4)),
    "hx_batch": lambda n, m: m(Z(2, 2, 3), hx(n, 1, 3, 4)),
    "hx_size": lambda n, m: m(Z(2, 2, 3), hx(n, 1, 2, 5)),
    "hx_layers": lambda n, m: m(Z(2, 2, 3), hx(n, 2, 2, 4)),
    "hx_float64": lambda n, m: m(Z(2, 2, 3), hx(n, 1, 2, 4, dtype=F64)),
    "hx_int": lambda n, m: m(Z(2, 2, 3), hx(n, 1, 2, 4, dtype=INT)),
    "hx_meta": lambda n, m: m(Z(2, 2, 3), hx(n, 1, 2, 4, device="meta")),
    "hx_str": lambda n, m: m(Z(2, 2, 3), "ab"),
    "hx_triple": lambda n, m: m(Z(2, 2, 3), (Z(1, 2, 4),) * 3),
    "hx_single": lambda n, m: m(Z(2, 2, 3), (Z(1, 2, 4),)),
    "hx_none_inside": lambda n, m: m(Z(2, 2, 3), (Z(1, 2, 4), None)),
    "packed_input_size": lambda n, m: m(pack_sequence([Z(3, 5), Z(2, 5)])),
    "packed_float64": lambda n, m: m(packed([2, 1], 3, 3, dtype=F64)),
    "packed_3d": lambda n, m: m(packed([2, 1], 3, 3, 3)),
    "packed_hx_batch": lambda n, m: m(packed([2, 1], 3, 3), hx(n, 1, 3, 4)),
    "packed_hx_2d": lambda n, m: m(packed([2, 1], 3, 3), hx(n, 1, 4)),
    "packed_growing": lambda n, m: m(packed([2, 3], 5, 3)),
    "packed_too_few_rows": lambda n, m: m(packed([4, 3], 5, 3)),
    "packed_negative": lambda n, m: m(packed([2, -1], 1, 3)),
    "packed_no_steps": lambda n, m: m(packed([], 0, 3)),
    "packed_int32": lambda n, m: m(
        PackedSequence(Z(3, 3), torch.tensor([2, 1], dtype=torch.int32))
    ),
    "w_ih_float64": lambda n, m: swap(m, "weight_ih_l0", dtype=F64)(Z(2, 2, 3)),
    "w_hh_float64": lambda n, m: swap(m, "weight_hh_l0", dtype=F64)(Z(2, 2, 3)),
    "w_hh_meta": lambda n, m: swap(m, "weight_hh_l0", device="meta")(Z(2, 2, 3)),
    "w_hh_none": lambda n, m: swap(m, "weight_hh_l0", None)(Z(2, 2, 3)),
    "b_ih_none": lambda n, m: swap(m, "bias_ih_l0", None)(Z(2, 2, 3)),
    "b_ih_size": lambda n, m: swap(m, "bias_ih_l0", (1, 0))(Z(2, 2, 3)),
    "b_hh_size": lambda n, m: swap(m, "bias_hh_l0", (1, 0))(Z(2, 2, 3)),
}
LSTM_CALLS = {
    "hx_tensor_1": lambda n, m: m(Z(2, 2, 3), Z(1, 2, 4)),
    "hx_tensor_2": lambda n, m: m(Z(2, 2, 3), Z(2, 2, 4)),
    "hx_tensor_4d": lambda n, m: m(Z(2, 2, 3), Z(2, 1, 2, 4)),
    "hx_tensor_unbatched": lambda n, m: m(Z(2, 3), Z(1, 4)),
    "c_batch": lambda n, m: m(Z(2, 2, 3), (Z(1, 2, 4), Z(1, 3, 4))),
    "hx_empty": lambda n, m: m(Z(2, 2, 3), ()),
    "packed_hx_empty": lambda n, m: m(packed([2, 1], 3, 3), ()),
    "packed_hx_single": lambda n, m: m(packed([2, 1], 3, 3), (Z(1, 2, 4),)),
    "packed_hx_triple": lambda n, m: m(packed([2, 1], 3, 3), (Z(1, 2, 4),) * 3),
    "packed_hx_none_inside": lambda n, m: m(packed([2, 1], 3, 3), (Z(1, 2, 4), None)),
    "packed_hx_tensor": lambda n, m: m(packed([2, 1], 3, 3), Z(2, 2, 4)),
    "packed_hx_str": lambda n, m: m(packed([2, 1], 3, 3), "ab"),
}
# What torch.nn accepts silently (oneDNN reads weights of the wrong shape, or leaves rows out).
STRICTER_CALLS = {
    "w_ih_columns": lambda n, m: swap(m, "weight_ih_l0", (0, 2))(Z(2, 2, 3)),
    "w_ih_rows": lambda n, m: swap(m, "weight_ih_l0", (1, 0))(Z(2, 2, 3)),
    "w_hh_columns": lambda n, m: swap(m, "weight_hh_l0", (0, 1))(Z(2, 2, 3)),
    "w_hh_rows": lambda n, m: swap(m, "weight_hh_l0", (1, 0))(Z(2, 2, 3)),
    "packed_rows_left": lambda n, m: m(packed([2, 2], 5, 3)),
    "packed_trailing_zero": lambda n, m: m(packed([2, 1, 0], 3, 3)),
}
CELL_CALLS = {
    "input_0d": lambda n, m: m(Z(())),
    "input_3d": lambda n, m: m(Z(1, 1, 3)),
    "input_size": lambda n, m: m(Z(2, 5)),
    "input_size_unbatched": lambda n, m: m(Z(5)),
    "input_float64": lambda n, m: m(Z(2, 3, dtype=F64)),
    "input_int": lambda n, m: m(Z(2, 3, dtype=INT)),
    "input_none": lambda n, m: m(None),
    "input_meta": lambda n, m: m(Z(2, 3, device="meta")),
    "hx_0d": lambda n, m: m(Z(3), hx(n, ())),
    "hx_3d": lambda n, m: m(Z(2, 3), hx(n, 1, 2, 4)),
    "hx_1d": lambda n, m: m(Z(2, 3), hx(n, 4)),
    "hx_1d_of_batch": lambda n, m: m(Z(2, 3), hx(n, 2)),
    "hx_2d_unbatched": lambda n, m: m(Z(3), hx(n, 1, 4)),
    "hx_batch": lambda n, m: m(Z(2, 3), hx(n, 3, 4)),
    "hx_batch_1": lambda n, m: m(Z(2, 3), hx(n, 1, 4)),
    "hx_size": lambda n, m: m(Z(2, 3), hx(n, 2, 5)),
    "hx_float64": lambda n, m: m(Z(2, 3), hx(n, 2, 4, dtype=F64)),
    "hx_meta": lambda n, m: m(Z(2, 3), hx(n, 2, 4, device="meta")),
    "hx_str": lambda n, m: m(Z(2, 3), "ab"),
    "hx_triple": lambda n, m: m(Z(2, 3), (Z(2, 4),) * 3),
    "hx_single": lambda n, m: m(Z(2, 3), (Z(2, 4),)),
    "hx_none_inside": lambda n, m: m(Z(2, 3), (Z(2, 4), None)),
    "w_ih_float64": lambda n, m: swap(m, "weight_ih", dtype=F64)(Z(2, 3)),
    "w_hh_float64": lambda n, m: swap(m, "weight_hh", dtype=F64)(Z(2, 3)),
    "w_hh_columns": lambda n, m: swap(m, "weight_hh", (0, 1))(Z(2, 3)),
    "w_hh_rows": lambda n, m: swap(m, "weight_hh", (1, 0))(Z(2, 3)),
    "b_ih_size": lambda n, m: swap(m, "bias_ih", (1, 0))(Z(2, 3)),
}
LSTM_CELL_CALLS = {
    "hx_tensor_2d": lambda n, m: m(Z(2, 3), Z(2, 4)),
    "hx_tensor_3d": lambda n, m: m(Z(2, 3), Z(2, 2, 4)),
    "hx_tensor_1d": lambda n, m: m(Z(2, 3), Z(2)),
    "hx_empty": lambda n, m: m(Z(2, 3), ()),
    "hx_empty_unbatched": lambda n, m: m(Z(3), ()),
    "hx_single_unbatched": lambda n, m: m(Z(3), (Z(4),)),
    "c_batch": lambda n, m: m(Z(2, 3), (Z(2, 4), Z(3, 4))),
}
# Constructors f(class).
CONSTRUCTIONS = {
    "nothing": lambda c: c(),
    "float_size": lambda c: c(3.0, 4),
    "float_hidden": lambda c: c(3, 4.0),
    "no_input": lambda c: c(0, 4),
    "no_hidden": lambda c: c(3, 0),
    "no_layers": lambda c: c(3, 4, 0),
    "int_bias": lambda c: c(3, 4, bias=1),
    "int_batch_first": lambda c: c(3, 4, batch_first=1),
    "dropout_2": lambda c: c(3, 4, 2, dropout=2.0),
    "dropout_bool": lambda c: c(3, 4, 2, dropout=True),
    "dropout_str": lambda c: c(3, 4, 2, dropout="x"),
    "negative_proj": lambda c: c(3, 4, proj_size=-1),
    "large_proj": lambda c: c(3, 4, proj_size=4),
    "unknown": lambda c: c(3, 4, hidden=3),
    "nonlinearity": lambda c: c(3, 4, nonlinearity="gelu"),
    "nonlinearity_position": lambda c: c(3, 4, 1, "gelu"),
    "dtype": lambda c: c(3, 4, dtype=torch.int64),
    "device": lambda c: c(3, 4, device="nowhere"),
}


def swap(module, name, change=(0, 0), **options):
    """The module with a plain tensor (or None) of another shape, dtype or device as a weight."""
    shape = getattr(module, name).shape
    delattr(module, name)
    if change is not None:
        change = Z(*(n + more for n, more in zip(shape, change)), **options)
    setattr(module, name, change)
    return module


def raised(call, *arguments):
    with pytest.raises(Exception) as info:
        call(*arguments)
    return info.value


# (class, label, call) of every call above that torch.nn refuses.
REFUSED = [
    (name, label, call)
    for names, calls in (
        (LAYERS, LAYER_CALLS),
        (("LSTM",), LSTM_CALLS),
        (CELLS, CELL_CALLS),
        (("LSTMCell",), LSTM_CELL_CALLS),
    )
    for name in names
    for label, call in calls.items()
]


@pytest.mark.parametrize(
    "name, label, call", REFUSED, ids=[f"{name}-{label}" for name, label, _ in REFUSED]
)
def test_refused(name, label, call):
    theirs = raised(call, name, getattr(nn, name)(3, 4))
    ours = raised(call, name, getattr(fastrnn, name)(3, 4))
    assert type(ours) is type(theirs), f"{theirs!r} against {ours!r}"
    message = str(ours)
    stem = name.lower().replace("cell", "")
    assert message.startswith(stem) and "expected" in message and "got" in message, message


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("call", STRICTER_CALLS.values(), ids=STRICTER_CALLS)
def test_stricter_than_torch(name, call):
    error = raised(call, name, getattr(fastrnn, name)(3, 4))
    assert isinstance(error, RuntimeError) and "expected" in str(error)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("call", CONSTRUCTIONS.values(), ids=CONSTRUCTIONS)
def test_constructors(name, call):
    outcomes = []
    for library in (nn, fastrnn):
        try:
            outcomes.append(repr(call(getattr(library, name))))
        except Exception as error:
            outcomes.append(type(error))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_of_one_layer_warns(name):
    with pytest.warns(UserWarning, match="num_layers greater than 1"):
        getattr(fastrnn, name)(3, 4, dropout=0.5)


def test_rnn_cell_nonlinearity():
    for library in (nn, fastrnn):
        cell = library.RNNCell(3, 4, nonlinearity="gelu")
        with pytest.raises(RuntimeError, match="gelu"):
            cell(Z(2, 3))


def test_number_of_params():
    with pytest.raises(RuntimeError, match=r"gru: expected .* = 8 params, got 4"):
        fastrnn.functional.gru(Z(2, 2, 3), None, list(fastrnn.GRU(3, 4).parameters()), num_layers=2)


def test_arguments_of_functions_that_are_no_tensors():
    layer, x = fastrnn.RNN(3, 4), torch.randn(5, 2, 3)
    for params in (layer.parameters(), layer):
        with pytest.raises(TypeError, match="rnn: expected params to be a list of Tensors, got"):
            fastrnn.functional.rnn(x, None, params)
    with pytest.raises(TypeError, match="rnn: expected batch_sizes to be a Tensor, got list"):
        fastrnn.functional.rnn(x[:, 0], None, list(layer.parameters()), batch_sizes=[3, 2])


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize("hx", [3, 1.5, object(), "ab", {0: 1}, {1, 2}, (None, None)], ids=repr)
@pytest.mark.parametrize("batched", [True, False])
def test_states_that_are_none(name, hx, batched):
    x = torch.randn(*(() if name.endswith("Cell") else (5,)), *((2,) if batched else ()), 3)
    errors = []
    for library in (nn, fastrnn):
        with pytest.raises(
            (AttributeError, IndexError, KeyError, RuntimeError, TypeError)
        ) as error:
            getattr(library, name)(3, 4)(x, hx)
        errors.append(error.type)
    assert errors[0] is errors[1]


# -- Every wrong shape: the argument, what was expected and the caller's own shape are named -----


def wrong(shape, dims):
    """Shapes with one of those dimensions off by one, one dimension less, one more."""
    for dim in dims:
        yield (*shape[:dim], shape[dim] + 1, *shape[dim + 1 :])
    yield shape[1:]
    yield (1, *shape)


def wrong_calls(name):
    """(label, options of the module, argument, its wrong shape, call) of a layer (3, 4) or cell."""
    pair = name.startswith("LSTM")

    def with_state(state, size):
        return (Z(state), Z(state)) if pair else Z(state)

    if name in CELLS:
        for shape in ((2, 3), (3,)):
            state = (*shape[:-1], 4)
            for bad in wrong(shape, [len(shape) - 1]):
                if len(bad) in (1, 2) and bad[-1] == 3:
                    continue  # the other layout
                yield {}, "input", bad, lambda m, b=bad: m(Z(b))
            for bad in wrong(state, range(len(state))):
                hx = (Z(bad), Z(bad)) if pair else Z(bad)
                yield {}, "hx", bad, lambda m, s=shape, h=hx: m(Z(s), h)
        return
    for options in ({}, {"batch_first": True}, {"num_layers": 2, "bidirectional": True}):
        rows = 4 if "num_layers" in options else 1
        for shape, state in (((5, 2, 3), (rows, 2, 4)), ((5, 3), (rows, 4))):
            if "batch_first" in options and len(shape) == 3:
                state = (rows, 5, 4)
            for bad in wrong(shape, [len(shape) - 1]):
                if len(bad) in (2, 3) and bad[-1] == 3:
                    continue
                yield options, "input", bad, lambda m, b=bad: m(Z(b))
            for bad in wrong(state, range(len(state))):
                hx = (Z(bad), Z(bad)) if pair else Z(bad)
                yield options, "h", bad, lambda m, s=shape, h=hx: m(Z(s), h)
                if pair:
                    hx = Z(state), Z(bad)
                    yield options, ("c_0", "hx"), bad, lambda m, s=shape, h=hx: m(Z(s), h)
        for bad in ((7, 4), (7,), (1, 7, 3)):
            data = PackedSequence(Z(bad), torch.tensor([3, 3, 1]))
            yield options, ("packed input", "input"), bad, lambda m, d=data: m(d)


WRONG = [(name, *case) for name in LAYERS + CELLS for case in wrong_calls(name)]


@pytest.mark.parametrize(
    "name, options, argument, shape, call",
    WRONG,
    ids=[f"{n}-{'-'.join(o)}-{a}-{s}" for n, o, a, s, _ in WRONG],
)
def test_wrong_shapes(name, options, argument, shape, call):
    theirs = raised(call, getattr(nn, name)(3, 4, **options))
    ours = raised(call, getattr(fastrnn, name)(3, 4, **options))
    message = str(ours)
    assert type(ours) is type(theirs), f"{theirs!r} against {ours!r}"
    arguments = argument if isinstance(argument, tuple) else (argument,)
    assert message.startswith(name.lower().replace("cell", "_cell")), message
    assert any(f"expected {a}" in message for a in arguments) and "got" in message, message
    assert str(tuple(shape)) in message, message


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("layout", ["sparse", "nested"])
def test_dense_tensors_are_expected(name, layout):
    x = Z(5, 2, 3).to_sparse()
    if layout == "nested":
        x = torch.nested.nested_tensor([Z(5, 3), Z(2, 3)], layout=torch.strided)
    with pytest.raises(RuntimeError, match=f"{name.lower()}: expected input to be a dense tensor"):
        getattr(fastrnn, name)(3, 4)(x)


@pytest.mark.parametrize(
    ("batch_sizes", "message"),
    [
        (torch.tensor([1, 2, 3]), r"batch_sizes positive and non-increasing, got \[1, 2, 3\]"),
        (torch.tensor([[3, 2, 1]]), r"batch_sizes as .*1-D.* got shape \(1, 3\)"),
        (torch.tensor([3.0, 2.0, 1.0]), r"batch_sizes as .*int64.* got .* of torch.float32"),
        (torch.empty(3, dtype=INT, device="meta"), r"batch_sizes as .*on cpu, got .* on meta"),
    ],
    ids=["growing", "2d", "float", "meta"],
)
def test_batch_sizes_are_blamed(batch_sizes, message):
    params = list(fastrnn.GRU(3, 4).parameters())
    with pytest.raises(RuntimeError, match=f"gru: expected {message}"):
        fastrnn.functional.gru(Z(6, 3), Z(1, 3, 4), params, batch_sizes=batch_sizes)


@pytest.mark.parametrize("index", [0, 1])
def test_weights_that_are_no_matrices(index):
    params = list(fastrnn.GRU(3, 4).parameters())
    params[index] = params[index].flatten()
    with pytest.raises(RuntimeError, match=f"gru: expected .*{('w_ih', 'w_hh')[index]}"):
        fastrnn.functional.gru(Z(6, 2, 3), Z(1, 2, 4), params)
    with pytest.raises(RuntimeError, match="gru: expected params with w_ih and w_hh at least"):
        fastrnn.functional.gru(Z(6, 2, 3), None, [])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("shape", [*wrong((1, 3, 4), range(3))], ids=str)
def test_wrong_states_of_packed_input(name, shape):
    """Not beside torch.nn, which does not survive all of them."""
    state = (Z(shape), Z(shape)) if name == "LSTM" else Z(shape)
    with pytest.raises((RuntimeError, IndexError)) as error:
        getattr(fastrnn, name)(3, 4)(packed([3, 3, 1], 7, 3), state)
    message = str(error.value)
    assert message.startswith(f"{name.lower()}: expected h_0 of shape"), message
    assert "(1, 3, 4)" in message and str(tuple(shape)) in message, message
