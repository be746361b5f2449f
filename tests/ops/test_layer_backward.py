"""layer_backward: the backward pass in one call, beside the operators that it is made of."""

import pytest
import torch

from fastrnn._layer import ops
from fastrnn._layer.backward import Record, by_products, layer_of
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
    return ops.layer_backward(*of_layer("layer_backward", values).values())


def by_two(values):
    """The same by gate_gradients and products."""
    v = of_layer("layer_backward", values)
    layer = layer_of(v["cell"], values["bidirectional"], len(values["params"]), v["input"].shape)
    tensors = v["input"], v["batch_sizes"], None, *v["states"], *v["saved"]
    record = Record(layer, (*tensors, *v["weights"]))
    return by_products(layer, record, v["wanted"], v["d_results"], v["batch"])


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
    """Each result alone has the value it has among all."""
    arguments = of_layer(
        "layer_backward", values_of(cell, SHAPES["last"], directions, torch.float64)
    )
    flags = arguments["wanted"]
    every = ops.layer_backward(*arguments.values())
    assert len(every) == len(flags)
    for i, expected in enumerate(every):
        wanted = [k == i for k in range(len(flags))]
        (alone,) = ops.layer_backward(*dict(arguments, wanted=wanted).values())
        assert torch.equal(alone, expected)
    # Neither products with the input nor, of an LSTM, those with every step's h: not asked for.
    states = len(arguments["states"])
    wanted = [i <= states for i in range(len(flags))]
    saved = list(arguments["saved"])
    if cell.startswith("lstm"):
        saved[1] = None
    found = ops.layer_backward(*dict(arguments, saved=saved, wanted=wanted, input=None).values())
    assert all(map(torch.equal, found, every)) and len(found) == 1 + states
    assert not ops.layer_backward(*dict(arguments, wanted=[False] * len(flags)).values())


def test_checks():
    arguments = of_layer("layer_backward", values_of("lstm", SHAPES["one"], 2, torch.float32))
    gates, hidden, cells = arguments["saved"]

    def refused(message, **changed):
        with pytest.raises(RuntimeError, match=message):
            ops.layer_backward(*dict(arguments, **changed).values())

    refused("layer_backward: expected 7 flags, or 11 with biases, got 4", wanted=[True] * 4)
    refused("expected input for d_w_ih, got None", input=None)
    refused("expected hidden for d_w_hh, got None", saved=[gates, None, cells])
    refused("expected gates, got None", saved=[None, hidden, cells])
    refused("expected 3 saved tensors, got 2", saved=[gates, hidden])
    refused("expected the last saved tensor of shape", saved=[gates, hidden, None])
    refused("expected 2 initial states, got 1", states=arguments["states"][:1])
    refused("expected at most 4 gradients of results, got 5", d_results=[None] * 5)
    refused("expected 2 to 3 weights for each of 2 direct", weights=arguments["weights"] + [gates])
    refused("expected input of 6 rows by 5, got", input=arguments["input"][:-1])
    refused("expected w_hh of shape", weights=[w[:, :-1] for w in arguments["weights"]])
    refused("expected cell", cell="elman")
    refused("expected input .* dtype Float", input=arguments["input"].double())
