"""What autocast makes of arguments. Kernels take one dtype, and no operator is on autocast's lists.

Stacks and cells of `fastrnn.functional` return the dtypes that torch.nn's do; layers that torch.nn
has not compute in the dtype of their parameters.
"""

import torch

from fastrnn._layer import ops
from fastrnn._stack import checks


def applies(input):
    """Whether autocast is on for a call that kernels of ours compute: torch's own see to it."""
    if input.is_cpu:
        return torch.is_autocast_enabled("cpu")
    return input.is_cuda and "cuda" in ops.DEVICE_TYPES and torch.is_autocast_enabled("cuda")


def as_torch_nn(composes, input, states, params, projected=False):
    """Input, states and params in the dtype that torch.nn would return, and a narrower one for h
    or None.

    On CUDA all of torch.nn's give the autocast dtype. On the CPU its RNN and its fused LSTM do.
    Where it composes a layer from operations there (composes), products are narrow, but a state
    promotes the result, unless h is projected.
    """
    tensors = [t for t in (input, *states, *params) if t is not None]
    if not all(t.is_floating_point() and t.dtype is not torch.float64 for t in tensors):
        return input, states, params, None
    narrow = torch.get_autocast_dtype(input.device.type)
    state = input if states[0] is None else states[0]
    promotes = input.is_cpu and composes
    dtype = torch.promote_types(narrow, state.dtype) if promotes else narrow

    def cast(tensor):
        return None if tensor is None else tensor.to(dtype)

    return (
        cast(input),
        tuple(cast(state) for state in states),
        [cast(param) for param in params],
        narrow if promotes and projected else None,
    )


def with_float_states(input, states, params):
    """Input, states and params in float32 where states are and the others have 16 bits, and the
    dtype of those, for the output; else as they are, and None.

    A state of 16 bits is rounded at the end of every call: cut into calls a sequence has other
    numbers than as a whole. One in float32 is what the kernels keep between steps.
    """
    narrow = input.dtype
    if narrow.itemsize != 2 or any(s is None or s.dtype is not torch.float32 for s in states):
        return input, states, params, None
    return input.float(), states, [p if p is None else p.float() for p in params], narrow


def is_ragged(batch_sizes):
    """Whether packed data has different lengths; while a graph is traced, whether it may have."""
    if batch_sizes is None or not checks.has_value(batch_sizes):
        return batch_sizes is not None
    return bool(batch_sizes[0] != batch_sizes[-1])


def in_dtype(dtype, input, states):
    """Input and states in dtype where autocast is on and does not leave them alone."""
    if (
        not torch.is_autocast_enabled(device_of(input))
        or not input.is_floating_point()
        or input.dtype is torch.float64
    ):
        return input, states
    return input.to(dtype), tuple(s if s is None else s.to(dtype) for s in states)


def device_of(tensor):
    """The device whose autocast a tensor is under: meta has none of its own."""
    return "cpu" if tensor.is_meta else tensor.device.type
