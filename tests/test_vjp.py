"""layer_vjp: the backward pass in one call, beside the two operators it takes the place of."""

import pytest
import torch

from fastrnn import _ops
from tests.cases import KINDS, gates_of
from tests.test_operators import leaves

# Steps and rows a step: one chunk of 2048 rows, several, a short last one, a step with more rows
# than a chunk, one row a step, packed data with many sequences at first and few at last.
SHAPES = {
    "one": (3, 2),
    "even": (64, 128),
    "last": (70, 99),
    "wide": (3, 2100),
    "steps": (4500, 1),
    "packed": [400] * 5 + [300] * 10 + [30] * 60,
    "packed_steep": [3000, 2, 1],
}


def sample(cell, shape, directions, dtype, hidden=7, features=5):
    """Arguments of layer_vjp, of a forward pass with both initial states."""
    generator = torch.Generator().manual_seed(0)

    def random(*size, scale=1.0):
        values = torch.randn(*size, generator=generator, dtype=torch.float64)
        return (scale * values).to(dtype)

    proj, cell = cell.endswith("_proj"), cell.removesuffix("_proj")
    h_size = 4 if proj else hidden
    packed = isinstance(shape, list)
    batch_sizes = torch.tensor(shape) if packed else None
    rows = (sum(shape),) if packed else shape
    batch = shape[0] if packed else shape[1]
    gates = gates_of(cell)
    sizes = [(gates * hidden, features), (gates * hidden, h_size), (gates * hidden,)]
    sizes += [(gates * hidden,)] + ([(h_size, hidden)] if proj else [])
    params = [random(*size, scale=0.25) for _ in range(directions) for size in sizes]
    input = random(*rows, features)
    h0, c0 = random(directions, batch, h_size), random(directions, batch, hidden)
    states = (h0, c0) if cell == "lstm" else (h0,)
    name, *rest = cell.split("_")
    outputs = getattr(_ops, f"{name}_forward")(
        input, batch_sizes, *states, params, True, directions == 2, *rest, True
    )
    output, saved = outputs[0], outputs[len(states) + 1 :]
    all_gates, hidden_of, cells_of = (*saved, None)[:3] if name != "rnn" else (None, *saved, None)
    each = len(sizes)
    v = random(*output.shape), random(*h0.shape), random(*c0.shape), random(directions, 1, 1)
    d_cells = v[3].expand_as(cells_of).contiguous() if cell == "lstm" else None
    return dict(
        cell=cell, d_output=v[0], d_h_n=v[1], d_c_n=v[2] if cell == "lstm" else None,
        d_cells=d_cells, input=input.flatten(0, -2), batch_sizes=batch_sizes, batch=batch, h0=h0,
        c0=c0 if cell == "lstm" else None, gates=all_gates, hidden=hidden_of, cells=cells_of,
        w_ih=params[::each], w_hh=params[1::each], w_hr=params[4::each] if each == 5 else [],
        weights_and_biases=[True] * (4 * directions),
    )  # fmt: skip


def by_two(a):
    """The same by layer_backward and layer_gradients."""
    names = ("cell", "d_output", "d_h_n", "d_c_n", "d_cells", "batch_sizes", "batch", "h0", "c0",
             "gates", "hidden", "cells", "w_hh", "w_hr")  # fmt: skip
    d_gates, d_h0, d_c0, d_hidden, *_ = _ops.layer_backward(*(a[name] for name in names))
    d_input, d_params = _ops.layer_gradients(
        a["cell"].partition("_")[0], d_gates, a["batch_sizes"], a["batch"], a["input"], a["hidden"],
        a["h0"], a["w_ih"], a["weights_and_biases"],
    )  # fmt: skip
    return d_input, d_h0, d_c0, d_hidden, d_params


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("cell", KINDS)
def test_is_both_operators(cpu_target, threads, cell, shape, directions):
    """Sums come in another order; their rounding is all that may differ."""
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-4)):
        arguments = sample(cell, shape, directions, dtype)
        threads(2)
        expected = leaves(by_two(arguments))
        results = []
        for count in (1, 2, 5):
            threads(count)
            results.append(leaves(_ops.layer_vjp(*arguments.values())))
        for a, b, *others in zip(expected, *results, strict=True):
            scale = max(1.0, a.abs().max().item() if a.numel() else 0.0)
            torch.testing.assert_close(b, a, rtol=0, atol=tolerance * scale)
            assert all(torch.equal(b, other) for other in others)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("shape", [SHAPES["last"], SHAPES["packed"]], ids=["padded", "packed"])
@pytest.mark.parametrize("cell", KINDS)
def test_narrow_dtypes(cpu_target, threads, cell, shape, directions, dtype):
    """Rounded once, after all sums: to the same value or its neighbour."""
    arguments = sample(cell, shape, directions, dtype)
    expected = leaves(by_two(arguments))
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(leaves(_ops.layer_vjp(*arguments.values())))
    step = 2 * torch.finfo(dtype).eps
    for a, b, *others in zip(expected, *results, strict=True):
        torch.testing.assert_close(b, a, rtol=step, atol=step)
        assert all(torch.equal(b, other) for other in others)


@pytest.mark.parametrize("cell", KINDS)
@pytest.mark.parametrize("directions", [1, 2])
def test_only_what_is_wanted(cell, directions):
    """Each result alone has the value it has among all, and what nobody wants has size 0."""
    arguments = sample(cell, SHAPES["last"], directions, torch.float64)
    d_input, d_h0, *_, d_params = _ops.layer_vjp(*arguments.values())
    alone = dict(arguments, weights_and_biases=[False] * (4 * directions), hidden=None)
    alone["hidden"] = None if cell.startswith("lstm") else arguments["hidden"]
    results = _ops.layer_vjp(*dict(alone, input=None).values())
    assert torch.equal(results[0], d_input) and torch.equal(results[1], d_h0)
    assert all(t.shape == (0,) for t in results[4])
    for i, expected in enumerate(d_params):
        wanted = [k == i for k in range(4 * directions)]
        results = _ops.layer_vjp(*dict(arguments, w_ih=[], weights_and_biases=wanted).values())
        assert results[0].shape == (0,) and torch.equal(results[4][i], expected)


def test_checks():
    arguments = sample("lstm", SHAPES["one"], 2, torch.float32)

    def refused(message, **changed):
        with pytest.raises(RuntimeError, match=message):
            _ops.layer_vjp(*dict(arguments, **changed).values())

    refused("layer_vjp: expected 8 flags, got 4", weights_and_biases=[True] * 4)
    refused("expected input for d_w_ih, got None", input=None)
    refused("expected hidden, got None", hidden=None)
    refused("expected 2 w_ih, got 1", w_ih=arguments["w_ih"][:1])
    refused("expected input of shape", input=arguments["input"][:-1])
    refused("expected w_ih of shape", w_ih=[w[:, :-1] for w in arguments["w_ih"]])
    refused("expected cell", cell="elman")
    refused("expected input .* dtype Float", input=arguments["input"].double())
