"""What tools around torch see of our layers."""

import pytest
import torch
from torch import fx, nn
from torch.func import jvp
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import fastrnn
from fastrnn import reference, variants
from tests.arguments import arguments_of, operators
from tests.cases import CELLS, KINDS, LAYERS, Case


def flops(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", operators())
def test_every_operator_has_a_formula(name):
    formula = flop_registry[getattr(torch.ops.fastrnn, name)]
    for packed in (False, True):
        arguments = arguments_of(name, packed, True)
        count = formula(*arguments.values(), out_val=None)
        assert isinstance(count, int) and count >= 0
        assert (count > 0) == (name not in ("drop_weights", "segments", "gather_rows"))


def test_a_gru_counts_what_torch_nn_counts():
    module, x = fastrnn.GRU(16, 32), torch.randn(50, 2, 16)
    assert flops(lambda: module(x)) == 921_600
    assert flops(lambda: module(x)[0].sum().backward()) == 2_445_312
    theirs = nn.GRU(16, 32)
    assert flops(lambda: theirs(x)) == 921_600
    assert flops(lambda: theirs(x)[0].sum().backward()) == 2_445_312


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("hx", [True, False])
def test_counts_are_the_equations_own(kind, options, hx):
    """Forward, with backward, with gradients of input and states; and in forward mode."""
    case = Case(kind, 5, 3, 4, 6, options=options)
    module = case.modules(torch.float64)[1]
    data = case.data(torch.float64)
    x = data.inputs[0].detach()
    states = [s.detach() for s in data.states] if hx else []
    run = getattr(reference, case.name.lower())
    extra = {"nonlinearity": module.nonlinearity} if case.name == "RNN" else {}
    settings = {"num_layers": module.num_layers, "bidirectional": module.bidirectional}

    def ours(x, *states):
        return module(x, states if len(states) > 1 else states[0] if states else None)[0]

    def equations(x, *states):
        hx = states if len(states) > 1 else states[0] if states else None
        return run(x, hx, list(module.parameters()), **settings, **extra)[0]

    both = [ours, equations]
    with torch.no_grad():
        assert len({flops(lambda f=f: f(x, *states)) for f in both}) == 1
    assert len({flops(lambda f=f: f(x, *states).sum().backward()) for f in both}) == 1
    wanted = [t.clone().requires_grad_() for t in (x, *states)]
    if hx:  # torch skips the first step's where it has a state of zeros
        assert len({flops(lambda f=f: f(*wanted).sum().backward()) for f in both}) == 1
    # As many again for the tangents. (Of the equations torch.func computes another third.)
    with torch.no_grad():
        forward = flops(lambda: ours(x, *states))
    tangents = tuple(torch.ones_like(t) for t in (x, *states))
    assert flops(lambda: jvp(ours, (x, *states), tangents)) == 2 * forward


def test_counts_of_other_layers():
    x = torch.randn(5, 3, 4)
    layers = [fastrnn.quantize(fastrnn.LSTM(4, 8), inplace=False), variants.LSTM(4, 8, zoneout=0.1)]
    with torch.no_grad():
        assert [flops(lambda m=m: m(x)) for m in layers] == [2 * 15 * 32 * 12] * 2
    assert flops(lambda: layers[1](x)[0].sum().backward()) > 2 * 2 * 15 * 32 * 12
    cell = fastrnn.GRUCell(4, 8)
    assert flops(lambda: cell(x[0])) == 2 * 3 * 24 * 12


# -- torch.fx --------------------------------------------------------------------------------------


class Model(nn.Module):
    """Layers and cells as a model has them: results taken apart, states passed on, options."""

    def __init__(self):
        super().__init__()
        self.rnn = fastrnn.LSTM(3, 4, 2, bidirectional=True)
        self.gru = variants.GRU(8, 5, layer_norm=True, batch_first=True)
        self.cell = fastrnn.LSTMCell(5, 6)
        self.dreamer = variants.DreamerGRUCell(6, 6)

    def forward(self, x, mask, hx):
        output, (h, c) = self.rnn(x, hx, resets=mask)
        output, _ = self.gru(output.transpose(0, 1))
        state = self.cell(output[:, -1])
        h_1, c_1 = self.cell(output[:, 0], state)
        return self.dreamer(h_1), self.dreamer(h_1, c_1), h, c


def test_modules_are_leaves_of_symbolic_trace():
    model, x = Model(), torch.randn(5, 2, 3)
    mask, hx = torch.rand(5, 2) < 0.3, (torch.randn(4, 2, 4), torch.randn(4, 2, 4))
    traced = fx.symbolic_trace(model)
    traced.graph.lint()
    found = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    assert found == ["rnn", "gru", "cell", "cell", "dreamer", "dreamer"]
    assert all(map(torch.equal, traced(x, mask, hx), model(x, mask, hx)))
    ShapeProp(traced).propagate(x, mask, hx)
    shapes = [node.meta["tensor_meta"] for node in traced.graph.nodes if node.target == "rnn"]
    assert shapes[0][0].shape == (5, 2, 8)


@pytest.mark.parametrize("name", LAYERS + CELLS)
@pytest.mark.parametrize("how", ["convert", "quantize"])
def test_traced_like_torch_nn(name, how):
    """The graph of a model is the same with our modules in it."""
    theirs = nn.Sequential(getattr(nn, name)(3, 4)).eval()
    ours = fastrnn.quantize(theirs, inplace=False)
    if how == "convert":
        ours = nn.Sequential(getattr(nn, name)(3, 4)).eval()
        fastrnn.convert(ours)
    codes = [fx.symbolic_trace(model).code for model in (theirs, ours)]
    assert codes[0] == codes[1]


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_a_leaf_alone_cannot_be_traced(name):
    for library in (nn, fastrnn):
        with pytest.raises(fx.proxy.TraceError):
            fx.symbolic_trace(getattr(library, name)(3, 4))


# -- torch.ao and ExpandedWeights ------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS + CELLS)
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_quantize_dynamic(name):
    """Once registered, torch.ao makes of our classes what fastrnn.quantize does."""
    import fastrnn.integrations.torch_ao  # noqa: F401

    calls, cls = [], getattr(fastrnn, name)
    model = nn.ModuleList([cls(4, 8), nn.Linear(2, 2)])
    model[0].register_forward_hook(lambda *_: calls.append(1))
    small = torch.ao.quantization.quantize_dynamic(model, {cls, nn.Linear})
    assert type(small[0]).__name__.startswith("Quantized") and type(model[0]) is cls
    x = torch.randn(5, 3, 4) if name in LAYERS else torch.randn(3, 4)
    ours = fastrnn.quantize(model[0], inplace=False)
    with torch.no_grad():
        found, expected = small[0](x), ours(x)
    for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (found, expected))):
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b)
    assert len(calls) == 2
    with pytest.raises(ValueError, match="expected dtype torch.qint8"):
        torch.ao.quantization.quantize_dynamic(model, {cls}, dtype=torch.float16)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LSTM", {"num_layers": 2, "bidirectional": True}),
        ("LSTM", {"proj_size": 2}),
        ("GRU", {"bidirectional": True}),
        ("RNN", {"num_layers": 2, "bias": False}),
        ("LSTMCell", {}),
        ("GRUCell", {}),
    ],
    ids=str,
)
def test_expanded_weights(name, options, reduction):
    """torch's gradients of samples, of final states as of outputs."""
    batch_first = {} if "Cell" in name else {"batch_first": True}
    module = getattr(fastrnn, name)(3, 5, **options, **batch_first)
    x = torch.randn(4, 3) if "Cell" in name else torch.randn(4, 6, 3)

    def loss(results):
        flat = torch.utils._pytree.tree_leaves(results)
        return sum((r * r).sum() for r in flat)

    results = call_for_per_sample_grads(module, batch_size=4, loss_reduction=reduction)(x)
    loss(results).backward()
    scale = 4 if reduction == "mean" else 1
    for b in range(4):
        expected = torch.autograd.grad(loss(module(x[b : b + 1])), list(module.parameters()))
        for p, e in zip(module.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad_sample[b], scale * e, rtol=1e-4, atol=1e-5)


def test_expanded_weights_backward_twice():
    """A graph that is kept gives the same again, added up, layer by layer."""
    module, x = fastrnn.GRU(3, 5, 2, batch_first=True), torch.randn(4, 6, 3)
    output, _ = call_for_per_sample_grads(module, batch_size=4, loss_reduction="sum")(x)
    output.sum().backward(retain_graph=True)
    once = [p.grad_sample.clone() for p in module.parameters()]
    output.sum().backward()
    for p, g in zip(module.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad_sample, 2 * g)


def test_expanded_weights_of_another_batch():
    module = fastrnn.GRU(3, 5)  # whose batch is the second dimension
    output, _ = call_for_per_sample_grads(module, batch_size=6)(torch.randn(6, 4, 3))
    with pytest.raises(RuntimeError, match="expected a batch of 6"):
        output.sum().backward()
