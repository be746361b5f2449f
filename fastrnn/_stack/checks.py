"""Checks of arguments: torch.nn's type of exception, what was expected and what came."""

import torch
from torch import Tensor


def check_checkpoint_every(name, every):
    """Raises unless it is None or a number of steps."""
    if every is not None and (not isinstance(every, int) or isinstance(every, bool) or every < 1):
        raise ValueError(
            f"{name}: expected checkpoint_every to be None or steps > 0, got {every!r}"
        )


def check_stack(cell, input, states, params, call):
    """Raises where the arguments of a stack do not fit each other; cell: a `plain.Cell`, call: a
    `stack.Call`.

    Parameters are checked by the operators, a layer at a time.
    """
    name, w_ih = cell.name, params[0]
    check_input(name, input, states, w_ih.dtype, w_ih.shape[1], call)
    if states[0] is not None:
        sizes = params[1].shape[1], w_ih.shape[0] // cell.products
        check_states(name, input, states, sizes, call)
    indices = call.num_layers * 2 if call.bidirectional else call.num_layers
    per_direction = 4 if call.has_biases else 2
    if len(params) != indices * per_direction and (
        not cell.has_c or len(params) != indices * (per_direction + 1)
    ):
        raise RuntimeError(
            f"{name}: expected num_layers*directions*{per_direction} = {indices * per_direction} "
            f"params, got {len(params)}"
        )


def check_input(name, input, states, dtype, input_size, call):
    """Raises where input does not fit a stack."""
    shape, batch_sizes = input.shape, call.batch_sizes
    if call.cu_seqlens is not None:
        if len(shape) != 2:
            raise ValueError(
                f"{name}: expected input of shape (sum of lengths, input_size) with cu_seqlens, "
                f"got {tuple(shape)}"
            )
        seq_len = 1  # or none, where sequences have no step
    elif batch_sizes is None:
        if len(shape) != 3:
            layout = "batch, seq_len" if call.batch_first else "seq_len, batch"
            raise ValueError(
                f"{name}: expected input of shape ({layout}, input_size), got {tuple(shape)}"
            )
        seq_len = shape[1 if call.batch_first else 0]
    else:
        if len(shape) != 2:
            raise RuntimeError(
                f"{name}: expected packed input of shape (sum(batch_sizes), input_size), "
                f"got {tuple(shape)}"
            )
        check_batch_sizes(name, batch_sizes)
        seq_len = batch_sizes.numel()
        if seq_len == 0:
            raise IndexError(f"{name}: expected batch_sizes with at least one step, got none")
    if input.dtype is not dtype:
        # torch.nn.LSTM makes this check on padded input only, and fails in a product later.
        error = RuntimeError if batch_sizes is not None and len(states) == 2 else ValueError
        how = f"convert it: input.to({dtype})"
        if input.is_floating_point():
            how = f"convert one of them: input.to({dtype}) or model.to({input.dtype})"
        raise error(
            f"{name}: expected input of the weights' dtype {dtype}, got {input.dtype}; {how}"
        )
    if shape[-1] != input_size:
        raise RuntimeError(
            f"{name}: expected input of size(-1) = input_size = {input_size}, "
            f"got shape {tuple(shape)}"
        )
    if seq_len == 0:
        raise RuntimeError(f"{name}: expected seq_len > 0, got input of shape {tuple(shape)}")


def check_batch_sizes(name, batch_sizes):
    """Raises where batch_sizes cannot be those of packed data; their values the operators check."""
    if (
        batch_sizes.dim() != 1
        or batch_sizes.dtype is not torch.int64
        or batch_sizes.device.type != "cpu"
    ):
        raise RuntimeError(
            f"{name}: expected batch_sizes as a non-empty 1-D int64 tensor on cpu, got shape "
            f"{tuple(batch_sizes.shape)} of {batch_sizes.dtype} on {batch_sizes.device}"
        )


def check_weights(name, params):
    """Raises where w_ih or w_hh, the first of params, is no matrix."""
    if len(params) < 2:
        raise RuntimeError(
            f"{name}: expected params with w_ih and w_hh at least, got {len(params)}"
        )
    for index, stem in enumerate(("w_ih", "w_hh")):
        if params[index].dim() != 2:
            raise RuntimeError(
                f"{name}: expected params[{index}], {stem}, of 2 dimensions, "
                f"got shape {tuple(params[index].shape)}"
            )


def check_states(name, input, states, sizes, call):
    """Raises where initial states do not fit a stack; sizes: of h and of c."""
    if call.cu_seqlens is not None:
        batch = call.cu_seqlens.shape[0] - 1
    elif call.batch_sizes is None:
        batch = input.shape[0 if call.batch_first else 1]
    else:
        batch = _leading_batch(states, call.batch_sizes)
    indices = call.num_layers * 2 if call.bidirectional else call.num_layers
    for argument, state, size in zip(("h_0", "c_0"), states, sizes):
        if state.shape != (indices, batch, size):
            # torch.nn.LSTM lets a state of too few dimensions run into an index.
            packed = call.batch_sizes is not None
            if packed and has_value(call.batch_sizes) and (call.batch_sizes.diff() > 0).any():
                raise RuntimeError(
                    f"{name}: expected batch_sizes positive and non-increasing, "
                    f"got {call.batch_sizes.tolist()}"
                )
            by_index = len(states) == 2 and packed and state.dim() < 3
            raise (IndexError if by_index else RuntimeError)(
                f"{name}: expected {argument} of shape (num_layers*directions, batch, hidden_size) "
                f"= {(indices, batch, size)}, got {tuple(state.shape)}"
            )


def _leading_batch(states, batch_sizes):
    """batch_sizes[0]. Where it has no value yet, the rows of h_0: then the operator compares."""
    if has_value(batch_sizes):
        return int(batch_sizes[0])
    return None if states[0] is None else states[0].shape[1]


def has_value(tensor):
    """False while torch.compile or torch.export trace, and of fake tensors."""
    return type(tensor) is Tensor and not torch.compiler.is_compiling()


def check_step(name, gates, input, states, w_ih, w_hh, batched=True):
    """Raises where the arguments of a cell do not fit each other. Not batched: the first dimension
    of input and states is none of the caller's."""
    batch, input_size = input.shape
    rows, hidden_size = w_ih.shape[0], w_hh.shape[1]
    if input_size != w_ih.shape[1]:
        expected = batch, w_ih.shape[1]
        raise RuntimeError(_sizes(name, "input", "input_size", expected, input.shape, batched))
    if input.dtype is not w_ih.dtype:
        raise RuntimeError(
            f"{name}: expected input of the weights' dtype {w_ih.dtype}, got {input.dtype}"
        )
    if rows != gates * hidden_size:
        raise RuntimeError(
            f"{name}: expected w_ih of shape ({gates}*hidden_size, input_size) = "
            f"({gates * hidden_size}, {input_size}), got {tuple(w_ih.shape)}"
        )
    for state in states:
        if state is not None and state.shape != (batch, hidden_size):
            # torch.nn looks at the batch first and then at a dimension that may not be there.
            raise (IndexError if state.shape == (batch,) else RuntimeError)(
                _sizes(name, "hx", "hidden_size", (batch, hidden_size), state.shape, batched)
            )


def _sizes(name, argument, what, expected, got, batched):
    """The message of check_step on a shape, as the caller has it."""
    layout = f"(batch, {what})" if batched else f"({what})"
    expected, got = (tuple(shape[0 if batched else 1 :]) for shape in (expected, got))
    return f"{name}: expected {argument} of shape {layout} = {expected}, got {got}"


def check_tensors(name, input, states, params):
    """Raises for an argument that is no dense tensor, with the type that torch.nn raises where it
    is none at all."""
    arguments = [("input", input), *(("hx", s) for s in states if s is not None)]
    for argument, value in arguments:
        if not isinstance(value, Tensor):
            raise AttributeError(f"{name}: expected {argument} to be a Tensor, got {what(value)}")
        if value.layout is not torch.strided or value.is_nested:
            kind = "nested" if value.is_nested else str(value.layout)
            raise RuntimeError(
                f"{name}: expected {argument} to be a dense tensor, got a {kind} one"
            )
    for index, value in enumerate(params):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected params[{index}] to be a Tensor, got {what(value)}")


def lstm_states(hx, dim, indexed):
    """The pair of states of hx, or the error that torch.nn raises for this hx.

    dim: 3 for a layer, 2 for a cell. indexed: a layer's packed or a cell's unbatched input, where
    torch.nn meets a wrong hx in another place. hx None: a pair of None, for zeros.
    """
    if hx is None:
        return None, None
    if type(hx) is tuple and len(hx) == 2 and hx[0] is not None and hx[1] is not None:
        return hx  # what is no tensor is found later: most calls are right
    if isinstance(hx, tuple | list) and len(hx) == 2 and all(isinstance(s, Tensor) for s in hx):
        return tuple(hx)
    name = "lstm" if dim == 3 else "lstm_cell"
    message = f"{name}: expected hx to be a tuple (h_0, c_0) of two tensors, got {what(hx)}"
    packed = dim == 3 and indexed
    if isinstance(hx, tuple | list):
        if not all(isinstance(state, Tensor) for state in hx):
            raise (TypeError if packed else AttributeError)(message)
        by_index = len(hx) < 2 and (dim == 3) != indexed
        raise (IndexError if by_index else RuntimeError)(message)
    if packed:
        raise TypeError(message)
    if not isinstance(hx, Tensor):
        # torch.nn looks at the first element of a layer's, at every one of a cell's.
        looked_into = hasattr(hx, "__getitem__" if dim == 3 else "__iter__")
        raise (AttributeError if looked_into else TypeError)(message)
    if dim == 2:
        elements_fit = 2 <= hx.dim() <= 3
        raise (TypeError if elements_fit else ValueError)(message)
    if hx.dim() == 0 or len(hx) < 2:
        raise IndexError(message)
    raise (TypeError if hx.dim() == dim + 1 else RuntimeError)(message)


def what(value):
    """The kind of a wrong argument, for a message."""
    if isinstance(value, Tensor):
        return f"a Tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__}({', '.join(type(v).__name__ for v in value)})"
    return type(value).__name__
