"""The extended recurrence of one layer: autograd, and what runs where there are no kernels.

One backward pass is kernels. Whatever is beyond that (create_graph, forward mode, torch.func), and
every device without these kernels, runs the equations of `fastrnn.variants_reference`.
"""

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from fastrnn import _ops
from fastrnn.variants_reference import recurrence


def _runs_on_kernels(tensor):
    """Whether the operators serve this call: not under forward mode or torch.func."""
    return (
        tensor.device.type in ("cpu", "meta")
        and tensor.dtype in _ops.DTYPES
        and getattr(forward_ad, "_current_level", -1) < 0
        and not torch._C._are_functorch_transforms_active()
    )


def layer(
    cell: str,
    norm: str,
    gates_x: Tensor,
    batch_sizes: Tensor | None,
    batch: int,
    h0: Tensor | None,
    c0: Tensor | None,
    w_hh: Tensor,
    bias: Tensor | None,
    gain: Tensor | None,
    cell_gain: Tensor | None,
    cell_bias: Tensor | None,
    h_scale: Tensor | None,
    seed: Tensor | None,
    index: int,
    rates: tuple[float, float, float],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer: arguments, results and equations are `variants_reference.recurrence`'s."""
    arguments = (
        cell, norm, gates_x, batch_sizes, batch, h0, c0, w_hh, bias, gain, cell_gain, cell_bias,
        h_scale, seed, index, rates, eps,
    )  # fmt: skip
    if not _runs_on_kernels(gates_x):
        return recurrence(*arguments)
    tensors = (gates_x, h0, c0, w_hh, bias, gain, cell_gain, cell_bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _Extended.apply(*arguments)[:3]
    return _ops.extended_forward(*arguments, False)[:3]


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


class _Extended(Function):
    @staticmethod
    def forward(ctx, *arguments):
        (
            cell, norm, gates_x, batch_sizes, batch, h0, c0, w_hh, bias, gain, cell_gain,
            cell_bias, h_scale, seed, index, rates, eps,
        ) = arguments  # fmt: skip
        output, h_n, c_n, *saved = _ops.extended_forward(*arguments, True)
        ctx.mark_non_differentiable(*saved)
        if cell != "lstm":
            ctx.mark_non_differentiable(c_n)
        ctx.set_materialize_grads(False)
        ctx.options = cell, norm, batch, index, rates, eps
        # gates_x and the bias only for second derivatives; the graph holds on to them anyway.
        ctx.save_for_backward(
            gates_x, batch_sizes, h0, c0, w_hh, bias, gain, cell_gain, cell_bias, h_scale, seed,
            *saved,
        )  # fmt: skip
        return output, h_n, c_n, *saved

    @staticmethod
    def backward(ctx, d_output, d_h_n, d_c_n, *_):
        needs = ctx.needs_input_grad
        if d_output is None and d_h_n is None and d_c_n is None:
            return (None,) * len(needs)
        tensors = ctx.saved_tensors  # one access: under checkpointing a second one raises
        incoming = d_output, d_h_n, d_c_n if ctx.options[0] == "lstm" else None
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return _backward_with_graph(ctx.options, needs, tensors[:11], incoming)
        with torch.autocast("cpu", enabled=False):
            return _backward(ctx.options, needs, tensors, incoming)


def _backward(options, needs, tensors, incoming):
    cell, norm, batch, index, rates, eps = options
    (
        _, batch_sizes, h0, c0, w_hh, bias, gain, cell_gain, cell_bias, h_scale, seed, gates,
        hidden, cells, normed, rstd,
    ) = tensors  # fmt: skip
    d_gates, d_product, d_h0, d_c0, *d_affine = _ops.extended_backward(
        cell, norm, *incoming, batch_sizes, batch, h0, c0, gates, hidden, cells, normed, rstd,
        w_hh, bias is not None, gain, cell_gain, cell_bias, h_scale, seed, index, rates, eps,
    )  # fmt: skip
    d_w_hh = None
    if needs[7]:
        directions, rows, _ = d_gates.shape
        if h_scale is not None:
            hidden = hidden * rows_of(h_scale, rows, batch, batch_sizes)
            h0 = None if h0 is None else h0 * h_scale
        # To layer_gradients any cell is an rnn with this many rows of w_hh.
        products = d_gates if d_product.numel() == 0 else d_product
        _, d_params = _ops.layer_gradients(
            "rnn", products, batch_sizes, batch, None, hidden, h0, [],
            [False, True, False, False] * directions,
        )  # fmt: skip
        d_w_hh = torch.stack(d_params[1::4]) if directions == 2 else d_params[1].unsqueeze(0)
    results = (
        None, None, d_gates, None, None, d_h0, d_c0, d_w_hh, *d_affine,
        None, None, None, None, None,
    )  # fmt: skip
    return tuple(value if needed else None for value, needed in zip(results, needs, strict=True))


def _backward_with_graph(options, needs, tensors, incoming):
    """Gradients that can be differentiated: those of the equations, run anew with a graph."""
    cell, norm, batch, index, rates, eps = options
    gates_x, batch_sizes, h0, c0, w_hh, bias, gain, cell_gain, cell_bias, h_scale, seed = tensors
    arguments = (
        cell, norm, gates_x, batch_sizes, batch, h0, c0, w_hh, bias, gain, cell_gain, cell_bias,
        h_scale, seed, index, rates, eps,
    )  # fmt: skip
    results = recurrence(*arguments)
    pairs = [(r, d) for r, d in zip(results, incoming, strict=True) if d is not None]
    wanted = [i for i, needed in enumerate(needs) if needed]
    gradients = torch.autograd.grad(
        [r for r, _ in pairs], [arguments[i] for i in wanted], [d for _, d in pairs],
        create_graph=True, allow_unused=True,
    )  # fmt: skip
    found = dict(zip(wanted, gradients, strict=True))
    return tuple(found.get(i) for i in range(len(needs)))
