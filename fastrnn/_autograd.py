"""One autograd Function per cell: one layer with all its directions.

Invariants
* The backward pass is layer_vjp. Where that does not go, a cell's backward operator returns the
  gradients of the gates, and `products` turns them into those of the input, the weights and
  the biases.
* What backward needs is an output of the operator that nobody else can reach, marked
  non-differentiable and only read, so that a second backward gives the same numbers.
* Only what some gradient needs is saved, and only gradients that are asked for are computed.
  Biases are never saved: changing one between forward and backward is legal, as in torch.nn.
* Whatever is beyond one backward pass (create_graph, forward mode, nested transforms) goes through
  the Functions of fastrnn._derivatives.
"""

import torch
from torch.autograd import Function

from fastrnn import _by_reference, _derivatives, _gradients, _ops, _vmap
from fastrnn._gradients import Layer, Saved
from fastrnn._rows import fold, unfold
from fastrnn._transforms import apply, in_forward_mode, requires_grad, signed, transforms_active

# -- Layers: the operator alone where no graph is wanted, else the Function ---------------------


_is_exporting = getattr(torch.compiler, "is_exporting", bool)  # torch 2.6 has none


_NO_RESETS = None, False


def records(*tensors):
    """Whether this call must leave a graph behind, or may have tangents."""
    if _is_exporting():
        return False  # what is exported is the operator: a Function would save, to no end
    return requires_grad(*tensors) or in_forward_mode()


# Shapes are those of the forward operators. keep: every step's `cells` (LSTM, with derivatives) and
# `gates` (LSTM and GRU, values alone) too, None where there are none. Backward reads them: nobody
# may change them. resets: `()`, or `(bool [T, B], whether to the initial states)` where the engine
# has them.


def lstm_layer(
    input, batch_sizes, states, params, has_biases, bidirectional, keep=False, resets=()
):
    """One LSTM layer: `(output, h_n, c_n)`, and `cells, gates` if keep."""
    h0, c0 = states
    if records(input, h0, c0, *params):
        results = apply(
            _function(_LSTM), input, batch_sizes, h0, c0, has_biases, bidirectional, keep,
            *(resets or _NO_RESETS), *params,
        )  # fmt: skip
    else:
        results = _ops.lstm_forward(
            input, batch_sizes, h0, c0, params, has_biases, bidirectional, keep, *resets
        )
    return (*results[:3], results[5], results[3]) if keep else results[:3]


def gru_layer(input, batch_sizes, states, params, has_biases, bidirectional, keep=False, resets=()):
    """One GRU layer: `(output, h_n)`, and `None, gates` if keep."""
    (h0,) = states
    if records(input, h0, *params):
        results = apply(
            _function(_GRU), input, batch_sizes, h0, has_biases, bidirectional,
            *(resets or _NO_RESETS), *params,
        )  # fmt: skip
    else:
        results = _ops.gru_forward(
            input, batch_sizes, h0, params, has_biases, bidirectional, keep, *resets
        )
    return (*results[:2], None, results[2]) if keep else results[:2]


def rnn_layer(
    cell, input, batch_sizes, states, params, has_biases, bidirectional, keep=False,
    resets=(),
):  # fmt: skip
    """One Elman layer, rnn_tanh or rnn_relu: `(output, h_n)`, and `None, None` if keep."""
    (h0,) = states
    if records(input, h0, *params):
        results = apply(
            _function(_RNN), input, batch_sizes, h0, has_biases, bidirectional, cell,
            *(resets or _NO_RESETS), *params,
        )  # fmt: skip
    else:
        results = _ops.rnn_forward(
            input, batch_sizes, h0, params, has_biases, bidirectional, cell, False, *resets
        )
    return (*results[:2], None, None) if keep else results[:2]


def gather_rows(inputs, index, inverse, others=(), other_index=None, other_inverse=None):
    """The rows of each of inputs that an index names, and those of others that another names.

    An input `[X, *R, C]` with an index int64 `[Y, *M]` becomes `[X, *M, C]`: which of all its rows
    each one is, or -1: zeros. Y divides X, and group x has the row x % Y of the index. Where Y is
    1, the input may be `[*R, C]`, the result is `[*M, C]`. The inverse `[Y, *R]` is the same the
    other way: no row is taken twice.
    """
    moves = index, inverse, other_index, other_inverse
    if records(*inputs, *others):
        return apply(_function(_Gather), len(inputs), *moves, *inputs, *others)
    return _gather(inputs, *moves, others)


def _gather(inputs, index, inverse, other_index, other_inverse, others):
    rows = [_flat(input, inverse) for input in inputs]
    rows += [_flat(other, other_inverse) for other in others]
    indices = [index] * len(inputs) + [other_index] * len(others)
    if index.is_cpu:
        return tuple(_ops.gather_rows(rows, indices))
    return tuple(map(_gather_by_torch, rows, indices))


def _flat(input, inverse):
    return input if inverse.dim() == 2 else input.flatten(-inverse.dim(), -2)


def _gather_by_torch(input, index):
    groups = (input if input.dim() == 3 else input[None]).unflatten(0, (-1, index.shape[0]))
    parts = [
        groups[:, y].index_select(1, row.clamp_min(0)).masked_fill((row < 0)[:, None], 0)
        for y, row in enumerate(index.flatten(1))
    ]
    return torch.stack(parts, 1).view(*input.shape[:-2], *index.shape[1:], input.shape[-1])


# -- What the Functions share --------------------------------------------------------------------


def _keep(ctx, cell, bidirectional, has_biases, params, saved, to_hx):
    """Saves what backward needs. saved: input, batch_sizes, hidden, h0, c0, gates, cells, resets.

    Hidden is kept only where the gradient of w_hh asks for it, and where the cell's recurrence
    needs it: where there are no cells. Input is kept for the gradient of w_ih, and where it has one
    itself: gradients depend on it. Forward mode, and the levels of torch.func around this one, may
    ask for more than needs_input_grad tells.
    """
    input, batch_sizes, hidden, h0, c0, gates, cells, resets = saved
    ctx.cell, ctx.input_shape, ctx.directions = cell, input.shape, 2 if bidirectional else 1
    ctx.to_hx = to_hx
    each = len(params) // ctx.directions
    ctx.stems = stems = _gradients.stems(has_biases, each)
    weights = [p for i, p in enumerate(params) if stems[i % each][0] == "w"]
    # Not for their values: gradients have derivatives with respect to biases too.
    ctx.biases = [_as_of_now(p) for i, p in enumerate(params) if stems[i % each][0] == "b"]
    ctx.set_materialize_grads(False)
    transformed = transforms_active()
    # While torch.compile traces torch.func, needs_input_grad does not tell of its levels.
    ctx.needs_all = transformed and torch.compiler.is_compiling()
    if in_forward_mode() or transformed:
        ctx.save_for_forward(*saved, *weights)
        ctx.save_for_backward(*saved, *weights)
        return
    needs = ctx.needs_input_grad[-len(params) :]
    if (
        not ctx.needs_input_grad[0]
        and not any(needs[::each])
        and not _by_reference.serves(params[0])  # which may have to compute the layer anew
    ):
        input = None
    if cells is not None and not any(needs[1::each]):
        hidden = None
    ctx.save_for_backward(input, batch_sizes, hidden, h0, c0, gates, cells, resets, *weights)


def _as_of_now(bias):
    """The bias with its history at this time: changing it in place later changes its history."""
    if torch.compiler.is_compiling() or in_forward_mode() or bias.grad_fn is None:
        return bias  # a copy made here would have no tangent
    with torch.enable_grad():
        return bias.clone()


def _with_biases(ctx, tensors):
    """Saved tensors and weights -> saved tensors and all parameters."""
    saved, weights = tensors[: Saved.count], iter(tensors[Saved.count :])
    biases = iter(ctx.biases)
    return *saved, *(next(weights if stem[0] == "w" else biases)
                     for stem in ctx.stems * ctx.directions)  # fmt: skip


def _backward(ctx, d_output, d_h_n, d_c_n=None, d_cells=None):
    """`[d_input, d_h0, d_c0, *d_params]`, None where nobody asks; or None for nothing at all."""
    if d_output is None and d_h_n is None and d_c_n is None and d_cells is None:
        return None
    needs = ctx.needs_input_grad
    tensors = ctx.saved_tensors  # one access: under activation checkpointing a second one raises
    params = needs[-len(ctx.stems) * ctx.directions :]
    needs = needs[0], needs[2], ctx.cell == "lstm" and needs[3], *params
    if ctx.needs_all:
        needs = True, tensors[3] is not None, tensors[4] is not None, *(True,) * len(params)
    # A gradient in forward mode has a tangent, whether or not a graph of it is recorded.
    if not torch.is_grad_enabled() and not in_forward_mode():
        saved = Saved(ctx, tensors)
        return _gradients.gradients(ctx, saved, needs, d_output, d_h_n, d_c_n, d_cells)
    layer = Layer(ctx.cell, ctx.directions, ctx.stems, ctx.input_shape, needs, to_hx=ctx.to_hx)
    saved = _with_biases(ctx, tensors)
    wanted = iter(_derivatives.Gradients.apply(layer, d_output, d_h_n, d_c_n, d_cells, *saved))
    return [next(wanted) if needed else None for needed in needs]


def _jvp(ctx, t_input, t_h0, t_c0, t_params):
    keep = ctx.cell == "lstm" and ctx.keep
    layer = Layer(ctx.cell, ctx.directions, ctx.stems, ctx.input_shape, keep=keep, to_hx=ctx.to_hx)
    saved = _with_biases(ctx, ctx.saved_tensors)
    return _derivatives.tangents(layer, t_input, t_h0, t_c0, *t_params, *saved)


def _vmap_layer(function, begin, info, in_dims, *arguments):
    """vmap of a layer: more rows of one, or, with parameters that are mapped too, several layers.

    begin: where the parameters begin among the arguments.
    """
    size = info.batch_size
    if any(dim is not None for dim in in_dims[begin:]):
        return _vmap.one_by_one(function.apply, size, in_dims, arguments)
    _vmap.check_batch_sizes(in_dims[1])
    rest = [
        fold(value, dim, size) if isinstance(value, torch.Tensor) else value
        for value, dim in zip(arguments[2:begin], in_dims[2:begin])
    ]
    batch_sizes = None if arguments[1] is None else arguments[1] * size
    input = fold(arguments[0], in_dims[0], size)
    results = function.apply(input, batch_sizes, *rest, *arguments[begin:])
    results = [unfold(result, size) for result in results]
    return tuple(result for result, _ in results), tuple(dim for _, dim in results)


# -- Functions ----------------------------------------------------------------------------------


class _LSTM(Function):
    @staticmethod
    @signed
    def forward(
        input, batch_sizes, h0, c0, has_biases, bidirectional, keep, resets, to_hx, *params
    ):
        options = () if resets is None else (resets, to_hx)
        return _ops.lstm_forward(
            input, batch_sizes, h0, c0, params, has_biases, bidirectional, True, *options
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, batch_sizes, h0, c0, has_biases, bidirectional, keep, resets, to_hx, *params = inputs
        gates, hidden, cells = output[3:]
        # Only where asked for: a compiled backward would be given zeros for cells.
        ctx.mark_non_differentiable(gates, hidden, *(() if keep else (cells,)))
        saved = input, batch_sizes, hidden, h0, c0, gates, cells, resets
        _keep(ctx, "lstm", bidirectional, has_biases, params, saved, to_hx)
        ctx.keep = keep

    @staticmethod
    def backward(ctx, d_output, d_h_n, d_c_n, _, __, d_cells):
        results = _backward(ctx, d_output, d_h_n, d_c_n, d_cells if ctx.keep else None)
        if results is None:
            return (None,) * len(ctx.needs_input_grad)
        d_input, d_h0, d_c0, *d_params = results
        return d_input, None, d_h0, d_c0, None, None, None, None, None, *d_params

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return _vmap_layer(_function(_LSTM), 9, info, in_dims, *arguments)


class _DualLSTM(_LSTM):
    @staticmethod
    def jvp(ctx, t_input, _, t_h0, t_c0, *rest):
        t_params = rest[5:]
        t_output, t_h_n, t_c_n, *t_cells = _jvp(ctx, t_input, t_h0, t_c0, t_params)
        return t_output, t_h_n, t_c_n, None, None, *(t_cells or (None,))


class _GRU(Function):
    @staticmethod
    @signed
    def forward(input, batch_sizes, h0, has_biases, bidirectional, resets, to_hx, *params):
        options = () if resets is None else (resets, to_hx)
        return _ops.gru_forward(
            input, batch_sizes, h0, params, has_biases, bidirectional, True, *options
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, batch_sizes, h0, has_biases, bidirectional, resets, to_hx, *params = inputs
        gates, hidden = output[2:]
        ctx.mark_non_differentiable(gates, hidden)
        saved = input, batch_sizes, hidden, h0, None, gates, None, resets
        _keep(ctx, "gru", bidirectional, has_biases, params, saved, to_hx)

    @staticmethod
    def backward(ctx, d_output, d_h_n, *_):
        results = _backward(ctx, d_output, d_h_n)
        if results is None:
            return (None,) * len(ctx.needs_input_grad)
        d_input, d_h0, _, *d_params = results
        return d_input, None, d_h0, None, None, None, None, *d_params

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return _vmap_layer(_function(_GRU), 7, info, in_dims, *arguments)


class _DualGRU(_GRU):
    @staticmethod
    def jvp(ctx, t_input, _, t_h0, *rest):
        return *_jvp(ctx, t_input, t_h0, None, rest[4:]), None, None


class _RNN(Function):
    @staticmethod
    @signed
    def forward(input, batch_sizes, h0, has_biases, bidirectional, cell, resets, to_hx, *params):
        options = () if resets is None else (resets, to_hx)
        return _ops.rnn_forward(
            input, batch_sizes, h0, params, has_biases, bidirectional, cell, True, *options
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        input, batch_sizes, h0, has_biases, bidirectional, cell, *rest = inputs
        (resets, to_hx, *params), hidden = rest, output[2]
        ctx.mark_non_differentiable(hidden)
        saved = input, batch_sizes, hidden, h0, None, None, None, resets
        _keep(ctx, cell, bidirectional, has_biases, params, saved, to_hx)

    @staticmethod
    def backward(ctx, d_output, d_h_n, *_):
        results = _backward(ctx, d_output, d_h_n)
        if results is None:
            return (None,) * len(ctx.needs_input_grad)
        d_input, d_h0, _, *d_params = results
        return d_input, None, d_h0, None, None, None, None, None, *d_params

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return _vmap_layer(_function(_RNN), 8, info, in_dims, *arguments)


class _DualRNN(_RNN):
    @staticmethod
    def jvp(ctx, t_input, _, t_h0, *rest):
        return *_jvp(ctx, t_input, t_h0, None, rest[5:]), None


class _Gather(Function):
    generate_vmap_rule = True

    @staticmethod
    @signed
    def forward(count, index, inverse, other_index, other_inverse, *rows):
        moves = index, inverse, other_index, other_inverse
        return _gather(rows[:count], *moves, rows[count:])

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.count, *moves = inputs[:5]
        # Final states seldom have gradients. In forward mode every result must have a tangent.
        ctx.set_materialize_grads(in_forward_mode())
        if not in_forward_mode() and not transforms_active():
            # Else a layer would make gradients of rows that nobody asked for.
            ctx.mark_non_differentiable(
                *[row for row, needed in zip(output, ctx.needs_input_grad[5:]) if not needed]
            )
        ctx.save_for_backward(*moves)
        ctx.save_for_forward(*moves)

    @staticmethod
    def backward(ctx, *d_rows):
        index, inverse, other_index, other_inverse = ctx.saved_tensors
        inputs = [d for d in d_rows[: ctx.count] if d is not None]
        others = [d for d in d_rows[ctx.count :] if d is not None]
        if not inputs and not others:
            return (None,) * len(ctx.needs_input_grad)
        moved = iter(gather_rows(inputs, inverse, index, others, other_inverse, other_index))
        return (None,) * 5 + tuple([None if d is None else next(moved) for d in d_rows])


class _DualGather(_Gather):
    @staticmethod
    def jvp(ctx, _, __, ___, ____, _____, *t_rows):
        moves = ctx.saved_tensors
        return gather_rows(t_rows[: ctx.count], *moves[:2], t_rows[ctx.count :], *moves[2:])


_DUAL = {_LSTM: _DualLSTM, _GRU: _DualGRU, _RNN: _DualRNN, _Gather: _DualGather}


def _function(function):
    """The one for now: torch.compile takes no Function that has a jvp."""
    return _DUAL[function] if in_forward_mode() else function
