"""How large errors are: of the functions in units in the last place, of layers beside torch.nn's.

tests/tolerances.py bounds every single tensor; rounding is luck there, so the bound has room.
Here luck is averaged out, over elements, tensors, sizes and seeds, and there is no room.
"""

import copy
import math

import numpy
import pytest
import torch

from fastrnn._layer import ops
from tests.arguments import call
from tests.cases import Case, module_results

SIZES = [(40, 32, 10, 32), (40, 8, 64, 64), (40, 1, 128, 128), (40, 2, 300, 200)]


@pytest.mark.parametrize("name, gate", [("sigmoid", 0), ("tanh", 2)])
def test_functions(cpu_target, name, gate):
    """The gates of an LSTM whose pre-activations are the input itself."""
    x = torch.cat(
        [torch.linspace(-30, 30, 40_000), torch.randn(20_000) * 1e-3, torch.randn(20_000)]
    )
    params = [torch.ones(4, 1), torch.zeros(4, 1)]
    x = x.view(1, -1, 1)
    _, _, _, gates, *_ = ops.layer_forward("lstm", x, None, [None] * 2, params, False, True)
    exact = getattr(torch, name)(x.view(-1).double())
    ulp = torch.from_numpy(numpy.spacing(exact.abs().float().numpy())).double()
    assert ((gates[0, :, gate].double() - exact).abs() / ulp).max() <= 2.5


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
def test_layers(cpu_target, kind):
    """Root mean square errors of the output and of every gradient, in float32."""
    ratios = {}
    for size in SIZES:
        for _ in range(2):
            case = Case(kind, *size)
            theirs, ours = case.modules()
            data = case.data()
            exact = module_results(copy.deepcopy(theirs).double(), data.to(torch.float64))
            their_results, our_results = module_results(theirs, data), module_results(ours, data)
            for name, expected in exact.items():
                errors = [
                    (r[name] - expected).square().mean() for r in (our_results, their_results)
                ]
                ratios.setdefault(name, []).append(0.5 * math.log(errors[0] / errors[1]))
    means = {name: math.exp(sum(v) / len(v)) for name, v in ratios.items()}
    overall = math.exp(sum(map(sum, ratios.values())) / sum(map(len, ratios.values())))
    assert overall <= 1.0, means
    assert max(means.values()) <= 1.1, means


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [("rnn_tanh", (1, 3, 8, 16)), ("gru", (1, 2, 3)), ("lstm", (1, 2, 4))],
    ids=["rnn_tanh", "gru", "lstm"],
)
@pytest.mark.parametrize("input_size", [64, 128])
def test_narrow_layers(cpu_target, kind, sizes, input_size):
    """Few units share a sum over many features, which libraries then divide among lanes."""
    ratios = []
    for hidden_size in sizes:
        for _ in range(8):
            case = Case(kind, 50, 8, input_size, hidden_size)
            theirs, ours = case.modules()
            x = case.data().inputs[0]
            with torch.no_grad():
                exact = copy.deepcopy(theirs).double()(x.double())[0]
                errors = [(module(x)[0] - exact).abs().mean() for module in (ours, theirs)]
            ratios.append(math.log(errors[0] / errors[1]))
    assert math.exp(sum(ratios) / len(ratios)) <= 1.0


@pytest.mark.parametrize("threads", [1, 2])
def test_sums_of_many_rows(cpu_target, threads):
    """Gradients of biases over 100,000 rows: hundreds of blocks, whose rounding does not add up."""
    generator = torch.Generator().manual_seed(0)
    d_gates = torch.rand(1, 100_000, 24, generator=generator)
    d_gates[0, 70_000, 3], d_gates[0, 300, 4] = torch.inf, torch.nan
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    wanted = [False, False, True, True]
    d_params = call("products", d_gates=d_gates, apart=0, batch=1, w_ih=[], wanted=wanted)[1]
    torch.set_num_threads(before)
    expected = d_gates[0].double().sum(0)
    for result in d_params[2:]:
        assert result[3] == torch.inf and result[4].isnan()
        finite = expected.isfinite()
        error = (result.double() - expected)[finite] / expected[finite]
        assert error.abs().max() < 1.5e-7
