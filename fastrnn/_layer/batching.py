"""vmap over the operators: a mapped dimension becomes more rows of one call.

Weights that are mapped too, as of an ensemble, make one call each. Gradients of weights that are
not mapped come out one for each mapped sample: batched products.
"""

from functools import partial

import torch
from torch import Tensor
from torch._functorch.vmap import vmap_increment_nesting
from torch.utils import _pytree as pytree

from fastrnn._layer import ops
from fastrnn._layer.backward import Record, by_products, layer_of
from fastrnn._layer.cells import CELLS
from fastrnn._layer.rows import fold, previous, unfold
from fastrnn._layer.transforms import apply, batched_levels, in_forward_mode


def _is_mapped(dims):
    return any(dim is not None for dim in pytree.tree_leaves(dims))


def one_by_one(call, size, in_dims, arguments):
    """`(results, out_dims)` in the form of a call's, of one call for each mapped argument."""
    flat, spec = pytree.tree_flatten(arguments)
    dims = pytree.tree_leaves(in_dims, is_leaf=lambda dim: dim is None)
    assert len(flat) == len(dims)
    results = []
    for index in range(size):
        member = [
            value if dim is None else value.select(dim, index) for value, dim in zip(flat, dims)
        ]
        each, form = pytree.tree_flatten(call(*pytree.tree_unflatten(member, spec)))
        results.append(each)
    stacked = [torch.stack(values) for values in zip(*results, strict=True)]
    return pytree.tree_unflatten(stacked, form), pytree.tree_unflatten([0] * len(stacked), form)


def through(call, size, in_dims, arguments):
    """`(results, out_dims)` of vmap over what is called, whatever its own rule says.

    As torch.func.vmap, but for its trees of arguments.
    """
    with vmap_increment_nesting(size, "error") as level:
        wrapped = [
            value if dim is None else torch._C._functorch._add_batch_dim(value, dim, level)
            for value, dim in zip(arguments, in_dims)
        ]
        results = [
            torch._C._functorch._remove_batch_dim(result, level, size, 0)
            for result in call(*wrapped)
        ]
    return tuple(results), (0,) * len(results)


_library = torch.library.Library("fastrnn", "IMPL")  # what it registers lives as long as it


def register(op, library=_library):
    """Registers `rule(size, in_dims, *arguments)`, where size is the mapped dimension's.

    torch.library.register_vmap would do; it spends 0.1 ms a call on trees of arguments.
    """

    def decorate(rule):
        name = op.name().partition("::")[2]
        library.impl(name, partial(_by_rule, op, rule), "FuncTorchBatched")
        return rule

    return decorate


def _by_rule(op, rule, *arguments):
    level = torch._C._functorch.current_level()
    values, dims, size = [], [], None
    for argument in arguments:
        value, dim = _unwrap(argument, level)
        values.append(value)
        dims.append(dim)
        size = _mapped_size(value, dim) if size is None else size
    with torch._C._ExcludeDispatchKeyGuard(_BATCHED):
        if size is None:
            return op(*arguments)
        check_size(size)
        results, out_dims = rule(size, dims, *values)
    return _wrap(results, out_dims, level)


_BATCHED = torch._C.DispatchKeySet(torch._C.DispatchKey.FuncTorchBatched)


def _unwrap(value, level):
    """`(value, dim)`; of a list, two lists."""
    if isinstance(value, Tensor):
        return torch._C._functorch._unwrap_batched(value, level)
    if isinstance(value, list | tuple):
        pairs = [_unwrap(t, level) for t in value]
        return [t for t, _ in pairs], [dim for _, dim in pairs]
    return value, None


def _mapped_size(value, dim):
    if isinstance(dim, list):
        sizes = map(_mapped_size, value, dim)
        return next((size for size in sizes if size is not None), None)
    return None if dim is None else value.shape[dim]


def _wrap(result, dim, level):
    if isinstance(result, list | tuple):
        return type(result)(_wrap(r, d, level) for r, d in zip(result, dim, strict=True))
    return result if dim is None else torch._C._functorch._add_batch_dim(result, dim, level)


# Their results hold gradients of a cell's vectors, sums over all rows.
_WITH_SUMS = ops.gate_gradients, ops.gate_gradients_tangent


def _by_rows(op, size, in_dims, *arguments):
    """The rule of an operator all of whose tensors but the weights have rows."""
    folded = []
    for argument, value, dim in zip(op._schema.arguments, arguments, in_dims):
        if argument.name in ("params", "t_params", "t_inside", "weights"):
            if _is_mapped(dim):
                return one_by_one(op, size, in_dims, arguments)
        elif argument.name == "batch_sizes":
            check_batch_sizes(dim)
            value = None if value is None else value * size
        elif argument.name == "resets":
            refuse_resets(value)
        elif argument.name == "norm":  # masks are of rows, and gains of all rows together
            return one_by_one(op, size, in_dims, arguments)
        elif argument.name == "cell" and op in _WITH_SUMS and CELLS[value].vectors:
            return one_by_one(op, size, in_dims, arguments)  # a gradient of each sample's own
        elif argument.name == "batch":
            value = value * size
        elif isinstance(value, list):
            value = [None if t is None else fold(t, d, size) for t, d in zip(value, dim)]
        elif isinstance(value, Tensor):
            value = fold(value, dim, size)
        folded.append(value)
    results = [unfold(result, size) for result in op(*folded)]
    return [r for r, _ in results], [dim for _, dim in results]


def check_size(size):
    if size == 0:
        raise RuntimeError("fastrnn: expected at least one sample of vmap, got 0")


def check_batch_sizes(dim):
    if dim is not None:
        raise RuntimeError(
            "fastrnn: expected the same batch_sizes for all samples of vmap, got mapped ones"
        )


def refuse_resets(resets):
    """A layer called inside vmap has none: fastrnn._stack.beyond sees to it."""
    if resets is not None:
        raise RuntimeError(
            "fastrnn: expected a layer without resets where vmap maps its gradients on this "
            "device; call the layer inside vmap"
        )


def register_by_rows(op, library=_library):
    register(op, library)(partial(_by_rows, op))


for _op in (
    ops.layer_forward,
    ops.gate_gradients,
    ops.gate_gradients_tangent,
    ops.quantized_forward,
):
    register_by_rows(_op)


def _backward_one_by_one(size, in_dims, *arguments):
    return one_by_one(ops.layer_backward, size, in_dims, arguments)


@torch.library.impl(_library, "layer_backward", "FuncTorchBatched")
def layer_backward(*arguments):
    """The operators that it is made of have rules: for weights that are mapped too, and for the
    gradients of those that are not, one for each sample."""
    a = ops.named(ops.layer_backward, arguments)
    refuse_resets(a.resets)
    if a.counter is not None or CELLS[a.cell].vectors:
        return _by_rule(ops.layer_backward, _backward_one_by_one, *arguments)
    rows = a.saved[-1].shape[1], a.weights[0].shape[1]
    shape = rows if a.input is None else a.input.shape
    params = len(a.wanted) - 1 - CELLS[a.cell].states
    layer = layer_of(a.cell, a.saved[-1].shape[0] == 2, params, shape)
    record = Record(layer, (a.input, a.batch_sizes, None, *a.states, *a.saved, *a.weights))
    return by_products(layer, record, a.wanted, a.d_results, a.batch)


@register(ops.layer_tangent)
def _(size, in_dims, *arguments):
    """What tangents of weights bring where each sample has its own is made here: batched products.

    The operator would make one call each.
    """
    names = [argument.name for argument in ops.layer_tangent._schema.arguments]
    a, dims = dict(zip(names, arguments)), dict(zip(names, in_dims))
    by_rows = "norm" not in a and not CELLS[a["cell"]].vectors
    if by_rows and _is_mapped(dims["t_params"]) and not _is_mapped(dims["weights"]):
        t_params = list(map(_to_front, a["t_params"], dims["t_params"]))
        directions = len(t_params) // 4
        layer = layer_of(a["cell"], directions == 2, len(a["weights"]), ())
        states, saved = (list(map(_to_front, a[n], dims[n])) for n in ("states", "saved"))
        input, sizes = _to_front(a["input"], dims["input"]), a["batch_sizes"]
        r = Record(layer, (input, sizes, None, *states, *saved, *a["weights"]))
        sums = [], []
        for d in range(directions):
            t_w_ih, t_w_hh, t_b_ih, t_b_hh = t_params[4 * d : 4 * d + 4]
            before = None
            if t_w_hh is not None:
                initial = None if r.states[0] is None else r.states[0][..., d, :, :]
                before = previous(r.hidden[..., d, :, :], initial, a["batch"], r.batch_sizes, d)
            sums[0].append(_affine(input, t_w_ih, t_b_ih))
            sums[1].append(_affine(before, t_w_hh, t_b_hh))
        zeros = r.w_hh[0].new_zeros(size, saved[-1].shape[-2], r.w_hh[0].shape[0])
        for i, parts in enumerate(sums):
            if any(part is not None for part in parts):
                every = [zeros if p is None else p.expand_as(zeros) for p in parts]
                a["through"][i], dims["through"][i] = torch.stack(every, 1), 0
        a["t_params"], dims["t_params"] = [None] * len(t_params), None
    return _by_rows(ops.layer_tangent, size, list(dims.values()), *a.values())


def _to_front(value, dim):
    return value if value is None or dim is None else value.movedim(dim, 0)


def _affine(rows, weight, bias):
    """`rows weight^T + bias` for each sample, of what there is; None of nothing."""
    product = None if weight is None else torch.matmul(rows, weight.transpose(-1, -2))
    if bias is None:
        return product
    return bias[..., None, :] if product is None else product + bias[..., None, :]


@register(ops.segments)
def _(size, in_dims, *arguments):
    raise RuntimeError(
        "fastrnn: expected the same resets and lengths for all samples of vmap, got mapped ones"
    )


@register(ops.gather_rows)
def _(size, in_dims, inputs, indices):
    """Whole rows move: a mapped dimension goes beside their columns."""
    dims, index_dims = in_dims
    if _is_mapped(index_dims):
        raise RuntimeError(
            "fastrnn: expected the same index for all samples of vmap, got mapped ones"
        )
    folded = [t if d is None else t.movedim(d, -2).flatten(-2) for t, d in zip(inputs, dims)]
    results = ops.gather_rows(folded, indices)
    return (
        [r if d is None else r.unflatten(-1, (size, -1)) for r, d in zip(results, dims)],
        [None if d is None else r.dim() - 1 for r, d in zip(results, dims)],
    )


@register(ops.products)
def products(size, in_dims, *arguments):
    a = ops.named(ops.products, arguments)
    refuse_resets(a.resets)
    if a.h_scale is not None:
        return one_by_one(ops.products, size, in_dims, arguments)
    gates_dim, _, sizes_dim, _, input_dim, hidden_dim, h0_dim, w_dims, *_ = in_dims
    check_batch_sizes(sizes_dim)
    rows = (a.d_gates, gates_dim), (a.input, input_dim), (a.hidden, hidden_dim), (a.h0, h0_dim)
    mapped = any(dim is not None for _, dim in rows)
    of_call = a.apart, a.batch_sizes, a.batch

    d_input = a.d_gates.new_empty(0), None
    if a.w_ih and _is_mapped(w_dims):
        front = _to_front(a.d_gates, gates_dim)[..., : a.d_gates.shape[-1] - a.apart]
        weights = map(_to_front, a.w_ih, w_dims)
        d_input = sum(torch.matmul(front[..., d, :, :], w) for d, w in enumerate(weights)), 0
    elif a.w_ih:
        nothing = None, None, None, a.w_ih, [False] * len(a.wanted)
        if gates_dim is None:
            d_input = ops.products(a.d_gates, *of_call, *nothing)[0], None
        else:
            sizes = None if a.batch_sizes is None else a.batch_sizes * size
            more = fold(a.d_gates, gates_dim, size)
            d_input = ops.products(more, a.apart, sizes, a.batch * size, *nothing)[0]
            d_input = unfold(d_input, size)

    if not any(a.wanted):
        d_params = [a.d_gates.new_empty(0)] * len(a.wanted)
    elif mapped:
        more, *states = (None if t is None else fold(t, dim, size) for t, dim in rows)
        of_call = a.apart, size, a.batch_sizes, a.batch
        d_params = ops.sample_products(more, *of_call, *states, a.wanted)
    else:
        states = a.input, a.hidden, a.h0
        d_params = ops.products(a.d_gates, *of_call, *states, [], a.wanted)[1]
    return (d_input[0], d_params), (d_input[1], [0 if mapped and w else None for w in a.wanted])


@register(ops.sample_products)
def _(size, in_dims, d_gates, apart, samples, batch_sizes, batch, input, hidden, h0, wanted):
    check_batch_sizes(in_dims[3])
    rows = zip((d_gates, input, hidden, h0), (in_dims[0], *in_dims[5:8]))
    d_gates, input, hidden, h0 = (None if t is None else fold(t, dim, size) for t, dim in rows)
    d_params = ops.sample_products(
        d_gates, apart, samples * size, batch_sizes, batch, input, hidden, h0, wanted
    )
    results = [p.unflatten(0, (samples, size)) if w else p for p, w in zip(d_params, wanted)]
    return results, [1 if w else None for w in wanted]


def by_other_vmap(call, *arguments):
    """A call inside torch.autograd's own vmap (is_grads_batched, vectorize) by that of torch.func.

    That vmap is below autograd: a graph is of what is wrapped, so a Function that is called with
    wrapped tensors would leave one that nobody finds. It is called here, with what they wrap.
    """
    level = batched_levels()
    if level > 1:
        raise RuntimeError(
            f"fastrnn: expected one level of is_grads_batched or vectorize, got {level}"
        )
    flat, spec = pytree.tree_flatten(arguments)
    # What is not mapped gets a dimension of size 1.
    values = [torch._remove_batch_dim(v, level, 1, 0) if isinstance(v, Tensor) else v for v in flat]
    size = max(v.shape[0] for v in values if isinstance(v, Tensor))
    mapped = [i for i, v in enumerate(values) if isinstance(v, Tensor) and v.shape[0] == size != 1]

    def run(*of_mapped):
        every = [v[0] if isinstance(v, Tensor) and v.shape[0] == 1 else v for v in values]
        for i, value in zip(mapped, of_mapped, strict=True):
            every[i] = value
        return call(*pytree.tree_unflatten(every, spec))

    if mapped:
        results = torch.func.vmap(run)(*(values[i] for i in mapped))
    else:  # one sample
        results = pytree.tree_map(lambda t: t[None], run())
    # In forward mode torch takes a tangent apart by its strides: samples must lie in front.
    return pytree.tree_map(lambda t: torch._add_batch_dim(t.contiguous(), 0, level), results)


def applied(function, *arguments):
    """A Function's results, whose graph is found inside is_grads_batched and vectorize too.

    Not in forward mode, where torch asks for no graph of what is wrapped (jacobian refuses it).
    """
    if batched_levels() and not in_forward_mode():
        return by_other_vmap(function.apply, *arguments)
    return apply(function, *arguments)


for _op in (
    ops.layer_forward,
    ops.layer_backward,
    ops.gate_gradients,
    ops.gate_gradients_tangent,
    ops.layer_tangent,
    ops.products,
    ops.gather_rows,
):
    _library.impl(_op.name().partition("::")[2], partial(by_other_vmap, _op), "Batched")


@torch.library.impl(_library, "sample_products", "CUDA")
def sample_products_by_torch(*arguments, op=ops.sample_products):
    """Batched products, where there is no kernel."""
    a = ops.named(op, arguments)
    apart = a.apart

    def of_samples(rows):
        """`[..., R*V, C]` -> `[V, ..., R, C]`."""
        return None if rows is None else rows.unflatten(-2, (-1, a.samples)).movedim(-2, 0)

    d_gates, input, hidden, h0 = map(of_samples, (a.d_gates, a.input, a.hidden, a.h0))
    rows, d_params = d_gates.shape[-1] - apart, []
    for i, is_wanted in enumerate(a.wanted):
        direction, what = i // 4, i % 4
        gates = d_gates[:, direction]
        if what % 2 == 0:
            gates = gates[..., :rows]
        elif apart:
            gates = torch.cat([gates[..., : rows - apart], gates[..., rows:]], -1)
        if not is_wanted:
            d_params.append(d_gates.new_empty(0))
        elif what == 0:
            d_params.append(torch.matmul(gates.transpose(-1, -2), input))
        elif what == 1:
            initial = None if h0 is None else h0[:, direction]
            before = previous(hidden[:, direction], initial, a.batch, a.batch_sizes, direction)
            d_params.append(torch.matmul(gates.transpose(-1, -2), before))
        else:
            d_params.append(gates.sum(-2))
    return d_params
