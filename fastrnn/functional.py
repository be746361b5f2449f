"""Recurrent layers as functions: a whole stack (layers, directions, dropout, packed data) from
tensors and weights, and single cells.

Letters in shapes: T seq_len, B batch, I input_size, H hidden_size, P proj_size or else H, L
num_layers, D directions, N = sum(batch_sizes), the rows of packed data.

Common to all functions
    dtypes: float64, float32, bfloat16, float16, the same for all tensors. The last two compute in
        float32. Under CPU autocast as torch.nn: `rnn`, `rnn_cell` and `lstm` return the autocast
        dtype; `gru`, both other cells, and `lstm` on packed data of different lengths return the
        wider of it and the dtype of hx (of input without hx). A projected `lstm` returns output
        and h_n in the autocast dtype, c_n in the wider one. float64 is left alone. While
        torch.compile or torch.export trace, packed data counts as of different lengths. Under CUDA
        autocast all return the autocast dtype (untested where there is no such device).
    devices: those that this build has kernels for. On any other device, and for other dtypes,
        the functions call torch's own implementation.
    layout: any strides. `output` is contiguous as `[T, B, D*P]`, also with batch_first.
    memory: returned tensors share no memory with each other, with the arguments, or with what
        backward keeps, and may be changed in place.
    gradients: with respect to input, hx and every parameter. Nothing is kept where no gradient is
        asked for.
    derivatives: forward mode; second derivatives, but for forward mode twice (`fastrnn.reference`
        has all of any order); torch.func, with vmap over inputs, states and weights; one level of
        is_grads_batched or vectorize of torch.autograd. Packed data has the same batch_sizes for
        all samples of a vmap.
    raises: RuntimeError where shapes, dtypes (between states and weights), devices or the number
        of parameters do not fit, or where seq_len is 0; ValueError where input has the wrong number
        of dimensions or another dtype than the weights; AttributeError, IndexError or TypeError
        where an argument is no tensor or hx no pair: the types that torch.nn raises.

Common to `lstm`, `gru` and `rnn`, on padded input (docs/beyond.md has examples)
    resets: bool `[T, B]`, `[B, T]` if batch_first. Where it is true at step t, the state before
        that step is zero, in every layer: h_(t-1) = 0, c_(t-1) = 0 (the recurrent policies of
        Kapturowski et al. 2019, "Recurrent Experience Replay in Distributed Reinforcement
        Learning", and of CleanRL). This is calling the function on each piece of a sequence between
        resets: hx belongs to the first piece, final states are the last one's. The second direction
        has the same pieces: there hx belongs to the last, and the first has the final state.
    reset_to: "zeros", or "hx": every piece of both directions starts from hx, whose gradient sums
        over them.
    lengths: int64 `[B]` from 0 to T, on any device: what pack_padded_sequence of torch.nn does.
        Outputs behind a length are zero, final states are those at it (the initial ones at
        0), the second direction starts there. What is behind a length is not read. On devices
        other than the CPU nothing waits for the device, and lengths count as at most T.
    return_states: a third result, every step's `States`.
    raises: ValueError where reset_to is neither, or input is packed; TypeError where resets or
        lengths are no tensors; RuntimeError where their shape, dtype or values do not fit, or where
        return_states is asked of a device or dtype without kernels.
    derivatives: all of them, of h and c in States too. resets and lengths are the same for all
        samples of a vmap. Dropout draws the same number of values, for other elements.

`params` has, for each layer and each direction of it, `w_ih [G*H, I]` (`[G*H, D*P]` after the first
layer), `w_hh [G*H, P]`, `b_ih [G*H]` and `b_hh [G*H]` if has_biases, `w_hr [P, H]` if projected:
the order of `torch.nn.LSTM(...).parameters()`. G is 4 for LSTM (rows i, f, g, o), 3 for GRU
(r, z, n), 1 for RNN. Direction 1 is the reverse one.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import _VF, Tensor

from fastrnn import _autograd, _checkpoint, _checks, _ops, _options, _overlap
from fastrnn._cells import CELLS
from fastrnn._options import States

__all__ = ["States", "gru", "gru_cell", "lstm", "lstm_cell", "rnn", "rnn_cell"]


class _Cell(NamedTuple):
    """A cell and what runs it. torch's own functions are kept: torch.nn may be patched with us."""

    name: str  # of the function
    kind: str  # of the cell
    products: int
    layer: object
    torch_stack: object
    torch_cell: object


def _cell(kind):
    return _Cell(
        CELLS[kind].function,
        kind,
        CELLS[kind].products,
        partial(_autograd.layer, kind),
        getattr(_VF, kind),
        getattr(_VF, kind + "_cell"),
    )


_LSTM = _cell("lstm")
_GRU = _cell("gru")
_RNN = {nonlinearity: _cell(f"rnn_{nonlinearity}") for nonlinearity in ("tanh", "relu")}


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    params: list[Tensor],
    *,
    num_layers: int = 1,
    has_biases: bool = True,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    checkpoint_every: int | None = None,
    resets: Tensor | None = None,
    reset_to: str = "zeros",
    lengths: Tensor | None = None,
    return_states: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor]] | tuple[Tensor, tuple[Tensor, Tensor], States]:
    """A stack of long short-term memory layers.

    ::

        i, f, g, o = W_ih x_t + b_ih + W_hh h_(t-1) + b_hh
        c_t = sigmoid(f) * c_(t-1) + sigmoid(i) * tanh(g)
        h_t = sigmoid(o) * tanh(c_t)                        (times W_hr, if projected)

    Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000; the projection is that
    of Sak et al. 2014 (arXiv:1402.1128).

    Args:
        input: `[T, B, I]`, `[B, T, I]` if batch_first, or packed rows `[N, I]`.
        hx: `(h_0 [L*D, B, P], c_0 [L*D, B, H])`, or None for zeros.
        params: the weights, in the order that the module's documentation gives.
        num_layers, has_biases, bidirectional, batch_first: as of torch.nn.LSTM.
        dropout: probability of a zero in the output of each layer but the last, if training. It
            draws the random numbers that torch.nn draws.
        batch_sizes: int64 `[T]` on the CPU, never increasing, as of a PackedSequence: input is
            packed, sequences sorted by length, B = batch_sizes[0]. batch_first is then ignored.
        checkpoint_every: where gradients are recorded, keep the states at every k-th step alone
            and recompute the rest in backward, a chunk of k steps at a time: memory of k steps
            instead of all, for the time of one more forward pass. Packed data, resets, lengths,
            return_states, forward mode and torch.func keep everything, as do a second derivative
            and is_grads_batched while they are computed. None: keep everything.
        resets: bool `[T, B]`, `[B, T]` if batch_first; reset_to: "zeros" or "hx". The docstring of
            the module, `fastrnn.functional`, says what they do.
        lengths: int64 `[B]`: likewise.
        return_states: whether a third result is every step's `States`.

    Returns:
        `(output, (h_n, c_n))`: output like input with `D*P` features, states like hx.
    """
    options = _options.of_call("lstm", batch_sizes, resets, reset_to, lengths, return_states)
    if hx is None:
        states = (None, None)
    elif type(hx) is tuple and len(hx) == 2 and hx[0] is not None and hx[1] is not None:
        states = hx
    else:
        states = _checks.lstm_states(hx, 3, batch_sizes is not None)
    output, states, each = _stack(
        _LSTM, input, states, params, num_layers, has_biases, bidirectional, dropout, training,
        batch_first, batch_sizes, checkpoint_every, options,
    )  # fmt: skip
    return (output, states) if each is None else (output, states, each)


def gru(
    input: Tensor,
    hx: Tensor | None,
    params: list[Tensor],
    *,
    num_layers: int = 1,
    has_biases: bool = True,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    checkpoint_every: int | None = None,
    resets: Tensor | None = None,
    reset_to: str = "zeros",
    lengths: Tensor | None = None,
    return_states: bool = False,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, States]:
    """A stack of gated recurrent unit layers.

    ::

        r = sigmoid(W_ir x_t + b_ir + W_hr h_(t-1) + b_hr)
        z = sigmoid(W_iz x_t + b_iz + W_hz h_(t-1) + b_hz)
        n = tanh(W_in x_t + b_in + r * (W_hn h_(t-1) + b_hn))
        h_t = (1 - z) * n + z * h_(t-1)

    Cho et al. 2014 (arXiv:1406.1078v1), with the reset gate after the product, as torch.nn.GRU.

    Args:
        input: `[T, B, I]`, `[B, T, I]` if batch_first, or packed rows `[N, I]`.
        hx: `h_0 [L*D, B, H]`, or None for zeros.
        params, num_layers, has_biases, bidirectional, dropout, training, batch_first, batch_sizes,
            checkpoint_every, resets, reset_to, lengths, return_states: as of `lstm`.

    Returns:
        `(output, h_n)`: output like input with `D*H` features, h_n like hx.
    """
    options = _options.of_call("gru", batch_sizes, resets, reset_to, lengths, return_states)
    output, (h_n,), each = _stack(
        _GRU, input, (hx,), params, num_layers, has_biases, bidirectional, dropout, training,
        batch_first, batch_sizes, checkpoint_every, options,
    )  # fmt: skip
    return (output, h_n) if each is None else (output, h_n, each)


def rnn(
    input: Tensor,
    hx: Tensor | None,
    params: list[Tensor],
    *,
    nonlinearity: str = "tanh",
    num_layers: int = 1,
    has_biases: bool = True,
    bidirectional: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    checkpoint_every: int | None = None,
    resets: Tensor | None = None,
    reset_to: str = "zeros",
    lengths: Tensor | None = None,
    return_states: bool = False,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, States]:
    """A stack of Elman layers: `h_t = tanh(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh)`, or relu of it.

    Elman 1990.

    Args:
        input: `[T, B, I]`, `[B, T, I]` if batch_first, or packed rows `[N, I]`.
        hx: `h_0 [L*D, B, H]`, or None for zeros.
        nonlinearity: "tanh" or "relu"; anything else is a ValueError.
        params, num_layers, has_biases, bidirectional, dropout, training, batch_first, batch_sizes,
            checkpoint_every, resets, reset_to, lengths, return_states: as of `lstm`.

    Returns:
        `(output, h_n)`: output like input with `D*H` features, h_n like hx.
    """
    cell = _RNN.get(nonlinearity)
    if cell is None:
        raise ValueError(f"rnn: expected nonlinearity 'tanh' or 'relu', got {nonlinearity!r}")
    options = _options.of_call("rnn", batch_sizes, resets, reset_to, lengths, return_states)
    output, (h_n,), each = _stack(
        cell, input, (hx,), params, num_layers, has_biases, bidirectional, dropout, training,
        batch_first, batch_sizes, checkpoint_every, options,
    )  # fmt: skip
    return (output, h_n) if each is None else (output, h_n, each)


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of `lstm`.

    Args:
        input: `[B, I]`, or `[I]` for one row without a batch.
        hx: `(h [B, H], c [B, H])` (`[H]` without a batch), or None for zeros.
        w_ih, w_hh, b_ih, b_hh: `[4*H, I]`, `[4*H, H]`, `[4*H]`, `[4*H]`; either bias may be None.

    Returns:
        `(h', c')`, like hx.
    """
    if hx is None:
        states = (None, None)
    elif type(hx) is tuple and len(hx) == 2 and hx[0] is not None and hx[1] is not None:
        states = hx
    else:
        states = _checks.lstm_states(hx, 2, isinstance(input, Tensor) and input.dim() == 1)
    return _step(_LSTM, input, states, w_ih, w_hh, b_ih, b_hh)


def gru_cell(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """One step of `gru`.

    Args:
        input: `[B, I]`, or `[I]` for one row without a batch.
        hx: `[B, H]` (`[H]` without a batch), or None for zeros.
        w_ih, w_hh, b_ih, b_hh: `[3*H, I]`, `[3*H, H]`, `[3*H]`, `[3*H]`; either bias may be None.

    Returns:
        `h'`, like hx.
    """
    return _step(_GRU, input, (hx,), w_ih, w_hh, b_ih, b_hh)[0]


def rnn_cell(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
) -> Tensor:
    """One step of `rnn`.

    Args:
        input: `[B, I]`, or `[I]` for one row without a batch.
        hx: `[B, H]` (`[H]` without a batch), or None for zeros.
        w_ih, w_hh, b_ih, b_hh: `[H, I]`, `[H, H]`, `[H]`, `[H]`; either bias may be None.
        nonlinearity: "tanh" or "relu"; anything else is a RuntimeError.

    Returns:
        `h'`, like hx.
    """
    cell = _RNN.get(nonlinearity)
    if cell is None:
        raise RuntimeError(
            f"rnn_cell: expected nonlinearity 'tanh' or 'relu', got {nonlinearity!r}"
        )
    return _step(cell, input, (hx,), w_ih, w_hh, b_ih, b_hh)[0]


# -- One stack for all cells --------------------------------------------------------------------


def _stack(
    cell, input, states, params, num_layers, has_biases, bidirectional, dropout, training,
    batch_first, batch_sizes, checkpoint_every, options,
):  # fmt: skip
    """`(output, final states, States or None)`. states is `(h0, c0)` or `(h0,)`, of None: zeros."""
    if not isinstance(params, list | tuple):
        raise TypeError(
            f"{cell.name}: expected params to be a list of Tensors, got {_checks.what(params)}"
        )
    try:
        dtype, narrow = input.dtype, None
        if _autocasts(input):
            projected = cell is _LSTM and len(params) == num_layers * (
                2 if bidirectional else 1
            ) * (5 if has_biases else 3)
            composed = projected or (cell is _LSTM and _is_ragged(batch_sizes))
            input, states, params, narrow = _autocast(
                cell, input, states, params, composed, projected
            )
            dtype = input.dtype
        supported = input.is_cpu and dtype in _ops.DTYPES or _is_supported(input)
        _checks.check_stack(cell.name, input, states, params, num_layers, has_biases, bidirectional,
                     batch_first, batch_sizes)  # fmt: skip
    except AttributeError:
        _checks.check_tensors(cell.name, input, states, params)
        if batch_sizes is not None and not isinstance(batch_sizes, Tensor):
            raise TypeError(
                f"{cell.name}: expected batch_sizes to be a Tensor, got {_checks.what(batch_sizes)}"
            ) from None
        raise
    if checkpoint_every is not None:
        _checks.check_checkpoint_every(cell.name, checkpoint_every)
    transposed = batch_first and batch_sizes is None
    if options is not None:
        return _stack_with_options(cell, input, states, params, num_layers, has_biases,
                                   bidirectional, dropout, training, transposed, options, supported,
                                   narrow)  # fmt: skip
    if not supported:
        return *_torch_stack(cell, input, states, params, has_biases, num_layers, dropout, training,
                             bidirectional, batch_first, batch_sizes), None  # fmt: skip
    if transposed:
        input = input.transpose(0, 1)
    layer, chunks = cell.layer, 1
    if checkpoint_every is not None:
        layer = partial(_checkpoint.layer, layer, cell.kind, checkpoint_every)
    elif input.is_cuda and batch_sizes is None:
        chunks = _overlap.chunk_count(
            cell.kind, input, states, params, num_layers, 2 if bidirectional else 1
        )
    try:
        if num_layers == 1:
            output, *states = layer(input, batch_sizes, states, params, bidirectional)
        elif chunks > 1:
            output, states = _overlap.layers(
                layer, input, states, params, num_layers, dropout if training else 0.0, chunks
            )
        else:
            output, states, _ = _layers(
                layer, input, batch_sizes, states, params, num_layers, bidirectional,
                dropout if training else 0.0,
            )  # fmt: skip
    except (AttributeError, RuntimeError, TypeError):
        _checks.check_tensors(cell.name, input, (), params)
        raise
    if transposed:
        output = output.transpose(0, 1)
    if narrow is not None:
        output, states[0] = output.to(narrow), states[0].to(narrow)
    return output, tuple(states), None


def _stack_with_options(
    cell, input, states, params, num_layers, has_biases, bidirectional, dropout, training,
    transposed, options, supported, narrow,
):  # fmt: skip
    """What `_stack` does where more is asked for than a plain layer."""
    if transposed:
        input = input.transpose(0, 1)
    options = _options.check(cell.name, options, input, transposed)
    if options.return_states and not supported:
        raise RuntimeError(
            f"{cell.name}: expected input of a device and dtype that fastrnn has kernels for with "
            f"return_states, got {input.dtype} on {input.device}"
        )

    def run(input, batch_sizes, states, layer, keep):
        if not supported:
            return *_torch_stack(cell, input, states, params, has_biases, num_layers, dropout,
                                 training, bidirectional, False, batch_sizes), []  # fmt: skip
        return _layers(layer, input, batch_sizes, states, params, num_layers, bidirectional,
                       dropout if training else 0.0, keep)  # fmt: skip

    try:
        output, states, each = _options.apply(
            options, run, cell.layer, input, states, 2 if bidirectional else 1, supported
        )
    except (AttributeError, RuntimeError, TypeError):
        _checks.check_tensors(cell.name, input, (), params)
        raise
    if narrow is not None:
        output, states[0] = output.to(narrow), states[0].to(narrow)
        each = each and each._replace(hidden=each.hidden.to(narrow))
    if transposed:
        output = output.transpose(0, 1)
        each = each and States(*(None if t is None else t.transpose(1, 2) for t in each))
    return output, tuple(states), each


def _layers(
    layer, input, batch_sizes, states, params, num_layers, bidirectional, dropout, keep=False
):
    """Layers with dropout between them: `(output, final states, kept)`.

    kept: if keep, `(output before dropout, cells, gates)` of each layer.
    """
    directions = 2 if bidirectional else 1
    per_layer = len(params) // num_layers
    initial = [
        [s] * num_layers if s is None or num_layers == 1 else s.split(directions) for s in states
    ]
    finals, kept = [], []
    for index in range(num_layers):
        input, *final = layer(
            input,
            batch_sizes,
            tuple(state[index] for state in initial),
            params[index * per_layer : (index + 1) * per_layer],
            bidirectional,
            keep,
        )
        if keep:
            *final, cells, gates = final
            kept.append((input, cells, gates))
        finals.append(final)
        if dropout and index < num_layers - 1:
            input = torch.dropout(input, dropout, True)
    if num_layers == 1:
        return input, finals[0], kept
    return input, [torch.cat(state) for state in zip(*finals, strict=True)], kept


def _step(cell, input, states, w_ih, w_hh, b_ih, b_hh):
    """One step of one layer: the states."""
    name = cell.name + "_cell"
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
        if _autocasts(input):
            weights = [w_ih, w_hh, b_ih, b_hh]
            input, states, weights, _ = _autocast(cell, input, states, weights, True, False)
            w_ih, w_hh, b_ih, b_hh = weights
        supported = input.is_cpu and input.dtype in _ops.DTYPES or _is_supported(input)
        _checks.check_step(name, cell.products, input, states, w_ih, w_hh)
        promotes = (
            len(states) == 2
            and states[1] is not None
            and states[0].dtype is input.dtype is not states[1].dtype
        )
        # A c of another dtype promotes the result, and sizes may be 0: seldom enough for torch's.
        supported = supported and not promotes and w_ih.numel() > 0 and w_hh.numel() > 0
    except AttributeError:
        _checks.check_tensors(name, input, states, (w_ih, w_hh))
        raise
    if not supported:
        result = _torch_step(cell, input, states, w_ih, w_hh, b_ih, b_hh)
    else:
        params = [w_ih, w_hh]
        if b_ih is not None or b_hh is not None:
            zeros = None if b_ih is not None and b_hh is not None else w_ih.new_zeros(len(w_ih))
            params += [zeros if b_ih is None else b_ih, zeros if b_hh is None else b_hh]
        states = [None if state is None else state.unsqueeze(0) for state in states]
        result = cell.layer(input.unsqueeze(0), None, states, params, False)
        result = tuple([state.squeeze(0) for state in result[1:]])
    return result if dim == 2 else tuple([state.squeeze(0) for state in result])


# -- Autocast, and what torch computes ------------------------------------------------------------


def _autocasts(input):
    """Whether autocast is on for a call that kernels of ours compute: torch's own see to it."""
    if input.is_cpu:
        return torch.is_autocast_enabled("cpu")
    return input.is_cuda and "cuda" in _ops.DEVICE_TYPES and torch.is_autocast_enabled("cuda")


def _is_ragged(batch_sizes):
    """Whether packed data has different lengths; while a graph is traced, whether it may have."""
    if batch_sizes is None or not _checks.has_value(batch_sizes):
        return batch_sizes is not None
    return bool(batch_sizes[0] != batch_sizes[-1])


def _autocast(cell, input, states, params, composed, projected):
    """Arguments in the dtype that torch.nn would return, and a narrower one for h or None.

    On CUDA all of torch.nn's give the autocast dtype. On the CPU its RNN and its fused LSTM do.
    Where it composes an LSTM or GRU from operations there, products are narrow, but a state
    promotes the result, unless h is projected.
    """
    tensors = [t for t in (input, *states, *params) if t is not None]
    if not all(t.is_floating_point() and t.dtype is not torch.float64 for t in tensors):
        return input, states, params, None
    narrow = torch.get_autocast_dtype(input.device.type)
    state = input if states[0] is None else states[0]
    wide = torch.promote_types(narrow, state.dtype)
    promotes = input.is_cpu and (cell is _GRU or (cell is _LSTM and composed))
    dtype = wide if promotes else narrow

    def cast(tensor):
        return None if tensor is None else tensor.to(dtype)

    return (
        cast(input),
        tuple(cast(state) for state in states),
        [cast(param) for param in params],
        narrow if promotes and projected else None,
    )


def _is_supported(tensor):
    return tensor.device.type in _ops.DEVICE_TYPES and tensor.dtype in _ops.DTYPES


def _torch_stack(
    cell, input, states, params, has_biases, num_layers, dropout, training, bidirectional,
    batch_first, batch_sizes,
):  # fmt: skip
    """torch's own implementation, on devices and dtypes that have no kernels here."""
    if states[0] is None:
        indices = num_layers * (2 if bidirectional else 1)
        if batch_sizes is not None:
            batch = int(batch_sizes[0])
        else:
            batch = input.shape[0] if batch_first else input.shape[1]
        sizes = (params[1].shape[1], params[0].shape[0] // cell.products)
        states = [input.new_zeros(indices, batch, size) for size in sizes[: len(states)]]
    hx = list(states) if cell is _LSTM else states[0]
    rest = (params, has_biases, num_layers, dropout, training, bidirectional)
    if batch_sizes is None:
        output, *states = cell.torch_stack(input, hx, *rest, batch_first)
    else:
        output, *states = cell.torch_stack(input, batch_sizes, hx, *rest)
    return output, tuple(states)


def _torch_step(cell, input, states, w_ih, w_hh, b_ih, b_hh):
    if states[0] is None:
        states = [input.new_zeros(input.shape[0], w_hh.shape[1])] * len(states)
    if cell is _LSTM:
        return cell.torch_cell(input, list(states), w_ih, w_hh, b_ih, b_hh)
    return (cell.torch_cell(input, states[0], w_ih, w_hh, b_ih, b_hh),)
