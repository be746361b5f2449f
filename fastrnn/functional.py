"""Recurrent layers as functions: a whole stack (layers, directions, dropout, packed data) from
tensors and weights, and single cells.

Letters in shapes: T seq_len, B batch, I input_size, H hidden_size, P proj_size or else H, L
num_layers, D directions, N = sum(batch_sizes), the rows of packed data.

Common to all functions
    dtypes: float64, float32, bfloat16, float16, the same for all tensors. The last two compute in
        float32. Beside input and weights of 16 bits hx may be float32: then final states, and those
        of return_states, are float32 too, and a sequence cut into several calls has the numbers of
        the whole, which states rounded to 16 bits at every cut have not. Under CPU autocast as
        torch.nn: `rnn`, `rnn_cell` and `lstm` return the autocast dtype; `gru`, both other cells,
        and `lstm` on packed data of different lengths return the wider of it and the dtype of hx
        (of input without hx). A projected `lstm` returns output and h_n in the autocast dtype, c_n
        in the wider one. float64 is left alone. While torch.compile or torch.export trace, packed
        data counts as of different lengths. Under CUDA autocast all return the autocast dtype
        (untested where there is no such device).
    devices: those that this build has kernels for. On any other device, and for other dtypes,
        the functions call torch's own implementation.
    layout: any strides. `output` is contiguous as `[T, B, D*P]`, also with batch_first.
    memory: returned tensors share no memory with each other, with the arguments, or with what
        backward keeps, and may be changed in place.
    gradients: with respect to input, hx and every parameter. Nothing is kept where no gradient is
        asked for.
    derivatives: of any order, and torch.func, with vmap over inputs, states and weights; one level
        of is_grads_batched or vectorize of torch.autograd. Kernels have first and second ones and
        forward mode; what lies beyond is torch's of the equations (`fastrnn.reference`), slow, and
        needs an input or w_ih that requires gradients. Packed data has the same batch_sizes for all
        samples of a vmap.
    raises: RuntimeError where shapes, dtypes (between states and weights), devices or the number
        of parameters do not fit, or where seq_len is 0; ValueError where input has the wrong number
        of dimensions or another dtype than the weights; AttributeError, IndexError or TypeError
        where an argument is no tensor or hx no pair: the types that torch.nn raises.

Common to `lstm`, `gru` and `rnn`, on padded or ragged input (docs/beyond.md has examples)
    resets: bool `[T, B]`, `[B, T]` if batch_first, or numbers, of which all but 0 are true; a
        tensor, an array or nested lists. Where it is true at step t, the state before that step is
        zero, in every layer: h_(t-1) = 0, c_(t-1) = 0 (the recurrent policies of Kapturowski et al.
        2019, "Recurrent Experience Replay in Distributed Reinforcement Learning", and of CleanRL).
        This is calling the function on each piece of a sequence between resets: hx belongs to the
        first piece, final states are the last one's. The second direction has the same pieces:
        there hx belongs to the last, and the first has the final state.
    reset_to: "zeros", or "hx": every piece of both directions starts from hx, whose gradient sums
        over them.
    lengths: integers `[B]` from 0 to T, a tensor on any device, an array or a list: what
        pack_padded_sequence of torch.nn does. Outputs behind a length are zero, final states are
        those at it (the initial ones at 0), the second direction starts there. What is behind a
        length is not read. On devices other than the CPU nothing waits for the device, and lengths
        count as at most T.
    cu_seqlens: integers `[B + 1]`: input is ragged, `[N, I]`, one sequence behind the other, and
        the rows of sequence b are those from cu_seqlens[b] to cu_seqlens[b + 1], of which there
        may be none. Output is `[N, D*P]`, resets are `[N]`, batch_first says nothing. As with
        lengths, but on a device its values are waited for. The form of flash-attn and of torch's
        NestedTensor, which modules take as it is.
    return_states: a third result, every step's `States`.
    raises: ValueError where reset_to is neither, input is packed, or lengths and cu_seqlens are
        both given; TypeError where resets, lengths or cu_seqlens are no numbers; RuntimeError where
        their shape, dtype or values do not fit, or where return_states is asked of a device or
        dtype without kernels.
    derivatives: all of them, of h and c in States too. resets and lengths are the same for all
        samples of a vmap. Dropout draws the same number of values, for other elements.

`params` has, for each layer and each direction of it, `w_ih [G*H, I]` (`[G*H, D*P]` after the first
layer), `w_hh [G*H, P]`, `b_ih [G*H]` and `b_hh [G*H]` if has_biases, `w_hr [P, H]` if projected:
the order of `torch.nn.LSTM(...).parameters()`. G is 4 for LSTM (rows i, f, g, o), 3 for GRU
(r, z, n), 1 for RNN. Direction 1 is the reverse one.
"""

from torch import Tensor

from fastrnn._stack import beyond, checks, plain, stack
from fastrnn._stack.beyond import States
from fastrnn._stack.plain import PLAIN

__all__ = ["States", "gru", "gru_cell", "lstm", "lstm_cell", "rnn", "rnn_cell"]


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
    cu_seqlens: Tensor | None = None,
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
        resets: `[T, B]`, `[B, T]` if batch_first; reset_to: "zeros" or "hx". The docstring of
            the module, `fastrnn.functional`, says what they do.
        lengths: integers `[B]`; cu_seqlens: integers `[B + 1]`, of ragged input `[N, I]`: likewise.
        return_states: whether a third result is every step's `States`.

    Returns:
        `(output, (h_n, c_n))`: output like input with `D*P` features, states like hx.
    """
    asked = resets, reset_to, lengths, return_states, cu_seqlens
    options = beyond.of_call("lstm", batch_sizes, *asked)
    states = checks.lstm_states(hx, 3, batch_sizes is not None)
    before = stack.dropout(dropout, num_layers) if training else None
    made = num_layers, has_biases, bidirectional, before
    call = stack.Call(*made, batch_first, batch_sizes, checkpoint_every, options)
    return stack.results(*plain.run(PLAIN["lstm"], input, states, params, call))


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
    cu_seqlens: Tensor | None = None,
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
            checkpoint_every, resets, reset_to, lengths, return_states, cu_seqlens: as of `lstm`.

    Returns:
        `(output, h_n)`: output like input with `D*H` features, h_n like hx.
    """
    asked = resets, reset_to, lengths, return_states, cu_seqlens
    options = beyond.of_call("gru", batch_sizes, *asked)
    before = stack.dropout(dropout, num_layers) if training else None
    made = num_layers, has_biases, bidirectional, before
    call = stack.Call(*made, batch_first, batch_sizes, checkpoint_every, options)
    return stack.results(*plain.run(PLAIN["gru"], input, (hx,), params, call))


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
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, States]:
    """A stack of Elman layers: `h_t = tanh(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh)`, or relu of it.

    Elman 1990.

    Args:
        input: `[T, B, I]`, `[B, T, I]` if batch_first, or packed rows `[N, I]`.
        hx: `h_0 [L*D, B, H]`, or None for zeros.
        nonlinearity: "tanh" or "relu"; anything else is a ValueError.
        params, num_layers, has_biases, bidirectional, dropout, training, batch_first, batch_sizes,
            checkpoint_every, resets, reset_to, lengths, return_states, cu_seqlens: as of `lstm`.

    Returns:
        `(output, h_n)`: output like input with `D*H` features, h_n like hx.
    """
    cell = PLAIN.get(f"rnn_{nonlinearity}")
    if cell is None:
        raise ValueError(f"rnn: expected nonlinearity 'tanh' or 'relu', got {nonlinearity!r}")
    asked = resets, reset_to, lengths, return_states, cu_seqlens
    options = beyond.of_call("rnn", batch_sizes, *asked)
    before = stack.dropout(dropout, num_layers) if training else None
    made = num_layers, has_biases, bidirectional, before
    call = stack.Call(*made, batch_first, batch_sizes, checkpoint_every, options)
    return stack.results(*plain.run(cell, input, (hx,), params, call))


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
    states = checks.lstm_states(hx, 2, isinstance(input, Tensor) and input.dim() == 1)
    return plain.step(PLAIN["lstm"], input, states, w_ih, w_hh, b_ih, b_hh)


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
    return plain.step(PLAIN["gru"], input, (hx,), w_ih, w_hh, b_ih, b_hh)[0]


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
    cell = PLAIN.get(f"rnn_{nonlinearity}")
    if cell is None:
        raise RuntimeError(
            f"rnn_cell: expected nonlinearity 'tanh' or 'relu', got {nonlinearity!r}"
        )
    return plain.step(cell, input, (hx,), w_ih, w_hh, b_ih, b_hh)[0]
