"""torch.autograd's own vmap: is_grads_batched, vectorize and what gradcheck asks of both."""

import pytest
import torch
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint

import fastrnn
from tests.cases import CELLS, KINDS, LAYERS, Case

RESETS = torch.tensor([[0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 0, 1], [1, 0, 0]]).bool()
LENGTHS = torch.tensor([5, 2, 3])
OPTIONS = {
    "plain": {},
    "resets": {"resets": RESETS},
    "lengths": {"lengths": LENGTHS},
    "all": {"resets": RESETS, "lengths": LENGTHS, "reset_to": "hx", "return_states": True},
}


def check(outputs, sources):
    """Gradients, and gradients of those: the graph is that of one at a time."""
    for samples in (1, 4):
        gradients = torch.randn(samples, *outputs.shape, dtype=outputs.dtype)
        each = [
            torch.autograd.grad(outputs, sources, g, create_graph=True, allow_unused=True)
            for g in gradients
        ]
        expected = [torch.stack(parts) for parts in zip(*each, strict=True)]
        for create_graph in (False, True):
            actual = torch.autograd.grad(
                outputs, sources, gradients, is_grads_batched=True, retain_graph=True,
                create_graph=create_graph,
            )  # fmt: skip
            torch.testing.assert_close(list(actual), expected)
        assert [t.requires_grad for t in actual] == [t.requires_grad for t in expected]
        second = [
            torch.autograd.grad(
                sum((t * t).sum() for t in first if t.requires_grad), sources, retain_graph=True,
                allow_unused=True,
            )
            for first in (actual, expected)
        ]  # fmt: skip
        assert [t is None for t in second[0]] == [t is None for t in second[1]]
        torch.testing.assert_close(*([t for t in each if t is not None] for each in second))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [(), (2, 4, 1)], ids=["padded", "packed"])
def test_gradients(kind, lengths):
    case = Case(kind, 4, 3, 5, 6, lengths=lengths, options={"bidirectional": True, "num_layers": 2})
    module, data = case.modules(torch.float64)[1], case.data(torch.float64)
    sources = [*data.inputs, *data.states, *module.parameters()]
    for source in sources:
        source.requires_grad_()
    x = pack_sequence(data.inputs, enforce_sorted=False) if lengths else data.inputs[0]
    hx = tuple(data.states) if case.name == "LSTM" else data.states[0]
    output, finals = module(x, hx)
    finals = finals if case.name == "LSTM" else (finals,)
    output = output.data if lengths else output
    check(torch.cat([t.reshape(-1) for t in (output, *finals)]), sources)


def module_and_input(name, **changes):
    module = getattr(fastrnn, name)(3, 4, **changes).double()
    return module, torch.randn(5, 3, 3, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_jacobians_and_hessians(name, options):
    module, x = module_and_input(name, bidirectional=True, num_layers=2)

    def run(x):
        output, _, *states = module(x, **options)
        every = [output, *(s for each in states for s in each[:2] if s is not None)]
        return torch.cat([t.flatten() for t in every])

    def loss(x):
        return run(x).square().sum()

    check(run(x), [x, *module.parameters()])
    expected = jacobian(run, x)
    for strategy in ("reverse-mode", "forward-mode"):
        actual = jacobian(run, x, vectorize=True, strategy=strategy)
        torch.testing.assert_close(actual, expected)
    expected = hessian(loss, x)
    for strategy in ("reverse-mode", "forward-mode"):
        actual = hessian(loss, x, vectorize=True, outer_jacobian_strategy=strategy)
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_gradcheck(name):
    module, x = module_and_input(name)
    names = [n for n, _ in module.named_parameters()]

    def run(x, *params):
        return functional_call(module, dict(zip(names, params)), (x,))[0]

    checks = {"check_batched_grad": True, "fast_mode": True}
    assert torch.autograd.gradcheck(
        run, (x, *module.parameters()), check_forward_ad=True, check_batched_forward_grad=True,
        **checks,
    )  # fmt: skip
    assert torch.autograd.gradgradcheck(run, (x, *module.parameters()), **checks)


@pytest.mark.parametrize("name", LAYERS)
def test_recomputed(name):
    """What keeps some of the steps alone, and what torch recomputes."""
    module, x = module_and_input(name)
    check(checkpoint(lambda x: module(x)[0], x, use_reentrant=False), [x, *module.parameters()])
    module.checkpoint_every = 2
    check(module(x)[0], [x, *module.parameters()])


@pytest.mark.parametrize("name", CELLS)
def test_cells(name):
    cell = getattr(fastrnn, name)(3, 4).double()
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    result = cell(x)
    h = result[0] if name == "LSTMCell" else result
    check(h, [x, *cell.parameters()])


@pytest.mark.parametrize("options", [{}, {"layer_norm": True}, {"zoneout": 0.2}], ids=str)
def test_variants(options):
    module = fastrnn.variants.LSTM(3, 4, **options).double()
    x = torch.randn(5, 3, 3, dtype=torch.float64, requires_grad=True)
    check(module(x)[0], [x, *module.parameters()])


def test_third_derivatives():
    """Not left out of a graph."""
    module, x = module_and_input("GRU")
    params = list(module.parameters())
    found = []
    for vectorize in (False, True):
        second = hessian(lambda x: module(x)[0].sum(), x, vectorize=vectorize, create_graph=True)
        found.append(torch.autograd.grad(second.square().sum(), params))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_two_levels_are_refused():
    module, x = module_and_input("LSTM")
    output = module(x)[0]

    def rows(scale):
        gradients = scale * torch.ones(2, *output.shape, dtype=x.dtype)
        return torch.autograd.grad(output, x, gradients, is_grads_batched=True, retain_graph=True)[
            0
        ].sum()

    with pytest.raises(RuntimeError, match="expected one level of is_grads_batched or vectorize"):
        torch._vmap_internals._vmap(rows)(torch.ones(3, dtype=x.dtype))
