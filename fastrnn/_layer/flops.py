"""Floating-point operations of the operators, for torch.utils.flop_counter.

As there: two for each multiplication of a matrix product, none for what is done to single elements.
"""

from torch.utils.flop_counter import register_flop_formula

from fastrnn._layer import ops
from fastrnn._layer.cells import CELLS


def _formula(op):
    """Registers a function of the operator's arguments by name."""

    def register(formula):
        def raw(*values, out_val=None, **options):
            a = ops.named(op, values)
            vars(a).update(options)
            return formula(a)

        register_flop_formula(op.overloadpacket, get_raw=True)(raw)
        return formula

    return register


def _products(rows, *weights):
    """Of so many rows with each matrix, or of the gradient of one, a sum over the rows."""
    return 2 * rows * sum(w.numel() for w in weights)


def _by_direction(weights, directions):
    each = len(weights) // directions
    w_hr = weights[2::each] if each > 2 else []
    return weights[::each], weights[1::each], [w for w in w_hr if w.dim() == 2]


@_formula(ops.layer_forward)
@_formula(ops.layer_of_lengths)
def _(a):
    return _products(a.input.shape[:-1].numel(), *(p for p in a.params if p.dim() == 2))


def _recurrence(a, first=0):
    """Against time: a step's gradient goes through w_hr and w_hh, but for the first step's where
    nobody wants that of the initial state."""
    directions, rows, _ = a.saved[-1].shape
    _, w_hh, w_hr = _by_direction(a.weights, directions)
    return _products(rows - first, *w_hh) + _products(rows, *w_hr)


@_formula(ops.layer_backward)
def _(a):
    directions, rows, _ = a.saved[-1].shape
    of_params = a.wanted[1 + CELLS[a.cell].states :]
    flops = _recurrence(a, 0 if a.wanted[1] else a.batch)
    by_stem = _by_direction(a.weights, directions)
    if a.wanted[0]:
        flops += _products(rows, *by_stem[0])
    # Flags are of biases too, which stand between w_hh and w_hr.
    flags = len(of_params) // directions
    for place, each in zip((0, 1, flags - 1), by_stem):
        flops += _products(rows, *(w for d, w in enumerate(each) if of_params[d * flags + place]))
    return flops


@_formula(ops.gate_gradients)
@_formula(ops.gate_gradients_tangent)
def _(a):
    return _recurrence(a)


@_formula(ops.layer_tangent)
def _(a):
    directions, rows, _ = a.saved[-1].shape
    w_ih, w_hh, w_hr = _by_direction(a.weights, directions)
    flops = _products(rows, *w_hh, *w_hr, *(w_ih if a.t_input is not None else ()))
    return flops + _products(rows, *(t for t in a.t_params if t is not None and t.dim() == 2))


@_formula(ops.products)
def _(a):
    return _products(a.d_gates.shape[1], *a.w_ih) + _of_weights(a)


@_formula(ops.sample_products)
def _of_weights(a):
    _, rows, columns = a.d_gates.shape
    sizes = [0 if t is None else t.shape[-1] for t in (a.input, a.hidden)]
    wanted = sum(a.wanted[::4]) * sizes[0] + sum(a.wanted[1::4]) * sizes[1]
    return 2 * rows * (columns - a.apart) * wanted


@_formula(ops.quantized_forward)
def _(a):
    size = a.proj_size or a.hidden_size
    products = CELLS[a.cell].products * a.hidden_size * (a.input.shape[-1] + size)
    each = products + a.proj_size * a.hidden_size
    return 2 * a.input.shape[:-1].numel() * each * (2 if a.bidirectional else 1)


@_formula(ops.drop_weights)
@_formula(ops.segments)
@_formula(ops.gather_rows)
def _(a):
    return 0
