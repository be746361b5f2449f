"""The equations in plain PyTorch: loops over steps, any dtype, differentiable to any order.

Written to be read and compared with, not to be fast. Arguments and results are those of
`fastrnn.functional` (which documents them), without dropout. Nothing of fastrnn is used.

Sources
* LSTM: Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997; with
  the forget gate of Gers, Schmidhuber and Cummins, "Learning to Forget", Neural Computation 12(10),
  2000. No peepholes.
* LSTM with coupled input and forget gate (`fastrnn.variants.CoupledLSTM`): Greff et al., "LSTM: A
  Search Space Odyssey", arXiv:1503.04069, 2017, variant CIFG, without peepholes.
* LSTM with peepholes (`fastrnn.variants.PeepholeLSTM`): Gers and Schmidhuber, "Recurrent Nets that
  Time and Count", IJCNN 2000.
* LSTM with projection: Sak, Senior and Beaufays, "Long Short-Term Memory Based Recurrent Neural
  Network Architectures for Large Vocabulary Speech Recognition", arXiv:1402.1128, 2014.
* GRU: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical
  Machine Translation", arXiv:1406.1078, in version 1's form, with the reset gate after the product
  (so that `W_hn h + b_hn` is one product), as cuDNN and torch.nn compute it.
* RNN: Elman, "Finding Structure in Time", Cognitive Science 14(2), 1990.
* Bidirectional: Schuster and Paliwal, "Bidirectional Recurrent Neural Networks", IEEE Transactions
  on Signal Processing 45(11), 1997.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# -- Cells: one step, from products on ------------------------------------------------------------


class Cell(NamedTuple):
    """A cell. `step(x, u, states, dropped, normed, own)` is `(states', gates)` for rows.

    x, u: the input's product and h's, each with its bias, `[B, G*H]`. states: h, and c where there
    is one. dropped, normed: what becomes of the candidate, and of c before h is made of it, for
    those who put something there. own: the cell's own vectors, one after the other, if it has any.
    """

    products: int  # G, blocks of H rows in w_ih and w_hh
    states: int
    step: Callable
    keeping: int | None  # the block of the gate that keeps the state where it is large
    vectors: int = 0  # in own, of H values each


def _same(x):
    return x


def _lstm(x, u, states, dropped=_same, normed=_same, own=None):
    i, f, g, o = (x + u).chunk(4, 1)
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    c = f * states[1] + i * dropped(g)
    return (o * torch.tanh(normed(c)), c), (i, f, g, o)


def _lstm_peephole(x, u, states, dropped=_same, normed=_same, own=None):
    (i, f, g, o), (p_i, p_f, p_o), c = (x + u).chunk(4, 1), own.chunk(3), states[1]
    i, f, g = torch.sigmoid(i + p_i * c), torch.sigmoid(f + p_f * c), torch.tanh(g)
    c = f * c + i * dropped(g)
    y = normed(c)
    o = torch.sigmoid(o + p_o * y)
    return (o * torch.tanh(y), c), (i, f, g, o)


def _lstm_coupled(x, u, states, dropped=_same, normed=_same, own=None):
    f, g, o = (x + u).chunk(3, 1)
    f, g, o = torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    c = f * states[1] + (1 - f) * dropped(g)
    return (o * torch.tanh(normed(c)), c), (f, g, o)


def _gru(x, u, states, dropped=_same, normed=_same, own=None):
    (h,) = states
    (xr, xz, xn), (ur, uz, un) = x.chunk(3, 1), u.chunk(3, 1)
    r, z = torch.sigmoid(xr + ur), torch.sigmoid(xz + uz)
    n = torch.tanh(xn + r * un)
    gates = r, z, n
    n = dropped(n)
    return (n + z * (h - n),), gates


def _elman(activation):
    def step(x, u, states, dropped=_same, normed=_same, own=None):
        h = activation(x + u)
        return (h,), (h,)

    return step


# Under the names that operators take.
CELLS = {
    "lstm": Cell(4, 2, _lstm, 1),
    "gru": Cell(3, 1, _gru, 1),
    "rnn_tanh": Cell(1, 1, _elman(torch.tanh), None),
    "rnn_relu": Cell(1, 1, _elman(torch.relu), None),
    "lstm_coupled": Cell(3, 2, _lstm_coupled, 0),
    "lstm_peephole": Cell(4, 2, _lstm_peephole, 1, 3),
}


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    w_hr: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One LSTM step on rows `[B, I]`: `(h', c')`.

    ::

        i, f, g, o = W_ih x + b_ih + W_hh h + b_hh      (four blocks of rows, in this order)
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h' = sigmoid(o) * tanh(c')                      (W_hr times that, with a projection)
    """
    return _step("lstm", input, hx, w_ih, w_hh, b_ih, b_hh, w_hr)[0]


def gru_cell(
    input: Tensor,
    hx: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """One GRU step on rows `[B, I]`: `h'`.

    ::

        r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)      (blocks of rows in the order r, z, n)
        z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h
    """
    return _step("gru", input, hx if hx is None else (hx,), w_ih, w_hh, b_ih, b_hh)[0][0]


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
    """One Elman step on rows `[B, I]`: `h' = tanh(W_ih x + b_ih + W_hh h + b_hh)`, or relu."""
    states = hx if hx is None else (hx,)
    return _step(f"rnn_{nonlinearity}", input, states, w_ih, w_hh, b_ih, b_hh)[0][0]


def _step(cell, input, states, w_ih, w_hh, b_ih=None, b_hh=None, w_hr=None, own=None):
    """`(states', gates)` of rows."""
    cell = CELLS[cell]
    if states is None:
        sizes = (w_hh.shape[1], len(w_ih) // cell.products)[: cell.states]
        states = [input.new_zeros(len(input), size) for size in sizes]
    x, u = _affine(input, w_ih, b_ih), _affine(states[0], w_hh, b_hh)
    (h, *c), gates = cell.step(x, u, states, own=own)
    return (h if w_hr is None else h @ w_hr.t(), *c), torch.cat(gates, 1)


# -- Layers: loops over steps ---------------------------------------------------------------------


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    params: list[Tensor],
    *,
    num_layers: int = 1,
    has_biases: bool = True,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    resets: Tensor | None = None,
    reset_to: str = "zeros",
    lengths: Tensor | None = None,
    return_states: bool = False,
) -> tuple:
    """A stack of LSTM layers: `(output, (h_n, c_n))`; `(hidden, cells, gates)` if return_states."""
    layout = num_layers, bidirectional, batch_first, batch_sizes, resets, reset_to, lengths
    output, finals, states = stack("lstm", input, hx, params, has_biases, *layout)
    return (output, finals, states) if return_states else (output, finals)


def gru(
    input: Tensor,
    hx: Tensor | None,
    params: list[Tensor],
    *,
    num_layers: int = 1,
    has_biases: bool = True,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    resets: Tensor | None = None,
    reset_to: str = "zeros",
    lengths: Tensor | None = None,
    return_states: bool = False,
) -> tuple:
    """A stack of GRU layers: `(output, h_n)`, and `(hidden, None, gates)` if return_states."""
    layout = num_layers, bidirectional, batch_first, batch_sizes, resets, reset_to, lengths
    hx = None if hx is None else (hx,)
    output, (h_n,), states = stack("gru", input, hx, params, has_biases, *layout)
    return (output, h_n, states) if return_states else (output, h_n)


def rnn(
    input: Tensor,
    hx: Tensor | None,
    params: list[Tensor],
    *,
    nonlinearity: str = "tanh",
    num_layers: int = 1,
    has_biases: bool = True,
    bidirectional: bool = False,
    batch_first: bool = False,
    batch_sizes: Tensor | None = None,
    resets: Tensor | None = None,
    reset_to: str = "zeros",
    lengths: Tensor | None = None,
    return_states: bool = False,
) -> tuple:
    """A stack of Elman layers: `(output, h_n)`, and `(hidden, None, None)` if return_states."""
    layout = num_layers, bidirectional, batch_first, batch_sizes, resets, reset_to, lengths
    hx = None if hx is None else (hx,)
    kind = f"rnn_{nonlinearity}"
    output, (h_n,), states = stack(kind, input, hx, params, has_biases, *layout)
    return (output, h_n, (*states[:2], None)) if return_states else (output, h_n)


def _affine(x, weight, bias):
    product = x @ weight.t()
    return product if bias is None else product + bias


def stack(
    cell, input, hx, params, has_biases, num_layers, bidirectional, batch_first, batch_sizes,
    resets, reset_to, lengths,
):  # fmt: skip
    """Layers of any cell of CELLS over directions over steps: `(output, final states, (hidden,
    cells, gates))`, the last `[L*D, T, B, ...]`, of packed input `[L*D, N, ...]`; hx: a tuple.

    Rows are packed, `[N, ...]`, from here on.
    """
    of, directions = CELLS[cell], 2 if bidirectional else 1
    per_direction = len(params) // (num_layers * directions)
    sizes = (params[1].shape[1], len(params[0]) // of.products)[: of.states]

    def step(x, states, w_ih, w_hh, *rest):
        b_ih, b_hh = rest[:2] if has_biases else (None, None)
        last = rest[-1] if per_direction % 2 else None
        w_hr, own = (None, last) if of.vectors else (last, None)
        return _step(cell, x, states, w_ih, w_hh, b_ih, b_hh, w_hr, own)

    if batch_sizes is None:
        input = input.transpose(0, 1) if batch_first else input
        seq_len, batch = input.shape[:2]
        counts = [batch] * seq_len
        resets = resets.t() if batch_first and resets is not None else resets
    else:
        counts = batch_sizes.tolist()
    if lengths is not None:
        behind = torch.arange(seq_len, device=input.device)[:, None] >= lengths
        input = input.masked_fill(behind[..., None], 0)
    rows = input.flatten(0, 1) if batch_sizes is None else input
    if hx is None:
        hx = [rows.new_zeros(num_layers * directions, counts[0], size) for size in sizes]
    finals, kept = [], []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            index = layer * directions + direction
            weights = params[index * per_direction : (index + 1) * per_direction]
            states = [state[index] for state in hx]
            begins, active = _begins(resets, lengths, counts, direction == 1, rows.device)
            each, states = _sweep(
                step, rows, states, weights, counts, direction == 1, begins, active, reset_to
            )
            outputs.append(each[0])
            kept.append(each)
            finals.append(states)
        rows = torch.cat(outputs, 1)
    finals = tuple(torch.stack(states) for states in zip(*finals, strict=True))
    hidden, *cells, gates = zip(*kept, strict=True)
    padded = batch_sizes is None

    def stacked(parts):
        if parts[0] is None:
            return None
        if not padded:
            return torch.stack(parts)
        states = torch.stack([part.unflatten(0, (seq_len, batch)) for part in parts])
        return states.transpose(1, 2) if batch_first else states

    states = stacked(hidden), stacked(cells[0]) if cells else None, stacked(gates)
    if padded:
        rows = rows.unflatten(0, (seq_len, batch))
    return rows.transpose(0, 1) if padded and batch_first else rows, finals, states


def _begins(resets, lengths, counts, reverse, device):
    """`[T, B]` bool: where a direction's state is reset before its step, and where steps count.

    A reset at step t ends what is before it: in reverse, the state is reset between t and t-1.
    Resets behind a sequence's end are none.
    """
    seq_len, batch = len(counts), counts[0]
    active = torch.ones(seq_len, batch, dtype=torch.bool, device=device)
    if lengths is not None:
        active = torch.arange(seq_len, device=device)[:, None] < lengths
    begins = torch.zeros_like(active) if resets is None else resets & active
    if reverse:
        begins = torch.cat([begins[1:], torch.zeros_like(begins[:1])])
    return begins, active


def _sweep(step, rows, initial, weights, counts, reverse, begins, active, reset_to):
    """One direction of one layer: every step's h, c if any, and gates in the order of rows, and the
    final states.

    Step t has the first counts[t] sequences. Forward, a sequence that has ended keeps its state;
    in reverse, one that has not begun still has its initial state.
    """
    inputs = list(rows.split(counts))
    kept = [None] * len(counts)
    states = list(initial)
    start = [s if reset_to == "hx" else torch.zeros_like(s) for s in initial]
    for t in reversed(range(len(counts))) if reverse else range(len(counts)):
        n = counts[t]
        resets, runs = begins[t, :n, None], active[t, :n, None]
        before = [torch.where(resets, a[:n], b[:n]) for a, b in zip(start, states, strict=True)]
        new, gates = step(inputs[t], before, *weights)
        kept[t] = [None if e is None else torch.where(runs, e, 0) for e in (*new, gates)]
        new = [torch.where(runs, a, b[:n]) for a, b in zip(new, states, strict=True)]
        states = [torch.cat([a, b[n:]]) for a, b in zip(new, states, strict=True)]
    each = [None if e[0] is None else torch.cat(e) for e in zip(*kept, strict=True)]
    return each, states
