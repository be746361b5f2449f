"""One step of a quantized cell in plain PyTorch: the oracle of tests/numbers/test_quantization.py.

Weights and rows are rounded with the float32 operations that docs/quantization.md gives; sums of
products are those of integers (or of bfloat16 weights in float64), everything after is float64.
"""

import torch


def int8(rows):
    """`(integers, scales)` of each row, in float64."""
    largest = rows.abs().amax(1, keepdim=True)
    zeros = largest < 2.0**-100
    inverse = torch.where(zeros, 0.0, 127 / largest)
    scales = torch.where(zeros, 0.0, largest / 127)
    return (rows * inverse).round().double(), scales.double()


def product(x, weight, dtype):
    """x w^T in float64, of float32 rows and weights."""
    if dtype is torch.bfloat16:
        return x.double() @ weight.bfloat16().double().t()
    a, a_scales = int8(x)
    w, w_scales = int8(weight)
    return (a @ w.t()) * w_scales.t() * a_scales


def step(module, dtype, x, states):
    """The states after one step of a one-layer module (before it was quantized), in float64.

    x `[B, I]` and states `[B, ...]` are float32.
    """
    weights = {name.removesuffix("_l0"): p.detach() for name, p in module.named_parameters()}
    inputs = product(x, weights["weight_ih"], dtype)
    recurrent = product(states[0], weights["weight_hh"], dtype)
    if module.bias:
        inputs, recurrent = inputs + weights["bias_ih"], recurrent + weights["bias_hh"]
    h = states[0].double()
    if module.mode == "GRU":
        (ir, iz, i_n), (hr, hz, hn) = inputs.chunk(3, 1), recurrent.chunk(3, 1)
        z = torch.sigmoid(iz + hz)
        n = torch.tanh(i_n + torch.sigmoid(ir + hr) * hn)
        return ((1 - z) * n + z * h,)
    if module.mode != "LSTM":
        return ({"tanh": torch.tanh, "relu": torch.relu}[module.nonlinearity](inputs + recurrent),)
    i, f, g, o = (inputs + recurrent).chunk(4, 1)
    c = torch.sigmoid(f) * states[1].double() + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    if module.proj_size:
        h = product(h.float(), weights["weight_hr"], dtype)
    return h, c
