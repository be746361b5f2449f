"""The backward pass of one layer with all its directions, from the operators.

A recurrence against time gives the gradients of the gates, products over all steps those of input
and parameters. Nothing here is a Function: `fastrnn._layer.autograd` calls `gradients` where no
derivative of it is asked for, `fastrnn._layer.derivatives` wraps it for where one is.

Tensors of a layer are kept in lists, in this order:
    arguments   input, every state (None: zeros), every parameter
    results     output, every final state and, where a caller keeps them, every step's other states
    saved       normed and rstd, where something is normalised, gates, of what saves them, and every
                step's states
    record      input, batch_sizes, resets, seed and h_scale of options inside the recurrence, every
                state, saved, every parameter or weight
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from fastrnn._layer import ops
from fastrnn._layer.cells import CELLS, STEMS

PRODUCTS = ("w_ih", "w_hh", "b_ih", "b_hh")  # what the operator `products` computes, in its order


@dataclass(slots=True)  # not frozen: that takes three times as long to make
class Layer:
    """What is known of a layer besides its tensors. Nobody changes it."""

    cell: str
    directions: int
    stems: tuple  # what the parameters of one direction are, in order
    input_shape: tuple
    keep: bool = False  # whether every step's states but h are results too
    to_hx: bool = False  # whether resets are to the initial states
    inside: tuple = ()  # norm, eps, rates and counter of `fastrnn._layer.inside.Inside`
    stale: bool = False  # whether biases have changed since the forward pass

    @property
    def states(self):
        return CELLS[self.cell].states

    @property
    def projected(self):
        return "w_hr" in self.stems

    @property
    def places(self):
        """Where weights, and biases, are among the parameters."""
        return PLACES[self.stems, self.directions]

    @property
    def arguments(self):
        return 1 + self.states + len(self.stems) * self.directions

    @property
    def results(self):
        return self.states * 2 if self.keep else 1 + self.states

    @property
    def norm(self):
        return self.inside[0] if self.inside else "none"

    @property
    def normalises(self):
        return self.norm != "none"

    @property
    def inside_stems(self):
        """What gate_gradients has gradients of: gains, a cell's vectors, and, whether there are any
        or not, the biases that follow normalised products."""
        biases = ["b_ih", "b_hh"][self.norm == "joint" :] if self.normalises else []
        return [*biases, *(s for s in self.stems if s[:4] in ("gain", "cell", "w_ch"))]

    @property
    def by_products(self):
        """Stems whose gradients are sums over d_gates."""
        return PRODUCTS[:2] if self.normalises else PRODUCTS

    @property
    def saves_gates(self):
        return bool(self.inside) or CELLS[self.cell].saves_gates

    @property
    def saved(self):
        """How many tensors a forward pass saves."""
        return 2 * self.normalises + self.saves_gates + self.states

    @property
    def first_state(self):
        """Tensors of a record before the states."""
        return 5 if self.inside else 3

    @property
    def recorded(self):
        """Tensors of a record before the parameters."""
        return self.first_state + self.states + self.saved

    def weights(self, params):
        """Without the biases, which no derivative depends on once the gates are known."""
        return [params[i] for i in self.places[0]]

    def with_biases(self, weights, biases):
        """The reverse."""
        params = [None] * (len(weights) + len(biases))
        for places, values in zip(self.places, (weights, biases)):
            for i, value in zip(places, values, strict=True):
                params[i] = value
        return params


# By stems and directions: where weights, and biases (b_ih and b_hh), are among the params.
PLACES = {
    (stems, directions): tuple(
        [i for i, stem in enumerate(stems * directions) if (stem[0] == "b") == biases]
        for biases in (False, True)
    )
    for stems in STEMS.values()
    for directions in (1, 2)
}


def layer_of(cell, bidirectional, params, input_shape, keep=False, to_hx=False, inside=()):
    """The Layer of so many params."""
    directions = 1 + bidirectional
    stems = STEMS[cell, inside[0] if inside else "none", params // directions]
    return Layer(cell, directions, stems, input_shape, keep and CELLS[cell].has_c, to_hx, inside)


class Record:
    """A record by name; None is what a layer has not, or what nobody needs."""

    def __init__(self, layer, tensors):
        states, rest = layer.states, list(tensors[layer.first_state :])
        self.input, self.batch_sizes, self.resets, *self.of_inside = tensors[: layer.first_state]
        self.h_scale = self.of_inside[1] if self.of_inside else None
        self.states, rest = rest[:states], rest[states:]
        self.saved, self.weights = rest[: layer.saved], rest[layer.saved :]
        self.gates = self.saved[-states - 1] if layer.saves_gates else None
        self.hidden = self.saved[-states]
        self.cells = self.saved[-1] if states > 1 else None
        each = len(self.weights) // layer.directions
        self.w_ih, self.w_hh = self.weights[::each], self.weights[1::each]
        self.w_hr = self.weights[2::each] if layer.projected else []


def gradients(layer, record, wanted, d_results):
    """Those gradients of the arguments that are wanted: a flag each."""
    r, options = record, options_of(layer, record)
    batch = batch_of(layer, r, *d_results[1 : 1 + layer.states])
    sizes = r.batch_sizes, batch, r.states, r.saved, r.weights
    return ops.layer_backward(layer.cell, d_results, r.input, *sizes, wanted, *options)


def options_of(layer, record):
    """The last arguments of layer_backward and gate_gradients."""
    if record.resets is None and not layer.inside:
        return ()
    return record.resets, layer.to_hx, *layer.inside, *record.of_inside


class GateGradients(NamedTuple):
    """What a backward pass through the steps leaves."""

    gates: torch.Tensor  # [D, N, S*H]
    states: list
    hidden: torch.Tensor | None  # [D, N, P] of h behind its projection
    inside: dict  # by (direction, stem), of the layer's inside_stems
    received: list  # [D, N, H] of every state, as each cell received it


def gate_gradients(layer, found):
    """By name, from the operator's list."""
    gates, *rest = found
    states, rest = rest[: layer.states], rest[layer.states :]
    hidden = rest.pop(0) if layer.projected else None
    stems = layer.inside_stems
    inside = {(d, stem): rest.pop(0) for d in range(layer.directions) for stem in stems}
    return GateGradients(gates, states, hidden, inside, rest)


def by_products(layer, record, wanted, d_results, batch):
    """As `gradients`, by the operators that layer_backward is made of."""
    r = record
    found = gate_gradients(
        layer,
        ops.gate_gradients(
            layer.cell, d_results, r.batch_sizes, batch, r.states, r.saved, r.weights, False
        ),
    )
    d_input, d_params = products_of(layer, r, wanted, found, batch)
    every = d_input, *found.states, *d_params
    return [d for d, needed in zip(every, wanted, strict=True) if needed]


def products_of(layer, record, wanted, found, batch):
    """`(d_input, [d_param, ...])` from GateGradients, None where nobody asks."""
    r, each = record, len(layer.stems)
    flags = [False] * (4 * layer.directions)
    for i, needed in enumerate(wanted[1 + layer.states :]):
        stem = layer.stems[i % each]
        if needed and stem in layer.by_products:
            flags[i // each * 4 + PRODUCTS.index(stem)] = True
    input = None if r.input is None else r.input.reshape(-1, r.input.shape[-1])
    d_input, products = ops.products(
        found.gates, apart_columns(layer, found.gates), r.batch_sizes, batch, input, r.hidden,
        None if r.hidden is None else r.states[0], r.w_ih if wanted[0] else [], flags,
        r.resets, layer.to_hx, None if r.hidden is None else r.h_scale,
    )  # fmt: skip
    d_params = []
    for i, needed in enumerate(wanted[1 + layer.states :]):
        direction, stem = i // each, layer.stems[i % each]
        if not needed:
            d_params.append(None)
        elif stem == "w_hr":
            d_params.append(outer(found.hidden[direction], unprojected(r, direction)))
        elif stem in layer.by_products:
            d_params.append(products[direction * 4 + PRODUCTS.index(stem)])
        else:
            d_params.append(found.inside[direction, stem])
    return d_input.view(layer.input_shape) if wanted[0] else None, d_params


def apart_columns(layer, d_gates):
    """How many columns at the end of d_gates are the recurrent product's alone."""
    norm, cell = layer.norm, CELLS[layer.cell]
    if norm == "none":
        return d_gates.shape[-1] // cell.columns if cell.apart else 0
    return d_gates.shape[-1] // 2 if norm == "recurrent" else 0


def unprojected(record, direction):
    """Every step's h before its projection: o * tanh(c), o being the last gate of cells with c."""
    cells = record.cells[direction]
    return record.gates[direction][:, -cells.shape[1] :] * torch.tanh(cells)


def batch_of(layer, record, *states):
    """Rows of a state."""
    if len(layer.input_shape) == 3:
        return layer.input_shape[1]
    for state in (record.states[0], *states):
        if state is not None:
            return state.shape[1]
    return int(record.batch_sizes[0])


# Products in the kernels' own form: torch.mm would depend on the number of threads.


def outer(a, b):
    """a^T b, of `[N, A]` and `[N, B]`."""
    flags = [True, False, False, False]
    return ops.products(a[None], 0, None, len(a), b, None, None, [], flags)[1][0]


def matmul(a, b):
    """a b, of `[N, A]` and `[A, B]`."""
    flags = [False] * 4
    return ops.products(a[None], 0, None, len(a), None, None, None, [b], flags)[0]
