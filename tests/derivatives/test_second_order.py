"""Double backward and forward mode, against the reference in float64."""

import pytest
import torch
from torch.autograd import forward_ad

import fastrnn
from fastrnn import reference
from tests.cases import CELLS, KINDS, LAYERS, Case
from tests.second_order import (
    SETTINGS,
    assert_close,
    check_double_backward_in_another_dtype,
    check_double_backward_of_any_subset,
    check_forward_mode_in_another_dtype,
    check_forward_mode_of_any_subset,
    penalty,
    setting,
    tangents,
)

# More steps than a chunk of what is brought to the gates has (256 KiB), and not a multiple of it.
LONG = {
    "padded": {"seq_len": 131, "batch": 3, "input_size": 19, "hidden_size": 33},
    "packed": {"lengths": (130, 70, 131, 1), "input_size": 19, "hidden_size": 33},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SETTINGS)
def test_double_backward(kind, name, cpu_target):
    ours, theirs, tensors = setting(kind, name)
    everything = range(len(tensors))
    expected = penalty(theirs, tensors, everything)
    assert_close(penalty(ours, tensors, everything), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_double_backward_of_any_subset(kind):
    check_double_backward_of_any_subset(kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_double_backward_in_other_dtypes(kind, dtype, cpu_target):
    check_double_backward_in_another_dtype(kind, dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SETTINGS)
def test_forward_mode(kind, name, cpu_target):
    ours, theirs, tensors = setting(kind, name)
    everything = range(len(tensors))
    with torch.no_grad():  # forward mode does not depend on it
        actual = tangents(ours, tensors, everything)
    assert_close(actual, tangents(theirs, tensors, everything))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["no_bias", "packed"])
def test_forward_mode_of_any_subset(kind, name):
    check_forward_mode_of_any_subset(kind, name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LONG)
def test_forward_mode_of_long_sequences(kind, name, each_target):
    """Tangents of gates are made by chunks of steps, whose number depends on that of threads."""
    sizes = {**LONG[name], "options": {"bidirectional": True}}
    ours, theirs, tensors = setting(kind, name, sizes=sizes)
    tensors = [t * 0.5 for t in tensors]  # no chaos
    everything, before = range(len(tensors)), torch.get_num_threads()
    expected = [tangents(theirs, tensors, wanted) for wanted in (everything, [0])]
    for _ in each_target:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with torch.no_grad():
                results.append(tangents(ours, tensors, everything))
        torch.set_num_threads(before)
        assert all(map(torch.equal, *results))
        assert_close(results[0], expected[0])
        assert_close(tangents(ours, tensors, [0]), expected[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_forward_mode_in_other_dtypes(kind, dtype, cpu_target):
    check_forward_mode_in_another_dtype(kind, dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_backward_through_tangents(kind):
    """Reverse over forward, without torch.func."""
    results = []
    for function in setting(kind, "two_layers")[:2]:
        tensors = setting_tensors(kind)
        leaves = [t.clone().requires_grad_() for t in tensors]
        derivative = tangents(function, leaves, range(len(leaves)))
        loss = sum((t * t.detach().cos() + t.square()).sum() for t in derivative)
        results.append(torch.autograd.grad(loss, leaves))
    assert_close(*results)


def setting_tensors(kind):
    torch.manual_seed(0)
    return setting(kind, "two_layers")[2]


@pytest.mark.parametrize("kind", KINDS)
def test_results_do_not_depend_on_threads(kind):
    sizes = {"seq_len": 6, "batch": 13, "input_size": 40, "hidden_size": 70}
    case = Case(kind, **sizes, options={"bidirectional": True})
    module, data = case.modules()[1], case.data()
    x, results = data.inputs[0], []
    for threads in (1, 2, 3, 4, 1):
        torch.set_num_threads(threads)
        leaf = x.clone().requires_grad_()
        sources = [leaf, *module.parameters()]
        first = torch.autograd.grad(module(leaf)[0].sum(), sources, create_graph=True)
        second = torch.autograd.grad([g.square().sum() for g in first], sources)
        with forward_ad.dual_level():
            dual = module(forward_ad.make_dual(x, x.cos()))[0]
            tangent = forward_ad.unpack_dual(dual).tangent
        results.append([*first, *second, tangent])
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_biases_may_change_before_double_backward(name):
    """As before a single one: no derivative reads their values."""
    results = []
    for change in (False, True):
        torch.manual_seed(0)
        module, x = getattr(fastrnn, name)(3, 4), torch.randn(5, 2, 3, requires_grad=True)
        output = module(x)[0]
        if change:
            with torch.no_grad():
                module.bias_ih_l0.add_(1)
        (first,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), list(module.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_biases_may_change_between_both_backward_passes(name):
    """As in torch.nn. The third derivative, which reads them, has those of the forward pass, or
    says that it cannot."""
    results = []
    for change in (None, "before", "between"):
        torch.manual_seed(0)
        module, x = getattr(fastrnn, name)(3, 4), torch.randn(5, 2, 3, requires_grad=True)
        output = module(x)[0]
        with torch.no_grad():
            if change == "before":
                module.bias_ih_l0.add_(1)
        (first,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        with torch.no_grad():
            if change == "between":
                module.bias_hh_l0.add_(1)
        (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
        if change == "before":
            with pytest.raises(RuntimeError, match="expected biases as they were"):
                torch.autograd.grad(second.square().sum(), x)
            results.append([second, *results[0][1:]])
        else:
            third = torch.autograd.grad(second.square().sum(), list(module.parameters()))
            results.append([second, *third])
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


def third_and_higher(loss, x):
    """Derivatives beyond the second of a scalar function, in the ways that there are."""
    func = torch.func
    x = x.detach().requires_grad_()
    found, value = [], loss(x)
    for _ in range(4):
        (gradient,) = torch.autograd.grad(value, x, create_graph=True)
        found.append(gradient.detach())
        value = gradient.sin().sum()
    x = x.detach()
    v = x.cos()

    def along(f):
        return lambda x: func.jvp(f, (x,), (v,))[1]

    def slope(f):
        return lambda x: (func.grad(f)(x) * v).sum()

    return [
        *found,
        func.grad(slope(slope(loss)))(x),
        func.grad(along(slope(loss)))(x),
        func.grad(slope(along(loss)))(x),
        along(slope(slope(loss)))(x),
        along(along(loss))(x),
        along(along(along(loss)))(x),
        func.hessian(slope(loss))(x),
        func.vmap(lambda x: func.grad(slope(slope(loss)))(x))(torch.stack([x, v])),
        torch.autograd.functional.hvp(lambda x: slope(loss)(x), x, v)[1],
    ]


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_third_and_higher_derivatives(name):
    """By the equations, which torch differentiates."""
    module = getattr(fastrnn, name)(3, 4, dtype=torch.float64)
    equations = getattr(reference, name.lower().replace("cell", ""))
    options = {"nonlinearity": "tanh"} if name[:3] == "RNN" else {}
    params = [p.detach() for p in module.parameters()]
    x = torch.randn(*((2, 3) if name in CELLS else (3, 2, 3)), dtype=torch.float64)

    def ours(x):
        result = module(x)
        return (result if isinstance(result, torch.Tensor) else result[0]).square().sum()

    def theirs(x):
        rows = x[None] if name in CELLS else x
        return equations(rows, None, params, **options)[0].square().sum()

    assert_close(third_and_higher(ours, x), third_and_higher(theirs, x))


@pytest.mark.parametrize("name", LAYERS)
def test_third_derivatives_of_everything(name):
    """With respect to input, states and every parameter, packed and in two directions."""
    kind = {"RNN": "rnn_tanh"}.get(name, name.lower())
    ours, theirs, tensors = setting(kind, "packed")
    found = []
    for run in (ours, theirs):
        leaves = [t.clone().requires_grad_() for t in tensors]
        value = sum(r.sin().sum() for r in run(*leaves))
        for _ in range(2):
            gradients = torch.autograd.grad(value, leaves, create_graph=True)
            value = sum((g * g.detach().cos()).sum() for g in gradients)
        found.append(torch.autograd.grad(value, leaves))
    assert_close(*found)


def test_third_derivatives_need_an_input_that_is_kept():
    module = fastrnn.GRU(3, 4, dtype=torch.float64)
    module.weight_ih_l0.requires_grad_(False)
    x = torch.randn(3, 2, 3, dtype=torch.float64)
    value = module(x)[0].sin().sum()
    for _ in range(2):
        (gradient,) = torch.autograd.grad(value, module.weight_hh_l0, create_graph=True)
        value = gradient.sin().sum()
    with pytest.raises(RuntimeError, match="gru: expected an input or w_ih that requires"):
        value.backward()


@pytest.mark.parametrize("name", LAYERS)
def test_critic_with_gradient_penalty_trains(name):
    """WGAN-GP: a critic that tells two kinds of sequences apart, its slope held near 1."""
    torch.manual_seed(0)

    class Critic(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = getattr(fastrnn, name)(2, 16), torch.nn.Linear(16, 1)

        def forward(self, x):
            return self.head(self.rnn(x)[0][-1])

    critic = Critic()
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.02)
    real, fake = torch.randn(8, 32, 2) + 0.5, torch.randn(8, 32, 2) - 0.5
    losses, penalties = [], []
    for _ in range(40):
        between = torch.lerp(real, fake, torch.rand(1, 32, 1)).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        gradient_penalty = (slope.square().sum((0, 2)).sqrt() - 1).square().mean()
        loss = critic(fake).mean() - critic(real).mean() + 10 * gradient_penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        penalties.append(gradient_penalty.item())
    assert losses[-1] < losses[0] - 3
    assert penalties[-1] < 0.1 < penalties[0]


@pytest.mark.parametrize("name", LAYERS)
def test_a_bias_with_a_history_may_change_in_place(name):
    """What it was at the time of the forward pass counts, for its gradient too."""

    def second(changed):
        torch.manual_seed(0)
        module = getattr(fastrnn, name)(4, 3).double()
        weights = {n: p.detach() for n, p in module.named_parameters()}
        source = weights["bias_ih_l0"].clone().requires_grad_()
        bias = source * 2
        weights["bias_ih_l0"] = bias
        x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
        output = torch.func.functional_call(module, weights, (x,))[0]
        if changed:
            bias.mul_(10)
        (gradient,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), source)[0]

    expected = second(False)
    assert expected.abs().max() > 0.01
    assert_close([second(True)], [expected])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("what", ["input", "parameters", "cotangent"])
def test_plain_backward_in_forward_mode(name, what):
    """No graph of the gradients is recorded, and yet they have tangents."""

    def tangent(library):
        torch.manual_seed(1)
        module = getattr(library, name)(2, 3).double()
        x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
        v, u = torch.randn_like(x), torch.randn(3, 2, 3, dtype=torch.float64)
        weights = dict(module.named_parameters())
        recorded = module(x)[0] if what == "cotangent" else None
        with forward_ad.dual_level():
            if what == "cotangent":
                dual = forward_ad.make_dual(torch.ones_like(u), u)
                gradients = torch.autograd.grad(recorded, [x, *weights.values()], dual)
            else:
                if what == "input":
                    x = forward_ad.make_dual(x.detach().clone().requires_grad_(), v)
                else:
                    weights = {
                        n: forward_ad.make_dual(p.detach().clone().requires_grad_(), p.sin())
                        for n, p in weights.items()
                    }
                output = torch.func.functional_call(module, weights, (x,))[0]
                gradients = torch.autograd.grad(output.square().sum(), [x, *weights.values()])
            return [forward_ad.unpack_dual(g).tangent for g in gradients]

    with torch.backends.mkldnn.flags(enabled=False):
        expected = tangent(torch.nn)
    assert all(t is not None for t in expected)
    assert_close(tangent(fastrnn), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_double_backward_of_no_rows(name):
    module = getattr(fastrnn, name)(2, 3)
    x = torch.zeros(3, 0, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad.shape == x.shape
    assert all((p.grad == 0).all() for p in module.parameters() if p.grad is not None)
