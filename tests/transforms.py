"""torch.func on a layer of ours beside the reference's."""

import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.nn.utils.rnn import pack_sequence
from torch.utils import _pytree as pytree

import fastrnn
from fastrnn import functional, reference
from tests.cases import Case, gates_of

SIZES = {"seq_len": 3, "batch": 2, "input_size": 2, "hidden_size": 3}


class Setting:
    """One layer as a function of `(params, x)`, ours and the reference, in float64."""

    def __init__(self, kind, samples=4, **changes):
        case = Case(kind, **{**SIZES, "options": {"bidirectional": True}, **changes})
        module = case.modules(torch.float64)[1]
        self.params = {n: p.detach() for n, p in module.named_parameters()}
        self.name, self.options = case.name.lower(), {"num_layers": module.num_layers}
        self.options |= {"bidirectional": True, "has_biases": module.bias}
        if self.name == "rnn":
            self.options["nonlinearity"] = module.nonlinearity
        if case.lengths:
            packed = pack_sequence(case.data(torch.float64).inputs, enforce_sorted=False)
            self.options["batch_sizes"], shape = packed.batch_sizes, packed.data.shape
        else:
            shape = case.seq_len, case.batch, case.input_size
        self.x = torch.randn(shape, dtype=torch.float64)
        self.xs = torch.randn(samples, *shape, dtype=torch.float64)
        self.direction = pytree.tree_map(torch.randn_like, self.params), torch.randn_like(self.x)

    def both(self, make):
        """make(layer) for ours and the reference, layer being `(params, x) -> output`."""

        def layer(library):
            function = getattr(library, self.name)
            return lambda p, x: function(x, None, list(p.values()), **self.options)[0]

        return make(layer(functional)), make(layer(reference))

    def losses(self):
        return self.both(lambda layer: lambda p, x: layer(p, x).square().sum())


def assert_same(results, tolerance=1e-10):
    ours, theirs = (pytree.tree_leaves(r) for r in results)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def check_second_derivatives(kind, wanted):
    s = Setting(kind, seq_len=2, hidden_size=2)
    ours, theirs = s.losses()
    expected = hessian(theirs, wanted)(s.params, s.x)
    for derive in (
        hessian,
        lambda f, a: jacrev(jacrev(f, a), a),
        lambda f, a: jacrev(jacfwd(f, a), a),
    ):
        assert_same((derive(ours, wanted)(s.params, s.x), expected))
    per_sample = vmap(hessian(ours, 1), (None, 0))(s.params, s.xs)
    assert_same((per_sample, vmap(hessian(theirs, 1), (None, 0))(s.params, s.xs)))


def check_vmap_of_derivatives(kind, lengths):
    s = Setting(kind, lengths=lengths)
    ours, theirs = s.losses()
    both, dims = (0, 1), (None, 0)
    # A penalty on the slope with respect to the input: its inner gradient leaves weights alone.
    slopes = [lambda p, x, f=f: grad(f, 1)(p, x).norm() for f in (ours, theirs)]
    assert_same([vmap(grad(f, both), dims)(s.params, s.xs) for f in (ours, theirs)])
    assert_same([vmap(grad(f, both), dims)(s.params, s.xs) for f in slopes])
    assert_same([grad(lambda p, xs, f=f: vmap(f, dims)(p, xs).sum(), both)(s.params, s.xs)
                 for f in (ours, theirs)])  # fmt: skip
    tangent = s.direction[0], torch.randn_like(s.xs)
    assert_same([jvp(lambda p, xs, f=f: vmap(f, dims)(p, xs), (s.params, s.xs), tangent)
                 for f in (ours, theirs)])  # fmt: skip


def check_levels_around_gradients_of_samples(kind, lengths):
    """Gradients of samples have a rule of their own where nobody differentiates them."""
    s = Setting(kind, lengths=lengths)
    dims = None, 0
    per_sample = [vmap(grad(f, (0, 1)), dims) for f in s.losses()]
    twice = torch.stack([s.xs, 2 * s.xs])
    assert_same([vmap(f, dims)(s.params, twice) for f in per_sample])
    weights = [p.clone().requires_grad_() for p in s.params.values()]
    named = dict(zip(s.params, weights))

    def norm(f):
        def run(p, xs):
            return sum(g.square().sum() for g in pytree.tree_leaves(f(p, xs)))

        return run

    assert_same([grad(norm(f), (0, 1))(s.params, s.xs) for f in per_sample])
    assert_same([torch.autograd.grad(norm(f)(named, s.xs), weights) for f in per_sample])
    tangent = s.direction[0], torch.randn_like(s.xs)
    assert_same([jvp(f, (s.params, s.xs), tangent) for f in per_sample])
    # One sample is a dimension still.
    assert_same([f(s.params, s.xs[:1]) for f in per_sample])


def check_hessians_of_an_ensemble(name):
    """Mapped weights around second derivatives: one call each, some of whose results are absent."""
    gates = gates_of(name)
    generator = torch.Generator().manual_seed(3)
    weights = [
        torch.randn(4, gates * 2, size, generator=generator, dtype=torch.float64) for size in (3, 2)
    ]
    x = torch.randn(3, 1, 3, generator=generator, dtype=torch.float64)

    def hessians(library):
        def loss(x, *weights):
            return getattr(library, name)(x, None, list(weights), has_biases=False)[0].sum()

        return vmap(torch.func.hessian(loss), (None, 0, 0))(x, *weights)

    torch.testing.assert_close(hessians(fastrnn.functional), hessians(fastrnn.reference))
