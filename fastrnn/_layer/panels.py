"""Packed int8 and bfloat16 weights: how they are made, and the quantized layer without kernels.

The order of panels is csrc/cpu/quantized_params.h's. `quantized_forward` here serves every device
but the CPU: the same integers and scales in torch's own operations, a loop over steps; sums of
products are taken in float64, in which they are exact.
"""

import torch

from fastrnn import reference
from fastrnn._layer.cells import CELLS

LANES = 16  # units in a vector of a panel
SINGLE = 4  # vectors of a panel where there is one gate
GROUP = {torch.int8: 4, torch.bfloat16: 2}  # terms that lie side by side
_library = torch.library.Library("fastrnn", "IMPL")  # what it registers lives as long as it
# Smaller numbers count as zero: their reciprocals would be too large.
_SMALLEST = 2.0**-100


def arrange(rows, gates):
    """Rows `[gates*H, ...]` in the order of panels: `[blocks, V, 16, ...]`, zeros beyond H."""
    rows = rows.reshape(gates, -1, *rows.shape[1:])
    vectors = SINGLE if gates == 1 else 1
    size = vectors * LANES
    missing = -rows.shape[1] % size
    rows = torch.cat([rows, rows.new_zeros(gates, missing, *rows.shape[2:])], 1)
    blocks = rows.shape[1] // size
    rows = rows.reshape(gates, blocks, vectors, LANES, *rows.shape[2:])
    return rows.transpose(0, 1).flatten(1, 2).contiguous()  # one of gates and vectors is 1


def _rearrange(blocks, gates, size):
    """The inverse: rows `[gates*H, ...]`; size is H."""
    rows = blocks.unflatten(1, (gates, -1)).transpose(0, 1)
    return rows.flatten(1, 3)[:, :size].flatten(0, 1)


def _panels(rows, gates, group):
    """A weight `[gates*H, K]` as `[blocks, groups, V, 16, group]`, zeros beyond K."""
    missing = -rows.shape[1] % group
    rows = torch.cat([rows, rows.new_zeros(len(rows), missing)], 1)
    blocks = arrange(rows, gates).unflatten(3, (-1, group))
    return blocks.permute(0, 3, 1, 2, 4).contiguous()


def _integers(rows):
    """`(integers as float32, scales [R])` of float32 rows `[R, K]`."""
    largest = rows.abs().amax(1)
    zeros = largest < _SMALLEST
    integers = (rows * torch.where(zeros, 0.0, 127 / largest)[:, None]).round()
    return integers, torch.where(zeros, 0.0, largest / 127)


def pack(weight, gates, dtype):
    """The tensors of a packed weight: panels, and in int8 scales and sums."""
    if dtype is torch.bfloat16:
        return [_panels(weight.to(torch.bfloat16), gates, GROUP[dtype])]
    integers, scales = _integers(weight)
    sums = 128 * integers.sum(1, dtype=torch.float64).to(torch.int32)
    panels = _panels(integers.to(torch.int8), gates, GROUP[dtype])
    return [panels, arrange(scales, gates), arrange(sums, gates)]


class _Matrix:
    """A packed weight, taken off the front of a list of params, for products with its rows."""

    def __init__(self, params, gates, size, columns):
        panels = params.pop(0)
        rows = _rearrange(panels.permute(0, 2, 3, 1, 4).flatten(3), gates, size)
        self.rows, self.scales = rows[:, :columns].double(), None
        if panels.dtype is torch.int8:
            self.scales = _rearrange(params.pop(0), gates, size).double()
            params.pop(0)  # sums, which kernels of unsigned bytes need

    def product(self, x):
        """`[B, K]` -> `[B, gates*H]`, in float32."""
        if self.scales is None:
            return (x.double() @ self.rows.t()).float()
        integers, scales = _integers(x)
        sums = integers.double() @ self.rows.t()
        return (sums * self.scales * scales.double()[:, None]).float()


@torch.library.impl(_library, "quantized_forward", "CompositeExplicitAutograd")
def quantized_forward(
    cell, input, batch_sizes, states, params, hidden_size, proj_size, bidirectional, save=False
):
    """As the operator."""
    if any(p.device != input.device for p in params):
        raise RuntimeError(
            f"quantized_forward: expected params on {input.device}, as input, got "
            f"{', '.join(sorted({str(p.device) for p in params}))}"
        )
    gates, size = CELLS[cell].products, proj_size or hidden_size
    counts = [input.shape[1]] * input.shape[0] if batch_sizes is None else batch_sizes.tolist()
    rows = (input.flatten(0, 1) if batch_sizes is None else input).split(counts)
    params, outputs, finals, kept = list(params), [], [], []
    sizes = (size, hidden_size)[: CELLS[cell].states]
    for direction in range(2 if bidirectional else 1):
        w_ih = _Matrix(params, gates, hidden_size, input.shape[-1])
        w_hh = _Matrix(params, gates, hidden_size, size)
        biases = CELLS[cell].columns
        bias = _rearrange(params.pop(0), biases, hidden_size)
        w_hr = _Matrix(params, 1, proj_size, hidden_size) if proj_size else None
        if states[0] is None:
            current = [input.new_zeros(counts[0], columns) for columns in sizes]
        else:
            current = [state[direction] for state in states]
        each, saved = [None] * len(counts), [None] * len(counts)
        for t in reversed(range(len(counts))) if direction else range(len(counts)):
            n = counts[t]
            before = [state[:n] for state in current]
            products = w_ih.product(rows[t]), w_hh.product(before[0])
            new, of_step = _step(cell, *products, bias, before)
            saved[t] = [torch.cat(of_step, 1)] * CELLS[cell].saves_gates + new[1:]
            if w_hr is not None:
                new[0] = w_hr.product(new[0])
            current = [torch.cat([a, b[n:]]) for a, b in zip(new, current)]
            each[t] = new[0]
        outputs.append(torch.cat(each))
        finals.append(current)
        kept.append([torch.cat(steps) for steps in zip(*saved)])
    output = torch.cat(outputs, 1).view(*input.shape[:-1], -1)
    results = [output, *map(torch.stack, zip(*finals))]
    return results + list(map(torch.stack, zip(*kept))) if save else results


def _step(cell, of_input, of_h, bias, before):
    """The states after one step and its gates, from both products. bias: of the input's, and behind
    it that of the last recurrent product where it has a column of its own."""
    apart = bias.shape[0] - of_input.shape[1]
    if apart:
        bias, of_last = bias[:-apart], bias[-apart:]
        of_h = of_h + torch.cat([torch.zeros_like(bias[:-apart]), of_last])
    states, gates = reference.CELLS[cell].step(of_input + bias, of_h, before)
    return [*states], gates
