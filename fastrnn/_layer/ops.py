"""The operators of csrc/ops.cpp: names them, registers their fake kernels.

Shapes are those of csrc/ops.cpp. A fake kernel allocates what the kernel would return and
computes nothing; it also stands in for the kernel on the meta device, so it makes the same checks
of devices and shapes that a wrong answer would follow from.
"""

from types import SimpleNamespace

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
layer_of_lengths = torch.ops.fastrnn.layer_of_lengths.default
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


def _refuse_tracing(*_):
    raise RuntimeError("fastrnn: torch.jit.trace cannot record an operator of fastrnn")


_library = torch.library.Library("fastrnn", "IMPL")  # what it registers lives as long as it

# torch.jit.trace has no lists of optional tensors, and leaves a broken node behind where it finds
# out by itself. Callers have other ways then.
for _op in (layer_forward, quantized_forward):
    _library.impl(_op.name().partition("::")[2], _refuse_tracing, "Tracer")


def recorded(name):
    """Makes a function what csrc/recorded.cpp calls in place of an operator, to record a graph."""

    def register(function):
        _library.impl(name, function, "CompositeImplicitAutograd")
        return function

    return register


def has_inside(tensor: Tensor) -> bool:
    """Whether layers with options inside the recurrence have kernels for the tensor, that can be
    used here: torch.jit.trace records none of them."""
    on_cpu = tensor.device.type in ("cpu", "meta")
    return on_cpu and tensor.dtype in DTYPES and not torch.jit.is_tracing()


def _check(condition, message):
    if not condition:
        raise RuntimeError(message())


def named(op, values):
    """An operator's arguments by the names of its schema, those with a default filled in."""
    schema = op._schema.arguments
    rest = [argument.default_value for argument in schema[len(values) :]]
    return SimpleNamespace(**dict(zip([a.name for a in schema], (*values, *rest), strict=True)))


def _register_fake(op):
    """Registers the fake kernel of an operator, which also checks that tensors are on one device.

    It takes the arguments by name. Only where no real kernel is asked: the dispatcher takes the
    fake one if any tensor is on meta.
    """

    def register(fake):
        name_of_op = op.name().partition("::")[2]

        def checked(*values):
            a, first = named(op, values), None
            what = a.cell if op is layer_forward else name_of_op  # what a user called
            for name, value in vars(a).items():
                if name == "batch_sizes":  # on the CPU wherever the layer is
                    _check(
                        value is None or value.device.type == "cpu",
                        lambda value=value: (
                            f"{what}: expected batch_sizes on cpu, got {value.device}"
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
                            f"{what}: expected all tensors on one device, "
                            f"got {name} on {tensor.device} and others on {first.device}"
                        ),
                    )
            return fake(a)

        torch.library.register_fake(op.name())(checked)
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
        self.stems = (STEMS if with_biases else WEIGHT_STEMS)[cell, norm, each]
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
        if stem == "w_ch":
            return self.hidden_size * self.cell.vectors
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


def _sizes_of_saved(op, a):
    """The sizes of a layer, and its rows, by what a forward pass saved."""
    last, of_one = a.saved[-1], (a.cell, a.norm, len(a.weights))
    directions = 1 if of_one in WEIGHT_STEMS else 2  # not by a shape, which may be symbolic
    inside = a.counter is not None
    return _Sizes(op, a.cell, a.weights, directions, last, a.norm, inside, False), last.shape[1]


def _batch(a):
    """Rows of a state, from whatever carries them."""
    if a.states[0] is not None:
        return a.states[0].shape[1]
    if a.batch_sizes is None:
        return a.input.shape[1]
    if type(a.batch_sizes) is Tensor and a.batch_sizes.device.type == "cpu":
        return int(a.batch_sizes[0])
    return torch.library.get_ctx().new_dynamic_size()


@_register_fake(layer_forward)
def _(a):
    op, input = a.cell, a.input  # what a user called
    directions, inside = 2 if a.bidirectional else 1, a.counter is not None
    layer = _Sizes(op, a.cell, a.params, directions, input, a.norm, inside, True)
    _check(
        input.shape[-1] == layer.input_size,
        lambda: (
            f"{op}: expected input of size(-1) = input_size = {layer.input_size}, "
            f"got shape {tuple(input.shape)}"
        ),
    )
    output = input.new_empty((*input.shape[:-1], layer.directions * layer.state_size))
    rows = input.shape[0] if a.batch_sizes is not None else input.shape[0] * input.shape[1]
    return [output, *layer.states(_batch(a)), *(layer.saved(rows) if a.save else ())]


@_register_fake(layer_backward)
def _(a):
    layer, rows = _sizes_of_saved("layer_backward", a)
    each = len(a.wanted[1 + layer.cell.states :]) // layer.directions
    sizes = {"w_ih": a.weights[0].shape, "w_hh": a.weights[1].shape}
    sizes["w_hr"] = (layer.state_size, layer.hidden_size)
    stems = STEMS[a.cell, a.norm, each] * layer.directions
    d_input = layer.like.new_empty((rows, layer.input_size) if a.input is None else a.input.shape)
    d_params = [
        layer.like.new_empty(sizes.get(stem, (layer.rows_of_param(stem),))) for stem in stems
    ]
    every = d_input, *layer.states(a.batch), *d_params
    return [d for d, needed in zip(every, a.wanted, strict=True) if needed]


@_register_fake(gate_gradients)
def _(a):
    layer, rows = _sizes_of_saved("gate_gradients", a)
    results = _gate_gradients(layer, rows, a.batch)
    if a.received:
        results += [layer.rows_of(rows, layer.hidden_size) for _ in range(layer.cell.states)]
    return results


def _gate_gradients(layer, rows, batch):
    results = [layer.rows_of(rows, layer.columns), *layer.states(batch)]
    results += [layer.rows_of(rows, layer.state_size)] * layer.projected
    inside = ["b_ih", "b_hh"][layer.norms % 2 :] if layer.norms else []
    inside += [stem for stem in layer.stems if stem[0] != "w" or stem == "w_ch"]
    each = [layer.like.new_empty((layer.rows_of_param(s),)) for s in inside * layer.directions]
    return results + each


@_register_fake(layer_tangent)
def _(a):
    layer, rows = _sizes_of_saved("layer_tangent", a)
    each = layer.saved(rows) if a.save else [layer.rows_of(rows, layer.state_size)]
    return [*layer.states(a.batch), *each]


@_register_fake(gate_gradients_tangent)
def _(a):
    return _gate_gradients(*_sizes_of_saved("gate_gradients_tangent", a), a.batch)


@_register_fake(products)
def _(a):
    _, rows, columns = a.d_gates.shape
    d_input = a.d_gates.new_empty((rows, a.w_ih[0].shape[1]) if a.w_ih else (0,))
    return d_input, _empty_params(a, (columns - a.apart,))


@_register_fake(sample_products)
def _(a):
    return _empty_params(a, (a.samples, a.d_gates.shape[2] - a.apart))


def _empty_params(a, leading):
    d_params = []
    for i, needed in enumerate(a.wanted):
        size = leading
        if needed and i % 4 < 2:
            size = (*leading, (a.input, a.hidden)[i % 4].shape[-1])
        d_params.append(a.d_gates.new_empty(size if needed else (0,)))
    return d_params


@_register_fake(quantized_forward)
def _(a):
    input, directions = a.input, 2 if a.bidirectional else 1
    sizes = a.proj_size or a.hidden_size, a.hidden_size
    batch = _batch(a)
    finals = [input.new_empty((directions, batch, s)) for s in sizes[: CELLS[a.cell].states]]
    results = [input.new_empty((*input.shape[:-1], directions * sizes[0])), *finals]
    if a.save:
        cell, rows = CELLS[a.cell], input.shape[:-1].numel()
        sizes = [cell.products] * cell.saves_gates + [1] * cell.has_c
        results += [input.new_empty((directions, rows, n * a.hidden_size)) for n in sizes]
    return results


@_register_fake(layer_of_lengths)
def _(a):
    directions = 2 if a.bidirectional else 1
    layer = _Sizes(a.cell, a.cell, a.params, directions, a.input, "none", False, True)
    output = a.input.new_empty((*a.input.shape[:-1], directions * layer.state_size))
    return [output, *layer.states(a.input.shape[1])]


@_register_fake(drop_weights)
def _(a):
    return torch.empty_like(a.weights, memory_format=torch.contiguous_format)


@_register_fake(segments)
def _(a):
    """How many segments there are, how long the longest is and, with lengths, how many rows they
    have depend on values."""
    like = a.resets if a.lengths is None else a.lengths
    context = torch.library.get_ctx()
    longest, segments = context.new_dynamic_size(), context.new_dynamic_size()
    ragged = a.cu_seqlens is not None
    if ragged:  # a row at least, which may be in no place
        like, rows = a.cu_seqlens, torch.sym_max(a.seq_len, 1)
    else:
        rows = a.seq_len * a.batch if a.lengths is None else context.new_dynamic_size()
    of_segments, of_batch = (a.directions, segments), (a.directions, a.batch)
    places = (1, a.seq_len) if ragged else (1, a.seq_len, a.batch)
    sizes = [(longest,), (1, rows), places, (segments,)]
    sizes += [of_segments, of_batch, of_batch, of_segments]
    return tuple(like.new_empty(size, dtype=torch.int64) for size in sizes)


@_register_fake(gather_rows)
def _(a):
    return [
        t.new_empty((*t.shape[:-2], *index.shape[1:], t.shape[-1]))
        for t, index in zip(a.inputs, a.indices, strict=True)
    ]
