"""fastrnn.variants.CoupledLSTM: torch.nn's LSTM with an input gate of the forget gate's weights."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from fastrnn import reference, variants
from fastrnn._layer import ops
from fastrnn._layer.cells import CELLS
from tests.cases import PACKED
from tests.options import TOLERANCE
from tests.tolerances import error

SETTINGS = {
    "plain": {},
    "stack": {"num_layers": 2, "bidirectional": True},
    "projected": {"proj_size": 3, "bidirectional": True},
    "no_bias": {"bias": False},
}


def tied(rows):
    """Blocks f, g, o as i, f, g, o."""
    f, g, o = rows.chunk(3)
    return torch.cat([-f, f, g, o])


def weights_of_lstm(module):
    """torch.nn.LSTM's, by name, differentiable."""
    named = module.named_parameters()
    return {name: p if "weight_hr" in name else tied(p) for name, p in named}


def pair(features, size, dtype, **options):
    """Ours, and torch.nn's LSTM in float64 for functional_call with `weights_of_lstm`."""
    module = variants.CoupledLSTM(features, size, dtype=dtype, **options)
    return module, nn.LSTM(features, size, dtype=torch.float64, **options)


def random(*shape, dtype):
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def everything(run, module, inputs, states, losses):
    """Results and gradients of a loss that weighs all of them."""
    leaves = [t.detach().clone().requires_grad_() for t in (*inputs, *states)]
    input, hx = leaves[: len(inputs)], tuple(leaves[len(inputs) :])
    input = pack_sequence(input, enforce_sorted=False) if len(input) > 1 else input[0]
    output, final = run(input, hx)
    output = output.data if len(inputs) > 1 else output
    loss = sum((w * t).sum() for w, t in zip(losses, (output, *final), strict=True))
    gradients = torch.autograd.grad(loss, [*leaves, *module.parameters()])
    return [t.detach() for t in (output, *final, *gradients)]


def check(module, theirs, inputs, states, losses):
    wide = copy.deepcopy(module).double()

    def tied_call(*arguments):
        return torch.func.functional_call(theirs, weights_of_lstm(wide), arguments)

    exact = ([t.double() for t in tensors] for tensors in (inputs, states, losses))
    expected = everything(tied_call, wide, *exact)
    found = everything(module, module, inputs, states, losses)
    for ours, right in zip(found, expected, strict=True):
        # A gradient's terms may cancel.
        assert error(ours, right, 1.0) <= TOLERANCE[module.weight_ih_l0.dtype]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 3, 5), (4, 5, 6, 33), (3, 2, 40, 70), (9, 17, 3, 16)])
def test_is_a_tied_lstm(cpu_target, setting, dtype, shape):
    T, B, F, H = shape
    options = SETTINGS[setting]
    module, theirs = pair(F, H, dtype, **options)
    count = module.num_layers * (1 + module.bidirectional)
    sizes = module.proj_size or H, H
    states = [random(count, B, size, dtype=dtype) for size in sizes]
    features = (1 + module.bidirectional) * sizes[0]
    losses = [random(T, B, features, dtype=dtype), *(random(*s.shape, dtype=dtype) for s in states)]
    check(module, theirs, [random(T, B, F, dtype=dtype)], states, losses)


@pytest.mark.parametrize("lengths", [v for v in PACKED.values() if len(v) > 1], ids=str)
def test_packed(cpu_target, lengths):
    module, theirs = pair(6, 17, torch.float64, num_layers=2, bidirectional=True)
    states = [random(4, len(lengths), 17, dtype=torch.float64) for _ in range(2)]
    losses = [random(sum(lengths), 34, dtype=torch.float64), *map(torch.randn_like, states)]
    inputs = [random(length, 6, dtype=torch.float64) for length in lengths]
    check(module, theirs, inputs, states, losses)


@pytest.mark.parametrize("resets", [False, True])
def test_cuda_kernels(engine, resets):
    """The steps regime, the only one that the cell is compiled for, on the CPU shim."""
    module = variants.CoupledLSTM(5, 33, bidirectional=True, num_layers=2, dtype=torch.float64)
    x = random(4, 3, 5, dtype=torch.float64).requires_grad_()
    states = [random(4, 3, 33, dtype=torch.float64).requires_grad_() for _ in range(2)]
    mask = torch.rand(4, 3) < 0.3 if resets else None
    found = []
    for run in (module, copy.deepcopy(module)):
        params = list(run.parameters())
        if run is module:
            output, final = run(x, tuple(states), resets=mask, reset_to="hx" if resets else "zeros")
        else:
            layout = 2, True, False, None, mask, "hx", None
            output, final, _ = reference.stack("lstm_coupled", x, states, params, True, *layout)
        loss = sum((t * t.detach().cos()).sum() for t in (output, *final))
        found.append([output, *final, *torch.autograd.grad(loss, [x, *states, *params])])
    for ours, right in zip(*found, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-9)


def test_without_kernels(monkeypatch):
    """On devices and for dtypes that have none the equations run, with gradients."""
    module = variants.CoupledLSTM(3, 5, num_layers=2, dtype=torch.float64, checkpoint_every=2)
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(module(x)[0].sum(), [x, *module.parameters()])
    monkeypatch.setattr(ops, "DTYPES", frozenset())
    found = torch.autograd.grad(module(x)[0].sum(), [x, *module.parameters()])
    for ours, right in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, right)


def test_parameters():
    module = variants.CoupledLSTM(3, 5, num_layers=2, bidirectional=True, layer_norm=True)
    assert module.weight_ih_l0.shape == (15, 3) and module.weight_hh_l1_reverse.shape == (15, 5)
    assert module.norm_hh_l0.shape == (15,) and module.norm_c_bias_l0.shape == (5,)
    assert repr(module).startswith("CoupledLSTM(3, 5, num_layers=2")
    copied = copy.deepcopy(module)
    copied.load_state_dict(module.state_dict())
    copied.flatten_parameters()
    x = torch.randn(2, 3)
    assert torch.equal(copied(x)[0], module(x)[0])
    cell = CELLS["lstm_coupled"]
    assert (cell.products, cell.columns, cell.states) == (3, 3, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert type(fastrnn.quantize(module, inplace=False)) is variants.CoupledLSTM
    assert "left alone" in str(caught[0].message)


@pytest.mark.parametrize("options", [{}, {"forget_bias": 2.0}, {"chrono": 50}], ids=str)
def test_initialisation(options):
    module = fastrnn.init_(variants.CoupledLSTM(3, 5), **options)
    forget, rest = module.bias_ih_l0[:5], module.bias_ih_l0[5:]
    assert not rest.any() and not module.bias_hh_l0.any()
    if "chrono" in options:
        assert (forget >= 0).all() and (forget <= 4).all() and len(forget.unique()) == 5
    else:
        assert torch.equal(forget, torch.full((5,), options.get("forget_bias", 1.0)))
