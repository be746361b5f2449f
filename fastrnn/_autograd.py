"""One autograd Function per cell: one layer with all its directions.

Invariants
* A cell's backward operator returns the gradients of the gates; layer_gradients turns them into
  those of the input, the weights and the biases.
* What backward needs is an output of the operator that nobody else can reach, marked
  non-differentiable and only read, so that a second backward gives the same numbers.
* Only what some gradient needs is saved, and only gradients that are asked for are computed.
  Biases are never saved: changing one between forward and backward is legal, as in torch.nn.
"""

import functools
import inspect

import torch
from torch.autograd import Function, forward_ad

from fastrnn import _ops

# -- Layers: the operator alone where no graph is wanted, else the Function ---------------------


_is_exporting = getattr(torch.compiler, "is_exporting", bool)  # torch 2.6 has none


def _records(*tensors):
    """Whether this call must leave a graph behind (or let apply refuse forward-mode AD)."""
    if _is_exporting():
        return False  # what is exported is the operator: a Function would save, to no end
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return getattr(forward_ad, "_current_level", -1) >= 0


def lstm_layer(input, batch_sizes, states, params, has_biases, bidirectional):
    """One LSTM layer: `(output, h_n, c_n)`. Shapes as of the operator `lstm_forward`."""
    h0, c0 = states
    if _records(input, h0, c0, *params):
        return _LSTM.apply(input, batch_sizes, h0, c0, has_biases, bidirectional, *params)[:3]
    return _ops.lstm_forward(input, batch_sizes, h0, c0, params, has_biases, bidirectional, False)[
        :3
    ]


def gru_layer(input, batch_sizes, states, params, has_biases, bidirectional):
    """One GRU layer: `(output, h_n)`. Shapes as of the operator `gru_forward`."""
    (h0,) = states
    if _records(input, h0, *params):
        return _GRU.apply(input, batch_sizes, h0, has_biases, bidirectional, *params)[:2]
    return _ops.gru_forward(input, batch_sizes, h0, params, has_biases, bidirectional, False)[:2]


def rnn_layer(nonlinearity, input, batch_sizes, states, params, has_biases, bidirectional):
    """One Elman layer: `(output, h_n)`. Shapes as of the operator `rnn_forward`."""
    (h0,) = states
    if _records(input, h0, *params):
        return _RNN.apply(input, batch_sizes, h0, has_biases, bidirectional, nonlinearity, *params)[
            :2
        ]
    return _ops.rnn_forward(
        input, batch_sizes, h0, params, has_biases, bidirectional, nonlinearity, False
    )[:2]


# -- The products over all steps ----------------------------------------------------------------

_PRODUCTS = ("w_ih", "w_hh", "b_ih", "b_hh")  # what layer_gradients computes, in its order


def _layer_gradients(ctx, saved, cell, d_gates, batch, d_w_hr=None):
    """`(d_input, [d_param, ...])` of one layer from those of its gates, None where nobody asks.

    `d_w_hr(direction)` is called where a projection's gradient is asked for.
    """
    directions, rows, _ = d_gates.shape
    needs = ctx.needs_input_grad
    each = len(ctx.stems)
    asked = needs[-each * directions :]
    wanted = [False] * (4 * directions)
    for i, needed in enumerate(asked):
        if needed and i % each < 4 and ctx.stems[i % each] != "w_hr":
            wanted[i // each * 4 + _PRODUCTS.index(ctx.stems[i % each])] = True
    input = saved.input
    if input is not None:
        input = input.reshape(rows, input.shape[-1])
    d_input, products = _ops.layer_gradients(
        cell, d_gates, saved.batch_sizes, batch, input, saved.hidden,
        None if saved.hidden is None else saved.h0, saved.w_ihs if needs[0] else [], wanted,
    )  # fmt: skip
    d_params = []
    for i, needed in enumerate(asked):
        direction, stem = i // each, ctx.stems[i % each]
        if not needed:
            d_params.append(None)
        elif stem == "w_hr":
            d_params.append(d_w_hr(direction))
        else:
            d_params.append(products[direction * 4 + _PRODUCTS.index(stem)])
    return d_input.view(ctx.input_shape) if needs[0] else None, d_params


# -- Functions ----------------------------------------------------------------------------------


class _Saved:
    """The saved tensors of a layer by name: written by `keep`, read once by backward."""

    def __init__(self, ctx):
        # One access: under activation checkpointing a second one raises.
        self.all = ctx.saved_tensors
        self.input, self.batch_sizes, self.hidden, self.h0, self.c0, *rest = self.all
        count = len(ctx.weight_stems) * ctx.directions
        self.tensors, self.weights = rest[:-count], rest[-count:]
        self.w_ihs = self.weights[:: len(ctx.weight_stems)]

    @staticmethod
    def keep(ctx, input, batch_sizes, hidden, states, tensors, params):
        """Input and hidden are kept only where the gradient of w_ih or w_hh asks for them.

        A cell whose recurrence needs hidden has it among `tensors` and passes None here.
        """
        ctx.input_shape, ctx.directions = input.shape, 2 if ctx.bidirectional else 1
        per_direction = len(params) // ctx.directions
        stems = ("w_ih", "w_hh", "b_ih", "b_hh") if ctx.has_biases else ("w_ih", "w_hh")
        ctx.stems = (*stems, "w_hr")[:per_direction]
        ctx.weight_stems = tuple(stem for stem in ctx.stems if stem[0] == "w")
        needs = ctx.needs_input_grad[-len(params) :]
        h0, c0 = states
        ctx.save_for_backward(
            input if any(needs[0::per_direction]) else None,
            batch_sizes,
            hidden if any(needs[1::per_direction]) else None,
            h0,
            c0,
            *tensors,
            *(p for i, p in enumerate(params) if ctx.stems[i % per_direction][0] == "w"),
        )
        ctx.set_materialize_grads(False)


class _FirstOrderOnly(Function):
    """Gradients as they came; differentiating them raises."""

    @staticmethod
    def forward(cell, count, *tensors):
        return tuple(tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.cell = inputs[0]

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            f"{ctx.cell}: expected to be differentiated once, got a derivative of its gradient "
            "(create_graph=True or nested torch.func.grad): second derivatives are not "
            f"implemented; fastrnn.reference.{ctx.cell} can be differentiated any number of times"
        )


def _first_order(cell):
    """Decorates a backward `(ctx, saved, *grads)`: no graph of its own, no autocast."""

    def decorate(backward):
        @functools.wraps(backward)
        def wrapper(ctx, *grads):
            if all(grad is None for grad in grads):
                return (None,) * len(ctx.needs_input_grad)
            saved = _Saved(ctx)
            differentiable = torch.is_grad_enabled()
            with torch.no_grad(), torch.autocast("cpu", enabled=False):
                results = backward(ctx, saved, *grads)
            if not differentiable:
                return results
            tensors = [result for result in results if result is not None]
            sources = [t for t in (*grads, *saved.all) if t is not None]
            tensors = iter(_FirstOrderOnly.apply(cell, len(tensors), *tensors, *sources))
            return tuple(None if result is None else next(tensors) for result in results)

        return wrapper

    return decorate


def _signed(function):
    """Keeps the signature at hand: Function.apply asks for it at every call, 30 us if computed."""
    function.__signature__ = inspect.signature(function)
    return function


class _LSTM(Function):
    @staticmethod
    @_signed
    def forward(input, batch_sizes, h0, c0, has_biases, bidirectional, *params):
        return _ops.lstm_forward(
            input, batch_sizes, h0, c0, params, has_biases, bidirectional, True
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, batch_sizes, h0, c0, ctx.has_biases, ctx.bidirectional, *params = inputs
        gates, hidden, cells = output[3:]
        ctx.mark_non_differentiable(gates, hidden, cells)
        _Saved.keep(ctx, input, batch_sizes, hidden, (h0, c0), (gates, cells), params)

    @staticmethod
    @_first_order("lstm")
    def backward(ctx, saved, d_output, d_h_n, d_c_n, *_):
        gates, cells = saved.tensors
        d_gates, d_h0, d_c0, d_hidden = _ops.lstm_backward(
            d_output, d_h_n, d_c_n, saved.batch_sizes, saved.c0, gates, cells, saved.weights,
            False, ctx.bidirectional,
        )  # fmt: skip

        def d_w_hr(direction):
            o = gates[direction][:, 3 * cells.shape[2] :]
            m = o * torch.tanh(cells[direction])
            # Of the form of d_w_ih. torch.mm would depend on the number of threads.
            d_h = d_hidden[direction : direction + 1]
            flags = [True, False, False, False]
            return _ops.layer_gradients("rnn", d_h, None, len(m), m, None, None, [], flags)[1][0]

        d_input, d_params = _layer_gradients(ctx, saved, "lstm", d_gates, d_h0.shape[1], d_w_hr)
        needs = ctx.needs_input_grad
        d_h0, d_c0 = (d_h0 if needs[2] else None), (d_c0 if needs[3] else None)
        return d_input, None, d_h0, d_c0, None, None, *d_params


class _GRU(Function):
    @staticmethod
    @_signed
    def forward(input, batch_sizes, h0, has_biases, bidirectional, *params):
        return _ops.gru_forward(input, batch_sizes, h0, params, has_biases, bidirectional, True)

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, batch_sizes, h0, ctx.has_biases, ctx.bidirectional, *params = inputs
        gates, hidden = output[2:]
        ctx.mark_non_differentiable(gates, hidden)
        _Saved.keep(ctx, input, batch_sizes, None, (h0, None), (gates, hidden), params)

    @staticmethod
    @_first_order("gru")
    def backward(ctx, saved, d_output, d_h_n, *_):
        gates, hidden = saved.tensors
        saved.hidden = hidden
        d_gates, d_h0 = _ops.gru_backward(
            d_output, d_h_n, saved.batch_sizes, saved.h0, gates, hidden, saved.weights, False,
            ctx.bidirectional,
        )  # fmt: skip
        d_input, d_params = _layer_gradients(ctx, saved, "gru", d_gates, d_h0.shape[1])
        d_h0 = d_h0 if ctx.needs_input_grad[2] else None
        return d_input, None, d_h0, None, None, *d_params


class _RNN(Function):
    @staticmethod
    @_signed
    def forward(input, batch_sizes, h0, has_biases, bidirectional, nonlinearity, *params):
        return _ops.rnn_forward(
            input, batch_sizes, h0, params, has_biases, bidirectional, nonlinearity, True
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, batch_sizes, h0, ctx.has_biases, ctx.bidirectional, *rest = inputs
        ctx.nonlinearity, *params = rest
        hidden = output[2]
        ctx.mark_non_differentiable(hidden)
        _Saved.keep(ctx, input, batch_sizes, None, (h0, None), (hidden,), params)

    @staticmethod
    @_first_order("rnn")
    def backward(ctx, saved, d_output, d_h_n, *_):
        (hidden,) = saved.tensors
        saved.hidden = hidden
        d_gates, d_h0 = _ops.rnn_backward(
            d_output, d_h_n, saved.batch_sizes, hidden, saved.weights, False, ctx.bidirectional,
            ctx.nonlinearity,
        )  # fmt: skip
        d_input, d_params = _layer_gradients(ctx, saved, "rnn", d_gates, d_h0.shape[1])
        d_h0 = d_h0 if ctx.needs_input_grad[2] else None
        return d_input, None, d_h0, None, None, None, *d_params
