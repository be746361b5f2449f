"""The equations of `fastrnn.variants` in plain PyTorch: one layer's recurrence and its masks.

Written to be read and compared with; it is also what derivatives beyond the second and devices
without kernels run on. Nothing of fastrnn is used but the cells of `fastrnn.reference`. Papers
stand in `fastrnn.variants`.
"""

import torch
from torch import Tensor

from fastrnn import reference

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
    constants = torch.full_like(rows, step), torch.full_like(rows, stream)
    counter = [units.expand(batch, -1), rows, *constants]
    key = seed & _WORD, (seed >> 32) & _WORD
    words = torch.stack([w.expand(batch, -1) for w in philox(counter, key)])
    # word w of counter 16 * group + lane is unit 64 * group + 16 * w + lane's
    words = words.view(4, batch, groups, _LANES).permute(1, 2, 0, 3)
    return words.reshape(batch, groups * 4 * _LANES)[:, :hidden_size]


def masks(
    seed: Tensor | None,
    rates: tuple[float, float, float],
    stream: int,
    step: int,
    batch: int,
    like: Tensor,
) -> tuple[Tensor | float, Tensor | float, Tensor | float]:
    """`(zoneout of c, zoneout of h, factor of the candidate)` at one step, each `[batch, H]`.

    Without a seed: the rates of zoneout and a factor of 1, what the masks are in expectation.
    16 bits decide, so that a rate is met to within 2^-17. like: a tensor of H columns.
    """
    if seed is None:
        return rates[0], rates[1], 1.0
    size = like.shape[-1]
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
    params: dict,
    mask: tuple,
    eps: float,
    h_scale: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """One step of one direction on rows: `(h', c', gates)`.

    x: the input's product, W_ih input, `[B, G*H]`. params: by the names below, absent where they
    count for nothing. ::

        u = W_hh (h_scale * h)
        norm "none":       x, v = x + b_ih, u + b_hh
        norm "recurrent":  x, v = gain_ih * normalise(x) + b_ih, gain_hh * normalise(u) + b_hh
        norm "joint":      x, v = 0, gain_hh * normalise(x + u) + b_hh
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
    v = (h if h_scale is None else h * h_scale) @ params["w_hh"].t()
    if norm == "joint":
        v, x = v + x, torch.zeros_like(x)
    elif norm == "recurrent":
        x = _normalise(x, eps) * params["gain_ih"]
    if norm != "none":
        v = _normalise(v, eps) * params["gain_hh"]
    x, v = x + params.get("b_ih", 0.0), v + params.get("b_hh", 0.0)
    has_c = reference.CELLS[cell].states > 1

    def normed(c):
        if "cell_gain" not in params:
            return c
        return _normalise(c, eps) * params["cell_gain"] + params.get("cell_bias", 0.0)

    def dropped(candidate):
        return factor * candidate

    states, own = (h, c)[: 1 + has_c], params.get("w_ch")
    (new, *fresh), gates = reference.CELLS[cell].step(x, v, states, dropped, normed, own)
    if has_c:
        c = zoneout_c * c + (1 - zoneout_c) * fresh[0]
    return zoneout_h * h + (1 - zoneout_h) * new, c, torch.cat(gates, 1)


def names(cell: str, norm: str, count: int) -> list[str]:
    """What so many params of one direction are, in order."""
    names = ["w_ih", "w_hh"]
    if norm == "joint":
        return [*names, "b_hh", "gain_hh", *["w_ch"] * (reference.CELLS[cell].vectors > 0)]
    of, of_norms = reference.CELLS[cell], []
    if norm == "recurrent":
        of_norms = ["gain_ih", "gain_hh", *["cell_gain"] * (of.states > 1)]
    own = ["w_ch"] * (of.vectors > 0)
    if count == len(names) + len(of_norms) + len(own):
        return [*names, *of_norms, *own]
    cell_bias = ["cell_bias"] * ("cell_gain" in of_norms)
    return [*names, "b_ih", "b_hh", *of_norms, *cell_bias, *own]


def layer(
    cell: str,
    input: Tensor,
    batch_sizes: Tensor | None,
    states: list[Tensor | None],
    params: list[Tensor],
    bidirectional: bool,
    inside: tuple,
    keep: bool = False,
) -> tuple[Tensor, ...]:
    """All steps and directions of one layer: `(output, h_n, c_n)`, c_n of an LSTM alone, and if
    keep every step's c `[D, N, H]`, or None, and gates `[D, N, G*H]`.

    cell: one of `fastrnn.reference.CELLS`. input `[T, B, I]`, or `[N, I]` with batch_sizes.
    states: initial h and, of an LSTM, c, `[D, B, H]`; None for zeros. params: of each direction
    what `names` says, w_ih `[G*H, I]`, w_hh `[G*H, H]`, of c `[H]`, all else `[G*H]`. inside:
    norm, eps, rates of zoneout of c, zoneout of h and recurrent dropout, `(stream, a, b)` where
    step t has the masks of step a + b*t, seed or None, and h_scale `[D, B, H]` or None.
    """
    norm, eps, rates, (stream, first, stride), seed, h_scales = inside
    has_c = reference.CELLS[cell].states > 1
    directions, size = 2 if bidirectional else 1, params[1].shape[1]
    if batch_sizes is None:
        batch, counts = input.shape[1], [input.shape[1]] * input.shape[0]
    else:
        counts = batch_sizes.tolist()
        batch = counts[0]
    each = len(params) // directions
    stems = names(cell, norm, each)
    outputs, h_n, c_n, cells, gates = [], [], [], [], []
    for d in range(directions):
        of = dict(zip(stems, params[d * each : (d + 1) * each], strict=True))
        products = input @ of["w_ih"].t()
        steps = products if batch_sizes is None else products.split(counts)
        h, c = [
            products.new_zeros(batch, size) if state is None else state[d]
            for state in (*states, None)[:2]
        ]
        c = c if has_c else None
        output, each_c, each_gates = ([None] * len(counts) for _ in range(3))
        for t in reversed(range(len(counts))) if d else range(len(counts)):
            n = counts[t]
            h_scale = None if h_scales is None else h_scales[d, :n]
            mask = masks(seed, rates, stream + 2 * d, first + stride * t, n, h)
            before = None if c is None else c[:n]
            output[t], each_c[t], each_gates[t] = step(
                cell, norm, steps[t], h[:n], before, of, mask, eps, h_scale
            )
            h = torch.cat([output[t], h[n:]])
            c = None if c is None else torch.cat([each_c[t], c[n:]])
        outputs.append(torch.cat(output))
        if keep:
            cells.append(None if c is None else torch.cat(each_c))
            gates.append(torch.cat(each_gates))
        h_n.append(h)
        c_n.append(c)
    output = torch.cat(outputs, 1).view(*input.shape[:-1], directions * size)
    results = output, torch.stack(h_n), *([torch.stack(c_n)] if has_c else [])
    if not keep:
        return results
    return *results, torch.stack(cells) if has_c else None, torch.stack(gates)
