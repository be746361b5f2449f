"""The equations of `fastrnn.variants` in plain PyTorch: one layer's recurrence and its masks.

Written to be read and compared with; it is also what second derivatives, forward mode, torch.func
and devices without kernels run on. Nothing of fastrnn is used. Papers stand in `fastrnn.variants`.
"""

import torch
from torch import Tensor

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_WORD = 0xFFFFFFFF
_LANES = 16


def philox(counter: list[Tensor], key: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Philox 4x32-10: four words of 32 bits, in int64 tensors, from four of counter, two of key.

    Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
    """
    x0, x1, x2, x3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(_MULTIPLIERS[0], x0)
        high1, low1 = _multiply(_MULTIPLIERS[1], x2)
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return [x0, x1, x2, x3]


def _multiply(constant, x):
    """High and low word of the product of two words; no product here exceeds 63 bits."""
    upper, lower = constant * (x >> 16), constant * (x & 0xFFFF)
    middle = upper + (lower >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (lower & 0xFFFF)


def random_words(seed: Tensor, stream: int, step: int, batch: int, hidden_size: int) -> Tensor:
    """`[batch, hidden_size]` words of 32 bits: of one mask at one step."""
    groups = -(-hidden_size // (4 * _LANES))
    units = torch.arange(groups * _LANES, device=seed.device)
    rows = torch.arange(batch, device=seed.device)[:, None]
    counter = [units.expand(batch, -1), rows, torch.full_like(rows, step),
               torch.full_like(rows, stream)]  # fmt: skip
    key = seed & _WORD, (seed >> 32) & _WORD
    words = torch.stack([w.expand(batch, -1) for w in philox(counter, key)])
    # word w of counter 16 * group + lane is unit 64 * group + 16 * w + lane's
    words = words.view(4, batch, groups, _LANES).permute(1, 2, 0, 3)
    return words.reshape(batch, -1)[:, :hidden_size]


def masks(
    seed: Tensor | None,
    rates: tuple[float, float, float],
    layer: int,
    direction: int,
    step: int,
    batch: int,
    like: Tensor,
) -> tuple[Tensor | float, Tensor | float, Tensor | float]:
    """`(zoneout of c, zoneout of h, factor of the candidate)` at one step, each `[batch, H]`.

    Without a seed: the rates of zoneout and a factor of 1, what the masks are in expectation.
    16 bits decide, so that a rate is met to within 2^-17.
    """
    if seed is None:
        return rates[0], rates[1], 1.0
    stream, size = 4 * layer + 2 * direction, like.shape[-1]
    seed = seed.to(like.device)
    below = [int(rate * 65536 + 0.5) for rate in rates]
    zoneout_c = zoneout_h = 0.0
    factor = 1.0
    if rates[0] > 0 or rates[1] > 0:
        words = random_words(seed, stream, step, batch, size)
        zoneout_c = ((words & 0xFFFF) < below[0]).to(like.dtype)
        zoneout_h = ((words >> 16) < below[1]).to(like.dtype)
    if rates[2] > 0:
        words = random_words(seed, stream + 1, step, batch, size)
        factor = ((words >> 16) >= below[2]).to(like.dtype) / (1 - rates[2])
    return zoneout_c, zoneout_h, factor


def weight_factors(seed: Tensor, stream: int, rate: float, weights: Tensor) -> Tensor:
    """What elements of weights `[R, C]` are multiplied by: 0 with probability rate, 1 / (1 - rate).

    The counter's step is that of none, and one word serves two columns with 16 bits each.
    """
    rows, columns = weights.shape
    words = random_words(
        seed.to(weights.device), stream, _WORD, rows, 4 * _LANES * -(-columns // (8 * _LANES))
    )
    words = torch.cat([words & 0xFFFF, words >> 16], 1)[:, :columns]
    return (words >= int(rate * 65536 + 0.5)).to(weights.dtype) / (1 - rate)


def _normalise(x, eps):
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + eps)


def step(
    cell: str,
    norm: str,
    x: Tensor,
    h: Tensor,
    c: Tensor | None,
    weights: dict,
    mask: tuple,
    eps: float,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """One step of one direction on rows: `(h', c', gates)`.

    x: the input's share of the gates, `[B, G*H]`. weights: w_hh, and None or a tensor for each of
    bias, gain, cell_gain, cell_bias and h_scale. ::

        u = W_hh (h_scale * h)
        norm "none":       v = u + bias
        norm "recurrent":  v = gain * normalise(u) + bias, and x was normalised too
        norm "joint":      v = gain * normalise(x + u) + bias, and x = 0 from here on
        LSTM:  i, f, g, o = x + v
               fresh = sigmoid(f) * c + sigmoid(i) * dropout * tanh(g)
               new = sigmoid(o) * tanh(fresh), or of cell_gain * normalise(fresh) + cell_bias
               c' = zoneout_c * c + (1 - zoneout_c) * fresh
        GRU:   r, z = sigmoid(x_r + v_r), sigmoid(x_z + v_z)
               n = dropout * tanh(x_n + r * v_n)
               new = (1 - z) * n + z * h
        RNN:   new = tanh(x + v), or relu
        h' = zoneout_h * h + (1 - zoneout_h) * new

    gates: i, f, g, o of an LSTM, r, z, n of a GRU, new of an RNN; g and n before dropout.
    """
    zoneout_c, zoneout_h, factor = mask
    scaled = h if weights["h_scale"] is None else h * weights["h_scale"]
    v = scaled @ weights["w_hh"].t()
    if norm == "joint":
        v, x = v + x, torch.zeros_like(x)
    if norm != "none":
        v = _normalise(v, eps) * weights["gain"]
    if weights["bias"] is not None:
        v = v + weights["bias"]
    if cell == "lstm":
        i, f, g, o = (x + v).chunk(4, 1)
        i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
        fresh = f * c + i * (factor * g)
        y = fresh
        if weights["cell_gain"] is not None:
            y = _normalise(fresh, eps) * weights["cell_gain"] + weights["cell_bias"]
        new, gates = o * torch.tanh(y), (i, f, g, o)
        c = zoneout_c * c + (1 - zoneout_c) * fresh
    elif cell == "gru":
        (xr, xz, xn), (vr, vz, vn) = x.chunk(3, 1), v.chunk(3, 1)
        r, z = torch.sigmoid(xr + vr), torch.sigmoid(xz + vz)
        n = torch.tanh(xn + r * vn)
        gates = r, z, n
        n = factor * n
        new = n + z * (h - n)
    else:
        new = {"rnn_tanh": torch.tanh, "rnn_relu": torch.relu}[cell](x + v)
        gates = (new,)
    return zoneout_h * h + (1 - zoneout_h) * new, c, torch.cat(gates, 1)


def recurrence(
    cell: str,
    norm: str,
    input: Tensor,
    batch_sizes: Tensor | None,
    batch: int,
    h0: Tensor | None,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    gain_x: Tensor | None,
    bias_x: Tensor | None,
    bias: Tensor | None,
    gain: Tensor | None,
    cell_gain: Tensor | None,
    cell_bias: Tensor | None,
    h_scale: Tensor | None,
    seed: Tensor | None,
    layer: int,
    rates: tuple[float, float, float],
    eps: float,
    keep: bool = False,
) -> tuple[Tensor, ...]:
    """All steps and directions of one layer: `(output [N, D*H], h_n [D, B, H], c_n)`, and if keep
    every step's c `[D, N, H]`, or None, and gates `[D, N, G*H]`.

    input `[N, I]`, `w_ih [D, G*H, I]`, `w_hh [D, G*H, H]`, `gain_x`, `bias_x`, `bias`, `gain`
    `[D, G*H]`, `cell_gain`, `cell_bias` `[D, H]`, `h0`, `c0`, `h_scale` `[D, B, H]`; c_n has size 0
    unless the cell is "lstm". The input's share of the gates is ::

        x = W_ih input + bias_x, with norm "recurrent" gain_x * normalise(W_ih input) + bias_x
    """
    directions, rows, size = w_ih.shape[0], input.shape[0], w_hh.shape[2]
    gates_x = input @ w_ih.transpose(1, 2)
    if norm == "recurrent":
        gates_x = _normalise(gates_x, eps) * gain_x.unsqueeze(1)
    if bias_x is not None:
        gates_x = gates_x + bias_x.unsqueeze(1)
    counts = [batch] * (rows // batch if batch else 0)
    if batch_sizes is not None:
        counts = batch_sizes.tolist()
    outputs, h_n, c_n, cells, gates = [], [], [], [], []
    for d in range(directions):
        of = {"w_hh": w_hh, "bias": bias, "gain": gain, "cell_gain": cell_gain,
              "cell_bias": cell_bias}  # fmt: skip
        of = {name: None if value is None else value[d] for name, value in of.items()}
        h = gates_x.new_zeros(batch, size) if h0 is None else h0[d]
        c = None
        if cell == "lstm":
            c = gates_x.new_zeros(batch, size) if c0 is None else c0[d]
        inputs = gates_x[d].split(counts) if counts else ()
        output, each_c, each_gates = ([None] * len(counts) for _ in range(3))
        for t in reversed(range(len(counts))) if d else range(len(counts)):
            n = counts[t]
            of["h_scale"] = None if h_scale is None else h_scale[d, :n]
            mask = masks(seed, rates, layer, d, t, n, h)
            before = None if c is None else c[:n]
            output[t], each_c[t], each_gates[t] = step(
                cell, norm, inputs[t], h[:n], before, of, mask, eps
            )
            h = torch.cat([output[t], h[n:]])
            c = None if c is None else torch.cat([each_c[t], c[n:]])
        outputs.append(torch.cat(output) if output else gates_x.new_empty(0, size))
        if keep:
            cells.append(each_c if c is None else torch.cat(each_c))
            gates.append(torch.cat(each_gates))
        h_n.append(h)
        c_n.append(gates_x.new_empty(0) if c is None else c)
    c_n = torch.stack(c_n) if cell == "lstm" else c_n[0]
    results = torch.cat(outputs, 1), torch.stack(h_n), c_n
    if not keep:
        return results
    return *results, torch.stack(cells) if cell == "lstm" else None, torch.stack(gates)
