"""Floating-point operations of the operators, for torch.utils.flop_counter.

As there: two for each multiplication of a matrix product, none for what is done to single elements.
"""

import torch
from torch.utils.flop_counter import register_flop_formula

from fastrnn._layer.cells import CELLS

_OPERATORS = torch.ops.fastrnn


def _formula(name):
    """Registers a function of the operator's arguments."""
    return register_flop_formula(getattr(_OPERATORS, name), get_raw=True)


def _products(rows, *weights):
    """Of so many rows with each matrix, or of the gradient of one, a sum over the rows."""
    return 2 * rows * sum(w.numel() for w in weights)


def _by_direction(weights, directions):
    each = len(weights) // directions
    w_hr = weights[2::each] if each > 2 else []
    return weights[::each], weights[1::each], [w for w in w_hr if w.dim() == 2]


@_formula("layer_forward")
def _(cell, input, batch_sizes, states, params, *_, **__):
    return _products(input.shape[:-1].numel(), *(p for p in params if p.dim() == 2))


def _recurrence(saved, first, weights):
    """Against time: a step's gradient goes through w_hr and w_hh, but for the first step's where
    nobody wants that of the initial state."""
    directions, rows, _ = saved[-1].shape
    _, w_hh, w_hr = _by_direction(weights, directions)
    return _products(rows - first, *w_hh) + _products(rows, *w_hr)


@_formula("layer_backward")
def _(
    cell, d_results, input, batch_sizes, batch, states, saved, weights, wanted, *_, **__
):  # fmt: skip
    (directions, rows, _), of_params = saved[-1].shape, wanted[1 + CELLS[cell].states :]
    flops = _recurrence(saved, 0 if wanted[1] else batch, weights)
    by_stem = _by_direction(weights, directions)
    if wanted[0]:
        flops += _products(rows, *by_stem[0])
    # Flags are of biases too, which stand between w_hh and w_hr.
    flags = len(of_params) // directions
    for place, each in zip((0, 1, flags - 1), by_stem):
        flops += _products(rows, *(w for d, w in enumerate(each) if of_params[d * flags + place]))
    return flops


@_formula("gate_gradients")
def _(cell, d_results, batch_sizes, batch, states, saved, weights, *_, **__):
    return _recurrence(saved, 0, weights)


@_formula("layer_tangent")
def _(
    cell, t_input, t_states, t_params, t_norms, through, input, batch_sizes, batch, states, saved,
    weights, *_, **__,
):  # fmt: skip
    directions, rows, _ = saved[-1].shape
    w_ih, w_hh, w_hr = _by_direction(weights, directions)
    flops = _products(rows, *w_hh, *w_hr, *(w_ih if t_input is not None else ()))
    return flops + _products(rows, *(t for t in t_params if t is not None and t.dim() == 2))


@_formula("gate_gradients_tangent")
def _(
    cell, t_d_results, t_norms, through, t_states, t_saved, received, batch_sizes, batch, states,
    saved, weights, *_, **__,
):  # fmt: skip
    return _recurrence(saved, 0, weights)


@_formula("products")
def _(d_gates, apart, batch_sizes, batch, input, hidden, h0, w_ih, wanted, *_, **__):
    return _products(d_gates.shape[1], *w_ih) + _of_weights(d_gates, apart, input, hidden, wanted)


@_formula("sample_products")
def _(d_gates, apart, samples, batch_sizes, batch, input, hidden, h0, wanted, **_):
    return _of_weights(d_gates, apart, input, hidden, wanted)


def _of_weights(d_gates, apart, input, hidden, wanted):
    _, rows, columns = d_gates.shape
    sizes = [0 if t is None else t.shape[-1] for t in (input, hidden)]
    return (
        2 * rows * (columns - apart) * (sum(wanted[::4]) * sizes[0] + sum(wanted[1::4]) * sizes[1])
    )


@_formula("quantized_forward")
def _(
    cell, input, batch_sizes, states, params, hidden_size, proj_size, bidirectional, **_
):  # fmt: skip
    size = proj_size or hidden_size
    products = CELLS[cell].products * hidden_size * (input.shape[-1] + size)
    each = products + proj_size * hidden_size
    return 2 * input.shape[:-1].numel() * each * (2 if bidirectional else 1)


@_formula("drop_weights")
@_formula("segments")
@_formula("gather_rows")
def _(*_, **__):
    return 0
