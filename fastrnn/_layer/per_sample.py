"""Gradients of the parameters for each sample of a batch, beside the backward pass of a layer.

For libraries that want them where torch.func is not at hand: they set up a call, `loss.backward()`
runs, and what each sample contributes is handed over, `[B, *parameter.shape]`. Sums over the rows
of a sample are the operator `sample_products`'s.
"""

from functools import partial

import torch
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fastrnn._layer import ops
from fastrnn._layer.backward import (
    PRODUCTS,
    Record,
    apart_columns,
    batch_of,
    gate_gradients,
    layer_of,
    products_of,
    unprojected,
)
from fastrnn._layer.cells import CELLS
from fastrnn._layer.transforms import store, stored


def layer(cell, sink, input, batch_sizes, states, params, bidirectional, keep=False):
    """One layer, as `fastrnn._stack.stack` describes a run.

    sink: `sink(number of params)` is called for each layer, in order; gives `(receive, marker)`.
    `receive(gradients)` is called in backward with one of each of params, in the order of the
    batch's rows (of packed data, which are sorted). marker: None, or a tensor of any shape whose
    gradient, zeros, comes right after that call.
    """
    if keep:
        raise ValueError(
            "fastrnn: expected return_states=False with gradients of samples, got True"
        )
    receive, marker = sink(len(params))
    what = cell, receive, bidirectional
    return _PerSample.apply(*what, marker, input, batch_sizes, *states, *params)


class _PerSample(Function):
    @staticmethod
    def forward(ctx, cell, receive, bidirectional, marker, input, batch_sizes, *tensors):
        count = CELLS[cell].states
        states, params = tensors[:count], tensors[count:]
        results = ops.layer_forward(cell, input, batch_sizes, states, params, bidirectional, True)
        ctx.layer = layer_of(cell, bidirectional, len(params), input.shape)
        ctx.receive, ctx.marker = receive, None if marker is None else marker.shape
        ctx.set_materialize_grads(False)
        saved, weights = results[1 + count :], ctx.layer.weights(params)
        store(ctx, input, batch_sizes, None, *states, *saved, *weights, forward=False)
        return tuple(results[: 1 + count])

    @staticmethod
    @once_differentiable
    def backward(ctx, *d_results):
        layer = ctx.layer
        record = Record(layer, stored(ctx))
        wanted = ctx.needs_input_grad[4], *ctx.needs_input_grad[6:]
        like = record.hidden
        d_marker = None if ctx.marker is None else like.new_zeros(()).expand(ctx.marker)
        states = wanted[1 : 1 + layer.states]
        if all(d is None for d in d_results):
            return None, None, None, d_marker, *[None] * (len(wanted) + 1)
        batch = batch_of(layer, record, *d_results[1:])
        found = gate_gradients(
            layer,
            ops.gate_gradients(
                layer.cell, d_results, record.batch_sizes, batch, record.states, record.saved,
                record.weights, False,
            ),
        )  # fmt: skip
        of_params = wanted[1 + layer.states :]
        each = _samples(layer, record, found, batch, of_params)
        ctx.receive(each)
        none = [False] * (len(wanted) - 1)
        d_input, _ = products_of(layer, record, (wanted[0], *none), found, batch)
        d_states = [d if w else None for d, w in zip(found.states, states, strict=True)]
        d_params = [None if g is None else g.sum(0) for g in each]
        return None, None, None, d_marker, d_input, None, *d_states, *d_params


def _samples(layer, record, found, batch, wanted):
    """Gradients of the params `[B, ...]`, None of those that nobody wants."""
    directions, each = layer.directions, len(layer.stems)
    gates, hidden, of_h = found.gates, record.hidden, found.hidden
    input = record.input.reshape(-1, record.input.shape[-1])
    behind = [unprojected(record, d) for d in range(directions)] if layer.projected else []
    if record.batch_sizes is not None:  # all samples have as many steps: zeros behind the last
        place = _padded_rows(record.batch_sizes).to(gates.device)
        rows = record.batch_sizes.shape[0] * batch

        def padded(tensor):
            to = tensor.new_zeros(*tensor.shape[:-2], rows, tensor.shape[-1])
            return to.index_copy_(-2, place, tensor)

        hidden = padded(hidden)
        if directions == 2 and record.states[0] is not None:
            # In reverse a sequence begins at its last step, from the initial state.
            initial = record.states[0][1].repeat(record.batch_sizes.shape[0], 1)
            hidden[1] = initial.index_copy(0, place, record.hidden[1])
        gates, input = padded(gates), padded(input)
        of_h, behind = None if of_h is None else padded(of_h), list(map(padded, behind))
    flags = [False] * (4 * directions)
    for i, needed in enumerate(wanted):
        if needed and layer.stems[i % each] in PRODUCTS:
            flags[i // each * 4 + PRODUCTS.index(layer.stems[i % each])] = True
    apart = apart_columns(layer, gates)
    sums = ops.sample_products(gates, apart, batch, None, 1, input, hidden, record.states[0], flags)
    results = []
    for i, needed in enumerate(wanted):
        d, stem = i // each, layer.stems[i % each]
        if not needed:
            results.append(None)
        elif stem == "w_hr":
            outer = [True, False, False, False]
            of_rows = of_h[d : d + 1], 0, batch, None, 1, behind[d], None, None, outer
            results.append(ops.sample_products(*of_rows)[0])
        else:
            results.append(sums[4 * d + PRODUCTS.index(stem)])
    return results


def _padded_rows(batch_sizes):
    """Where each packed row is among `[T, B]`."""
    steps = torch.arange(batch_sizes.shape[0]).repeat_interleave(batch_sizes)
    begins = torch.cat([batch_sizes.new_zeros(1), batch_sizes.cumsum(0)[:-1]])
    within = torch.arange(steps.shape[0]) - begins.repeat_interleave(batch_sizes)
    return steps * batch_sizes[0] + within


# -- torch's ExpandedWeights ----------------------------------------------------------------------


def expanded(params):
    """`(the tensors, a sink)` of params among which are ExpandedWeights, None where there are none.

    torch.nn.utils._per_sample_grad.call_for_per_sample_grads makes them of a module's parameters;
    they know no operator of ours. The classes are looked for by name: seldom is torch's module
    imported.
    """
    if not any(type(p).__name__ == "ExpandedWeight" for p in params):
        return None
    return [getattr(p, "orig_weight", p) for p in params], _ExpandedSink(params)


class _ExpandedSink:
    """Sets `grad_sample` of the original weights, of which each layer takes the next."""

    def __init__(self, params):
        self.left = list(params)

    def __call__(self, count):
        own, self.left = self.left[:count], self.left[count:]
        return partial(_set_grad_samples, own), None


def _set_grad_samples(params, gradients):
    from torch.nn.utils._expanded_weights import expanded_weights_utils

    for param, gradient in zip(params, gradients, strict=True):
        if type(param).__name__ == "ExpandedWeight" and gradient is not None:
            if gradient.shape[0] != param.batch_size:
                raise RuntimeError(
                    f"fastrnn: expected a batch of {param.batch_size}, as the ExpandedWeights' "
                    f"batch_size says, got {gradient.shape[0]}"
                )
            expanded_weights_utils.set_grad_sample_if_exists(param, lambda _, g=gradient: g)
