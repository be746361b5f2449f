"""A layer that keeps the states at every k-th step alone, and recomputes the rest in backward.

Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174; for recurrent
networks Gruslys et al., "Memory-Efficient Backpropagation Through Time", arXiv:1606.03401. The
sequence is cut into chunks of k steps. Forward runs the operator on one after the other, saving
nothing but the state before each. Backward takes the chunks from the last to the first, runs each
again, now saving, and adds up its gradients.

Invariant: each chunk sees the same rows, states and weights both times, so gradients are those of
the plain layer up to the order in which the weights' gradients are added. In 16 bits what passes
from chunk to chunk is rounded, as states are that a user passes on.
"""

from dataclasses import replace

import torch
from torch.autograd import Function

from fastrnn._layer import autograd, derivatives, ops
from fastrnn._layer.backward import Record, gradients, layer_of
from fastrnn._layer.cells import CELLS
from fastrnn._layer.transforms import (
    apply,
    batched_levels,
    in_forward_mode,
    store,
    stored,
    transforms_active,
)


def layer(
    run, cell, every, input, batch_sizes, states, params, bidirectional, keep=False, resets=(),
    inside=(),
):  # fmt: skip
    """One layer: what `run`, autograd.layer of a cell, returns for the same arguments. inside: `()`
    or an `Inside`.

    Where nothing is to be saved or everything is asked for (keep), for packed data and resets, and
    for what goes beyond one backward pass through these chunks (forward mode, torch.func), it is
    `run` that computes.
    """
    if (
        keep
        or resets
        or batch_sizes is not None
        or input.shape[0] <= every
        or not autograd.records(input, *states, *params)
        or in_forward_mode()
        or transforms_active()
    ):
        return run(input, batch_sizes, states, params, bidirectional, keep, resets, inside)
    return apply(_Checkpointed, cell, every, bidirectional, inside, input, *states, *params)


def _run(layer, input, states, params, save, inside):
    """One chunk: output, final states and, if save, what backward needs."""
    options = (None, False, *inside) if inside else ()
    return ops.layer_forward(
        layer.cell, input, None, states, params, layer.directions == 2, save, *options
    )


def _of_chunk(inside, direction, begin, end):
    """An `Inside` for one direction's steps begin to end, in the order in which it meets them."""
    if not inside:
        return ()
    stream, first, step = inside.counter
    counter = stream, first + step * begin, step
    if direction:
        counter = stream + 2, first + step * (end - 1), -step
    (h_scale,) = _part([inside.h_scale], direction)
    return inside._replace(counter=counter, h_scale=h_scale)


def _chunks(seq_len, every, direction):
    """`(first step, end)` of each chunk, in the order in which a direction meets them."""
    chunks = [(t, min(t + every, seq_len)) for t in range(0, seq_len, every)]
    return chunks[::-1] if direction else chunks


def _turned(steps, direction):
    """Steps in the order in which a direction meets them, and back."""
    return steps.flip(0) if direction else steps


def _part(states, direction):
    return [None if s is None else s[direction : direction + 1] for s in states]


class _Checkpointed(Function):
    @staticmethod
    def forward(ctx, cell, every, bidirectional, inside, input, *tensors):
        count = CELLS[cell].states
        initial, params = tensors[:count], tensors[count:]
        whole = layer_of(cell, bidirectional, len(params), input.shape, inside=tuple(inside[:4]))
        chunk = replace(whole, directions=1)
        seq_len, batch, _ = input.shape
        each, size = len(whole.stems), params[1].shape[1]
        output = input.new_empty((seq_len, batch, whole.directions * size))
        starts, finals = [], []  # starts: of every chunk but a direction's first
        for d in range(whole.directions):
            states, own = _part(initial, d), params[d * each : (d + 1) * each]
            for index, (begin, end) in enumerate(_chunks(seq_len, every, d)):
                if index:
                    starts += states
                options = _of_chunk(inside, d, begin, end)
                x = _turned(input[begin:end], d)
                part, *states = _run(chunk, x, states, own, False, options)
                output[begin:end, :, d * size : (d + 1) * size] = _turned(part, d)
            finals.append(states)
        store(ctx, input, *tensors, *starts, forward=False)
        ctx.set_materialize_grads(False)
        ctx.layer, ctx.every, ctx.inside = whole, every, inside  # whose tensors have no gradients
        if whole.directions == 1:
            return output, *finals[0]
        return output, *(torch.cat([a, b]) for a, b in zip(*finals))

    @staticmethod
    def backward(ctx, *d_results):
        if all(d is None for d in d_results):
            return (None,) * len(ctx.needs_input_grad)
        wanted, count = ctx.needs_input_grad[4:], ctx.layer.arguments
        tensors = stored(ctx)
        arguments, starts = tensors[:count], tensors[count:]
        if torch.is_grad_enabled() or batched_levels():
            results = _differentiable(ctx.layer, ctx.inside, wanted, arguments, d_results)
        else:
            with torch.autocast("cpu", enabled=False):
                results = _chunk_gradients(
                    ctx.layer, ctx.every, ctx.inside, wanted, arguments, starts, d_results
                )
        return None, None, None, None, *results


def _chunk_gradients(layer, every, inside, wanted, arguments, starts, d_results):
    """The gradient of each argument, None where nobody asks."""
    input, *tensors = arguments
    count, each = layer.states, len(layer.stems)
    initial, params = tensors[:count], tensors[count:]
    of_params, size = wanted[1 + count :], params[1].shape[1]
    d_output, *d_finals = d_results
    d_input = torch.empty_like(input) if wanted[0] else None
    d_initial, d_params = [], []
    for d in range(layer.directions):
        chunks = _chunks(input.shape[0], every, d)
        kept = (len(chunks) - 1) * count
        # The states that each chunk starts from, in forward's order.
        before = [*_part(initial, d), *starts[d * kept : (d + 1) * kept]]
        d_states = _part(d_finals, d)
        own = params[d * each : (d + 1) * each]
        flags = wanted[0], *(True,) * count, *of_params[d * each : (d + 1) * each]
        sums = [None] * each
        for index in reversed(range(len(chunks))):
            begin, end = chunks[index]
            states = before[index * count : (index + 1) * count]
            x = _turned(input[begin:end], d)
            d_out = None
            if d_output is not None:
                d_out = _turned(d_output[begin:end, :, d * size : (d + 1) * size], d)
            options = _of_chunk(inside, d, begin, end)
            constants = tuple(options[:4])
            chunk = replace(layer, directions=1, input_shape=x.shape, inside=constants)
            saved = _run(chunk, x, states, own, True, options)[1 + count :]
            before_states = x, None, None, *options[4:]
            record = Record(chunk, (*before_states, *states, *saved, *chunk.weights(own)))
            del saved
            found = iter(gradients(chunk, record, flags, (d_out, *d_states)))
            del record  # before the next chunk's
            if wanted[0]:
                d_x = _turned(next(found), d)
                if d == 0:
                    d_input[begin:end] = d_x
                else:
                    d_input[begin:end] += d_x
            d_states = [next(found) for _ in range(count)]
            for i, needed in enumerate(flags[1 + count :]):
                if needed:
                    gradient = next(found)
                    # Many chunks: a sum in 16 bits would lose most of them.
                    wide = torch.promote_types(gradient.dtype, torch.float32)
                    sums[i] = gradient.to(wide) if sums[i] is None else sums[i].add_(gradient)
        d_initial.append(d_states)
        d_params += [None if g is None else g.to(input.dtype) for g in sums]
    d_states = [
        torch.cat(parts) if needed else None
        for needed, parts in zip(wanted[1 : 1 + count], zip(*d_initial, strict=True), strict=True)
    ]
    return d_input, *d_states, *d_params


def _differentiable(layer, inside, wanted, arguments, d_results):
    """The same as a Function with derivatives, which wants what the plain layer saves."""
    input, *tensors = arguments
    states, params = tensors[: layer.states], tensors[layer.states :]
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        saved = _run(layer, input, states, params, True, inside)[1 + layer.states :]
    record = input, None, None, *inside[4:], *states, *saved, *params
    found = iter(derivatives.gradients(layer, wanted, *d_results, *record))
    return [next(found) if needed else None for needed in wanted]
