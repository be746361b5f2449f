"""The operators of csrc/ops.cpp: names them, registers their fake kernels.

Shapes are those of csrc/ops.cpp. A fake kernel allocates what the kernel would return and
computes nothing; it also stands in for the kernel on the meta device, so it makes the same checks
of devices and shapes that a wrong answer would follow from.
"""

import functools
import inspect

import torch
from torch import Tensor

from fastrnn._layer import extension  # noqa: F401  (registers the operators)
from fastrnn._layer.cells import CELLS, STEMS, WEIGHT_STEMS

layer_forward = torch.ops.fastrnn.layer_forward.default
layer_backward = torch.ops.fastrnn.layer_backward.default
gate_gradients = torch.ops.fastrnn.gate_gradients.default
layer_tangent = torch.ops.fastrnn.layer_tangent.default
gate_gradients_tangent = torch.ops.fastrnn.gate_gradients_tangent.default
products = torch.ops.fastrnn.products.default
sample_products = torch.ops.fastrnn.sample_products.default
quantized_forward = torch.ops.fastrnn.quantized_forward.default
drop_weights = torch.ops.fastrnn.drop_weights.default
segments = torch.ops.fastrnn.segments.default
gather_rows = torch.ops.fastrnn.gather_rows.default

DTYPES = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})

# Device types whose kernels are in this build; everything else is torch's own implementation's.
DEVICE_TYPES = frozenset({"meta"}) | {
    device_type
    for device_type, key in (("cpu", "CPU"), ("cuda", "CUDA"))
    if torch._C._dispatch_has_kernel_for_dispatch_key("fastrnn::layer_forward", key)
}


def has_inside(tensor: Tensor) -> bool:
    """Whether layers with options inside the recurrence have kernels for the tensor."""
    return tensor.device.type in ("cpu", "meta") and tensor.dtype in DTYPES


def _check(condition, message):
    if not condition:
        raise RuntimeError(message())


def _register_fake(op):
    """Registers the fake kernel of an operator, which also checks that tensors are on one device.

    Only where no real kernel is asked: the dispatcher takes the fake one if any tensor is on meta.
    """

    def register(fake):
        names = list(inspect.signature(fake).parameters)

        def what(arguments):
            return arguments[0] if op == "layer_forward" else op  # the cell: what a user called

        @functools.wraps(fake)
        def checked(*arguments):
            first = None
            for name, value in zip(names, arguments):
                if name == "batch_sizes":  # on the CPU wherever the layer is
                    _check(
                        value is None or value.device.type == "cpu",
                        lambda value=value: (
                            f"{what(arguments)}: expected batch_sizes on cpu, got {value.device}"
                        ),
                    )
                    continue
                if name == "seed" and value is not None and value.device.type == "cpu":
                    continue  # it is drawn there
                for tensor in value if isinstance(value, list | tuple) else (value,):
                    if not isinstance(tensor, Tensor):
                        continue
                    first = tensor if first is None else first
                    _check(
                        tensor.device == first.device,
                        lambda name=name, tensor=tensor, first=first: (
                            f"{what(arguments)}: expected all tensors on one device, "
                            f"got {name} on {tensor.device} and others on {first.device}"
                        ),
                    )
            return fake(*arguments)

        torch.library.register_fake(f"fastrnn::{op}")(checked)
        return fake

    return register


class _Sizes:
    """The sizes of one layer, read from its cell and parameters and checked against each other.

    params: of each direction what STEMS says, or not with_biases WEIGHT_STEMS.
    """

    def __init__(self, op, cell, params, directions, like, norm, inside, with_biases):
        _check(
            cell in CELLS,
            lambda: f"{op}: expected cell to be one of {', '.join(CELLS)}, got {cell}",
        )
        self.cell, self.directions, self.like = CELLS[cell], directions, like
        self.norms = {"none": 0, "joint": 1, "recurrent": 2}.get(norm)
        _check(
            self.norms is not None,
            lambda: f"{op}: expected norm none, recurrent or joint, got {norm}",
        )
        self.saves_gates = self.cell.saves_gates or inside or self.norms > 0
        each = len(params) // directions
        self.stems = (STEMS if with_biases else WEIGHT_STEMS)[norm, self.cell.has_c, each]
        w_ih, w_hh = params[:2]
        self.projected = "w_hr" in self.stems
        self.input_size = w_ih.shape[1]
        self.hidden_size = w_hh.shape[0] // self.cell.products
        self.state_size = w_hh.shape[1]
        for i, param in enumerate(params):
            name = self.stems[i % each]
            count = self.rows_of_param(name)
            _check(
                param.shape[0] == count,
                lambda name=name, count=count, param=param: (
                    f"{op}: expected {name} with {count} rows, got shape {tuple(param.shape)}"
                ),
            )

    def rows_of_param(self, stem):
        if stem == "w_hr":
            return self.state_size
        return self.hidden_size * (1 if stem[:4] == "cell" else self.cell.products)

    @property
    def columns(self):
        """Of d_gates."""
        return self.hidden_size * (self.norms * self.cell.products or self.cell.columns)

    def rows_of(self, rows, columns):
        return self.like.new_empty((self.directions, rows, columns))

    def states(self, batch):
        sizes = (self.state_size, self.hidden_size)[: self.cell.states]
        return [self.rows_of(batch, size) for size in sizes]

    def saved(self, rows):
        saved = []
        if self.norms:
            wide = torch.promote_types(self.like.dtype, torch.float32)
            size = self.directions, rows, self.norms
            products = self.cell.products * self.hidden_size
            saved += [self.like.new_empty((*size, products)), self.like.new_empty(size, dtype=wide)]
        if self.saves_gates:
            saved.append(self.rows_of(rows, self.cell.columns * self.hidden_size))
        return [*saved, *self.states(rows)]


def _sizes_of_saved(op, cell, saved, weights, norm="none", counter=None):
    """The sizes of a layer, and its rows, by what a forward pass saved."""
    last, of_one = saved[-1], (norm, CELLS[cell].has_c, len(weights))
    directions = 1 if of_one in WEIGHT_STEMS else 2  # not by a shape, which may be symbolic
    inside = counter is not None
    return _Sizes(op, cell, weights, directions, last, norm, inside, False), last.shape[1]


def _batch(input, batch_sizes, states):
    """Rows of a state, from whatever carries them."""
    if states[0] is not None:
        return states[0].shape[1]
    if batch_sizes is None:
        return input.shape[1]
    if type(batch_sizes) is Tensor and batch_sizes.device.type == "cpu":
        return int(batch_sizes[0])
    return torch.library.get_ctx().new_dynamic_size()


@_register_fake("layer_forward")
def _(
    cell, input, batch_sizes, states, params, bidirectional, save, resets=None, reset_to_hx=False,
    norm="none", eps=0.0, rates=None, counter=None, seed=None, h_scale=None,
):  # fmt: skip
    op = cell  # what a user called
    directions, inside = 2 if bidirectional else 1, counter is not None
    layer = _Sizes(op, cell, params, directions, input, norm, inside, True)
    _check(
        input.shape[-1] == layer.input_size,
        lambda: (
            f"{op}: expected input of size(-1) = input_size = {layer.input_size}, "
            f"got shape {tuple(input.shape)}"
        ),
    )
    output = input.new_empty((*input.shape[:-1], layer.directions * layer.state_size))
    rows = input.shape[0] if batch_sizes is not None else input.shape[0] * input.shape[1]
    finals = layer.states(_batch(input, batch_sizes, states))
    return [output, *finals, *(layer.saved(rows) if save else ())]


@_register_fake("layer_backward")
def _(
    cell, d_results, input, batch_sizes, batch, states, saved, weights, wanted, resets=None,
    reset_to_hx=False, norm="none", eps=0.0, rates=None, counter=None, seed=None, h_scale=None,
):  # fmt: skip
    layer, rows = _sizes_of_saved("layer_backward", cell, saved, weights, norm, counter)
    each = len(wanted[1 + layer.cell.states :]) // layer.directions
    sizes = {"w_ih": weights[0].shape, "w_hh": weights[1].shape}
    sizes["w_hr"] = (layer.state_size, layer.hidden_size)
    stems = STEMS[norm, layer.cell.has_c, each] * layer.directions
    d_input = layer.like.new_empty((rows, layer.input_size) if input is None else input.shape)
    d_params = [
        layer.like.new_empty(sizes.get(stem, (layer.rows_of_param(stem),))) for stem in stems
    ]
    every = d_input, *layer.states(batch), *d_params
    return [d for d, needed in zip(every, wanted, strict=True) if needed]


@_register_fake("gate_gradients")
def _(
    cell, d_results, batch_sizes, batch, states, saved, weights, received, resets=None,
    reset_to_hx=False, norm="none", eps=0.0, rates=None, counter=None, seed=None, h_scale=None,
):  # fmt: skip
    layer, rows = _sizes_of_saved("gate_gradients", cell, saved, weights, norm, counter)
    results = _gate_gradients(layer, rows, batch)
    if received:
        results += [layer.rows_of(rows, layer.hidden_size) for _ in range(layer.cell.states)]
    return results


def _gate_gradients(layer, rows, batch):
    results = [layer.rows_of(rows, layer.columns), *layer.states(batch)]
    results += [layer.rows_of(rows, layer.state_size)] * layer.projected
    norms = ["b_ih", "b_hh"][layer.norms % 2 :] if layer.norms else []
    norms += [stem for stem in layer.stems if stem[0] != "w"]
    each = [layer.like.new_empty((layer.rows_of_param(s),)) for s in norms * layer.directions]
    return results + each


@_register_fake("layer_tangent")
def _(
    cell, t_input, t_states, t_params, t_norms, through, input, batch_sizes, batch, states, saved,
    weights, save, norm="none", eps=0.0, rates=None, counter=None, seed=None, h_scale=None,
):  # fmt: skip
    layer, rows = _sizes_of_saved("layer_tangent", cell, saved, weights, norm, counter)
    each = layer.saved(rows) if save else [layer.rows_of(rows, layer.state_size)]
    return [*layer.states(batch), *each]


@_register_fake("gate_gradients_tangent")
def _(
    cell, t_d_results, t_norms, through, t_states, t_saved, received, batch_sizes, batch, states,
    saved, weights, norm="none", eps=0.0, rates=None, counter=None, seed=None, h_scale=None,
):  # fmt: skip
    op = "gate_gradients_tangent"
    layer, rows = _sizes_of_saved(op, cell, saved, weights, norm, counter)
    return _gate_gradients(layer, rows, batch)


@_register_fake("products")
def _(
    d_gates, apart, batch_sizes, batch, input, hidden, h0, w_ih, wanted, resets=None,
    reset_to_hx=False, h_scale=None,
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


@_register_fake("quantized_forward")
def _(cell, input, batch_sizes, states, params, hidden_size, proj_size, bidirectional):
    directions, sizes = 2 if bidirectional else 1, (proj_size or hidden_size, hidden_size)
    batch = _batch(input, batch_sizes, states)
    finals = [input.new_empty((directions, batch, s)) for s in sizes[: CELLS[cell].states]]
    return [input.new_empty((*input.shape[:-1], directions * sizes[0])), *finals]


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
