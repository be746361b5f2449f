"""What kernels do not have: layers and derivatives by the equations, which torch differentiates.

Right but slow, a loop over steps of torch's own operations; nothing here is a Function, so results
can be differentiated any number of times. It serves derivatives beyond the second and nested
forward mode everywhere, and on devices whose engine has none of them the second ones, tangents and
options inside the recurrence. Write F for a layer at its arguments p, v for gradients
of its results, u for tangents of its arguments, J for the Jacobian, as in
`fastrnn._layer.derivatives`.
"""

import torch

from fastrnn import reference, variants_reference
from fastrnn._layer.cells import CELLS


def serves(tensor):
    """Whether the operators that these derivatives are made of have no kernel for the tensor."""
    return tensor.device.type not in ("cpu", "meta")


def run(layer, others, input, states, params, keep):
    """What `fastrnn._layer.autograd.layer` returns."""
    output, finals, cells, gates = _layer(layer, others, input, states, params)
    if not keep:
        return output, *finals
    return output, *finals, cells, None if gates is None else gates.detach()


def pulled(call, tensors, needs, gradients):
    """Gradients of a tuple-valued function of a list of tensors, None where not needed."""
    places = [i for i, needed in enumerate(needs) if needed]
    results, pull = torch.func.vjp(_moving(call, tensors, places), *(tensors[i] for i in places))
    pairs = zip(results, gradients, strict=True)
    found = pull(tuple(torch.zeros_like(r) if g is None else g for r, g in pairs))
    found = dict(zip(places, found, strict=True))
    return [found.get(i) for i in range(len(tensors))]


def pushed(call, tensors, tangents):
    """Tangents of a tuple-valued function of a list of tensors; None are zeros.

    J u as the derivative of J^T v with respect to v: no forward mode inside forward mode.
    """
    places = [i for i, tangent in enumerate(tangents) if tangent is not None]
    results, pull = torch.func.vjp(_moving(call, tensors, places), *(tensors[i] for i in places))
    zeros = tuple(torch.zeros_like(result) for result in results)
    return torch.func.vjp(pull, zeros)[1](tuple(tangents[i] for i in places))[0]


def _moving(call, tensors, places):
    """A function of those of a list of tensors that are in these places."""

    def of_moved(*moved):
        every = list(tensors)
        for i, tensor in zip(places, moved, strict=True):
            every[i] = tensor
        return call(every)

    return of_moved


def tangents(layer, t_arguments, others, arguments):
    """J u. Arguments may be None, and their tangents u. others: batch_sizes, resets and, of options
    inside the recurrence, seed and h_scale."""
    nothing = (None,) * layer.results
    flags = (True,) * layer.results, (), ()
    return tuple(second_order(layer, flags, nothing, nothing, t_arguments, others, arguments)[0])


def second_order(layer, flags, v, t_v, u, others, arguments):
    """`(J u, J^T v, the derivative of J^T v in the direction (t_v, u))`, None where not wanted.

    flags: which of each are. v and its tangents t_v are of results. Each tensor may be None.
    """
    name = CELLS[layer.cell].function
    if arguments[0] is None:
        raise RuntimeError(
            f"{name}: expected an input or w_ih that requires gradients where derivatives beyond "
            "the second are wanted: without them the input is not kept"
        )
    if layer.stale:
        raise RuntimeError(
            f"{name}: expected biases as they were in the forward pass where derivatives by the "
            "equations are wanted, got some that were changed in place"
        )
    of_results, of_first, of_second = flags
    here = [i for i, argument in enumerate(arguments) if argument is not None]
    slots = [
        slot
        for slot in range(layer.results)
        if v[slot] is not None or t_v[slot] is not None or (of_results and of_results[slot])
    ]
    dtype = arguments[0].dtype
    wide = torch.promote_types(dtype, torch.float32)  # 16 bits: computed so, and rounded once

    def widened(tensors):
        return [None if t is None else t.to(wide) for t in tensors]

    def run(*present):
        every = [None] * len(arguments)
        for i, argument in zip(here, present, strict=True):
            every[i] = argument
        results = _run(layer, others, *every)
        return tuple(results[slot] for slot in slots)

    def back(gradients, present):
        """J^T of gradients, zeros for None."""
        results, pull = torch.func.vjp(run, *present)
        return pull(
            tuple(
                torch.zeros_like(result) if g is None else g
                for result, g in zip(results, gradients, strict=True)
            )
        )

    def in_order(places, count, values):
        """Values of the slots or the arguments that are there, by the place of each."""
        found = dict(zip(places, values, strict=True))
        return [found.get(i) for i in range(count)]

    def chosen(wanted, values):
        return [None if v is None or not w else v.to(dtype) for w, v in zip(wanted, values)]

    v, t_v, u = ([*widened(tensors)] for tensors in (v, t_v, u))
    present = [arguments[i].to(wide) for i in here]
    v, t_v = [v[slot] for slot in slots], [t_v[slot] for slot in slots]
    directed = [(k, u[i]) for k, i in enumerate(here) if u[i] is not None]

    results = first = second = None
    if directed and (any(of_results) or any(of_second)):
        # <J^T v, u> = <v, J u>: its gradients are J u with respect to v, and with respect to p the
        # derivative of J^T v in the direction u.
        known = [k for k, gradient in enumerate(v) if gradient is not None]
        if any(of_results):
            shapes = torch.func.vjp(run, *present)[0]
            v = [torch.zeros_like(r) if g is None else g for r, g in zip(shapes, v)]
            known = list(range(len(v)))

        def paired(values, present):
            gradients = [None] * len(v)
            for k, value in zip(known, values):
                gradients[k] = value
            found = back(gradients, present)
            return sum((found[k] * tangent).sum() for k, tangent in directed)

        value, pull = torch.func.vjp(paired, tuple(v[k] for k in known), tuple(present))
        of_v, second = pull(torch.ones_like(value))
        if any(of_results):
            results = of_v
    if any(of_first):
        first = back(v, present)
    if any(of_second) and any(t is not None for t in t_v):
        more = back(t_v, present)
        second = more if second is None else [a + b for a, b in zip(second, more)]
    every = []
    if results is None:
        every.append([None] * len(of_results))
    else:
        every.append(chosen(of_results, in_order(slots, layer.results, results)))
    for wanted, values in ((of_first, first), (of_second, second)):
        if not any(wanted):
            found = wanted
        elif values is None:  # nothing has brought anything to them
            found = [None if a is None else torch.zeros_like(a) for a in arguments]
        else:
            found = in_order(here, len(arguments), values)
        every.append(chosen(wanted, found))
    return every


def _run(layer, others, input, *tensors):
    """The layer's results by the reference."""
    states, params = tensors[: layer.states], tensors[layer.states :]
    output, finals, cells, _ = _layer(layer, others, input, states, params)
    return output, *finals, *((cells,) if layer.keep else ())


def _layer(layer, others, input, states, params):
    """`(output, final states, every step's c, gates)`, the last two None of cells without them."""
    batch_sizes, resets, *of_inside = others
    bidirectional = layer.directions == 2
    if layer.inside:
        arguments = input, batch_sizes, states, params, bidirectional
        inside = *layer.inside, *of_inside
        run = variants_reference.layer
        output, *finals, cells, gates = run(layer.cell, *arguments, inside, True)
        return output, finals, cells, gates if CELLS[layer.cell].saves_gates else None
    resets_to = "hx" if layer.to_hx else "zeros"
    hx = states if states[0] is not None else None
    layout = 1, bidirectional, False, batch_sizes, resets, resets_to, None
    has_biases = "b_ih" in layer.stems
    output, finals, each = reference.stack(layer.cell, input, hx, params, has_biases, *layout)
    cells, gates = (None if t is None else t.flatten(1, -2) for t in each[1:])
    return output, finals, cells, gates if CELLS[layer.cell].saves_gates else None
