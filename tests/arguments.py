"""Arguments of the operators, by name: the one place that makes them.

Which values an operator takes, and in which order, is read from its schema.
"""

import functools

import torch

import fastrnn
from fastrnn._layer.cells import CELLS, STEMS
from fastrnn._layer.inside import Inside

CPU_ONLY = {"layer_tangent", "gate_gradients_tangent", "quantized_forward", "drop_weights",
            "segments", "gather_rows", "sample_products"}  # fmt: skip
# Those that take options inside the recurrence.
WITH_INSIDE = ["layer_backward", "layer_forward", "gate_gradients", "layer_tangent",
               "gate_gradients_tangent"]  # fmt: skip


def operators():
    """Names of all that have kernels: not what is Python, made of others."""
    names = torch._C._dispatch_get_all_op_names()
    ours = {n.partition("::")[2].partition(".")[0] for n in names if n[:9] == "fastrnn::"}
    return sorted(name for name in ours if not name.endswith(("_recorded", "_of_lengths")))


def device_operators():
    """Names of those that the CUDA engine implements too."""
    return [name for name in operators() if name not in CPU_ONLY]


def overload(name):
    return getattr(torch.ops.fastrnn, name).default


def in_order(name, values):
    """Those of `values` that an operator takes; only what has a default may be missing."""
    return {
        a.name: values[a.name]
        for a in overload(name)._schema.arguments
        if a.name in values or not a.has_default_value()
    }


def call(name, **values):
    """Results of an operator; tensors that are optional and not given are None."""
    optional = [a for a in overload(name)._schema.arguments if str(a.type) == "Optional[Tensor]"]
    return overload(name)(**dict.fromkeys(a.name for a in optional) | values)


def tensors_in(value):
    """Every tensor in lists, tuples and dicts."""
    return [t for t in torch.utils._pytree.tree_leaves(value) if torch.is_tensor(t)]


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def like(tensor):
    """Random numbers in the shape of a tensor, or None of None."""
    return None if tensor is None else random(*tensor.shape, dtype=tensor.dtype)


def arguments_of(name, packed, bidirectional, proj=False):
    """Small ones of any operator; those of a backward pass are what a forward pass saved.

    proj: of an LSTM with a projection, where the operator has one.
    """
    proj = proj and not name.endswith("products")
    directions = 2 if bidirectional else 1
    if name == "quantized_forward":
        return quantized_sample(packed, bidirectional, proj)
    if name in ("segments", "gather_rows", "drop_weights"):
        return in_order(name, values_without_a_layer(packed, directions))
    kind = "lstm_proj" if proj else "gru"
    values = layer_values(kind, [3, 3, 1] if packed else (4, 3), directions)
    if packed:  # not all of them
        values["wanted"][-1 if proj else 4] = values["flags"][2] = False
    if name.endswith("products"):
        values["wanted"] = values["flags"]
    if name == "sample_products":
        values["input"] = values["input"].flatten(0, -2)
        values["samples"] = 2
        for each in ("d_gates", "input", "hidden", "h0"):
            values[each] = torch.cat([values[each], like(values[each])], -2)
    if name.endswith("_tangent"):
        values |= tangent_values(name, values)
    return of_layer(name, values)


def arguments_with_inside(name, packed, bidirectional, cell, norm):
    """Of one of WITH_INSIDE, with every option that the cell has."""
    values = inside_values(
        cell, norm, size=5, directions=2 if bidirectional else 1, scale=True, seed=1,
        lengths=(3, 2, 2) if packed else None, rates=(0.1, 0.2, 0.3),
    )  # fmt: skip
    return of_inside(name, values)


def layer_values(kind, shape, directions, dtype=torch.float64, *, hidden=5, features=2, weight=1.0):
    """Of one layer: what a forward pass takes and saves, random gradients of its results.

    shape: `(steps, batch)`, or a list of the batch sizes of packed data. weight: of that size.
    """
    packed, proj = isinstance(shape, list), kind.endswith("_proj")
    rows, batch = ((sum(shape),), shape[0]) if packed else (shape, shape[1])
    cell = CELLS[kind.removesuffix("_proj")]
    columns, h_size = cell.products * hidden, 4 if proj else hidden
    sizes = [(columns, features), (columns, h_size), (columns,), (columns,)]
    sizes += [(h_size, hidden)] * proj
    params = [(weight * random(*s)).to(dtype) for _ in range(directions) for s in sizes]
    states = [random(directions, batch, s, dtype=dtype) for s in (h_size, hidden)[: cell.states]]
    values = {
        "cell": cell.name,
        "input": random(*rows, features, dtype=dtype),
        "batch_sizes": torch.tensor(shape) if packed else None,
        "batch": batch,
        "apart": hidden if cell.apart else 0,
        "states": states,
        "h0": states[0],
        "params": params,
        "weights": [p for p in params if p.dim() == 2],
        "w_ih": params[:: len(sizes)],
        "bidirectional": directions == 2,
        "save": True,
        "received": True,
        "wanted": [True] * (1 + len(states) + len(params)),
        "flags": [True] * (4 * directions),  # of products
    }
    results = overload("layer_forward")(*in_order("layer_forward", values).values())
    count = 1 + cell.states
    values |= {"saved": results[count:], "hidden": results[count + cell.saves_gates]}
    d_results = (
        [*results[:count], *results[2 * count - 1 :][-1:]] if cell.has_c else results[:count]
    )
    d_gates = random(directions, results[-1].shape[1], cell.columns * hidden, dtype=dtype)
    return values | {"d_results": [*map(like, d_results)], "d_gates": d_gates}


def of_layer(name, values):
    """What an operator takes out of `layer_values`."""
    if not name.endswith("_forward"):
        values = values | {"input": values["input"].flatten(0, -2)}
    return in_order(name, values)


def tangent_values(name, values):
    """Directions of `layer_values`, and what products with those of weights give.

    Random where a sweep would have left it: no operator checks values.
    """
    names = "states", "saved", "d_results"
    found = {f"t_{n}": [*map(like, values[n])] for n in names}
    found["t_input"] = like(values["input"].flatten(0, -2))
    directions, rows, h_size = values["hidden"].shape
    each, columns = len(values["params"]) // directions, values["weights"][0].shape[0]
    hidden, proj = values["saved"][-1].shape[-1], each == 5
    found["t_params"] = [like(p) for i, p in enumerate(values["params"]) if i % each < 4]
    found["t_params"][1] = None
    found["t_inside"] = []
    sizes = (columns, columns, h_size) if name == "layer_tangent" else (h_size, hidden)
    found["through"] = [random(directions, rows, size) for size in sizes]
    if not proj:
        found["through"][-1] = None
    found["received"] = [random(directions, rows, hidden) for _ in values["states"]]
    return found


def values_without_a_layer(packed, directions):
    """Of what moves rows, and of dropped weights."""
    index = torch.tensor([[3, -1, 0, 2], [2, 4, 1, -1]])[:directions]
    return {
        "resets": torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 0], [1, 0, 1]]).bool(),
        "lengths": torch.tensor([4, 2, 0]) if packed else None,
        "seq_len": 4,
        "batch": 3,
        "directions": directions,
        "none_if_whole": False,
        "inputs": [random(2 * directions, 5, 2), random(directions, 5, 5), random(5, 5)],
        "indices": [index, index.view(directions, 2, 2) + 0, index[:1] + 0],
        "weights": random(15, 5),
        "seed": torch.tensor([3]),
        "stream": 2,
        "rate": 0.25,
    }


# -- Options inside the recurrence -----------------------------------------------------------------


def inside_values(
    cell,
    norm="none",
    *,
    steps=4,
    batch=5,
    size=17,
    features=6,
    directions=1,
    lengths=None,
    bias=True,
    states=True,
    scale=False,
    seed=None,
    rates=(0.0, 0.0, 0.0),
    dtype=torch.float64,
    counter=(0, 0, 1),
):
    """What autograd.layer and variants_reference.layer take; random, and gains near 1."""
    of = CELLS[cell]
    columns, d = of.products * size, directions
    draw = functools.partial(random, dtype=dtype)
    batch_sizes, rows = None, (steps, batch)
    if lengths:
        batch, rows = len(lengths), (sum(lengths),)
        batch_sizes = torch.tensor([sum(n > t for n in lengths) for t in range(max(lengths))])
    biases = () if norm == "joint" else (("b_ih",), ("b_hh",)) if bias else ()
    stems = [stem for (c, n, _), stem in STEMS.items() if (c, n) == (cell, norm)]
    stems = [s for s in stems if "w_hr" not in s and ("b_ih" in s) == bool(biases)][0]

    def param(stem):
        if stem in ("w_ih", "w_hh"):
            terms = features if stem == "w_ih" else size
            return draw(columns, terms) * terms**-0.5
        value = draw({"cell": 1, "w_ch": of.vectors}.get(stem[:4], of.products) * size)
        return 1 + 0.3 * value if "gain" in stem else value

    h_scale = (torch.rand(d, batch, size) < 0.7).to(dtype) / 0.7 if scale else None
    seed = None if seed is None else torch.tensor([seed])
    return {
        "cell": cell,
        "input": draw(*rows, features),
        "batch_sizes": batch_sizes,
        "states": [draw(d, batch, size) if states else None for _ in range(of.states)],
        "params": [param(stem) for _ in range(d) for stem in stems],
        "bidirectional": d == 2,
        "inside": Inside(norm, 1e-5, rates, counter, seed, h_scale),
    }


def run_inside(layer, values, keep=False):
    """autograd.layer or variants_reference.layer on `inside_values`."""
    v = values
    options = {"keep": keep, "inside": v["inside"]}
    return layer(
        v["cell"], v["input"], v["batch_sizes"], v["states"], v["params"], v["bidirectional"],
        **options,
    )  # fmt: skip


def of_inside(name, values):
    """What an operator takes out of `inside_values`."""
    norm, cell = values["inside"].norm, CELLS[values["cell"]]
    values = values | values["inside"]._asdict()
    values |= {"save": True, "resets": None, "reset_to_hx": False, "received": True}
    if name == "layer_forward":
        return in_order(name, values)
    results = overload("layer_forward")(*in_order("layer_forward", values).values())
    count, directions = 1 + cell.states, 1 + values["bidirectional"]
    stems = STEMS[cell.name, norm, len(values["params"]) // directions] * directions
    finals = results[:count] + (results[-1:] if cell.has_c else [])
    _, batch, size = results[1].shape
    values |= {
        "saved": results[count:],
        "d_results": [*map(like, finals)],
        "batch": batch,
        "weights": [p for p, s in zip(values["params"], stems) if s[0] != "b"],
        "wanted": [True] * (1 + cell.states + len(stems)),
    }
    if name.endswith("_tangent"):
        rows = results[-1].shape[1]
        values |= {f"t_{n}": [*map(like, values[n])] for n in ("states", "saved", "d_results")}
        values["t_input"] = random(rows, values["input"].shape[-1])
        values["input"] = values["input"].flatten(0, -2)
        each = len(stems) // directions
        by_stem = [
            dict(zip(stems, values["params"][d * each : (d + 1) * each])) for d in range(directions)
        ]
        of_products = ("w_ih", "w_hh", "b_ih", "b_hh")
        of_inside = ("gain_ih", "gain_hh", "cell_gain", "cell_bias") if norm != "none" else ()
        of_inside += ("w_ch",) if cell.vectors else ()
        values["t_params"] = [like(of.get(s)) for of in by_stem for s in of_products]
        values["t_inside"] = [like(of.get(s)) for of in by_stem for s in of_inside]
        values["received"] = [random(directions, rows, size) for _ in values["states"]]
        values["through"] = [None] * 3
        if name != "layer_tangent":
            values["through"] = [random(directions, rows, size), None]
    return in_order(name, values)


# -- Quantized layers ------------------------------------------------------------------------------


def quantized_arguments(layer, input, batch_sizes=None, states=None):
    """Those of quantized_forward for a quantized module's first layer."""
    values = {n: getattr(layer, n) for n in ("cell", "hidden_size", "proj_size", "bidirectional")}
    values["params"] = [layer._buffers[name] for name in layer._layers[0]]
    values |= {"input": input, "batch_sizes": batch_sizes}
    values["states"] = states or [None] * CELLS[layer.cell].states
    return in_order("quantized_forward", values)


def quantized_sample(packed, bidirectional, proj):
    """Of an LSTM with a projection in int8, or a GRU in bfloat16."""
    options = {"bidirectional": bidirectional} | ({"proj_size": 4} if proj else {})
    layer = (fastrnn.LSTM if proj else fastrnn.GRU)(2, 5, **options)
    layer = fastrnn.quantize(layer, torch.int8 if proj else torch.bfloat16, inplace=False)
    d = 2 if bidirectional else 1
    shapes = (*((7,) if packed else (4, 3)), 2), (d, 3, 4 if proj else 5), (d, 3, 5)
    input, h0, c0 = (random(*shape, dtype=torch.float32) for shape in shapes)
    batch_sizes = torch.tensor([3, 3, 1]) if packed else None
    return quantized_arguments(layer, input, batch_sizes, [h0, c0][: 1 + proj])
