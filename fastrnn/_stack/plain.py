"""Stacks and single steps of plain cells: kernels where there are some, else torch's own."""

from functools import partial
from typing import NamedTuple

import torch
from torch import _VF, Tensor

from fastrnn._layer import autograd, ops, per_sample
from fastrnn._layer.cells import CELLS
from fastrnn._stack import autocast, checkpoint, checks, overlap, stack


class Cell(NamedTuple):
    """A cell and what runs it. torch's own functions are kept: torch.nn may be patched with us."""

    name: str  # of the function
    kind: str  # of the cell
    products: int
    has_c: bool
    composes: bool  # whether torch.nn makes a layer of operations on the CPU, not of one
    layer: object  # the run of fastrnn._stack.stack
    torch_stack: object  # None of cells that torch has not
    torch_cell: object


def _cell(kind):
    of = CELLS[kind]
    return Cell(
        name=of.function,
        kind=kind,
        products=of.products,
        has_c=of.has_c,
        composes=of.function == "gru",  # and an LSTM at times: see _as_torch_nn
        layer=partial(autograd.layer, kind),
        torch_stack=getattr(_VF, kind, None),
        torch_cell=getattr(_VF, kind + "_cell", None),
    )


PLAIN = {kind: _cell(kind) for kind in CELLS}


def with_sink(cell, sink):
    """The Cell whose layers hand gradients of samples to a sink of `fastrnn._layer.per_sample`."""
    return cell._replace(layer=partial(per_sample.layer, cell.kind, sink))


# -- A stack ------------------------------------------------------------------------------------


def run(cell, input, states, params, call):
    """`(output, [final state, ...], States or None)`, as `fastrnn.functional` documents it.

    states: `(h0, c0)` or `(h0,)`, None each for zeros. call: a `stack.Call`.
    """
    name, batch_sizes = cell.name, call.batch_sizes
    keep = call.options is not None and call.options.return_states
    if not isinstance(params, list | tuple):
        raise TypeError(
            f"{name}: expected params to be a list of Tensors, got {checks.what(params)}"
        )
    try:
        narrow = of_output = None
        if autocast.applies(input):
            input, states, params, narrow = _as_torch_nn(cell, input, states, params, call)
        elif states[0] is not None and states[0].dtype is not input.dtype is params[0].dtype:
            arguments = input, states, params
            input, states, params, of_output = autocast.with_float_states(*arguments)
        supported = input.dtype in ops.DTYPES and (input.is_cpu or _has_kernels(input))
        checks.check_stack(cell, input, states, params, call)
    except IndexError:
        checks.check_weights(name, params)
        raise
    except (AttributeError, RuntimeError):
        checks.check_tensors(name, input, states, params)
        if batch_sizes is not None and not isinstance(batch_sizes, Tensor):
            raise TypeError(
                f"{name}: expected batch_sizes to be a Tensor, got {checks.what(batch_sizes)}"
            ) from None
        raise
    if keep and not supported:
        raise RuntimeError(
            f"{name}: expected input of a device and dtype that fastrnn has kernels for with "
            f"return_states, got {input.dtype} on {input.device}"
        )
    layer = cell.layer if supported else _without_kernels(cell)
    if call.checkpoint_every is not None:
        checks.check_checkpoint_every(name, call.checkpoint_every)
        if supported and not torch.onnx.is_in_onnx_export():
            layer = partial(checkpoint.layer, layer, cell.kind, call.checkpoint_every)
    if call.num_layers == 1:
        layers, by_layer = stack.layers, [params]
    else:
        layers, by_layer = _layers(cell, input, states, params, call)
    try:
        output, states, each = stack.apply(layers, by_layer, layer, input, states, call, supported)
    except (AttributeError, RuntimeError, TypeError):
        if of_samples := per_sample.expanded(params):
            params, sink = of_samples
            return run(with_sink(cell, sink), input, states, params, call)
        checks.check_tensors(name, input, (), params)
        if not torch.jit.is_tracing():
            raise
        # torch.jit knows no operator of ours. Seldom enough not to be asked for at every call.
        layer = partial(autograd.by_equations, cell.kind) if keep else _without_kernels(cell)
        output, states, each = stack.apply(
            stack.layers, by_layer, layer, input, states, call, False
        )
    if narrow is not None:
        output, states[0] = output.to(narrow), states[0].to(narrow)
        each = each and each._replace(hidden=each.hidden.to(narrow))
    if of_output is not None:
        output = output.to(of_output)
    return output, states, each


def _layers(cell, input, states, params, call):
    """The loop over several layers, one after the other or side by side on a device, and the params
    of each."""
    each = len(params) // call.num_layers
    by_layer = [params[i * each : (i + 1) * each] for i in range(call.num_layers)]
    if (
        not input.is_cuda
        or call.batch_sizes is not None
        or call.checkpoint_every is not None
        or call.options is not None
        # Chunks of time have masks of their own: right for dropout between layers alone.
        or not isinstance(call.before, stack.Dropout | None)
    ):
        return stack.layers, by_layer
    steps = input.transpose(0, 1) if call.batch_first else input
    chunks = overlap.chunk_count(cell.kind, steps, states, params, call)
    return partial(overlap.layers, chunks) if chunks > 1 else stack.layers, by_layer


def _as_torch_nn(cell, input, states, params, call):
    composes, projected = cell.composes, False
    if cell.has_c:
        directions = 2 if call.bidirectional else 1
        projected = len(params) == call.num_layers * directions * (5 if call.has_biases else 3)
        composes = (
            projected
            or autocast.is_ragged(call.batch_sizes)
            or input.numel() == 0
            or input.dtype is torch.float16
        )
    return autocast.as_torch_nn(composes, input, states, params, projected)


def _without_kernels(cell):
    """A run of torch's own implementation or, of what torch has not, of the equations."""
    if cell.torch_stack is None:
        return partial(autograd.by_equations, cell.kind)
    return partial(_torch_layer, cell)


def _has_kernels(input):
    return input.device.type in ops.DEVICE_TYPES


def _torch_layer(cell, input, batch_sizes, states, params, bidirectional, keep=False, resets=()):
    """torch's own implementation, on devices and for dtypes that have no kernels here: a run."""
    if states[0] is None:
        batch = input.shape[1] if batch_sizes is None else int(batch_sizes[0])
        sizes = (params[1].shape[1], params[0].shape[0] // cell.products)
        states = [
            input.new_zeros(2 if bidirectional else 1, batch, size) for size in sizes[: len(states)]
        ]
    hx = list(states) if cell.has_c else states[0]
    has_biases = len(params) // (2 if bidirectional else 1) > 3
    # Training asks cuDNN for what a backward pass needs; dropout is between layers, not here.
    trains = torch.is_grad_enabled() or torch.jit.is_tracing()  # who traces tries it without, too
    rest = params, has_biases, 1, 0.0, trains, bidirectional
    if batch_sizes is None:
        return cell.torch_stack(input, hx, *rest, False)
    return cell.torch_stack(input, batch_sizes, hx, *rest)


# -- A step -------------------------------------------------------------------------------------


def step(cell, input, states, w_ih, w_hh, b_ih, b_hh):
    """One step of one layer: the states, as `fastrnn.functional` documents it."""
    name, given = cell.name + "_cell", (input, states)
    try:
        dim = input.dim()
        if dim != 2 and dim != 1:
            raise ValueError(
                f"{name}: expected input of shape (batch, input_size) or (input_size), "
                f"got {tuple(input.shape)}"
            )
        for state in states:
            if state is not None and state.dim() != 2 and state.dim() != 1:
                raise ValueError(
                    f"{name}: expected hx of shape (batch, hidden_size) or (hidden_size), "
                    f"got {tuple(state.shape)}"
                )
        if dim == 1:
            input = input.unsqueeze(0)
            states = [None if state is None else state.unsqueeze(0) for state in states]
        if autocast.applies(input):
            weights = [w_ih, w_hh, b_ih, b_hh]
            composes = cell.composes or cell.has_c
            input, states, weights, _ = autocast.as_torch_nn(composes, input, states, weights)
            w_ih, w_hh, b_ih, b_hh = weights
        elif states[0] is not None and states[0].dtype is not input.dtype is w_ih.dtype:
            weights = [w_ih, w_hh, b_ih, b_hh]
            input, states, weights, _ = autocast.with_float_states(input, states, weights)
            w_ih, w_hh, b_ih, b_hh = weights
        supported = input.dtype in ops.DTYPES and (input.is_cpu or _has_kernels(input))
        checks.check_step(name, cell.products, input, states, w_ih, w_hh, dim == 2)
        promotes = (
            len(states) == 2
            and states[1] is not None
            and states[0].dtype is input.dtype is not states[1].dtype
        )
        # A c of another dtype promotes the result, and sizes may be 0: seldom enough for torch's.
        supported = supported and not promotes and w_ih.numel() > 0 and w_hh.numel() > 0
    except (AttributeError, RuntimeError):
        if of_samples := per_sample.expanded((w_ih, w_hh, b_ih, b_hh)):
            params, sink = of_samples
            return step(with_sink(cell, sink), given[0], given[1], *params)
        checks.check_tensors(name, input, states, (w_ih, w_hh))
        raise
    if not supported:
        result = _torch_step(cell, input, states, w_ih, w_hh, b_ih, b_hh)
    else:
        params = [w_ih, w_hh]
        if b_ih is not None or b_hh is not None:
            zeros = None if b_ih is not None and b_hh is not None else w_ih.new_zeros(len(w_ih))
            params += [zeros if b_ih is None else b_ih, zeros if b_hh is None else b_hh]
        rows = [None if state is None else state.unsqueeze(0) for state in states]
        try:
            result = cell.layer(input.unsqueeze(0), None, rows, params, False)
            result = tuple([state.squeeze(0) for state in result[1:]])
        except RuntimeError:
            checks.check_tensors(name, input, states, (w_ih, w_hh))
            if not torch.jit.is_tracing():
                raise
            result = _torch_step(cell, input, states, w_ih, w_hh, b_ih, b_hh)
    return result if dim == 2 else tuple([state.squeeze(0) for state in result])


def _torch_step(cell, input, states, w_ih, w_hh, b_ih, b_hh):
    if states[0] is None:
        states = [input.new_zeros(input.shape[0], w_hh.shape[1])] * len(states)
    if cell.has_c:
        return cell.torch_cell(input, list(states), w_ih, w_hh, b_ih, b_hh)
    return (cell.torch_cell(input, states[0], w_ih, w_hh, b_ih, b_hh),)
