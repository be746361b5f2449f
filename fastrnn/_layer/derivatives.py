"""Derivatives of one layer that may be differentiated: first order, tangents, second order.

Write J for the Jacobian of a layer at its arguments p (input, states, parameters), v for gradients
of its results and u for tangents of its arguments.
* `gradients` is J^T v, the backward pass of `fastrnn._layer.backward`.
* `_tangents` is J u. The only sequential part is `w_hh t_h`; what input, weights and biases bring
  to the gates is a product over all steps.
* Second derivatives are those of <J u, v> = <u, J^T v>. With respect to v that is J u, to u it is
  J^T v, and to p it is the derivative of J^T v in the direction u (Pearlmutter, "Fast Exact
  Multiplication by the Hessian", Neural Computation 6(1), 1994): the backward pass once more, on
  tangents. It serves reverse over reverse, forward over reverse and reverse over forward alike.

Each of them is a Function, so that transforms nest. vmap goes through to the operators. Where the
operators of tangents and second order have no kernels, `fastrnn._layer.by_reference` takes their
place, and so it does for what lies beyond: third derivatives, forward mode over forward mode.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch.autograd import Function

from fastrnn._layer import batching, by_reference, ops
from fastrnn._layer.backward import (
    PRODUCTS,
    Layer,
    Record,
    apart_columns,
    batch_of,
    gate_gradients,
    matmul,
    options_of,
    outer,
    products_of,
    unprojected,
)
from fastrnn._layer.backward import gradients as first_order
from fastrnn._layer.cells import CELLS
from fastrnn._layer.transforms import (
    in_forward_mode,
    no_autocast,
    requires_grad,
    store,
    stored,
    transforms_active,
)

# -- The derivative in a direction --------------------------------------------------------------


class _Tangents:
    """Tangents of a layer's arguments by name, None for zeros; those of `_sweep` come later."""

    def __init__(self, layer, tensors):
        self.input, *rest = tensors
        self.states, params = rest[: layer.states], rest[layer.states :]
        each, stems = len(layer.stems), layer.stems

        def every(stem):
            if stem not in stems:
                return [None] * layer.directions
            return params[stems.index(stem) :: each]

        self.w_ih, self.w_hh, self.w_hr = every("w_ih"), every("w_hh"), every("w_hr")
        self.b_ih, self.b_hh = every("b_ih"), every("b_hh")
        # Of each direction: four of a norm, one of a cell's vectors.
        inside = ("gain_ih", "gain_hh", "cell_gain", "cell_bias") if layer.normalises else ()
        inside = map(every, (*inside, *(("w_ch",) if "w_ch" in stems else ())))
        self.inside = [tangent for each in zip(*inside) for tangent in each]
        self.saved = self.hidden = None


def _stack(parts):
    """One tensor of all directions, None where all are None."""
    known = [part for part in parts if part is not None]
    if not known:
        return None
    if len(parts) == 1:
        return known[0][None]
    return torch.stack([torch.zeros_like(known[0]) if p is None else p for p in parts])


def _sweep(layer, record, tangents, batch, save):
    """Fills in the tangents of hidden and, if save, all that is saved: those of final states."""
    r, t = record, tangents
    sizes = r.saved[-1].shape[1], layer.input_shape[-1]
    projected = [
        None if w is None else matmul(unprojected(r, d), w.t().contiguous())
        for d, w in enumerate(t.w_hr)
    ]
    t_params = [p for each in zip(t.w_ih, t.w_hh, t.b_ih, t.b_hh) for p in each]
    found = ops.layer_tangent(
        layer.cell, None if t.input is None else t.input.reshape(sizes), t.states, t_params,
        t.inside, (None, None, _stack(projected)),
        None if r.input is None else r.input.reshape(sizes), r.batch_sizes, batch, r.states,
        r.saved, r.weights, save, *layer.inside, *r.of_inside,
    )  # fmt: skip
    t_finals, saved = found[: layer.states], found[layer.states :]
    if save:
        t.saved = saved
        t.hidden = saved[len(r.saved) - layer.states]
    else:
        (t.hidden,) = saved
    return t_finals


def _output(layer, hidden):
    """Every step's h as the layer's output."""
    rows = hidden[0] if layer.directions == 1 else torch.cat([hidden[0], hidden[1]], -1)
    return rows.reshape(*layer.input_shape[:-1], rows.shape[-1])


@no_autocast
def _tangents(layer, *tensors):
    """Of the layer's results."""
    record = Record(layer, _without_biases(layer, tensors[layer.arguments :]))
    tangents = _Tangents(layer, tensors[: layer.arguments])
    batch = batch_of(layer, record, tangents.states[0])
    t_finals = _sweep(layer, record, tangents, batch, layer.keep)
    kept = tangents.saved[-1:] if layer.keep else ()
    return _output(layer, tangents.hidden), *t_finals, *kept


def tangents(layer, *tensors):
    """J u of tangents and a record, differentiable where somebody asks."""
    t_arguments, record = tensors[: layer.arguments], tensors[layer.arguments :]
    if by_reference.serves(record[layer.recorded]):
        return by_reference.tangents(layer, t_arguments, *_by_arguments(layer, record))
    if transforms_active() or requires_grad(*tensors):
        return batching.applied(_Tangent, layer, *tensors)
    return _tangents(layer, *tensors)


class _Tangent(Function):
    generate_vmap_rule = True
    forward = staticmethod(_tangents)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.layer = inputs[0]
        store(ctx, *inputs[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *v):
        layer, count = ctx.layer, ctx.layer.arguments
        if all(d is None for d in v):
            return (None,) * len(ctx.needs_input_grad)
        needs = ctx.needs_input_grad[1:]
        plan = _Plan(layer, (), needs[:count], _of_arguments(layer, needs[count:]))
        tensors = stored(ctx)
        _, first, second = plan.apply(v, (None,) * layer.results, tensors[:count], tensors[count:])
        return None, *first, *_as_record(layer, second)

    @staticmethod
    def jvp(ctx, *_):
        # A call in nested forward mode is the reference's from its beginning.
        name = CELLS[ctx.layer.cell].function
        raise RuntimeError(
            f"{name}: expected one level of forward mode, or one torch.func.jvp or jacfwd inside "
            "another, got tangents that were made before"
        )


def gradients(layer, wanted, *tensors):
    """J^T v of v and a record, differentiable; wanted: a flag for each argument."""
    return batching.applied(_Gradients, _Request(layer, wanted), *tensors)


@dataclass(frozen=True)
class _Request:  # one value: torch.func would take a tuple of flags apart
    layer: Layer
    wanted: tuple


class _MappedGradients(Function):
    generate_vmap_rule = True

    @staticmethod
    @no_autocast
    def forward(request, *tensors):
        layer = request.layer
        v, record = tensors[: layer.results], tensors[layer.results :]
        record = Record(layer, _without_biases(layer, record))
        return tuple(first_order(layer, record, request.wanted, v))

    @staticmethod
    def setup_context(ctx, inputs, output):
        request, *tensors = inputs
        ctx.layer, ctx.wanted = request.layer, request.wanted
        store(ctx, *tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *u):
        if all(t is None for t in u):
            return (None,) * len(ctx.needs_input_grad)
        layer, begin, tensors = ctx.layer, ctx.layer.results, stored(ctx)
        u = iter(u)
        tangents = [next(u) if needed else None for needed in ctx.wanted]
        needs = ctx.needs_input_grad[1:]
        plan = _Plan(layer, needs[:begin], (), _of_arguments(layer, needs[begin:]))
        results, _, second = plan.apply(tensors[:begin], (None,) * begin, tangents, tensors[begin:])
        return None, *results, *_as_record(layer, second)

    @staticmethod
    def jvp(ctx, _, *tangents):
        layer, begin, tensors = ctx.layer, ctx.layer.results, stored(ctx)
        plan = _Plan(layer, (), (), ctx.wanted)
        u = _of_arguments(layer, tangents[begin:])
        second = plan.apply(tensors[:begin], tangents[:begin], u, tensors[begin:])[2]
        return tuple(d for d in second if d is not None)


class _Gradients(_MappedGradients):
    """The same, with a rule that costs less where no derivative of it is asked for."""

    generate_vmap_rule = False

    @staticmethod
    def vmap(info, in_dims, request, *tensors):
        call = _MappedGradients.forward
        if in_forward_mode() or requires_grad(*tensors):
            call = _MappedGradients.apply
        return batching.through(call, info.batch_size, in_dims, (request, *tensors))


def _without_biases(layer, record):
    """A record with all parameters -> one with weights."""
    return *record[: layer.recorded], *layer.weights(record[layer.recorded :])


def _of_arguments(layer, values):
    """One value for each argument, from one for each tensor of a record."""
    first = layer.first_state
    return values[0], *values[first : first + layer.states], *values[layer.recorded :]


def _by_arguments(layer, record):
    """What the reference takes: what of a record is no argument and not computed, the arguments."""
    return record[1 : layer.first_state], _of_arguments(layer, record)


def _as_record(layer, values):
    """The reverse of `_of_arguments`; what is no argument gets None."""
    d_input, *rest = values
    others, saved = (None,) * (layer.first_state - 1), (None,) * layer.saved
    return d_input, *others, *rest[: layer.states], *saved, *rest[layer.states :]


# -- Second order -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """Which results of the second-order sweeps are wanted: one flag for each tensor."""

    layer: Layer
    results: tuple  # J u
    first: tuple  # J^T v
    second: tuple  # the derivative of J^T v

    def apply(self, v, t_v, tangents, record):
        """`(results, first, second)`, each as long as its flags, None where nobody asks."""
        every = self.results, self.first, self.second
        if all(t is None for t in (*t_v, *tangents)) and not any(self.first):
            return [[None] * len(flags) for flags in every]
        if by_reference.serves(record[self.layer.recorded]):
            return self.by_reference(v, t_v, tangents, record)
        flat = iter(batching.applied(_Second, self, *v, *t_v, *tangents, *record))
        return [[next(flat) if wanted else None for wanted in flags] for flags in every]

    def by_reference(self, v, t_v, tangents, record):
        flags = self.results, self.first, self.second
        more = _by_arguments(self.layer, record)
        return by_reference.second_order(self.layer, flags, v, t_v, tangents, *more)

    def split(self, tensors):
        """v, t_v, tangents and a record."""
        results, arguments = self.layer.results, self.layer.arguments
        ends = results, 2 * results, 2 * results + arguments
        return (*(tensors[a:b] for a, b in zip((0, *ends), ends)), tensors[ends[-1] :])


class _Second(Function):
    """What a _Plan wants."""

    generate_vmap_rule = True

    @staticmethod
    @no_autocast
    def forward(plan, *tensors):
        layer = plan.layer
        v, t_v, tangents, record = plan.split(tensors)
        t, r = _Tangents(layer, tangents), Record(layer, _without_biases(layer, record))
        finals = slice(1, 1 + layer.states)
        batch = batch_of(layer, r, *v[finals], *t_v[finals], t.states[0])
        sizes = r.batch_sizes, batch, r.states, r.saved, r.weights
        layered = *sizes, *layer.inside, *r.of_inside
        t_finals = _sweep(layer, r, t, batch, True)
        flat = []
        if any(plan.results):
            results = _output(layer, t.hidden), *t_finals, *t.saved[-1:]
            flat = _wanted(plan.results, results[: layer.results])
        if not any(plan.first) and not any(plan.second):
            return tuple(flat)
        found = gate_gradients(
            layer, ops.gate_gradients(layer.cell, v, *sizes, True, *options_of(layer, r))
        )
        if any(plan.first):
            d_input, d_params = products_of(layer, r, plan.first, found, batch)
            flat += _wanted(plan.first, (d_input, *found.states, *d_params))
        if any(plan.second):
            through = (
                _through(_recurrent(layer, found.gates), t.w_hh),
                _through(found.hidden, t.w_hr),
            )
            t_found = gate_gradients(
                layer,
                ops.gate_gradients_tangent(
                    layer.cell, t_v, t.inside, through, t.states, t.saved, found.received, *layered
                ),
            )
            t_d_input, t_d_params = _products_tangent(plan, r, t, found, t_found, batch)
            flat += _wanted(plan.second, (t_d_input, *t_found.states, *t_d_params))
        return tuple(flat)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.plan, *tensors = inputs
        store(ctx, *tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *gradients):
        needs = ctx.needs_input_grad[1:]
        run = partial(_second_by_reference, ctx.plan)
        return None, *by_reference.pulled(run, stored(ctx), needs, gradients)

    @staticmethod
    def jvp(ctx, _, *tangents):
        run = partial(_second_by_reference, ctx.plan)
        return by_reference.pushed(run, stored(ctx), tangents)


def _second_by_reference(plan, tensors):
    """What `_Second` returns, by operations that can be differentiated any number of times."""
    found = plan.by_reference(*plan.split(tensors))
    flags = plan.results, plan.first, plan.second
    return tuple(value for pair in zip(flags, found) for value in _wanted(*pair))


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
    each = enumerate(t_weights)
    return _stack([None if w is None else matmul(gradients[d], w) for d, w in each])


def _products_tangent(plan, record, tangents, found, t_found, batch):
    """The derivative of `products_of`, at GateGradients in the direction of others.

    Both factors of each product have tangents: two calls of it.
    """
    layer, r, t = plan.layer, record, tangents
    d_input, d_params = products_of(layer, r, plan.second, t_found, batch)
    each, rows = len(layer.stems), found.gates.shape[1]
    w_ih = _zeros_for_none(t.w_ih, r.w_ih) if plan.second[0] else []
    flags, stems = [False] * (4 * layer.directions), layer.stems * layer.directions
    needs = plan.second[1 + layer.states :]
    known = {"w_ih": t.input, "w_hh": t.hidden}
    for i, (stem, needed) in enumerate(zip(stems, needs, strict=True)):
        if needed and known.get(stem) is not None:
            flags[i // each * 4 + PRODUCTS.index(stem)] = True
    if w_ih or any(flags):
        input = None if t.input is None else t.input.reshape(rows, t.input.shape[-1])
        more, products = ops.products(
            found.gates, apart_columns(layer, found.gates), r.batch_sizes, batch, input, t.hidden,
            t.states[0], w_ih, flags, None, False, r.h_scale,
        )  # fmt: skip
        d_input = d_input + more.view(layer.input_shape) if w_ih else d_input
        for i, stem in enumerate(stems):
            if stem in known and flags[i // each * 4 + PRODUCTS.index(stem)]:
                d_params[i] = d_params[i] + products[i // each * 4 + PRODUCTS.index(stem)]
    for i, stem in enumerate(stems):
        if stem == "w_hr" and needs[i]:
            more = outer(found.hidden[i // each], _unprojected_tangent(r, t, i // each))
            d_params[i] = d_params[i] + more
    return d_input, d_params


def _zeros_for_none(tangents, weights):
    """Tangents of all directions, or none at all."""
    if all(t is None for t in tangents):
        return []
    return [torch.zeros_like(w) if t is None else t for t, w in zip(tangents, weights)]


def _unprojected_tangent(record, tangents, direction):
    cells, t_gates, t_cells = record.cells[direction], tangents.saved[0], tangents.saved[-1]
    o = slice(-cells.shape[1], None)
    tanh_c = torch.tanh(cells)
    slope = record.gates[direction][:, o] * (1 - tanh_c * tanh_c)
    return t_gates[direction][:, o] * tanh_c + slope * t_cells[direction]
