"""Many layers: what is asked of a stack, and the one loop over its layers.

One layer is computed by a function of this form, a *run*, whatever its cell, weights and options
are::

    run(input, batch_sizes, states, params, bidirectional, keep=False, resets=())
        -> (output, *final states), and cells, gates if keep: None where the cell has none

with the shapes of layer_forward (csrc/ops.cpp), states a list with None for zeros, and params what
the run takes for one layer. `fastrnn._layer.autograd.layer` is that of a plain layer; checkpointing
and the masks of `fastrnn._stack.beyond` are runs around a run. `layers` below is the loop;
`fastrnn._stack.overlap` has another one.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fastrnn._stack import beyond
from fastrnn._stack.beyond import States


class Call(NamedTuple):
    """What is asked of a stack, besides input, states and params."""

    num_layers: int
    has_biases: bool
    bidirectional: bool
    before: Callable | None
    """`(index, input, batch_sizes)` -> what the layer of this index takes instead of input."""
    batch_first: bool
    batch_sizes: Tensor | None
    checkpoint_every: int | None
    options: beyond.Options | None
    """of `beyond.of_call`"""

    @property
    def cu_seqlens(self):
        """Of ragged input `[N, I]`, else None."""
        return None if self.options is None else self.options.cu_seqlens


class Dropout:
    """Call.before of dropout between layers."""

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, index, input, batch_sizes):
        return torch.dropout(input, self.rate, True) if index else input


def dropout(rate: float, num_layers: int) -> Dropout | None:
    """Call.before of so many layers in training. One layer has none: its rate is not looked at,
    whose value torch.compile may leave open."""
    return Dropout(rate) if num_layers > 1 and rate else None


def layers(params, call, run, input, batch_sizes, states, keep=False):
    """`(output, [final state, ...], kept)` of all layers.

    params: those of each layer. kept: `(output before dropout, cells, gates)` of each, if keep.
    """
    num_layers, _, bidirectional, before, *_ = call
    if num_layers == 1:
        if before is not None:
            input = before(0, input, batch_sizes)
        output, *finals = run(input, batch_sizes, states, params[0], bidirectional, keep)
        if not keep:
            return output, finals, ()
        *finals, cells, gates = finals
        return output, finals, [(output, cells, gates)]
    directions = 2 if bidirectional else 1
    initial = [[s] * num_layers if s is None else s.split(directions) for s in states]
    finals, kept = [], []
    for index in range(num_layers):
        if before is not None:
            input = before(index, input, batch_sizes)
        own = [state[index] for state in initial]
        input, *final = run(input, batch_sizes, own, params[index], bidirectional, keep)
        if keep:
            *final, cells, gates = final
            kept.append((input, cells, gates))
        finals.append(final)
    return input, [torch.cat(state) for state in zip(*finals, strict=True)], kept


def apply(layers, params, run, input, states, call, native):
    """`(output, [final state, ...], States or None)` of a stack on input as the caller has it.

    layers: `layers` above, or what does the same. native: whether run takes resets on devices other
    than the CPU.
    """
    batch_sizes, options = call.batch_sizes, call.options
    transposed = call.batch_first and batch_sizes is None and call.cu_seqlens is None
    if transposed:
        input = input.transpose(0, 1)
    if options is None:
        output, states, _ = layers(params, call, run, input, batch_sizes, states)
        return output.transpose(0, 1) if transposed else output, states, None
    options = beyond.check(options, input, transposed)
    directions = 2 if call.bidirectional else 1
    layers = partial(layers, params, call)
    if torch.onnx.is_in_onnx_export():
        output, states, each = beyond.apply_for_onnx(options, layers, run, input, states)
    else:
        output, states, each = beyond.apply(options, layers, run, input, states, directions, native)
    if transposed:
        output = output.transpose(0, 1)
        each = each and States(*(None if t is None else t.transpose(1, 2) for t in each))
    return output, states, each


def results(output, states, each):
    """What a caller gets: `(output, h_n)` or `(output, (h_n, c_n))`, and States if asked for."""
    hx = tuple(states) if len(states) > 1 else states[0]
    return (output, hx) if each is None else (output, hx, each)
