"""The autograd Function of one layer with all its directions, whatever its cell.

Invariants
* The backward pass is layer_backward, on every device.
* What backward needs is an output of the operator that nobody else can reach, marked
  non-differentiable and only read, so that a second backward gives the same numbers.
* Only what some gradient needs is saved, and only gradients that are asked for are computed.
  Biases are never saved: changing one between forward and backward is legal, as in torch.nn.
* Whatever is beyond one backward pass (create_graph, forward mode, nested transforms) goes through
  the Functions of fastrnn._layer.derivatives.
"""

import torch
from torch.autograd import Function

from fastrnn._layer import backward, batching, by_reference, derivatives, ops
from fastrnn._layer.backward import Record, layer_of
from fastrnn._layer.cells import CELLS, STEMS
from fastrnn._layer.rows import fold, unfold
from fastrnn._layer.transforms import (
    apply,
    batched_levels,
    in_forward_mode,
    in_nested_forward_mode,
    requires_grad,
    signed,
    store,
    stored,
    transforms_active,
)

# -- A layer: the operator alone where no graph is wanted, else the Function ---------------------


_is_exporting = getattr(torch.compiler, "is_exporting", bool)  # torch 2.6 has none


_NO_RESETS = None, False


def records(*tensors):
    """Whether this call must leave a graph behind, or may have tangents."""
    if _is_exporting():
        return False  # what is exported is the operator: a Function would save, to no end
    # torch.jit.trace records a Function as a call of Python: the operator raises instead.
    return (requires_grad(*tensors) or in_forward_mode()) and not torch.jit.is_tracing()


def by_equations(
    cell, input, batch_sizes, states, params, bidirectional, keep=False, resets=(), inside=()
):
    """As `layer`, by torch's own operations: on any device, for any dtype."""
    resets, to_hx = resets or _NO_RESETS
    of = layer_of(cell, bidirectional, len(params), input.shape, True, to_hx, tuple(inside[:4]))
    others = batch_sizes, resets, *inside[4:]
    return by_reference.run(of, others, input, states, params, keep)


def layer(
    cell, input, batch_sizes, states, params, bidirectional, keep=False, resets=(), inside=()
):
    """One layer: `(output, *final states)`, and `cells, gates` if keep, None where there are none.

    Shapes are those of the operator layer_forward. states: one for each of the cell, or None for
    each. keep: every step's cells (with derivatives) and gates (values alone); backward reads them,
    so nobody may change them. resets: `()`, or `(bool [T, B], whether to the initial states)` where
    the engine has them. inside: `()`, or an `Inside`.
    """
    options = resets
    if inside:
        options = *(resets or _NO_RESETS), *inside
    if in_nested_forward_mode() or (inside and not ops.has_inside(input)):
        arguments = input, batch_sizes, states, params, bidirectional
        return by_equations(cell, *arguments, keep, resets, inside)
    if records(input, *states, *params):
        what = cell, bidirectional, keep, options
        results = apply(_function(_Layer), *what, input, batch_sizes, *states, *params)
    else:
        results = ops.layer_forward(
            cell, input, batch_sizes, states, params, bidirectional, keep, *options
        )
    if not keep:
        return results[: 1 + CELLS[cell].states]
    cell = CELLS[cell]
    cells = results[-1] if cell.has_c else None
    gates = results[-1 - cell.states] if cell.saves_gates else None
    if cell.apart:  # beside the gates the last product of h is kept
        gates = gates.narrow(-1, 0, cell.products * params[1].shape[1])
    return *results[: 1 + cell.states], cells, gates


@ops.recorded("layer_recorded")
def _recorded(*arguments):
    """The operator layer_forward with a graph."""
    a = ops.named(ops.layer_forward, arguments)
    resets = () if a.resets is None else (a.resets, a.reset_to_hx)
    inside = ()
    if a.counter is not None:
        inside = a.norm, a.eps, tuple(a.rates), tuple(a.counter), a.seed, a.h_scale
    rows, layers = (a.input, a.batch_sizes), (a.states, a.params)
    if transforms_active() and not torch.compiler.is_compiling():
        # A Function called from here would be differentiated at one level of torch.func alone.
        if a.save:
            raise RuntimeError(
                "layer_forward: expected save=False under torch.func, got True: call the layer"
            )
        return list(by_equations(a.cell, *rows, *layers, a.bidirectional, False, resets, inside))
    options = (*(resets or _NO_RESETS), *inside) if inside else resets
    what = a.cell, a.bidirectional, True, options
    results = apply(_function(_Layer), *what, *rows, *a.states, *a.params)
    return list(results if a.save else results[: 1 + CELLS[a.cell].states])


def gather_rows(inputs, index, inverse, others=(), other_index=None, other_inverse=None):
    """The rows of each of inputs that an index names, and those of others that another names.

    An input `[X, *R, C]` with an index int64 `[Y, *M]` becomes `[X, *M, C]`: which of all its rows
    each one is, or -1: zeros. Y divides X, and group x has the row x % Y of the index. Where Y is
    1, the input may be `[*R, C]`, the result is `[*M, C]`. The inverse `[Y, *R]` is the same the
    other way: no row is taken twice.
    """
    moves = index, inverse, other_index, other_inverse
    if in_nested_forward_mode():
        return _gather(inputs, *moves, others, kernels=False)
    # Tensors do not tell of a graph of what is_grads_batched wraps in them.
    if records(*inputs, *others) or (torch.is_grad_enabled() and batched_levels()):
        return batching.applied(_function(_Gather), len(inputs), *moves, *inputs, *others)
    return _gather(inputs, *moves, others)


def _gather(inputs, index, inverse, other_index, other_inverse, others, kernels=True):
    rows = [_flat(input, inverse) for input in inputs]
    rows += [_flat(other, other_inverse) for other in others]
    indices = [index] * len(inputs) + [other_index] * len(others)
    if index.is_cpu and kernels:
        return tuple(ops.gather_rows(rows, indices))
    return tuple(map(_gather_by_torch, rows, indices))


def _flat(input, inverse):
    if inverse.dim() == 2:
        return input
    # Not flatten: is_grads_batched has no rule for it.
    return input.reshape(*input.shape[: -inverse.dim()], -1, input.shape[-1])


@ops.recorded("rows_recorded")
def _gather_recorded(inputs, indices):
    return list(map(_gather_by_torch, inputs, indices))


def _gather_by_torch(input, index):
    groups = (input if input.dim() == 3 else input[None]).unflatten(0, (-1, index.shape[0]))
    parts = [
        groups[:, y].index_select(1, row.clamp_min(0)).masked_fill((row < 0)[:, None], 0)
        for y, row in enumerate(index.flatten(1))
    ]
    return torch.stack(parts, 1).view(*input.shape[:-2], *index.shape[1:], input.shape[-1])


# -- Functions ----------------------------------------------------------------------------------


class _Layer(Function):
    """Arguments: cell, bidirectional, keep, options, input, batch_sizes, *states, *params.

    options: the operator's last arguments, as many as are not its defaults.
    """

    @staticmethod
    @signed
    def forward(cell, bidirectional, keep, options, input, batch_sizes, *tensors):
        count = CELLS[cell].states
        states, params = tensors[:count], tensors[count:]
        results = ops.layer_forward(
            cell, input, batch_sizes, states, params, bidirectional, True, *options
        )
        return tuple(results)

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Saves what backward needs.

        Every step's h is kept only where the gradient of w_hh asks for it, and where the cell's
        recurrence needs it: where it is all that is saved. Input is kept for the gradient of w_ih,
        and where it has one itself: gradients depend on it. Forward mode, and the levels of
        torch.func around this one, may ask for more than needs_input_grad tells.
        """
        name, bidirectional, keep, options, input, batch_sizes, *tensors = inputs
        resets, to_hx, *inside = options or _NO_RESETS
        cell, constants = CELLS[name], tuple(inside[:4])
        states, params = tensors[: cell.states], tensors[cell.states :]
        kept = list(output[1 + cell.states :])
        # Cells only where asked for: a compiled backward would be given zeros for them.
        ctx.mark_non_differentiable(*(kept[:-1] if keep and cell.has_c else kept))
        ctx.set_materialize_grads(False)
        # What a Layer is made of, in backward alone: it takes its time.
        ctx.what = name, bidirectional, len(params), input.shape, keep, to_hx, constants
        each = len(params) // (1 + bidirectional)
        stems = STEMS[name, inside[0] if inside else "none", each]
        weights, biases = backward.PLACES[stems, 1 + bidirectional]
        weights, biases = [params[i] for i in weights], [params[i] for i in biases]
        # Not for their values: gradients have derivatives with respect to biases too.
        ctx.biases = [_as_of_now(bias) for bias in biases]
        transformed = transforms_active()
        ctx.versions = None if transformed or torch.compiler.is_compiling() else _versions(ctx)
        # While torch.compile traces torch.func, needs_input_grad does not tell of its levels.
        ctx.needs_all = transformed and torch.compiler.is_compiling()
        if in_forward_mode() or transformed:
            record = input, batch_sizes, resets, *inside[4:], *states, *kept, *weights
            store(ctx, *record)
            return
        needs = ctx.needs_input_grad
        of_params = needs[-len(params) :]
        if (
            not needs[_INPUT]
            and not any(of_params[::each])
            and not by_reference.serves(input)  # which may have to compute the layer anew
        ):
            input = None
        if cell.has_c and not any(of_params[1::each]):
            kept[-cell.states] = None
        record = input, batch_sizes, resets, *inside[4:], *states, *kept, *weights
        store(ctx, *record, forward=False)

    @staticmethod
    def backward(ctx, *d_results):
        layer, needs = layer_of(*ctx.what), ctx.needs_input_grad
        nothing, states = (None,) * _INPUT, layer.states
        kept = d_results[-1:] if layer.keep else ()
        d_results = *d_results[: 1 + states], *kept
        if all(d is None for d in d_results):
            return (None,) * len(needs)
        tensors = stored(ctx)
        wanted = needs[_INPUT], *needs[_INPUT + 2 :]
        if ctx.needs_all:
            given = [s is not None for s in tensors[layer.first_state :][:states]]
            wanted = True, *given, *(True,) * (len(wanted) - 1 - states)
        # A gradient in forward mode has a tangent, whether or not a graph of it is recorded.
        if not torch.is_grad_enabled() and not in_forward_mode():
            found = backward.gradients(layer, Record(layer, tensors), wanted, d_results)
        else:
            biases = ctx.biases
            if ctx.versions is not None and not in_forward_mode():
                layer.stale = ctx.versions != _versions(ctx)
                biases = [bias.clone() for bias in biases]  # they may change after this, too
            record = _with_biases(layer, tensors, biases)
            found = derivatives.gradients(layer, wanted, *d_results, *record)
        found = iter(found)
        d_input, *rest = [next(found) if needed else None for needed in wanted]
        return *nothing, d_input, None, *rest

    @staticmethod
    def vmap(info, in_dims, *arguments):
        """More rows of one layer, or, with parameters that are mapped too, several layers."""
        size, function = info.batch_size, _function(_Layer)
        batching.check_size(size)
        begin = _INPUT + 2 + CELLS[arguments[0]].states
        has_inside = len(arguments[3]) > 2  # masks are of rows
        if has_inside or any(dim is not None for dim in in_dims[begin:]):
            results, dims = batching.one_by_one(function.apply, size, in_dims, arguments)
            return tuple(results), tuple(dims)
        batching.check_batch_sizes(in_dims[_INPUT + 1])
        rest = [
            None if value is None else fold(value, dim, size)
            for value, dim in zip(arguments[_INPUT + 2 : begin], in_dims[_INPUT + 2 : begin])
        ]
        input, batch_sizes = arguments[_INPUT : _INPUT + 2]
        batch_sizes = None if batch_sizes is None else batch_sizes * size
        input = fold(input, in_dims[_INPUT], size)
        results = function.apply(*arguments[:_INPUT], input, batch_sizes, *rest, *arguments[begin:])
        results = [unfold(result, size) for result in results]
        return tuple(result for result, _ in results), tuple(dim for _, dim in results)


_INPUT = 4  # its place among the arguments of _Layer


class _DualLayer(_Layer):
    @staticmethod
    def jvp(ctx, *tangents):
        layer = layer_of(*ctx.what)
        record = _with_biases(layer, stored(ctx), ctx.biases)
        t_arguments = tangents[_INPUT], *tangents[_INPUT + 2 :]
        found = derivatives.tangents(layer, *t_arguments, *record)
        if not layer.keep:
            return *found, *(None,) * layer.saved
        *found, t_cells = found
        return *found, *(None,) * (layer.saved - 1), t_cells


def _as_of_now(bias):
    """The bias with its history at this time: changing it in place later changes its history."""
    if torch.compiler.is_compiling() or in_forward_mode() or bias.grad_fn is None:
        return bias  # a copy made here would have no tangent
    with torch.enable_grad():
        return bias.clone()


def _versions(ctx):
    return [bias._version for bias in ctx.biases]


def _with_biases(layer, tensors, biases):
    """A record with weights -> one with all parameters."""
    return *tensors[: layer.recorded], *layer.with_biases(tensors[layer.recorded :], biases)


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
        store(ctx, *moves)

    @staticmethod
    def backward(ctx, *d_rows):
        index, inverse, other_index, other_inverse = stored(ctx)
        inputs = [d for d in d_rows[: ctx.count] if d is not None]
        others = [d for d in d_rows[ctx.count :] if d is not None]
        if not inputs and not others:
            return (None,) * len(ctx.needs_input_grad)
        moved = iter(gather_rows(inputs, inverse, index, others, other_inverse, other_index))
        return (None,) * 5 + tuple([None if d is None else next(moved) for d in d_rows])


class _DualGather(_Gather):
    @staticmethod
    def jvp(ctx, _, __, ___, ____, _____, *t_rows):
        moves = stored(ctx)
        return gather_rows(t_rows[: ctx.count], *moves[:2], t_rows[ctx.count :], *moves[2:])


_DUAL = {_Layer: _DualLayer, _Gather: _DualGather}


def _function(function):
    """The one for now: torch.compile takes no Function that has a jvp."""
    return _DUAL[function] if in_forward_mode() else function
