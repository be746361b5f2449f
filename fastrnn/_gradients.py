"""The backward pass of one layer with all its directions, from the operators.

A recurrence against time gives the gradients of the gates, products over all steps those of input
and parameters. Nothing here is a Function: `fastrnn._autograd` calls `gradients` where no
derivative of it is asked for, `fastrnn._derivatives` wraps it for where one is.
"""

from dataclasses import dataclass

import torch

from fastrnn import _ops
from fastrnn._cells import CELLS
from fastrnn._transforms import transforms_active

PRODUCTS = ("w_ih", "w_hh", "b_ih", "b_hh")  # what the operator `products` computes, in its order


class Saved:
    """The saved tensors of a layer by name; None is what it has not, or what nobody needs."""

    count = 8  # before the weights

    def __init__(self, layer, tensors):
        self.input, self.batch_sizes, self.hidden, self.h0, self.c0 = tensors[:5]
        self.gates, self.cells, self.resets, *self.weights = tensors[5:]
        each = len(self.weights) // layer.directions
        self.w_ih, self.w_hh = self.weights[::each], self.weights[1::each]
        self.w_hr = self.weights[2::each] if each == 3 else []


@dataclass(frozen=True)
class Layer:
    """What is known of a layer besides its tensors. (A Function's ctx can stand in for it.)"""

    cell: str  # lstm, gru, rnn_tanh or rnn_relu
    directions: int
    stems: tuple  # of the parameters of one direction
    input_shape: torch.Size
    needs: tuple = ()  # results that are wanted
    keep: bool = False  # an LSTM: whether every step's cells are results too
    samples: int | None = None  # of Gradients: as in `gradients`
    to_hx: bool = False  # whether resets are to the initial states

    def weights(self, params):
        """Without the biases, which no derivative depends on once the gates are known."""
        return [p for p, stem in zip(params, self.stems * self.directions) if stem[0] == "w"]


def stems(has_biases, count):
    """What the `count` parameters of one direction are, in order."""
    biases = ("b_ih", "b_hh") if has_biases else ()
    return ("w_ih", "w_hh", *biases, "w_hr")[:count]


def gradients(layer, saved, needs, d_output, d_h_n, d_c_n, d_cells, samples=None):
    """`[d_input, d_h0, d_c0, *d_params]`, None where needs (in the same order) has False.

    samples: as many share the rows, and d_params come one for each: `[samples, ...]`.
    """
    s, bidirectional = saved, layer.directions == 2
    if samples is None and _has_vjp(s):
        batch, wanted = batch_of(layer, s, d_h_n, d_c_n), _flags(layer, needs)
        d_input, d_h0, d_c0, d_hidden, products = _ops.layer_vjp(
            layer.cell, d_output, d_h_n, d_c_n, d_cells, _rows(s), s.batch_sizes, batch, s.h0, s.c0,
            s.gates, s.hidden, s.cells, s.w_ih if needs[0] else [], s.w_hh, s.w_hr, wanted,
        )  # fmt: skip
        d_input, d_params = _in_order(layer, s, needs, d_input, products, d_hidden, None)
        return [d_input, d_h0 if needs[1] else None, d_c0 if needs[2] else None, *d_params]
    d_c0 = d_hidden = None
    resets = () if s.resets is None else (s.resets, layer.to_hx)
    if layer.cell == "lstm":
        if d_output is None and d_h_n is None and d_c_n is None and s.batch_sizes is None:
            # Of the gradients, d_cells alone does not tell the batch.
            sizes = layer.directions, batch_of(layer, s), d_cells.shape[2]
            d_c_n = d_cells.new_zeros(sizes)
        d_gates, d_h0, d_c0, d_hidden = _ops.lstm_backward(
            d_output, d_h_n, d_c_n, d_cells, s.batch_sizes, s.c0, s.gates, s.cells, s.weights,
            False, bidirectional, *resets,
        )  # fmt: skip
    elif layer.cell == "gru":
        d_gates, d_h0 = _ops.gru_backward(
            d_output, d_h_n, s.batch_sizes, s.h0, s.gates, s.hidden, s.weights, False,
            bidirectional, *resets,
        )  # fmt: skip
    else:
        d_gates, d_h0 = _ops.rnn_backward(
            d_output, d_h_n, s.batch_sizes, s.hidden, s.weights, False, bidirectional,
            layer.cell, *resets,
        )  # fmt: skip
    d_input, d_params = products_of(layer, s, needs, d_gates, d_h0.shape[1], d_hidden, samples)
    return [d_input, d_h0 if needs[1] else None, d_c0 if needs[2] else None, *d_params]


def _has_vjp(saved):
    """Whether layer_vjp goes, which makes all in one call: it has neither a kernel on other devices
    nor a batching rule."""
    return saved.w_hh[0].is_cpu and not transforms_active()


def products_of(layer, saved, needs, d_gates, batch, d_hidden, samples=None):
    """`(d_input, [d_param, ...])` from the gradients of the gates and of the projected h.

    batch: rows of a state, of all samples together.
    """
    wanted = _flags(layer, needs)
    apart = apart_columns(layer, d_gates)
    states = _rows(saved), saved.hidden, None if saved.hidden is None else saved.h0
    d_input, products = None, None
    if samples is None:
        d_input, products = _ops.products(
            d_gates, apart, saved.batch_sizes, batch, *states, saved.w_ih if needs[0] else [],
            wanted, *(() if saved.resets is None else (saved.resets, layer.to_hx)),
        )  # fmt: skip
    else:
        if needs[0]:
            d_input, _ = _ops.products(
                d_gates, apart, saved.batch_sizes, batch, None, None, None, saved.w_ih,
                [False] * len(wanted),
            )  # fmt: skip
        if any(wanted):
            sizes = None if saved.batch_sizes is None else saved.batch_sizes // samples
            products = _ops.sample_products(
                d_gates, apart, samples, sizes, batch // samples, *states, wanted
            )
    return _in_order(layer, saved, needs, d_input, products, d_hidden, samples)


def apart_columns(layer, d_gates):
    """How many columns at the end of d_gates are the recurrent product's alone."""
    cell = CELLS[layer.cell]
    return d_gates.shape[-1] // cell.columns if cell.apart else 0


def _flags(layer, needs):
    """Which results of the operator `products` are wanted."""
    each, wanted = len(layer.stems), [False] * (4 * layer.directions)
    for i, needed in enumerate(needs[3:]):
        stem = layer.stems[i % each]
        if needed and stem != "w_hr":
            wanted[i // each * 4 + PRODUCTS.index(stem)] = True
    return wanted


def _rows(saved):
    """Input `[N, I]`, None where it was not saved."""
    return None if saved.input is None else saved.input.reshape(-1, saved.input.shape[-1])


def _in_order(layer, saved, needs, d_input, products, d_hidden, samples):
    """`(d_input, [d_param, ...])` in the order of needs, from what the operators return."""
    each, d_params = len(layer.stems), []
    for i, needed in enumerate(needs[3:]):
        direction, stem = i // each, layer.stems[i % each]
        if not needed:
            d_params.append(None)
        elif stem == "w_hr":
            d_params.append(outer(d_hidden[direction], unprojected(saved, direction), samples))
        else:
            d_params.append(products[direction * 4 + PRODUCTS.index(stem)])
    return d_input.view(layer.input_shape) if needs[0] else None, d_params


def unprojected(saved, direction):
    """Every step's h before its projection: o * tanh(c)."""
    cells = saved.cells[direction]
    return saved.gates[direction][:, 3 * cells.shape[1] :] * torch.tanh(cells)


def batch_of(layer, saved, *states):
    """Rows of a state."""
    if len(layer.input_shape) == 3:
        return layer.input_shape[1]
    for state in (saved.h0, *states):
        if state is not None:
            return state.shape[1]
    return int(saved.batch_sizes[0])


# Products in the kernels' own form: torch.mm would depend on the number of threads.


def outer(a, b, samples=None):
    """a^T b, of `[N, A]` and `[N, B]`; `[samples, A, B]` where samples is not None."""
    flags = [True, False, False, False]
    if samples is not None:
        batch = len(a) // samples
        return _ops.sample_products(a[None], 0, samples, None, batch, b, None, None, flags)[0]
    return _ops.products(a[None], 0, None, len(a), b, None, None, [], flags)[1][0]


def matmul(a, b):
    """a b, of `[N, A]` and `[A, B]`."""
    flags = [False] * 4
    return _ops.products(a[None], 0, None, len(a), None, None, None, [b], flags)[0]
