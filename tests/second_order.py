"""Second derivatives and forward mode of a layer, beside the reference's in float64."""

import torch
from torch.autograd import forward_ad
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from fastrnn import reference
from tests.cases import CELLS, Case

SETTINGS = {
    "plain": {},
    "wide": {"seq_len": 3, "batch": 9, "input_size": 16, "hidden_size": 33},
    "two_layers": {"options": {"num_layers": 2, "bidirectional": True, "batch_first": True}},
    "no_bias": {"hx": False, "options": {"bias": False}},
    "packed": {"lengths": (2, 5, 1, 5), "options": {"bidirectional": True}},
    "one_row": {"seq_len": 1, "batch": 1},
}


def setting(kind, name, dtype=torch.float64, sizes=None):
    """`(ours, theirs, arguments)`: two functions of the same tensors, input, states, weights."""
    case = Case(kind, **{"hidden_size": 5, **(sizes or SETTINGS[name])})
    _, module = case.modules(torch.float64)
    data = case.data(torch.float64)
    names = [n for n, _ in module.named_parameters()]
    pair, states = case.name == "LSTM", len(data.states or [])
    options = {"num_layers": module.num_layers, "has_biases": module.bias}
    options |= {"bidirectional": module.bidirectional, "batch_first": module.batch_first}
    if case.name == "RNN":
        options["nonlinearity"] = module.nonlinearity
    batch_sizes = None
    if case.lengths:
        packed = pack_sequence(data.inputs, enforce_sorted=False)
        input, batch_sizes = packed.data, packed.batch_sizes
    else:
        input = data.inputs[0]
    options["batch_sizes"] = batch_sizes

    def call(library):
        def run(input, *rest):
            hx, params = rest[:states], list(rest[states:])
            hx = None if not hx else tuple(hx) if pair else hx[0]
            output, final = getattr(library, case.name.lower())(input, hx, params, **options)
            return output, *(final if pair else (final,))

        return run

    tensors = [input, *(data.states or []), *(dict(module.named_parameters())[n] for n in names)]
    tensors = [t.detach().to(dtype) for t in tensors]
    return call(fastrnn.functional), call(reference), tensors


def penalty(function, tensors, wanted):
    """Derivatives of a function of gradients: of what is wanted among tensors, and of weights."""
    leaves = [t.clone().requires_grad_(i in wanted) for i, t in enumerate(tensors)]
    outputs = function(*leaves)
    generator = torch.Generator().manual_seed(1)
    v = [
        torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype) for o in outputs
    ]
    v = [weight.requires_grad_() for weight in v]
    sources = [leaves[i] for i in wanted]
    unused = {"allow_unused": True, "materialize_grads": True}  # as the output by the initial c
    first = torch.autograd.grad(outputs, sources, v, create_graph=True, **unused)
    loss = sum((g * g.detach().sin() + g.square()).sum() for g in first)
    second = torch.autograd.grad(loss, [*sources, *v], **unused)
    return [*(g.detach() for g in first), *second]


def assert_close(actual, expected, tolerance=1e-10):
    for a, b in zip(actual, expected, strict=True):
        error = (a.double() - b.double()).abs().max() / b.abs().max().clamp_min(1e-3)
        assert error <= tolerance, error


def tangents(function, tensors, directed):
    u = [torch.sin(t) + 0.3 for t in tensors]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, d) if i in directed else t
                 for i, (t, d) in enumerate(zip(tensors, u))]  # fmt: skip
        results = [forward_ad.unpack_dual(o) for o in function(*duals)]
        # A result that depends on nothing directed has no tangent.
        return [r.primal if part == 0 else
                torch.zeros_like(r.primal) if r.tangent is None else r.tangent
                for r in results for part in (0, 1)]  # fmt: skip


def check_double_backward_of_any_subset(kind):
    """Frozen parameters, input alone, states alone."""
    ours, theirs, tensors = setting(kind, "packed")
    for wanted in ([0], [1], [len(tensors) - 1], range(2, len(tensors)), range(0, len(tensors), 2)):
        assert_close(penalty(ours, tensors, wanted), penalty(theirs, tensors, wanted))


def check_double_backward_in_another_dtype(kind, dtype):
    ours, theirs, tensors = setting(kind, "two_layers", dtype)
    expected = penalty(theirs, [t.double() for t in tensors], range(len(tensors)))
    actual = penalty(ours, tensors, range(len(tensors)))
    assert all(a.dtype is dtype for a in actual)
    # Gradients of gradients sum many values rounded to the dtype: some tens of its eps.
    assert_close(actual, expected, 60 * torch.finfo(dtype).eps)


def check_forward_mode_of_any_subset(kind, name):
    ours, theirs, tensors = setting(kind, name)
    for directed in ([0], [1], [len(tensors) - 1], range(1, len(tensors), 2)):
        assert_close(tangents(ours, tensors, directed), tangents(theirs, tensors, directed))


def check_forward_mode_in_another_dtype(kind, dtype):
    ours, theirs, tensors = setting(kind, "wide", dtype)
    everything = range(len(tensors))
    expected = tangents(theirs, [t.double() for t in tensors], everything)
    actual = tangents(ours, tensors, everything)
    assert all(a.dtype is dtype for a in actual)
    assert_close(actual, expected, 20 * torch.finfo(dtype).eps)


def small(name):
    module = getattr(fastrnn, name)(3, 4, dtype=torch.float64)
    x = torch.randn(*((5, 3) if name in CELLS else (6, 5, 3)), dtype=torch.float64)

    def loss(x):
        result = module(x)
        return (result if isinstance(result, torch.Tensor) else result[0]).square().sum()

    return loss, x
