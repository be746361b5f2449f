"""What runs on devices that have no kernel for it: the reference's derivatives, and torch's own
operations.

The CPU has those kernels, so it is told that it has not. That tensors of one device never meet
those of another one shows on the meta device: torch refuses it there.
"""

import pytest
import torch

import fastrnn
from fastrnn import reference, variants_reference
from fastrnn._layer import by_reference, ops, panels
from fastrnn._layer.backward import layer_of
from tests import second_order, transforms
from tests.arguments import arguments_of, inside_values, quantized_arguments, run_inside
from tests.cases import KINDS, LAYERS, Case, gates_of
from tests.second_order import assert_close, penalty, setting, tangents
from tests.tolerances import error


@pytest.fixture
def no_kernels(monkeypatch):
    """As on a device whose engine has the first derivatives alone."""
    monkeypatch.setattr(by_reference, "serves", lambda tensor: True)
    for name in ("layer_tangent", "gate_gradients_tangent"):
        monkeypatch.setattr(ops, name, None)


kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
@pytest.mark.parametrize("name", second_order.SETTINGS)
def test_double_backward_and_forward_mode(no_kernels, kind, name):
    ours, theirs, tensors = setting(kind, name)
    everything = range(len(tensors))
    assert_close(penalty(ours, tensors, everything), penalty(theirs, tensors, everything))
    assert_close(tangents(ours, tensors, everything), tangents(theirs, tensors, everything))


@kinds
def test_any_subset(no_kernels, kind):
    second_order.check_double_backward_of_any_subset(kind)
    second_order.check_forward_mode_of_any_subset(kind, "packed")


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(no_kernels, kind, dtype):
    second_order.check_double_backward_in_another_dtype(kind, dtype)
    second_order.check_forward_mode_in_another_dtype(kind, dtype)


@kinds
def test_functions_of_torch_func(no_kernels, kind):
    transforms.check_second_derivatives(kind, 1)
    transforms.check_vmap_of_derivatives(kind, (2, 3, 1))
    transforms.check_levels_around_gradients_of_samples(kind, ())


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_ensembles_and_their_hessians(no_kernels, name):
    transforms.check_hessians_of_an_ensemble(name)


@pytest.mark.parametrize("name", LAYERS)
def test_every_step(no_kernels, name):
    """Second derivatives through the cells of return_states too."""
    results = []
    for library in (fastrnn.functional, reference):
        torch.manual_seed(0)
        params = [
            p.detach().requires_grad_()
            for p in getattr(fastrnn, name)(3, 4, bidirectional=True).double().parameters()
        ]
        x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
        lengths, resets = torch.tensor([5, 3]), torch.rand(5, 2) < 0.3
        _, _, states = getattr(library, name.lower())(
            x, None, params, bidirectional=True, lengths=lengths, resets=resets, return_states=True
        )
        loss = sum(s.sin().sum() for s in states[:2] if s is not None)
        first = torch.autograd.grad(loss, [x, *params], create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), [x, *params]))
    assert_close(*results)


@pytest.mark.parametrize("name", LAYERS)
def test_third_derivatives(no_kernels, name):
    loss, x = second_order.small(name)
    options = {"nonlinearity": "tanh"} if name == "RNN" else {}
    run, weights = getattr(reference, name.lower()), getattr(fastrnn, name)

    def derivatives(f):
        x.requires_grad_()
        (first,) = torch.autograd.grad(f(x), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
        return torch.autograd.grad(second.square().sum(), x)

    module = weights(3, 4, dtype=torch.float64)
    ours = derivatives(lambda x: module(x)[0].square().sum())
    params = list(module.parameters())
    assert_close(ours, derivatives(lambda x: run(x, None, params, **options)[0].square().sum()))


# -- Quantized layers ------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lengths", [(), (3, 5, 1)], ids=["padded", "packed"])
@pytest.mark.parametrize("hx", [True, False], ids=["hx", "no_hx"])
def test_quantized(kind, dtype, lengths, hx):
    """The same integers and scales as the kernels': float32 rounding apart."""
    case = Case(kind, 5, 3, 7, 33, options={"bidirectional": True}, lengths=lengths)
    layer = fastrnn.quantize(case.modules()[1].eval(), dtype, inplace=False)
    data = case.data()
    input, batch_sizes = data.inputs[0], None
    if lengths:
        packed = torch.nn.utils.rnn.pack_sequence(data.inputs, enforce_sorted=False)
        input, batch_sizes = packed.data, packed.batch_sizes
    states = data.states if hx else None
    arguments = quantized_arguments(layer, input, batch_sizes, states).values()
    expected = ops.quantized_forward(*arguments)
    for a, b in zip(panels.quantized_forward(*arguments), expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        # An h on the border between two integers may be rounded either way.
        assert b.numel() == 0 or error(a, b.double(), 1.0) <= (
            2e-6 if dtype != torch.int8 else 3e-3
        )


def test_quantized_params_elsewhere():
    arguments = arguments_of("quantized_forward", False, False)
    arguments["input"] = arguments["input"].to("meta")
    with pytest.raises(RuntimeError, match="quantized_forward: expected params on meta, as input"):
        panels.quantized_forward(*arguments.values())
    layer = fastrnn.quantize(fastrnn.LSTM(3, 4), inplace=False).to("meta")
    with pytest.raises(RuntimeError, match="expected input on meta, where the layer is, got cpu"):
        layer(torch.zeros(2, 1, 3))


# -- One device ------------------------------------------------------------------------------------


def meta(*shape, **options):
    return torch.empty(*shape, device="meta", **options)


@kinds
def test_reference_on_one_device(kind):
    case = Case(kind, options={"bidirectional": True, "num_layers": 2})
    module = case.modules()[1].to("meta")
    name, projected = case.kind.removesuffix("_proj"), "proj" in case.kind
    layer = layer_of(name, True, 2 * (4 + projected), (4, 5, 6))
    states = [s[:2].to("meta") for s in case.data().states]
    params = list(module.parameters())[: len(layer.stems) * 2]
    arguments = [meta(4, 5, 6), *states, *params]
    run = getattr(reference, case.name.lower())
    options = {"resets": meta(4, 5, dtype=torch.bool), "lengths": meta(5, dtype=torch.int64)}
    hx = tuple(states) if case.name == "LSTM" else states[0]
    if case.name == "RNN":
        options["nonlinearity"] = module.nonlinearity
    output, *_ = run(arguments[0], hx, params, bidirectional=True, return_states=True, **options)
    assert output.is_meta
    v = [meta(output.shape), *[None] * layer.states]
    flags = [True] * layer.results, [True] * layer.arguments, [True] * layer.arguments
    others = None, None
    for results in by_reference.second_order(layer, flags, v, v, arguments, others, arguments):
        assert all(r.is_meta for r in results)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16], ids=str)
def test_quantized_on_one_device(name, dtype):
    layer = getattr(fastrnn, name)(6, 9, bidirectional=True)
    layer = fastrnn.quantize(layer, dtype, inplace=False).to("meta")
    results = panels.quantized_forward(*quantized_arguments(layer, meta(4, 5, 6)).values())
    assert all(r.is_meta for r in results)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("norm", ["none", "recurrent"])
def test_variants_on_one_device(cell, norm):
    options = {"batch": 3, "size": 8, "scale": True, "rates": (0.1, 0.1, 0.1)}
    values = inside_values(cell, norm, **options)
    values = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), values)
    seed = torch.tensor([3])
    values["inside"] = values["inside"]._replace(seed=seed)
    results = run_inside(variants_reference.layer, values)
    assert all(r.is_meta for r in results[:2])
    factors = variants_reference.weight_factors(seed, 2, 0.25, meta(8 * gates_of(cell), 8))
    assert factors.is_meta
