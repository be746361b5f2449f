"""Dropout that a layer's kernels know nothing of: of weights, and of whole sequences alike."""

import torch
from torch import Tensor
from torch.autograd import Function

from fastrnn._layer import ops
from fastrnn._layer.transforms import apply, in_forward_mode, transforms_active
from fastrnn.variants_reference import weight_factors


def dropped(weights: Tensor, seed: Tensor, stream: int, rate: float) -> Tensor:
    """weights `[R, C]` with elements dropped: `variants_reference.weight_factors` says which."""
    if not ops.has_inside(weights) or in_forward_mode() or transforms_active():
        return weights * weight_factors(seed, stream, rate, weights)
    if torch.is_grad_enabled() and weights.requires_grad:
        return apply(_Dropped, weights, seed, stream, rate)
    return ops.drop_weights(weights, seed, stream, rate)


@ops.recorded("drop_recorded")
def _dropped_recorded(weights, seed, stream, rate):
    if in_forward_mode() or transforms_active():
        return weights * weight_factors(seed, stream, rate, weights)
    return apply(_Dropped, weights, seed, stream, rate)


class _Dropped(Function):
    @staticmethod
    def forward(ctx, weights, seed, stream, rate):
        ctx.save_for_backward(seed)
        ctx.options = stream, rate
        return ops.drop_weights(weights, seed, stream, rate)

    @staticmethod
    def backward(ctx, d_weights):
        return dropped(d_weights, *ctx.saved_tensors, *ctx.options), None, None, None


def batch_mask(like: Tensor, shape: tuple, rate: float) -> Tensor:
    """1 / (1 - rate) with probability 1 - rate, else 0."""
    return torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(1 - rate) / (
        1 - rate
    )


def first_batch(batch_sizes: Tensor) -> int:
    """How many sequences packed data has; no number yet while a graph is traced."""
    batch = batch_sizes[0].item()
    torch._check(batch >= 0)
    return batch


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
