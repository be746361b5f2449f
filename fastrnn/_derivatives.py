"""Derivatives of one layer that may be differentiated: first order, tangents, second order.

Write J for the Jacobian of a layer at its arguments p (input, states, parameters), v for gradients
of its results and u for tangents of its arguments.
* `Gradients` is J^T v, the backward pass of `fastrnn._gradients`.
* `_tangents` is J u. The only sequential part is `w_hh t_h`; what input, weights and biases bring
  to the gates is a product over all steps.
* Second derivatives are those of <J u, v> = <u, J^T v>. With respect to v that is J u, to u it is
  J^T v, and to p it is the derivative of J^T v in the direction u (Pearlmutter, "Fast Exact
  Multiplication by the Hessian", Neural Computation 6(1), 1994): the backward pass once more, on
  tangents. It serves reverse over reverse, forward over reverse and reverse over forward alike.

Each of them is a Function, so that transforms nest. vmap goes through to the operators. Where the
operators of tangents and second order have no kernels, `fastrnn._by_reference` takes their place.
"""

from dataclasses import dataclass, replace

import torch
from torch.autograd import Function

from fastrnn import _by_reference, _ops, _vmap
from fastrnn._gradients import (
    PRODUCTS,
    Layer,
    Saved,
    apart_columns,
    batch_of,
    gradients,
    matmul,
    outer,
    products_of,
    unprojected,
)
from fastrnn._rows import fold, unfold
from fastrnn._transforms import in_forward_mode, no_autocast, requires_grad, transforms_active

_RESULTS = 4  # of a layer, with derivatives: output, h_n and, LSTM, c_n and every step's cells


# -- The derivative in a direction --------------------------------------------------------------


class _Tangents:
    """Tangents of a layer's arguments by name, None for zeros; those of `_sweep` come later."""

    def __init__(self, layer, tensors):
        self.input, self.h0, self.c0, *params = tensors
        each, stems = len(layer.stems), layer.stems
        self.any = any(t is not None for t in tensors)

        def every(stem):
            if stem not in stems:
                return [None] * layer.directions
            return params[stems.index(stem) :: each]

        self.w_ih, self.w_hh, self.w_hr = every("w_ih"), every("w_hh"), every("w_hr")
        self.b_ih, self.b_hh = every("b_ih"), every("b_hh")
        self.hidden = self.gates = self.cells = None


def _stack(parts):
    """One tensor of all directions, None where all are None."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    if len(parts) == 1:
        return known[0][None]
    return torch.stack([torch.zeros_like(known[0]) if p is None else p for p in parts])


def _sweep(layer, saved, tangents, batch, save):
    """Fills in the tangents of hidden and, if save, gates and cells: `(t_h_n, t_c_n)`."""
    s, t = saved, tangents
    sizes = (s.hidden if s.cells is None else s.cells).shape[1], layer.input_shape[-1]
    projected = [
        None if w is None else matmul(unprojected(s, d), w.t().contiguous())
        for d, w in enumerate(t.w_hr)
    ]
    t_params = [p for each in zip(t.w_ih, t.w_hh, t.b_ih, t.b_hh) for p in each]
    t.hidden, t_h_n, t_c_n, t.gates, t.cells = _ops.layer_tangent(
        layer.cell, None if t.input is None else t.input.reshape(sizes), t_params, None, None,
        _stack(projected), t.h0, t.c0, None if s.input is None else s.input.reshape(sizes),
        s.batch_sizes, batch, s.h0, s.c0, s.gates, s.hidden, s.cells, s.w_ih, s.w_hh, s.w_hr, save,
    )  # fmt: skip
    return t_h_n, t_c_n


def _output(layer, hidden):
    """Every step's h as the layer's output."""
    rows = hidden[0] if layer.directions == 1 else torch.cat([hidden[0], hidden[1]], -1)
    return rows.reshape(*layer.input_shape[:-1], rows.shape[-1])


@no_autocast
def _tangents(layer, *tensors):
    """`(t_output, t_h_n)`, t_c_n of an LSTM and, if layer.keep, t_cells."""
    count = 3 + len(layer.stems) * layer.directions
    saved = Saved(layer, _without_biases(layer, tensors[count:]))
    tangents = _Tangents(layer, tensors[:count])
    batch = batch_of(layer, saved, tangents.h0)
    t_h_n, t_c_n = _sweep(layer, saved, tangents, batch, layer.keep)
    t_output = _output(layer, tangents.hidden)
    if layer.cell != "lstm":
        return t_output, t_h_n
    return (t_output, t_h_n, t_c_n, tangents.cells) if layer.keep else (t_output, t_h_n, t_c_n)


def tangents(layer, *tensors):
    """J u of tangents, saved tensors and parameters, differentiable where somebody asks."""
    count = 3 + len(layer.stems) * layer.directions
    saved = tensors[count:]
    if _by_reference.serves(saved[Saved.count]):
        arguments = saved[1], saved[7], _of_arguments(saved)
        return _by_reference.tangents(layer, tensors[:count], *arguments)
    if transforms_active() or requires_grad(*tensors):
        return _Tangent.apply(layer, *tensors)
    return _tangents(layer, *tensors)


class _Tangent(Function):
    generate_vmap_rule = True
    forward = staticmethod(_tangents)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.layer = layer = inputs[0]
        count = 4 + len(layer.stems) * layer.directions
        tensors = *inputs[1:count], *_without_biases(layer, inputs[count:])
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, d_output, d_h_n, d_c_n=None, d_cells=None):
        layer, count = ctx.layer, 3 + len(ctx.layer.stems) * ctx.layer.directions
        v = d_output, d_h_n, d_c_n, d_cells
        if all(d is None for d in v):
            return (None,) * len(ctx.needs_input_grad)
        needs = ctx.needs_input_grad[1:]
        plan = _Plan(layer, (), needs[:count], _of_arguments(needs[count:]))
        _, first, second = plan.apply(
            v, (None,) * _RESULTS, ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        )
        return None, *first, *_as_saved(second)

    @staticmethod
    def jvp(ctx, *_):
        _refuse(ctx.layer, "forward mode twice")


class _MappedGradients(Function):
    """J^T v, of the arguments that `layer.needs` wants."""

    generate_vmap_rule = True

    @staticmethod
    @no_autocast
    def forward(layer, *tensors):
        v, saved = tensors[:_RESULTS], Saved(layer, _without_biases(layer, tensors[_RESULTS:]))
        results = gradients(layer, saved, layer.needs, *v, layer.samples)
        return tuple(d for d in results if d is not None)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.layer = inputs[0]
        begin = 1 + _RESULTS
        tensors = *inputs[1:begin], *_kept(ctx.layer, inputs[begin:])
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *u):
        if all(t is None for t in u):
            return (None,) * len(ctx.needs_input_grad)
        u = iter(u)
        tangents = [next(u) if needed else None for needed in ctx.layer.needs]
        needs = ctx.needs_input_grad[1:]
        plan = _Plan(ctx.layer, needs[:_RESULTS], (), _of_arguments(needs[_RESULTS:]))
        tensors = ctx.saved_tensors
        results, _, second = plan.apply(
            tensors[:_RESULTS], (None,) * _RESULTS, tangents, tensors[_RESULTS:]
        )
        return None, *results, *_as_saved(second)

    @staticmethod
    def jvp(ctx, _, *tangents):
        v, u = tangents[:_RESULTS], _of_arguments(tangents[_RESULTS:])
        tensors = ctx.saved_tensors
        plan = _Plan(ctx.layer, (), (), ctx.layer.needs)
        second = plan.apply(tensors[:_RESULTS], v, u, tensors[_RESULTS:])[2]
        return tuple(d for d in second if d is not None)


class Gradients(_MappedGradients):
    """The same, with a batching rule for where no derivative of it is asked for: more rows."""

    generate_vmap_rule = False

    @staticmethod
    def vmap(info, in_dims, layer, *tensors):
        size, dims, begin = info.batch_size, in_dims[1:], _RESULTS + Saved.count
        mapped = any(dim is not None for dim in dims[begin:])
        if mapped or in_forward_mode() or requires_grad(*tensors):
            return _vmap.through(_MappedGradients.apply, size, in_dims, (layer, *tensors))
        _vmap.refuse_resets(tensors[begin - 1])
        rows, weights = zip(tensors[:begin], dims), tensors[begin:]
        folded = [None if t is None else fold(t, dim, size) for t, dim in rows]
        sizes = begin - Saved.count + 1
        _vmap.check_batch_sizes(dims[sizes])
        folded[sizes] = None if tensors[sizes] is None else tensors[sizes] * size
        *steps, rows, features = layer.input_shape
        shape = torch.Size((*steps, rows * size, features))
        more = replace(layer, input_shape=shape, samples=size)
        results = _MappedGradients.forward(more, *folded, *weights)
        count = sum(layer.needs[:3])  # those that have rows; of weights, samples come first
        unfolded = [unfold(result, size) for result in results[:count]]
        unfolded += [(result, 0) for result in results[count:]]
        return tuple(t for t, _ in unfolded), tuple(dim for _, dim in unfolded)


def _kept(layer, tensors):
    """What derivatives are computed from, of saved tensors and all parameters."""
    by_reference = _by_reference.serves(tensors[Saved.count])
    return tensors if by_reference else _without_biases(layer, tensors)


def _without_biases(layer, tensors):
    """Saved tensors and all parameters -> saved tensors and weights."""
    return *tensors[: Saved.count], *layer.weights(tensors[Saved.count :])


def _of_arguments(values):
    """One value for each of input, h0, c0, *params, from one for each tensor of Saved."""
    return values[0], values[3], values[4], *values[Saved.count :]


def _as_saved(values):
    """The reverse; what is saved but no argument gets None."""
    d_input, d_h0, d_c0, *d_params = values
    return d_input, None, None, d_h0, d_c0, None, None, None, *d_params


# -- Second order -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """Which results of the second-order sweeps are wanted: one flag for each tensor."""

    layer: Layer
    results: tuple  # J u: t_output, t_h_n, t_c_n, t_cells
    first: tuple  # J^T v: of input, h0, c0, *params
    second: tuple  # the derivative of J^T v, of the same

    def apply(self, gradients, t_gradients, tangents, saved):
        """`(results, first, second)`, each as long as its flags, None where nobody asks."""
        every = self.results, self.first, self.second
        if all(t is None for t in (*t_gradients, *tangents)) and not any(self.first):
            return [[None] * len(flags) for flags in every]
        if _by_reference.serves(saved[Saved.count]):
            arguments = saved[1], saved[7], _of_arguments(saved)
            return _by_reference.second_order(
                self.layer, every, gradients, t_gradients, tangents, *arguments
            )
        flat = iter(_Second.apply(self, *gradients, *t_gradients, *tangents, *saved))
        return [[next(flat) if wanted else None for wanted in flags] for flags in every]


class _Second(Function):
    """What a _Plan wants. Its own derivatives, the third, raise."""

    generate_vmap_rule = True

    @staticmethod
    @no_autocast
    def forward(plan, *tensors):
        layer = plan.layer
        v, t_v, begin = tensors[:_RESULTS], tensors[_RESULTS : 2 * _RESULTS], 2 * _RESULTS
        count = begin + 3 + len(layer.stems) * layer.directions
        t, s = _Tangents(layer, tensors[begin:count]), Saved(layer, tensors[count:])
        batch = batch_of(layer, s, *v[1:3], *t_v[1:3], t.h0)
        sizes = s.batch_sizes, batch, s.h0, s.c0, s.gates, s.hidden, s.cells, s.w_hh, s.w_hr
        t_h_n, t_c_n = _sweep(layer, s, t, batch, True)
        results = [
            flag and value() for flag, value in zip(
                plan.results,
                (lambda: _output(layer, t.hidden), lambda: t_h_n, lambda: t_c_n, lambda: t.cells),
            )
        ]  # fmt: skip
        flat = [value for flag, value in zip(plan.results, results) if flag]
        if not any(plan.first) and not any(plan.second):
            return tuple(flat)
        d_gates, d_h0, d_c0, d_hidden, d_cell_h, d_cell_c = _ops.layer_backward(
            layer.cell, *v, *sizes
        )
        if any(plan.first):
            d_input, d_params = products_of(layer, s, plan.first, d_gates, batch, d_hidden)
            flat += _wanted(plan.first, (d_input, d_h0, d_c0, *d_params))
        if any(plan.second):
            t_d_gates, t_d_h0, t_d_c0, t_d_hidden = _ops.layer_backward_tangent(
                layer.cell, *t_v, _through(_recurrent(layer, d_gates), t.w_hh),
                _through(d_hidden, t.w_hr), t.h0, t.c0, t.gates, t.hidden, t.cells, d_cell_h,
                d_cell_c, *sizes,
            )  # fmt: skip
            t_d_input, t_d_params = _products_tangent(
                plan, s, t, (d_gates, d_hidden), (t_d_gates, t_d_hidden), batch
            )
            flat += _wanted(plan.second, (t_d_input, t_d_h0, t_d_c0, *t_d_params))
        return tuple(flat)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.layer = inputs[0].layer
        # vmap expects something saved for whatever is called, if only to raise.
        ctx.save_for_backward(None)
        ctx.save_for_forward(None)

    @staticmethod
    def backward(ctx, *_):
        _refuse(ctx.layer, "third derivatives")

    @staticmethod
    def jvp(ctx, *_):
        _refuse(ctx.layer, "third derivatives")


def _wanted(flags, values):
    return [value for flag, value in zip(flags, values, strict=True) if flag]


def _recurrent(layer, d_gates):
    """The columns of d_gates that belong to the products with w_hh."""
    apart = apart_columns(layer, d_gates)
    if not apart:
        return d_gates
    together = d_gates.shape[-1] - 2 * apart
    return torch.cat([d_gates[..., :together], d_gates[..., -apart:]], -1)


def _through(gradients, t_weights):
    """gradients t_weight of each direction."""
    if all(w is None for w in t_weights):
        return None
    return _stack([None if w is None else matmul(gradients[d], w)
                   for d, w in enumerate(t_weights)])  # fmt: skip


def _products_tangent(plan, saved, tangents, values, t_values, batch):
    """The derivative of `products_of`, at d_gates and d_hidden (values), in direction t_values.

    Both factors of each product have tangents: two calls of it.
    """
    layer, s, t = plan.layer, saved, tangents
    (d_gates, d_hidden), (t_d_gates, t_d_hidden) = values, t_values
    d_input, d_params = products_of(layer, s, plan.second, t_d_gates, batch, t_d_hidden)
    each, rows = len(layer.stems), d_gates.shape[1]
    w_ih = _zeros_for_none(t.w_ih, s.w_ih) if plan.second[0] else []
    wanted, stems = [False] * (4 * layer.directions), layer.stems * layer.directions
    known = {"w_ih": t.input, "w_hh": t.hidden}
    for i, (stem, needed) in enumerate(zip(stems, plan.second[3:], strict=True)):
        if needed and known.get(stem) is not None:
            wanted[i // each * 4 + PRODUCTS.index(stem)] = True
    if w_ih or any(wanted):
        input = None if t.input is None else t.input.reshape(rows, t.input.shape[-1])
        more, products = _ops.products(
            d_gates, apart_columns(layer, d_gates), s.batch_sizes, batch, input, t.hidden, t.h0,
            w_ih, wanted,
        )  # fmt: skip
        d_input = d_input + more.view(layer.input_shape) if w_ih else d_input
        for i, stem in enumerate(stems):
            if stem in known and wanted[i // each * 4 + PRODUCTS.index(stem)]:
                d_params[i] = d_params[i] + products[i // each * 4 + PRODUCTS.index(stem)]
    for i, stem in enumerate(stems):
        if stem == "w_hr" and plan.second[3 + i]:
            more = outer(d_hidden[i // each], _unprojected_tangent(s, t, i // each))
            d_params[i] = d_params[i] + more
    return d_input, d_params


def _zeros_for_none(tangents, weights):
    """Tangents of all directions, or none at all."""
    if all(t is None for t in tangents):
        return []
    return [torch.zeros_like(w) if t is None else t for t, w in zip(tangents, weights)]


def _unprojected_tangent(saved, tangents, direction):
    cells, t_cells = saved.cells[direction], tangents.cells[direction]
    o = slice(3 * cells.shape[1], None)
    tanh_c = torch.tanh(cells)
    slope = saved.gates[direction][:, o] * (1 - tanh_c * tanh_c)
    return tangents.gates[direction][:, o] * tanh_c + slope * t_cells


def _refuse(layer, what):
    name = layer.cell.partition("_")[0]
    raise RuntimeError(
        f"{name}: expected at most two derivatives, one of them in reverse mode, got {what}; "
        f"fastrnn.reference.{name} can be differentiated any number of times and in any order"
    )
