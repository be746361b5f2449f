"""The extended recurrence of one layer, and dropped weights: autograd, and what runs where there
are no kernels.

One backward pass is kernels. Whatever is beyond that (create_graph, forward mode, torch.func), and
every device without these kernels, runs the equations of `fastrnn.variants_reference`.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import linear

from fastrnn._layer import ops
from fastrnn._layer.cells import CELLS
from fastrnn._layer.transforms import apply, in_forward_mode, transforms_active
from fastrnn.variants_reference import recurrence, weight_factors


def _runs_on_kernels(tensor):
    """Whether the operators serve this call: not under forward mode or torch.func."""
    return (
        tensor.device.type in ("cpu", "meta")
        and tensor.dtype in ops.DTYPES
        and not in_forward_mode()
        and not transforms_active()
    )


class Within(NamedTuple):
    """What is inside the recurrence of all layers of a stack."""

    cell: str
    has_biases: bool
    norm: str
    """"none", "recurrent" (layer_norm=True) or "joint" (DreamerGRU)"""
    eps: float
    rates: tuple[float, float, float]
    """of zoneout of c and of h, and of recurrent dropout"""
    h_rate: float
    """of variational dropout of h"""
    seed: Tensor | None
    """without one: what eval does"""

    @property
    def stems(self):
        """What the parameters of one direction are, in order."""
        stems = ["w_ih", "w_hh", *["b_ih", "b_hh"] * self.has_biases]
        if self.norm == "joint":
            return [*stems, "gain", "bias"]
        if self.norm == "none":
            return stems
        of_c = ["cell_gain", *["cell_bias"] * self.has_biases] if self.cell == "lstm" else []
        return [*stems, "gain_ih", "gain_hh", *of_c]


def run(within, input, batch_sizes, states, params, bidirectional, keep=False):
    """One layer, as `fastrnn._stack.stack` describes a run, on the CPU.

    params: `(the layer's index, tensors)`, the tensors within.stems of each direction.
    """
    index, tensors = params
    cell, stems = within.cell, within.stems
    directions = 2 if bidirectional else 1

    def stacked(stem):
        if stem not in stems:
            return None
        each = tensors[stems.index(stem) :: len(stems)]
        return each[0].unsqueeze(0) if directions == 1 else torch.stack(each)

    bias_x, bias = stacked("b_ih"), stacked("b_hh") if within.has_biases else stacked("bias")
    if bias_x is not None and cell != "gru":  # only there the recurrent bias is no mere sum
        bias_x, bias = bias_x + bias, None
    gain = stacked("gain_hh") if within.norm == "recurrent" else stacked("gain")
    cell_gain, cell_bias = stacked("cell_gain"), stacked("cell_bias")
    if cell_gain is not None and cell_bias is None:
        cell_bias = torch.zeros_like(cell_gain)
    padded = batch_sizes is None
    batch = input.shape[1] if padded else first_batch(batch_sizes)
    h_scale, w_hh = None, stacked("w_hh")
    if within.h_rate:
        h_scale = batch_mask(input, (directions, batch, w_hh.shape[2]), within.h_rate)
    output, h_n, c_n, *each = layer(
        cell, within.norm, input.flatten(0, 1) if padded else input, batch_sizes, batch,
        *(*states, None)[:2], stacked("w_ih"), w_hh, stacked("gain_ih"), bias_x, bias, gain,
        cell_gain, cell_bias, h_scale, within.seed, index, within.rates, within.eps, keep=keep,
    )  # fmt: skip
    if padded:
        output = output.unflatten(0, input.shape[:2])
    if keep and cell.startswith("rnn"):
        each = None, None  # its gates are h
    elif keep and within.norm == "joint":
        r, z, *rest = each[1].split(w_hh.shape[2], -1)
        each = each[0], torch.cat([r, 1 - z, *rest], -1)  # z as Dreamer has it
    return output, h_n, *((c_n,) if cell == "lstm" else ()), *each


def first_batch(batch_sizes: Tensor) -> int:
    """How many sequences packed data has; no number yet while a graph is traced."""
    batch = batch_sizes[0].item()
    torch._check(batch >= 0)
    return batch


def batch_mask(like: Tensor, shape: tuple, rate: float) -> Tensor:
    """1 / (1 - rate) with probability 1 - rate, else 0."""
    return torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(1 - rate) / (
        1 - rate
    )


def layer(*arguments, keep: bool = False) -> tuple[Tensor, ...]:
    """One layer: arguments, results and equations are `variants_reference.recurrence`'s."""
    (_, _, input, _, _, h0, c0, w_ih, w_hh, gain_x, bias_x, bias, gain, cell_gain, cell_bias,
     *_) = arguments  # fmt: skip
    if not _runs_on_kernels(input):
        results = recurrence(*arguments, keep)
        return (*results[:4], results[4].detach()) if keep else results
    tensors = (input, h0, c0, w_ih, w_hh, gain_x, bias_x, bias, gain, cell_gain, cell_bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        results = apply(_Extended, keep, *arguments)
    else:
        results = _forward(arguments, keep)[0]
    if not keep:
        return results[:3]
    return *results[:3], results[5] if arguments[0] == "lstm" else None, results[3]


def dropped(weights: Tensor, seed: Tensor, stream: int, rate: float) -> Tensor:
    """weights `[R, C]` with elements dropped: `variants_reference.weight_factors` says which."""
    if not _runs_on_kernels(weights):
        return weights * weight_factors(seed, stream, rate, weights)
    if torch.is_grad_enabled() and weights.requires_grad:
        return apply(_Dropped, weights, seed, stream, rate)
    return ops.drop_weights(weights, seed, stream, rate)


def rows_of(batch_values: Tensor, rows: int, batch: int, batch_sizes: Tensor | None) -> Tensor:
    """`[..., B, H]`, a value for each sequence, as `[..., N, H]`, one for each row of all steps.

    Of packed data too no size is read on the host, so that it can be traced.
    """
    if batch_sizes is None:
        shape = (*batch_values.shape[:-2], rows // batch if batch else 0, *batch_values.shape[-2:])
        return batch_values.unsqueeze(-3).expand(shape).flatten(-3, -2)
    ends = batch_sizes.cumsum(0).to(batch_values.device)
    n = torch.arange(rows, device=ends.device)
    steps = torch.searchsorted(ends, n, right=True)
    starts = ends - batch_sizes.to(ends.device)
    return batch_values.index_select(-2, n - starts[steps])


class _Dropped(Function):
    @staticmethod
    def forward(ctx, weights, seed, stream, rate):
        ctx.save_for_backward(seed)
        ctx.options = stream, rate
        return ops.drop_weights(weights, seed, stream, rate)

    @staticmethod
    def backward(ctx, d_weights):
        return dropped(d_weights, *ctx.saved_tensors, *ctx.options), None, None, None


def _product(input, w_ih, bias):
    """`[D, N, G*H]`: the input product of every direction."""
    if w_ih.shape[0] == 1:
        return linear(input, w_ih[0], None if bias is None else bias[0]).unsqueeze(0)
    input, weights = input.expand(2, *input.shape), w_ih.transpose(1, 2)
    if bias is None:
        return torch.bmm(input, weights)
    return torch.baddbmm(bias.unsqueeze(1), input, weights)


def _forward(arguments, save):
    """What the operator returns, and gates_x."""
    cell, norm, input, batch_sizes, batch, h0, c0, w_ih, w_hh, gain_x, bias_x, *rest = arguments
    # A bias goes with the product, unless what comes between them is the kernel's.
    within, bias_x = (None, bias_x) if norm == "recurrent" else (bias_x, None)
    gates_x = _product(input, w_ih, within)
    results = ops.extended_forward(
        cell, norm, gates_x, batch_sizes, batch, h0, c0, w_hh, gain_x, bias_x, *rest, save
    )
    return results, gates_x


class _Extended(Function):
    @staticmethod
    def forward(ctx, keep, *arguments):
        cell, norm, input, batch_sizes, batch, h0, c0, *weights, index, rates, eps = arguments
        (output, h_n, c_n, *saved), gates_x = _forward(arguments, True)
        if norm == "recurrent":
            saved.append(gates_x)
        # Cells only where asked for: a compiled backward would be given zeros for them.
        fixed = saved if cell == "lstm" else [c_n, *saved]
        cells = saved[2] if keep and cell == "lstm" else None
        ctx.mark_non_differentiable(*(t for t in fixed if t is not cells))
        ctx.set_materialize_grads(False)
        ctx.options = cell, norm, batch, index, rates, eps
        # bias only for second derivatives; the graph holds on to it anyway.
        ctx.save_for_backward(input, batch_sizes, h0, c0, *weights, *saved)
        return output, h_n, c_n, *saved

    @staticmethod
    def backward(ctx, *d_results):
        needs = ctx.needs_input_grad[1:]
        incoming = d_results[:3] + d_results[5:6]  # of output, h_n, c_n, cells
        if ctx.options[0] != "lstm":
            incoming = *incoming[:2], None, None
        if all(d is None for d in incoming):
            return (None,) * (1 + len(needs))
        tensors = ctx.saved_tensors  # one access: under checkpointing a second one raises
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return None, *_backward_with_graph(ctx.options, needs, tensors[:_ARGUMENTS], incoming)
        with torch.autocast("cpu", enabled=False):
            return None, *_backward(ctx.options, needs, tensors, incoming)


_ARGUMENTS = 14  # tensors among the arguments, the first of those saved


def _backward(options, needs, tensors, incoming):
    cell, norm, batch, index, rates, eps = options
    (
        input, batch_sizes, h0, c0, w_ih, w_hh, gain_x, bias_x, bias, gain, cell_gain, cell_bias,
        h_scale, seed, gates, hidden, cells, normed, rstd, moments_x, *gates_x,
    ) = tensors  # fmt: skip
    within = norm != "recurrent"  # bias_x went with the input product
    d_gates, d_product, d_h0, d_c0, d_gain_x, d_bias_x, *d_affine = ops.extended_backward(
        cell, norm, *incoming, batch_sizes, batch, h0, c0, None if within else gates_x[0], gates,
        hidden, cells, normed, rstd, moments_x, w_hh, gain_x,
        bias_x is not None and not within, bias is not None, gain, cell_gain, cell_bias, h_scale,
        seed, index, rates, eps,
    )  # fmt: skip
    if needs[8] and h_scale is not None:
        hidden = hidden * rows_of(h_scale, hidden.shape[1], batch, batch_sizes)
        h0 = None if h0 is None else h0 * h_scale
    wanted = needs[2], needs[7], needs[8], needs[10] and within
    if norm != "recurrent" and not (CELLS[cell].apart and norm == "none"):
        d_product = None
    d_input, d_w_ih, d_w_hh, d_bias = _products(
        d_gates, d_product, batch_sizes, batch, input, hidden, h0, w_ih, wanted
    )
    results = (
        None, None, d_input, None, None, d_h0, d_c0, d_w_ih, d_w_hh, d_gain_x,
        d_bias if within else d_bias_x, *d_affine, None, None, None, None, None,
    )  # fmt: skip
    return tuple(value if needed else None for value, needed in zip(results, needs, strict=True))


def _products(d_gates, d_product, batch_sizes, batch, input, hidden, h0, w_ih, wanted):
    """Gradients of input, w_ih, w_hh and the bias of the input product, None where not wanted.

    d_product: None where it is d_gates.
    """
    of_input, of_w_ih, of_w_hh, of_bias = wanted
    directions = d_gates.shape[0]

    def gradients(d, of_input, *flags):
        d_input, found = ops.products(
            d, 0, batch_sizes, batch, input if flags[0] else None,
            hidden if flags[1] else None, h0 if flags[1] else None,
            list(w_ih) if of_input else [], [*flags, False] * directions,
        )  # fmt: skip
        each = [found[i::4] for i in range(3)]
        each = [e[0].unsqueeze(0) if directions == 1 else torch.stack(e) for e in each]
        return d_input, *each

    if d_product is None:
        return gradients(d_gates, of_input, of_w_ih, of_w_hh, of_bias)
    d_input, d_w_ih, _, d_bias = gradients(d_gates, of_input, of_w_ih, False, of_bias)
    return d_input, d_w_ih, gradients(d_product, False, False, of_w_hh, False)[2], d_bias


def _backward_with_graph(options, needs, tensors, incoming):
    """Gradients that can be differentiated: those of the equations, run anew with a graph."""
    cell, norm, batch, index, rates, eps = options
    input, batch_sizes, *rest = tensors
    arguments = cell, norm, input, batch_sizes, batch, *rest, index, rates, eps
    results = recurrence(*arguments, keep=True)[:4]
    pairs = [(r, d) for r, d in zip(results, incoming, strict=True) if d is not None]
    wanted = [i for i, needed in enumerate(needs) if needed]
    gradients = torch.autograd.grad(
        [r for r, _ in pairs], [arguments[i] for i in wanted], [d for _, d in pairs],
        create_graph=True, allow_unused=True,
    )  # fmt: skip
    found = dict(zip(wanted, gradients, strict=True))
    return tuple(found.get(i) for i in range(len(needs)))
