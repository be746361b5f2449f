"""torch.func on layers and cells: derivatives, vmap, per-sample gradients, ensembles."""

import pytest
import torch
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)
from torch.utils import _pytree as pytree

import fastrnn
from fastrnn import functional
from tests.arguments import in_order
from tests.cases import CELLS, KINDS, LAYERS, Case
from tests.transforms import (
    SIZES,
    Setting,
    assert_same,
    check_hessians_of_an_ensemble,
    check_levels_around_gradients_of_samples,
    check_second_derivatives,
    check_vmap_of_derivatives,
)

kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_first_derivatives(kind):
    s = Setting(kind)
    both = (0, 1)
    assert_same([grad(loss, both)(s.params, s.x) for loss in s.losses()])
    assert_same(s.both(lambda layer: jacrev(layer, both)(s.params, s.x)))
    expected = s.both(lambda layer: jacrev(layer, both)(s.params, s.x))[1]
    assert_same((s.both(lambda layer: jacfwd(layer, both)(s.params, s.x))[0], expected))
    assert_same(s.both(lambda layer: jvp(layer, (s.params, s.x), s.direction)))
    assert_same(s.both(lambda layer: (lambda y, pull: pull(y))(*vjp(layer, s.params, s.x))))
    linear = s.both(lambda layer: lambda x: layer(s.params, x))
    assert_same((linearize(linear[0], s.x)[1](s.direction[1]),
                 jvp(linear[1], (s.x,), (s.direction[1],))[1]))  # fmt: skip


@kinds
@pytest.mark.parametrize("wanted", [1, (0, 1)], ids=["input", "all"])
def test_second_derivatives(kind, wanted):
    check_second_derivatives(kind, wanted)


@kinds
@pytest.mark.parametrize("lengths", [(), (2, 3, 1)], ids=["padded", "packed"])
@pytest.mark.parametrize("dim", [0, 1])
def test_vmap_is_a_loop(kind, lengths, dim):
    s = Setting(kind, lengths=lengths, options={"bidirectional": True, "num_layers": 2})
    ours = s.both(lambda layer: lambda x: layer(s.params, x))[0]
    expected = torch.stack([ours(x) for x in s.xs], dim)
    torch.testing.assert_close(vmap(ours, dim, dim)(s.xs.movedim(0, dim)), expected)
    twice = torch.stack([s.xs, 2 * s.xs])
    expected = torch.stack([torch.stack([ours(x) for x in xs]) for xs in twice])
    torch.testing.assert_close(vmap(vmap(ours))(twice), expected)


@kinds
@pytest.mark.parametrize("lengths", [(), (2, 3, 1)], ids=["padded", "packed"])
def test_vmap_of_derivatives(kind, lengths):
    check_vmap_of_derivatives(kind, lengths)


@kinds
@pytest.mark.parametrize("lengths", [(), (2, 3, 1)], ids=["padded", "packed"])
def test_levels_around_gradients_of_samples(kind, lengths):
    check_levels_around_gradients_of_samples(kind, lengths)


@kinds
@pytest.mark.parametrize("lengths", [(), (2, 3, 1)], ids=["padded", "packed"])
@pytest.mark.parametrize("directed", [slice(None), slice(0, 1), slice(1, 3)], ids=str)
def test_tangents_of_weights_for_each_sample(kind, lengths, directed):
    s = Setting(kind, lengths=lengths)
    names = list(s.params)[directed]
    us = {n: torch.randn(3, *s.params[n].shape, dtype=torch.float64) for n in names}

    def tangent(layer):
        def run(x, u):
            return jvp(lambda p: layer(s.params | p, x), ({n: s.params[n] for n in names},), (u,))

        return run

    ours, theirs = s.both(tangent)
    for dims, x in (((None, 0), s.x), ((0, 0), s.xs[:3])):
        assert_same([vmap(f, dims)(x, us) for f in (ours, theirs)])
    twice = {n: torch.stack([u, 2 * u]) for n, u in us.items()}
    assert_same([vmap(vmap(f), (None, 0))(s.xs[:3], twice) for f in (ours, theirs)])


@pytest.mark.parametrize("apart", [0, 17], ids=["together", "apart"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_sample_products(apart, packed, dtype, cpu_target):
    """Each sample's are those of its rows alone, bit for bit, whatever the number of threads."""
    from fastrnn._layer.batching import sample_products_by_torch

    torch.manual_seed(0)
    samples, batch, features, hidden, size = 5, 3, 19, 17, 9
    batch_sizes = torch.tensor([3] * 90 + [2, 1]) if packed else None
    rows = 273 if packed else 270

    def random(*shape):
        return torch.randn(shape, dtype=torch.float64).to(dtype)

    d_gates, h = random(2, rows * samples, 4 * hidden), random(2, rows * samples, size)
    input, h0 = random(rows * samples, features), random(2, batch * samples, size)
    wanted = [True] * 5 + [False, True, True]
    values = {"apart": apart, "d_gates": d_gates, "samples": samples, "batch_sizes": batch_sizes,
              "batch": batch, "input": input, "hidden": h, "h0": h0, "w_ih": [],
              "wanted": wanted}  # fmt: skip
    arguments = in_order("sample_products", values).values()
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(fastrnn._layer.ops.sample_products(*arguments))
    torch.set_num_threads(before)
    split = {
        name: values[name].unflatten(-2, (-1, samples)).movedim(-2, 0)
        for name in ("d_gates", "input", "hidden", "h0")
    }
    for sample in range(samples):
        own = values | {name: t[sample] for name, t in split.items()}
        own = in_order("products", own).values()
        _, expected = fastrnn._layer.ops.products(*own)
        for result in results:
            for a, b, w in zip(result, expected, wanted, strict=True):
                assert torch.equal(a[sample], b) if w else a.shape == b.shape == (0,)
    if dtype is torch.float64:
        assert_same((results[0], sample_products_by_torch(*arguments)))


@kinds
def test_mapped_states(kind):
    """Initial states alone, and a whole rollout of states per sample."""
    case = Case(kind, **SIZES)
    module, data = case.modules(torch.float64)[1], case.data(torch.float64)
    pair = case.name == "LSTM"
    states = [torch.randn(4, *s.shape, dtype=torch.float64) for s in data.states]

    def loss(*hx):
        output, final = module(data.inputs[0], tuple(hx) if pair else hx[0])
        return output.sum() + sum(f.square().sum() for f in (final if pair else [final]))

    every = tuple(range(len(states)))
    actual = vmap(grad(loss, every))(*states)
    expected = [grad(loss, every)(*(s[i] for s in states)) for i in range(4)]
    assert_same((actual, [torch.stack(t) for t in zip(*expected)]))


@pytest.mark.parametrize("name", CELLS)
def test_cells(name):
    module = getattr(fastrnn, name)(3, 4, dtype=torch.float64)
    params = {n: p.detach() for n, p in module.named_parameters()}
    xs = torch.randn(5, 3, dtype=torch.float64)  # no batch but the mapped one

    def loss(params, x):
        result = functional_call(module, params, (x,))
        return (result[0] if name == "LSTMCell" else result).square().sum()

    actual = vmap(grad(loss, (0, 1)), (None, 0))(params, xs)
    expected = [grad(loss, (0, 1))(params, x) for x in xs]
    assert_same((actual, pytree.tree_map(lambda *t: torch.stack(t), *expected)))
    assert_same((hessian(loss, 1)(params, xs[0]), jacrev(jacrev(loss, 1), 1)(params, xs[0])))


@kinds
@pytest.mark.parametrize("dims", [(0, None), (0, 0)], ids=["same_data", "own_data"])
def test_ensembles(kind, dims):
    """Stacked weights of several models, as functional_call and vmap want them."""
    s = Setting(kind)
    members = [Case(kind, **SIZES, options={"bidirectional": True}).modules(torch.float64)[1]
               for _ in range(4)]  # fmt: skip
    params, buffers = stack_module_state(members)
    params = {n: p.detach() for n, p in params.items()}

    def loss(params, x):
        return functional_call(members[0], (params, buffers), (x,))[0].square().sum()

    x = s.x if dims[1] is None else s.xs
    actual = vmap(grad(loss, (0, 1)), dims)(params, x)
    for i, member in enumerate(members):
        own = x if dims[1] is None else x[i]
        expected = grad(loss, (0, 1))(dict(member.named_parameters()), own)
        assert_same((pytree.tree_map(lambda t, i=i: t[i], actual), expected))
    direction = pytree.tree_map(torch.randn_like, params)
    tangents = jvp(lambda p: vmap(loss, dims)(p, x), (params,), (direction,))[1]
    for i in range(4):
        own = x if dims[1] is None else x[i]
        member, u = (pytree.tree_map(lambda t, i=i: t[i], tree) for tree in (params, direction))
        assert_same((tangents[i], jvp(lambda p, own=own: loss(p, own), (member,), (u,))[1]))


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_levels_around_vmap(name):
    """A mapped tensor does not say that somebody outside wants its gradient."""
    module = getattr(fastrnn, name)(2, 3).requires_grad_(False)
    xs = torch.randn(4, 3, 2, 2, requires_grad=True)

    def loss(x):
        return module(x)[0].square().sum()

    expected = torch.stack([torch.autograd.grad(loss(x), x)[0] for x in xs])
    (actual,) = torch.autograd.grad(vmap(loss)(xs).sum(), xs)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(grad(lambda xs: vmap(loss)(xs).sum())(xs), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_vmap_is_one_call(name, monkeypatch):
    """Shared weights: the operators run once, on a bigger batch, in every transform."""
    module = getattr(fastrnn, name)(3, 4)
    params = {n: p.detach() for n, p in module.named_parameters()}
    xs, calls = torch.randn(64, 5, 3), []

    def loss(params, x):
        return functional_call(module, params, (x,))[0].square().sum()

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
            op = function._schema.name
            if op.startswith("fastrnn::"):
                calls.append(op[9:])
            return function(*arguments, **(kwargs or {}))

    with Count():
        vmap(grad(loss), (None, 0))(params, xs)
    assert calls == ["layer_forward", "gate_gradients", "sample_products"]
    calls.clear()
    with Count(), torch.no_grad():
        vmap(loss, (None, 0))(params, xs)
    assert calls == ["layer_forward"]


@pytest.mark.parametrize("name", LAYERS)
def test_states_alone_without_a_graph(name):
    """The operator itself sees what is mapped in a list."""
    module, x = getattr(fastrnn, name)(3, 4), torch.randn(5, 2, 3)
    states = torch.randn(2, 7, 1, 2, 4).unbind()[: 2 if name == "LSTM" else 1]

    def run(*states):
        return module(x, states if name == "LSTM" else states[0])[0]

    with torch.no_grad():
        expected = [run(*each) for each in zip(*states)]
        torch.testing.assert_close(vmap(run)(*states), torch.stack(expected))


@pytest.mark.parametrize("name", LAYERS)
def test_no_sample_is_refused(name):
    module = getattr(fastrnn, name)(3, 4)
    for run, x in (
        (vmap(lambda x: module(x)[0]), torch.randn(0, 5, 2, 3)),
        (vmap(grad(lambda x: module(x)[0].sum())), torch.randn(0, 5, 2, 3)),
        (torch.func.jacrev(lambda x: module(x)[0]), torch.randn(5, 0, 3)),
    ):
        with pytest.raises(RuntimeError, match="expected at least one sample of vmap, got 0"):
            run(x)


def test_mapped_batch_sizes_are_refused():
    module, batch_sizes = fastrnn.LSTM(2, 3), torch.tensor([[2, 1], [2, 1]])
    params = list(module.parameters())

    def run(batch_sizes):
        return functional.lstm(torch.ones(3, 2), None, params, batch_sizes=batch_sizes)[0]

    with pytest.raises(RuntimeError):
        vmap(run)(batch_sizes)


def test_dp_sgd():
    """Opacus' algorithm: each sample's gradient is clipped by itself, the sum gets noise.

    Abadi et al., "Deep Learning with Differential Privacy", CCS 2016.
    """
    torch.manual_seed(0)
    clip, noise, lr = 1.0, 0.3, 0.5

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = fastrnn.LSTM(2, 12), torch.nn.Linear(12, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[0][-1])

    model = Classifier()
    labels = torch.arange(64) % 2
    data = torch.randn(64, 9, 2) + (labels[:, None, None] * 2 - 1) * 0.5

    def loss(params, x, label):
        return torch.nn.functional.cross_entropy(functional_call(model, params, (x,)), label)

    params = {n: p.detach() for n, p in model.named_parameters()}
    sample_gradients = vmap(grad(loss), (None, 0, 0))
    before = vmap(loss, (None, 0, 0))(params, data, labels).mean()
    for step in range(30):
        gradients = sample_gradients(params, data, labels)
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients.values()]).norm(dim=0)
        if step == 0:  # the sum of what is not yet clipped is the ordinary gradient
            total = grad(lambda p: vmap(loss, (None, 0, 0))(p, data, labels).sum())(params)
            assert_same(({n: g.sum(0) for n, g in gradients.items()}, total), 1e-4)
            assert (norms > clip).any()
        scale = (clip / norms).clamp_max(1.0)
        for name, g in gradients.items():
            clipped = torch.einsum("v...,v->...", g, scale)
            private = clipped + noise * clip * torch.randn_like(clipped)
            params[name] = params[name] - lr * private / len(data)
    after = vmap(loss, (None, 0, 0))(params, data, labels).mean()
    assert after < 0.6 * before


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_hessians_of_an_ensemble(name):
    check_hessians_of_an_ensemble(name)
