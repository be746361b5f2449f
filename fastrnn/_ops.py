"""The operators of csrc/ops.cpp: names them, registers their fake kernels.

Shapes are those of docs/design.md. A fake kernel allocates what the kernel would return and
computes nothing; it also stands in for the kernel on the meta device, so it makes the same checks
of devices and shapes that a wrong answer would follow from.
"""

import functools
import inspect

import torch
from torch import Tensor

from fastrnn import _extension  # noqa: F401  (registers the operators)
from fastrnn._cells import CELLS

lstm_forward = torch.ops.fastrnn.lstm_forward.default
lstm_backward = torch.ops.fastrnn.lstm_backward.default
gru_forward = torch.ops.fastrnn.gru_forward.default
gru_backward = torch.ops.fastrnn.gru_backward.default
rnn_forward = torch.ops.fastrnn.rnn_forward.default
rnn_backward = torch.ops.fastrnn.rnn_backward.default
products = torch.ops.fastrnn.products.default
sample_products = torch.ops.fastrnn.sample_products.default
layer_tangent = torch.ops.fastrnn.layer_tangent.default
layer_vjp = torch.ops.fastrnn.layer_vjp.default
layer_backward = torch.ops.fastrnn.layer_backward.default
layer_backward_tangent = torch.ops.fastrnn.layer_backward_tangent.default
quantized_forward = torch.ops.fastrnn.quantized_forward.default
extended_forward = torch.ops.fastrnn.extended_forward.default
extended_backward = torch.ops.fastrnn.extended_backward.default
drop_weights = torch.ops.fastrnn.drop_weights.default
segments = torch.ops.fastrnn.segments.default
gather_rows = torch.ops.fastrnn.gather_rows.default

DTYPES = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})

# Device types whose kernels are in this build; everything else is torch's own implementation's.
DEVICE_TYPES = frozenset({"meta"}) | {
    device_type
    for device_type, key in (("cpu", "CPU"), ("cuda", "CUDA"))
    if torch._C._dispatch_has_kernel_for_dispatch_key("fastrnn::lstm_forward", key)
}


def _check(condition, message):
    if not condition:
        raise RuntimeError(message())


def _register_fake(op):
    """Registers the fake kernel of an operator, which also checks that tensors are on one device.

    Only where no real kernel is asked: the dispatcher takes the fake one if any tensor is on meta.
    """

    def register(fake):
        names = list(inspect.signature(fake).parameters)

        @functools.wraps(fake)
        def checked(*arguments):
            first = None
            for name, value in zip(names, arguments):
                if name == "batch_sizes":  # on the CPU wherever the layer is
                    continue
                for tensor in value if isinstance(value, list | tuple) else (value,):
                    if not isinstance(tensor, Tensor):
                        continue
                    first = tensor if first is None else first
                    _check(
                        tensor.device == first.device,
                        lambda name=name, tensor=tensor, first=first: (
                            f"{op}: expected all tensors on one device, "
                            f"got {name} on {tensor.device} and others on {first.device}"
                        ),
                    )
            return fake(*arguments)

        torch.library.register_fake(f"fastrnn::{op}")(checked)
        return fake

    return register


class _Layer:
    """The sizes of one layer, read from its arguments and checked against each other."""

    def __init__(self, op, cell, params, has_biases, bidirectional):
        w_ih, w_hh = params[:2]
        gates = CELLS[cell].products
        self.directions = 2 if bidirectional else 1
        self.proj = len(params) == self.directions * (5 if has_biases else 3)
        self.hidden_size = w_ih.shape[0] // gates
        self.state_size = w_hh.shape[1]
        per_direction = [("w_ih", gates * self.hidden_size), ("w_hh", gates * self.hidden_size)]
        if has_biases:
            per_direction += [
                ("b_ih", gates * self.hidden_size),
                ("b_hh", gates * self.hidden_size),
            ]
        if self.proj:
            per_direction += [("w_hr", self.state_size)]
        for (name, rows), param in zip(per_direction * self.directions, params, strict=True):
            _check(
                param.shape[0] == rows,
                lambda name=name, rows=rows, param=param: (
                    f"{op}: expected {name} with {rows} rows, got shape {tuple(param.shape)}"
                ),
            )

    def batch(self, batch_sizes, padded, *states):
        """Rows of a state, from whatever carries them."""
        for state in states:
            if state is not None:
                return state.shape[1]
        if batch_sizes is None:
            return padded.shape[1]
        if type(batch_sizes) is Tensor and batch_sizes.device.type == "cpu":
            return int(batch_sizes[0])
        return torch.library.get_ctx().new_dynamic_size()


def _forward(op, cell, input, batch_sizes, h0, c0, params, has_biases, bidirectional):
    layer = _Layer(op, cell, params, has_biases, bidirectional)
    _check(
        input.shape[-1] == params[0].shape[1],
        lambda: (
            f"{op}: expected input of size(-1) = input_size = {params[0].shape[1]}, "
            f"got shape {tuple(input.shape)}"
        ),
    )
    batch = layer.batch(batch_sizes, input, h0, c0)
    rows = input.shape[0] if batch_sizes is not None else input.shape[0] * input.shape[1]
    output = input.new_empty((*input.shape[:-1], layer.directions * layer.state_size))
    h_n = input.new_empty((layer.directions, batch, layer.state_size))
    return layer, batch, rows, output, h_n


def _saved(like, save, *shapes):
    return tuple(like.new_empty(shape if save else (0,)) for shape in shapes)


@_register_fake("lstm_forward")
def _(
    input, batch_sizes, h0, c0, params, has_biases, bidirectional, save, resets=None,
    reset_to_hx=False,
):  # fmt: skip
    layer, batch, rows, output, h_n = _forward(
        "lstm", "lstm", input, batch_sizes, h0, c0, params, has_biases, bidirectional
    )
    d, h = layer.directions, layer.hidden_size
    saved = _saved(input, save, (d, rows, 4 * h), (d, rows, layer.state_size), (d, rows, h))
    return output, h_n, input.new_empty((d, batch, h)), *saved


@_register_fake("gru_forward")
def _(
    input, batch_sizes, h0, params, has_biases, bidirectional, save, resets=None,
    reset_to_hx=False,
):  # fmt: skip
    layer, _, rows, output, h_n = _forward(
        "gru", "gru", input, batch_sizes, h0, None, params, has_biases, bidirectional
    )
    d, h = layer.directions, layer.hidden_size
    return output, h_n, *_saved(input, save, (d, rows, 4 * h), (d, rows, h))


@_register_fake("rnn_forward")
def _(
    input, batch_sizes, h0, params, has_biases, bidirectional, cell, save, resets=None,
    reset_to_hx=False,
):  # fmt: skip
    layer, _, rows, output, h_n = _forward(
        "rnn", cell, input, batch_sizes, h0, None, params, has_biases, bidirectional
    )
    return output, h_n, *_saved(input, save, (layer.directions, rows, layer.hidden_size))


@_register_fake("lstm_backward")
def _(
    d_output, d_h_n, d_c_n, d_cells, batch_sizes, c0, gates, cells, params, has_biases,
    bidirectional, resets=None, reset_to_hx=False,
):  # fmt: skip
    layer = _Layer("lstm", "lstm", params, has_biases, bidirectional)
    batch = layer.batch(batch_sizes, d_output, c0, d_h_n, d_c_n)
    d, rows, h, p = layer.directions, gates.shape[1], layer.hidden_size, layer.state_size
    return (
        gates.new_empty((d, rows, 4 * h)),
        gates.new_empty((d, batch, p)),
        gates.new_empty((d, batch, h)),
        gates.new_empty((d, rows, p) if layer.proj else (0,)),
    )


@_register_fake("gru_backward")
def _(
    d_output, d_h_n, batch_sizes, h0, gates, hidden, params, has_biases, bidirectional,
    resets=None, reset_to_hx=False,
):  # fmt: skip
    layer = _Layer("gru", "gru", params, has_biases, bidirectional)
    batch = layer.batch(batch_sizes, d_output, h0, d_h_n)
    d, rows, h = hidden.shape
    return gates.new_empty((d, rows, 4 * h)), gates.new_empty((d, batch, h))


@_register_fake("rnn_backward")
def _(
    d_output, d_h_n, batch_sizes, hidden, params, has_biases, bidirectional, cell,
    resets=None, reset_to_hx=False,
):  # fmt: skip
    layer = _Layer("rnn", cell, params, has_biases, bidirectional)
    batch = layer.batch(batch_sizes, d_output, d_h_n)
    d, rows, h = hidden.shape
    return hidden.new_empty((d, rows, h)), hidden.new_empty((d, batch, h))


@_register_fake("products")
def _(
    d_gates, apart, batch_sizes, batch, input, hidden, h0, w_ih, wanted, resets=None,
    reset_to_hx=False,
):  # fmt: skip
    _, rows, columns = d_gates.shape
    d_input = d_gates.new_empty((rows, w_ih[0].shape[1]) if w_ih else (0,))
    return d_input, _empty_params(d_gates, (columns - apart,), input, hidden, wanted)


@_register_fake("sample_products")
def _(d_gates, apart, samples, batch_sizes, batch, input, hidden, h0, wanted):
    return _empty_params(d_gates, (samples, d_gates.shape[2] - apart), input, hidden, wanted)


def _empty_params(d_gates, leading, input, hidden, wanted):
    d_params = []
    for i, needed in enumerate(wanted):
        size = leading
        if needed and i % 4 < 2:
            size = (*leading, (input, hidden)[i % 4].shape[-1])
        d_params.append(d_gates.new_empty(size if needed else (0,)))
    return d_params


class _SavedLayer:
    """The sizes of one layer, read from its saved tensors: D, N, B, H, P and columns of gates."""

    def __init__(self, cell, batch, hidden, cells, w_hh, w_hr):
        self.like = hidden if cells is None else cells
        self.directions, self.rows = len(w_hh), self.like.shape[1]
        cell = CELLS[cell]
        self.hidden_size = w_hh[0].shape[0] // cell.products
        self.state_size, self.batch = w_hh[0].shape[1], batch
        self.has_c, self.proj = cell.has_c, bool(w_hr)
        self.columns = self.hidden_size * cell.columns

    def rows_of(self, columns, exists=True):
        return self.like.new_empty((self.directions, self.rows, columns) if exists else (0,))

    def h_state(self):
        return self.like.new_empty((self.directions, self.batch, self.state_size))

    def c_state(self):
        shape = (self.directions, self.batch, self.hidden_size)
        return self.like.new_empty(shape if self.has_c else (0,))


@_register_fake("layer_tangent")
def _(
    cell, t_input, t_params, through_w_ih, through_w_hh, through_w_hr, t_h0, t_c0, input,
    batch_sizes, batch, h0, c0, gates, hidden, cells, w_ih, w_hh, w_hr, save,
):  # fmt: skip
    layer = _SavedLayer(cell, batch, hidden, cells, w_hh, w_hr)
    return (
        layer.rows_of(layer.state_size),
        layer.h_state(),
        layer.c_state(),
        layer.rows_of(layer.columns, save and gates is not None),
        layer.rows_of(layer.hidden_size, save and layer.has_c),
    )


@_register_fake("layer_vjp")
def _(
    cell, d_output, d_h_n, d_c_n, d_cells, input, batch_sizes, batch, h0, c0, gates, hidden, cells,
    w_ih, w_hh, w_hr, wanted,
):  # fmt: skip
    layer = _SavedLayer(cell, batch, hidden, cells, w_hh, w_hr)
    return (
        layer.like.new_empty((layer.rows, w_ih[0].shape[1]) if w_ih else (0,)),
        layer.h_state(),
        layer.c_state(),
        layer.rows_of(layer.state_size, layer.proj),
        _empty_params(layer.like, (w_hh[0].shape[0],), input, hidden, wanted),
    )


@_register_fake("layer_backward")
def _(
    cell, d_output, d_h_n, d_c_n, d_cells, batch_sizes, batch, h0, c0, gates, hidden, cells, w_hh,
    w_hr,
):  # fmt: skip
    layer = _SavedLayer(cell, batch, hidden, cells, w_hh, w_hr)
    return (
        layer.rows_of(layer.columns),
        layer.h_state(),
        layer.c_state(),
        layer.rows_of(layer.state_size, layer.proj),
        layer.rows_of(layer.hidden_size),
        layer.rows_of(layer.hidden_size, layer.has_c),
    )


@_register_fake("layer_backward_tangent")
def _(
    cell, t_d_output, t_d_h_n, t_d_c_n, t_d_cells, through_w_hh, through_w_hr, t_h0, t_c0, t_gates,
    t_hidden, t_cells, d_cell_h, d_cell_c, batch_sizes, batch, h0, c0, gates, hidden, cells, w_hh,
    w_hr,
):  # fmt: skip
    layer = _SavedLayer(cell, batch, hidden, cells, w_hh, w_hr)
    return (
        layer.rows_of(layer.columns),
        layer.h_state(),
        layer.c_state(),
        layer.rows_of(layer.state_size, layer.proj),
    )


@_register_fake("quantized_forward")
def _(
    cell, input, batch_sizes, h0, c0, params, hidden_size, proj_size, bidirectional
):  # fmt: skip
    directions, size = 2 if bidirectional else 1, proj_size or hidden_size
    if h0 is not None:
        batch = h0.shape[1]
    elif batch_sizes is None:
        batch = input.shape[1]
    elif type(batch_sizes) is Tensor and batch_sizes.device.type == "cpu":
        batch = int(batch_sizes[0])
    else:
        batch = torch.library.get_ctx().new_dynamic_size()
    return (
        input.new_empty((*input.shape[:-1], directions * size)),
        input.new_empty((directions, batch, size)),
        input.new_empty((directions, batch, hidden_size) if CELLS[cell].has_c else (0,)),
    )


def _extended_sizes(op, cell, like, w_hh):
    _check(
        cell in CELLS,
        lambda: f"{op}: expected cell to be one of {', '.join(CELLS)}, got {cell}",
    )
    size = w_hh.shape[2]
    gates = CELLS[cell].products
    _check(
        w_hh.shape[1] == gates * size,
        lambda: (
            f"{op}: expected w_hh of shape (directions, {gates}*hidden_size, hidden_size), "
            f"got {tuple(w_hh.shape)}"
        ),
    )
    return like.shape[0], like.shape[1], size, gates * size


@_register_fake("extended_forward")
def _(
    cell, norm, gates_x, batch_sizes, batch, h0, c0, w_hh, gain_x, bias_x, bias, gain, cell_gain,
    cell_bias, h_scale, seed, layer, rates, eps, save,
):  # fmt: skip
    d, n, h, gh = _extended_sizes("extended_forward", cell, gates_x, w_hh)
    _check(
        gates_x.shape[2] == gh,
        lambda: (
            f"extended_forward: expected gates_x of shape ({d}, {n}, {gh}), "
            f"got {tuple(gates_x.shape)}"
        ),
    )

    def empty(*shape, exists=True):
        return gates_x.new_empty(shape if exists else (0,))

    has_c, normalises = CELLS[cell].has_c, save and norm != "none"
    compute = torch.float64 if gates_x.dtype is torch.float64 else torch.float32
    return (
        empty(n, d * h),
        empty(d, batch, h),
        empty(d, batch, h, exists=has_c),
        empty(d, n, CELLS[cell].columns * h, exists=save),
        empty(d, n, h, exists=save),
        empty(d, n, h, exists=save and has_c),
        empty(d, n, gh, exists=normalises),
        gates_x.new_empty((d, n) if normalises else (0,), dtype=compute),
        gates_x.new_empty((d, n, 2) if save and gain_x is not None else (0,), dtype=compute),
    )


@_register_fake("extended_backward")
def _(
    cell, norm, d_output, d_h_n, d_c_n, batch_sizes, batch, h0, c0, gates_x, gates, hidden, cells,
    normed, rstd, moments_x, w_hh, gain_x, has_bias_x, has_bias, gain, cell_gain, cell_bias,
    h_scale, seed, layer, rates, eps,
):  # fmt: skip
    d, n, h, gh = _extended_sizes("extended_backward", cell, gates, w_hh)

    def empty(*shape, exists=True):
        return gates.new_empty(shape if exists else (0,))

    has_c = CELLS[cell].has_c
    apart = norm == "recurrent" or (CELLS[cell].apart and norm == "none")
    return (
        empty(d, n, gh),
        empty(d, n, gh, exists=apart),
        empty(d, batch, h),
        empty(d, batch, h, exists=has_c),
        empty(d, gh, exists=gain_x is not None),
        empty(d, gh, exists=has_bias_x),
        empty(d, gh, exists=has_bias),
        empty(d, gh, exists=norm != "none"),
        empty(d, h, exists=cell_gain is not None),
        empty(d, h, exists=cell_gain is not None),
    )


@_register_fake("drop_weights")
def _(weights, seed, stream, rate):
    return torch.empty_like(weights, memory_format=torch.contiguous_format)


@_register_fake("segments")
def _(resets, lengths, seq_len, batch, directions, none_if_whole):
    """How many segments there are, how long the longest is and, with lengths, how many rows they
    have depend on values."""
    like = resets if lengths is None else lengths
    context = torch.library.get_ctx()
    longest, segments = context.new_dynamic_size(), context.new_dynamic_size()
    rows = seq_len * batch if lengths is None else context.new_dynamic_size()

    def indices(*size):
        return like.new_empty(size, dtype=torch.int64)

    of_segments, of_batch = (directions, segments), (directions, batch)
    return (
        indices(longest), indices(1, rows), indices(1, seq_len, batch), indices(segments),
        indices(*of_segments), indices(*of_batch), indices(*of_batch), indices(*of_segments),
    )  # fmt: skip


@_register_fake("gather_rows")
def _(inputs, indices):
    return [
        t.new_empty((*t.shape[:-2], *index.shape[1:], t.shape[-1]))
        for t, index in zip(inputs, indices, strict=True)
    ]
