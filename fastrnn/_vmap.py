"""vmap over the operators: a mapped dimension becomes more rows of one call.

Weights that are mapped too, as of an ensemble, make one call each. Gradients of weights that are
not mapped come out one for each mapped sample: batched products.
"""

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fastrnn import _ops
from fastrnn._rows import fold, is_absent, previous, unfold


def _is_mapped(dims):
    return any(dim is not None for dim in pytree.tree_leaves(dims))


def one_by_one(call, size, in_dims, arguments):
    """`(results, out_dims)` of one call for each of the mapped arguments."""
    flat, spec = pytree.tree_flatten(arguments)
    dims = pytree.tree_leaves(in_dims, is_leaf=lambda dim: dim is None)
    assert len(flat) == len(dims)
    results = []
    for index in range(size):
        member = [
            value if dim is None else value.select(dim, index) for value, dim in zip(flat, dims)
        ]
        results.append(call(*pytree.tree_unflatten(member, spec)))
    first = [value is None or is_absent(value) for value in results[0]]
    stacked = tuple(
        values[0] if absent else torch.stack(values)
        for absent, values in zip(first, zip(*results, strict=True))
    )
    return stacked, tuple(None if absent else 0 for absent in first)


def _by_rows(op):
    """Registers the rule of an operator all of whose tensors but the weights have rows."""
    names = [argument.name for argument in op._schema.arguments]

    def rule(info, in_dims, *arguments):
        size, folded = info.batch_size, []
        for name, value, dim in zip(names, arguments, in_dims, strict=True):
            if name in ("params", "w_hh", "w_hr"):
                if _is_mapped(dim):
                    return one_by_one(op, size, in_dims, arguments)
            elif name == "batch_sizes":
                check_batch_sizes(dim)
                value = None if value is None else value * size
            elif name == "batch":
                value = value * size
            elif isinstance(value, Tensor):
                value = fold(value, dim, size)
            folded.append(value)
        results = [unfold(result, size) for result in op(*folded)]
        return tuple(r for r, _ in results), tuple(dim for _, dim in results)

    torch.library.register_vmap(op.name(), rule)


def check_batch_sizes(dim):
    if dim is not None:
        raise RuntimeError(
            "fastrnn: expected the same batch_sizes for all samples of vmap, got mapped ones"
        )


for _op in (
    _ops.lstm_forward,
    _ops.lstm_backward,
    _ops.gru_forward,
    _ops.gru_backward,
    _ops.rnn_forward,
    _ops.rnn_backward,
    _ops.layer_tangent,
    _ops.layer_backward,
    _ops.layer_backward_tangent,
):
    _by_rows(_op)


@torch.library.register_vmap("fastrnn::segments")
def _(info, in_dims, *arguments):
    raise RuntimeError(
        "fastrnn: expected the same resets and lengths for all samples of vmap, got mapped ones"
    )


@torch.library.register_vmap("fastrnn::gather_rows")
def _(info, in_dims, inputs, index):
    """Whole rows move: a mapped dimension goes beside their columns."""
    dims, index_dim = in_dims
    if index_dim is not None:
        raise RuntimeError(
            "fastrnn: expected the same index for all samples of vmap, got mapped ones"
        )
    folded = [t if d is None else t.movedim(d, -2).flatten(-2) for t, d in zip(inputs, dims)]
    results = _ops.gather_rows(folded, index)
    return (
        [r if d is None else r.unflatten(-1, (info.batch_size, -1)) for r, d in zip(results, dims)],
        [None if d is None else 2 for d in dims],
    )


@torch.library.register_vmap("fastrnn::layer_gradients")
def _(info, in_dims, cell, d_gates, batch_sizes, batch, input, hidden, h0, w_ih, wanted):
    size = info.batch_size
    _, gates_dim, sizes_dim, _, input_dim, hidden_dim, h0_dim, w_dims, _ = in_dims
    check_batch_sizes(sizes_dim)

    def to_front(value, dim):
        return value if value is None or dim is None else value.movedim(dim, 0)

    d_gates_front = to_front(d_gates, gates_dim)  # [V, D, N, C], or [D, N, C] for all
    input, hidden, h0 = (
        to_front(input, input_dim), to_front(hidden, hidden_dim), to_front(h0, h0_dim),
    )  # fmt: skip
    columns = d_gates_front.shape[-1] // 4
    inputs = slice(0, 3 * columns) if cell == "gru" else slice(None)

    def product(a, b):
        """a^T b for each sample."""
        return torch.matmul(a.transpose(-1, -2), b)

    def mapped(result, *dims):
        return result, 0 if _is_mapped(dims) else None

    if not w_ih:
        d_input = d_gates.new_empty(0), None
    elif _is_mapped(w_dims):
        parts = [
            torch.matmul(d_gates_front[..., d, :, inputs], to_front(w, dim))
            for d, (w, dim) in enumerate(zip(w_ih, w_dims, strict=True))
        ]
        d_input = mapped(sum(parts[1:], parts[0]), w_dims)
    elif gates_dim is None:
        d_input = _ops.layer_gradients(
            cell, d_gates, batch_sizes, batch, None, None, None, w_ih, [False] * len(wanted)
        )[0], None  # fmt: skip
    else:
        folded = _ops.layer_gradients(
            cell, fold(d_gates, gates_dim, size), None if batch_sizes is None else
            batch_sizes * size, batch * size, None, None, None, w_ih, [False] * len(wanted),
        )[0]  # fmt: skip
        d_input = unfold(folded, size)

    d_params = []
    for i, is_wanted in enumerate(wanted):
        direction, what = i // 4, i % 4
        a = d_gates_front[..., direction, :, :]
        recurrent = a
        if cell == "gru":
            recurrent = torch.cat([a[..., : 2 * columns], a[..., 3 * columns :]], -1)
        if not is_wanted:
            d_params.append((d_gates.new_empty(0), None))
        elif what == 0:
            d_params.append(mapped(product(a[..., inputs], input), gates_dim, input_dim))
        elif what == 1:
            before = previous(
                hidden[..., direction, :, :],
                None if h0 is None else h0[..., direction, :, :],
                batch, batch_sizes, direction,
            )  # fmt: skip
            dims = gates_dim, hidden_dim, h0_dim
            d_params.append(mapped(product(recurrent, before), *dims))
        else:
            d_params.append(mapped((a[..., inputs] if what == 2 else recurrent).sum(-2), gates_dim))
    return (
        (d_input[0], [value for value, _ in d_params]),
        (d_input[1], [dim for _, dim in d_params]),
    )
