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

import torch
from torch.autograd import Function

from fastrnn import _autograd, _derivatives, _gradients, _ops
from fastrnn._gradients import Layer, Saved
from fastrnn._transforms import apply, in_forward_mode, transforms_active


def layer(
    run, cell, every, input, batch_sizes, states, params, has_biases, bidirectional, keep=False
):
    """One layer: what `run`, its plain form in fastrnn._autograd, returns for the same arguments.

    Where nothing is to be saved or everything is asked for (keep), for packed data, and for what
    goes beyond one backward pass through these chunks (forward mode, torch.func), it is `run` that
    computes.
    """
    if (
        keep
        or batch_sizes is not None
        or input.shape[0] <= every
        or not _autograd.records(input, *states, *params)
        or in_forward_mode()
        or transforms_active()
    ):
        return run(input, batch_sizes, states, params, has_biases, bidirectional, keep)
    h0, c0 = states if len(states) == 2 else (states[0], None)
    return apply(_Checkpointed, input, h0, c0, cell, every, has_biases, bidirectional, *params)


def _run(cell, input, h, c, params, has_biases, save, bidirectional=False):
    """One chunk, of one direction by default: `(output, h_n, c_n, gates, hidden, cells)`."""
    if cell == "lstm":
        return _ops.lstm_forward(input, None, h, c, params, has_biases, bidirectional, save)
    if cell == "gru":
        output, h_n, gates, hidden = _ops.gru_forward(
            input, None, h, params, has_biases, bidirectional, save
        )
        return output, h_n, None, gates, hidden, None
    output, h_n, hidden = _ops.rnn_forward(
        input, None, h, params, has_biases, bidirectional, cell, save
    )
    return output, h_n, None, None, hidden, None


def _chunks(seq_len, every, direction):
    """`(first step, end)` of each chunk, in the order in which a direction meets them."""
    chunks = [(t, min(t + every, seq_len)) for t in range(0, seq_len, every)]
    return chunks[::-1] if direction else chunks


def _turned(steps, direction):
    """Steps in the order in which a direction meets them, and back."""
    return steps.flip(0) if direction else steps


def _part(states, direction):
    return None if states is None else states[direction : direction + 1]


class _Checkpointed(Function):
    @staticmethod
    def forward(ctx, input, h0, c0, cell, every, has_biases, bidirectional, *params):
        seq_len, batch, _ = input.shape
        directions = 2 if bidirectional else 1
        each, size = len(params) // directions, params[1].shape[1]
        output = input.new_empty((seq_len, batch, directions * size))
        starts, finals = [], []  # starts: of every chunk but a direction's first
        for d in range(directions):
            h, c = _part(h0, d), _part(c0, d)
            for index, (begin, end) in enumerate(_chunks(seq_len, every, d)):
                if index:
                    starts += [h] if c is None else [h, c]
                chunk, h, c, *_ = _run(
                    cell, _turned(input[begin:end], d), h, c, params[d * each : (d + 1) * each],
                    has_biases, False,
                )  # fmt: skip
                output[begin:end, :, d * size : (d + 1) * size] = _turned(chunk, d)
            finals.append([h] if c is None else [h, c])
        ctx.save_for_backward(input, h0, c0, *params, *starts)
        ctx.set_materialize_grads(False)
        ctx.cell, ctx.every, ctx.has_biases, ctx.bidirectional = (
            cell, every, has_biases, bidirectional,
        )  # fmt: skip
        ctx.params = len(params)
        if directions == 1:
            return output, *finals[0]
        return output, *(torch.cat([a, b]) for a, b in zip(*finals))

    @staticmethod
    def backward(ctx, d_output, d_h_n, d_c_n=None):
        if d_output is None and d_h_n is None and d_c_n is None:
            return (None,) * len(ctx.needs_input_grad)
        needs = (*ctx.needs_input_grad[:3], *ctx.needs_input_grad[7:])
        tensors = ctx.saved_tensors
        arguments, starts = tensors[: 3 + ctx.params], tensors[3 + ctx.params :]
        if torch.is_grad_enabled():
            results = _differentiable(ctx, needs, arguments, d_output, d_h_n, d_c_n)
        else:
            with torch.autocast("cpu", enabled=False):
                results = _chunk_gradients(ctx, needs, arguments, starts, d_output, d_h_n, d_c_n)
        return *results[:3], None, None, None, None, *results[3:]


def _chunk_gradients(ctx, needs, arguments, starts, d_output, d_h_n, d_c_n):
    """`[d_input, d_h0, d_c0, *d_params]`, None where needs has False."""
    input, h0, c0, *params = arguments
    directions = 2 if ctx.bidirectional else 1
    each, size, lstm = len(params) // directions, params[1].shape[1], ctx.cell == "lstm"
    stems = _gradients.stems(ctx.has_biases, each)
    d_input = torch.empty_like(input) if needs[0] else None
    d_starts, d_params = [], []
    # Of every chunk, forward's order; the first of a direction starts from h0 and c0.
    for d in range(directions):
        chunks = _chunks(input.shape[0], ctx.every, d)
        kept = (len(chunks) - 1) * (2 if lstm else 1)
        before = starts[d * kept : (d + 1) * kept]
        d_h, d_c = _part(d_h_n, d), _part(d_c_n, d)
        mine = params[d * each : (d + 1) * each]
        wanted = needs[0], True, lstm, *needs[3 + d * each : 3 + (d + 1) * each]
        sums = [None] * each
        for index in reversed(range(len(chunks))):
            begin, end = chunks[index]
            if index == 0:
                h, c = _part(h0, d), _part(c0, d)
            elif lstm:
                h, c = before[2 * index - 2 : 2 * index]
            else:
                h, c = before[index - 1], None
            x = _turned(input[begin:end], d)
            d_out = None
            if d_output is not None:
                d_out = _turned(d_output[begin:end, :, d * size : (d + 1) * size], d)
            _, _, _, gates, hidden, cells = _run(ctx.cell, x, h, c, mine, ctx.has_biases, True)
            part = Layer(ctx.cell, 1, stems, x.shape)
            saved = Saved(part, (x, None, hidden, h, c, gates, cells, None, *part.weights(mine)))
            del gates, hidden, cells
            d_x, d_h, d_c, *found = _gradients.gradients(part, saved, wanted, d_out, d_h, d_c, None)
            del saved  # before the next chunk's
            if needs[0]:
                d_x = _turned(d_x, d)
                if d == 0:
                    d_input[begin:end] = d_x
                else:
                    d_input[begin:end] += d_x
            for i, gradient in enumerate(found):
                if gradient is not None:
                    # Many chunks: a sum in 16 bits would lose most of them.
                    wide = torch.promote_types(gradient.dtype, torch.float32)
                    sums[i] = gradient.to(wide) if sums[i] is None else sums[i].add_(gradient)
        d_starts.append((d_h, d_c))
        d_params += [None if g is None else g.to(input.dtype) for g in sums]
    d_h0 = torch.cat([d_h for d_h, _ in d_starts]) if needs[1] else None
    d_c0 = torch.cat([d_c for _, d_c in d_starts]) if needs[2] else None
    return [d_input, d_h0, d_c0, *d_params]


def _differentiable(ctx, needs, arguments, d_output, d_h_n, d_c_n):
    """The same as a Function with derivatives, which wants what the plain layer saves."""
    input, h0, c0, *params = arguments
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        _, _, _, *saved = _run(
            ctx.cell, input, h0, c0, params, ctx.has_biases, True, ctx.bidirectional
        )
    gates, hidden, cells = saved
    directions = 2 if ctx.bidirectional else 1
    stems = _gradients.stems(ctx.has_biases, len(params) // directions)
    layer = Layer(ctx.cell, directions, stems, input.shape, needs)
    found = iter(
        _derivatives.Gradients.apply(
            layer,
            d_output,
            d_h_n,
            d_c_n,
            None,
            input,
            None,
            hidden,
            h0,
            c0,
            gates,
            cells,
            None,
            *params,
        )  # fmt: skip
    )
    return [next(found) if needed else None for needed in needs]
