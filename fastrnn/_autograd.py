"""One autograd Function per cell: one layer with all its directions.

Invariants
* An operator returns the gradients of the gates; every product over all steps (d_input, d_w_ih,
  d_w_hh, d_w_hr, bias sums) is a torch operation here.
* What backward needs is an output of the operator that nobody else can reach, marked
  non-differentiable and only read, so that a second backward gives the same numbers.
* Only what some gradient needs is saved, and only gradients that are asked for are computed.
  Biases are never saved: changing one between forward and backward is legal, as in torch.nn.
"""

import functools

import torch
from torch.autograd import Function, forward_ad

from fastrnn import _ops

# -- Layers: the operator alone where no graph is wanted, else the Function ---------------------


def _records(*tensors):
    """Whether this call must leave a graph behind (or let apply refuse forward-mode AD)."""
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
    return _ops.lstm_forward(
        input, batch_sizes, h0, c0, params, has_biases, bidirectional, False
    )[:3]


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
        return _RNN.apply(
            input, batch_sizes, h0, has_biases, bidirectional, nonlinearity, *params
        )[:2]
    return _ops.rnn_forward(
        input, batch_sizes, h0, params, has_biases, bidirectional, nonlinearity, False
    )[:2]


# -- The products over all steps ----------------------------------------------------------------


class _Steps:
    """Which row of `[N, ...]` precedes which in its sequence.

    The first step has `batch` rows. Row `batch + m` of a later step continues row `earlier(x)[m]`,
    and `last(x)` are the rows in which sequences 0, 1, ... end.
    """

    def __init__(self, batch_sizes, batch, rows):
        self.batch, self.continued = batch, rows - batch
        self.packed = batch_sizes is not None and batch_sizes.numel() * batch != rows
        if not self.packed:
            return
        device = batch_sizes.device
        self._earlier = torch.arange(batch, rows, device=device) - torch.repeat_interleave(
            batch_sizes[:-1], batch_sizes[1:], output_size=self.continued
        )
        # Sequence b is as long as there are steps with more than b rows; sizes never increase.
        sequence = torch.arange(batch, device=device)
        lengths = batch_sizes.numel() - torch.searchsorted(
            batch_sizes.flip(0), sequence, right=True
        )
        starts = batch_sizes.cumsum(0) - batch_sizes
        self._last = starts[lengths - 1] + sequence

    def earlier(self, x):
        if self.packed:
            return x.index_select(0, self._earlier.to(x.device))
        return x[: self.continued]

    def last(self, x):
        if self.packed:
            return x.index_select(0, self._last.to(x.device))
        return x[self.continued :]

    def pairs(self, d_gates, hidden, reverse):
        """d_gates of rows that have a previous h, those h, and d_gates of rows that had h0."""
        if reverse:
            return self.earlier(d_gates), hidden[self.batch :], self.last(d_gates)
        return d_gates[self.batch :], self.earlier(hidden), d_gates[: self.batch]


def _join(parts):
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _layer_gradients(ctx, saved, d_gates, batch, recurrent_columns, d_w_hr=None):
    """`(d_input, [d_param, ...])` of one layer from those of its gates, None where nobody asks.

    d_gates `[D, N, C]`: columns `[0, G)` are the gradient of `input @ w_ih^T + b_ih`; the
    `recurrent_columns` slices side by side, G as well, that of `h @ w_hh^T + b_hh`.
    `d_w_hr(direction)` is called where a projection's gradient is asked for.
    """
    rows = d_gates.shape[1]
    gates = sum(columns.stop - columns.start for columns in recurrent_columns)
    d_input = None
    if ctx.needs_input_grad[0]:
        for d_g, w_ih in zip(d_gates, saved.w_ihs, strict=True):
            d_g = d_g[:, :gates]
            d_input = torch.mm(d_g, w_ih) if d_input is None else d_input.addmm_(d_g, w_ih)
        d_input = d_input.view(ctx.input_shape)
    input, steps = saved.input, None
    if input is not None:
        input = input.reshape(rows, input.shape[-1])

    def d_param(stem, direction, d_g):
        nonlocal steps
        if stem == "w_ih":
            return torch.mm(d_g[:, :gates].t(), input)
        if stem == "w_hh":
            steps = steps or _Steps(saved.batch_sizes, batch, rows)
            parts = []
            later, earlier, first = steps.pairs(d_g, saved.hidden[direction], direction == 1)
            for columns in recurrent_columns:
                part = torch.mm(later[:, columns].t(), earlier)
                if saved.h0 is not None:
                    part.addmm_(first[:, columns].t(), saved.h0[direction])
                parts.append(part)
            return _join(parts)
        if stem == "b_ih":
            return d_g[:, :gates].sum(0)
        if stem == "b_hh":
            return _join([d_g[:, columns].sum(0) for columns in recurrent_columns])
        return d_w_hr(direction)

    needs = ctx.needs_input_grad[-len(ctx.stems) * ctx.directions :]
    d_params = [
        d_param(stem, direction, d_gates[direction]) if needed else None
        for needed, (direction, stem) in zip(
            needs, ((d, s) for d in range(ctx.directions) for s in ctx.stems), strict=True
        )
    ]
    return d_input, d_params


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


class _LSTM(Function):
    @staticmethod
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
            return torch.mm(d_hidden[direction].t(), o * torch.tanh(cells[direction]))

        d_input, d_params = _layer_gradients(
            ctx, saved, d_gates, d_h0.shape[1], [slice(0, gates.shape[2])], d_w_hr
        )
        needs = ctx.needs_input_grad
        d_h0, d_c0 = (d_h0 if needs[2] else None), (d_c0 if needs[3] else None)
        return d_input, None, d_h0, d_c0, None, None, *d_params


class _GRU(Function):
    @staticmethod
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
        size = hidden.shape[2]
        columns = [slice(0, 2 * size), slice(3 * size, 4 * size)]
        d_input, d_params = _layer_gradients(ctx, saved, d_gates, d_h0.shape[1], columns)
        d_h0 = d_h0 if ctx.needs_input_grad[2] else None
        return d_input, None, d_h0, None, None, *d_params


class _RNN(Function):
    @staticmethod
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
        columns = [slice(0, hidden.shape[2])]
        d_input, d_params = _layer_gradients(ctx, saved, d_gates, d_h0.shape[1], columns)
        d_h0 = d_h0 if ctx.needs_input_grad[2] else None
        return d_input, None, d_h0, None, None, None, *d_params
