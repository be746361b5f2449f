"""layer_vjp: the backward pass in one call, beside the two operators it takes the place of."""

import pytest
import torch

from fastrnn import _ops
from tests.arguments import layer_values, of_layer, tensors_in
from tests.cases import KINDS

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


def values_of(cell, shape, directions, dtype):
    return layer_values(cell, shape, directions, dtype, hidden=7, features=5, weight=0.25)


def by_one(values):
    return _ops.layer_vjp(*of_layer("layer_vjp", values).values())


def by_two(values):
    """The same by layer_backward and products."""
    d_gates, d_h0, d_c0, d_hidden, *_ = _ops.layer_backward(
        *of_layer("layer_backward", values).values()
    )
    values = values | {"d_gates": d_gates}
    d_input, d_params = _ops.products(*of_layer("products", values).values())
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
        values = values_of(cell, shape, directions, dtype)
        threads(2)
        expected = tensors_in(by_two(values))
        results = []
        for count in (1, 2, 5):
            threads(count)
            results.append(tensors_in(by_one(values)))
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
    values = values_of(cell, shape, directions, dtype)
    expected = tensors_in(by_two(values))
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(tensors_in(by_one(values)))
    step = 2 * torch.finfo(dtype).eps
    for a, b, *others in zip(expected, *results, strict=True):
        torch.testing.assert_close(b, a, rtol=step, atol=step)
        assert all(torch.equal(b, other) for other in others)


@pytest.mark.parametrize("cell", KINDS)
@pytest.mark.parametrize("directions", [1, 2])
def test_only_what_is_wanted(cell, directions):
    """Each result alone has the value it has among all, and what nobody wants has size 0."""
    arguments = of_layer("layer_vjp", values_of(cell, SHAPES["last"], directions, torch.float64))
    d_input, d_h0, *_, d_params = _ops.layer_vjp(*arguments.values())
    alone = dict(arguments, wanted=[False] * (4 * directions), hidden=None)
    alone["hidden"] = None if cell.startswith("lstm") else arguments["hidden"]
    results = _ops.layer_vjp(*dict(alone, input=None).values())
    assert torch.equal(results[0], d_input) and torch.equal(results[1], d_h0)
    assert all(t.shape == (0,) for t in results[4])
    for i, expected in enumerate(d_params):
        wanted = [k == i for k in range(4 * directions)]
        results = _ops.layer_vjp(*dict(arguments, w_ih=[], wanted=wanted).values())
        assert results[0].shape == (0,) and torch.equal(results[4][i], expected)


def test_checks():
    arguments = of_layer("layer_vjp", values_of("lstm", SHAPES["one"], 2, torch.float32))

    def refused(message, **changed):
        with pytest.raises(RuntimeError, match=message):
            _ops.layer_vjp(*dict(arguments, **changed).values())

    refused("layer_vjp: expected 8 flags, got 4", wanted=[True] * 4)
    refused("expected input for d_w_ih, got None", input=None)
    refused("expected hidden, got None", hidden=None)
    refused("expected 2 w_ih, got 1", w_ih=arguments["w_ih"][:1])
    refused("expected input of shape", input=arguments["input"][:-1])
    refused("expected w_ih of shape", w_ih=[w[:, :-1] for w in arguments["w_ih"]])
    refused("expected cell", cell="elman")
    refused("expected input .* dtype Float", input=arguments["input"].double())
