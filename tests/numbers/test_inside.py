"""Options inside the recurrence against their equations: values, gradients, masks."""

import functools
import itertools

import pytest
import torch

from fastrnn import variants_reference
from fastrnn._layer import autograd, dropout, ops
from fastrnn._layer.cells import CELLS, STEMS
from fastrnn._stack import checkpoint
from tests.arguments import arguments_of, inside_values, like, of_inside, random, run_inside
from tests.tolerances import error

NORMS = ("none", "recurrent", "joint")


def moved(values):
    """What has gradients, by name."""
    cell, count = CELLS[values["cell"]], 1 + values["bidirectional"]
    stems = STEMS[cell.name, values["inside"].norm, len(values["params"]) // count]
    names = [f"{stem}[{d}]" for d in range(count) for stem in stems]
    named = {"input": values["input"]} | dict(zip(("h0", "c0"), values["states"]))
    named |= dict(zip(names, values["params"], strict=True))
    return {name: value for name, value in named.items() if value is not None}


def with_tensors(values, tensors):
    """The same values with others for those that `moved` names."""
    tensors = iter(tensors)
    input = next(tensors)
    states = [None if state is None else next(tensors) for state in values["states"]]
    return values | {"input": input, "states": states, "params": [*tensors]}


def with_gradients(layer, values, losses=None):
    """Results and gradients by name, and the weights of the loss."""
    named = moved(values)
    tensors = [value.detach().clone().requires_grad_() for value in named.values()]
    results = run_inside(layer, with_tensors(values, tensors))
    if losses is None:
        losses = [torch.randn_like(r) for r in results]
    loss = sum((w * r).sum() for w, r in zip(losses, results, strict=True))
    gradients = torch.autograd.grad(loss, tensors)
    out = dict(zip(("output", "h_n", "c_n"), results))
    out |= {f"d_{name}": g for name, g in zip(named, gradients, strict=True)}
    return {name: t.detach() for name, t in out.items()}, losses


def assert_close(ours, expected, limit, target=""):
    assert ours.keys() == expected.keys()
    # A gain's gradient may cancel to almost nothing: terms are of the size of the others.
    largest = max(t.abs().max().item() for n, t in expected.items() if n[:2] == "d_")
    for name, value in expected.items():
        size = largest * 1e-2 if name[:2] == "d_" else 0.0
        assert error(ours[name], value, size) <= limit, (name, target)


def check(targets, settings, limit=1e-11, results_of=with_gradients):
    """Kernels of each target against the equations, which are computed once."""
    expected = [results_of(variants_reference.layer, values) for values in settings]
    for target in targets:
        for values, (theirs, losses) in zip(settings, expected, strict=True):
            ours, _ = results_of(autograd.layer, values, losses)
            assert_close(ours, theirs, limit, target)


# -- Random words ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "counter, key, words",
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, words):
    """Those that the authors' library Random123 publishes for philox4x32 with 10 rounds."""
    counter, key = ([torch.tensor(v) for v in values] for values in (counter, key))
    assert [int(w) for w in variants_reference.philox(counter, key)] == list(words)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 64, 65, 200])
@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF])
def test_masks_are_the_reference_ones(cpu_target, size, seed):
    """A kernel's masks, read off states that are kept (1) or not (0), of c and of h apart."""
    values = inside_values("lstm", steps=3, batch=4, size=size, directions=2, seed=seed,
                           rates=(0.3, 0.6, 0.5), dtype=torch.float32, bias=False,
                           counter=(12, 5, -1))  # fmt: skip
    values["input"].zero_()
    for value, state in zip((9.0, 8.0), values["states"]):
        state.fill_(value)
    for w_hh in values["params"][1::2]:
        w_hh.zero_()
    # Gates of 1/2 and a candidate of 0: c halves where it is not kept.
    results = run_inside(autograd.layer, values)
    expected = run_inside(variants_reference.layer, values)
    for ours, theirs in zip(results, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5)
    h_n = results[1]
    kept = (h_n == 9.0).float().mean()
    if size >= 64:
        assert abs(kept - 0.6**3) < 0.06


def test_masks_statistics():
    """Rates are met, and words of neighbours, steps, rows, layers and streams are unrelated."""
    like = torch.empty(64, 256)
    seed = torch.tensor([7])
    for rate in (0.05, 0.5, 0.9):
        c, h, factor = variants_reference.masks(seed, (rate, rate, rate), 0, 0, 64, like)
        deviation = 5 * (rate * (1 - rate) / like.numel()) ** 0.5
        assert abs(c.mean() - rate) < deviation and abs(h.mean() - rate) < deviation
        assert abs((factor == 0).float().mean() - rate) < deviation
        assert abs(factor.mean() - 1) < deviation / (1 - rate)
    half = (0.5, 0.5, 0.5)
    base = variants_reference.masks(seed, half, 0, 0, 64, like)[0]
    others = [
        variants_reference.masks(seed, half, 0, 1, 64, like)[0],
        variants_reference.masks(seed, half, 2, 0, 64, like)[0],
        variants_reference.masks(seed, half, 4, 0, 64, like)[0],
        variants_reference.masks(seed + 1, half, 0, 0, 64, like)[0],
        variants_reference.masks(seed, half, 0, 0, 64, like)[1],
        base.roll(1, 0),
        base.roll(1, 1),
    ]
    for other in others:
        agree = (base == other).float().mean()
        assert abs(agree - 0.5) < 5 * 0.5 / like.numel() ** 0.5


# -- Values and gradients --------------------------------------------------------------------------

OPTIONS = {
    "plain": {},
    "no_bias_no_states": {"bias": False, "states": False},
    "scale": {"scale": True},
    "zoneout": {"seed": 5, "rates": (0.3, 0.2, 0.0)},
    "zoneout_h": {"seed": 5, "rates": (0.0, 0.4, 0.0)},
    "zoneout_eval": {"rates": (0.3, 0.2, 0.5)},
    "dropout": {"seed": 6, "rates": (0.0, 0.0, 0.4)},
    "all": {"seed": 7, "rates": (0.1, 0.2, 0.3), "scale": True},
}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(each_target, cell, norm, options):
    settings = [
        inside_values(cell, norm, directions=directions, lengths=lengths, **options)
        for directions, lengths in ((1, None), (2, None), (2, (5, 3, 3, 1)))
    ]
    check(each_target, settings)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("batch", [1, 2, 13])
@pytest.mark.parametrize("size", [1, 15, 16, 33])
def test_shapes(each_target, cell, batch, size):
    """Around vector widths and tile edges; one step and several."""
    sizes = {"batch": batch, "size": size}
    settings = [
        inside_values(cell, norm, steps=steps, **sizes, seed=1, scale=True, rates=(0.2, 0.2, 0.2))
        for steps, norm in itertools.product((1, 3), ("none", "joint"))
    ]
    check(each_target, settings)


def test_long_reductions(each_target):
    """More terms than the backward product takes at a time."""
    check(each_target, [inside_values("lstm", "recurrent", steps=3, batch=9, size=300)])


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_accuracy(cpu_target, cell, norm, dtype):
    """At most 2 times the error of the equations in plain PyTorch in the same dtype, plus a floor.

    The floor: 8 eps of a result's size; terms of a gradient cancel, so 64 eps of the largest.
    """
    options = {"steps": 12, "batch": 9, "size": 40, "seed": 2,
               "rates": (0.1, 0.1, 0.1), "dtype": dtype}  # fmt: skip
    values = inside_values(cell, norm, **options)
    exact = with_tensors(values, [t.double() for t in moved(values).values()])
    oracle, losses = with_gradients(variants_reference.layer, exact)
    losses = [w.to(dtype) for w in losses]
    oracle, _ = with_gradients(variants_reference.layer, exact, [w.double() for w in losses])
    ours, _ = with_gradients(autograd.layer, values, losses)
    theirs, _ = with_gradients(variants_reference.layer, values, losses)
    eps = torch.finfo(dtype).eps
    largest = max(t.abs().max().item() for n, t in oracle.items() if n[:2] == "d_")
    for name, expected in oracle.items():
        size = largest if name[:2] == "d_" else 0.0
        limit = 2 * error(theirs[name], expected, size) + (8 if size == 0 else 64) * eps
        assert error(ours[name], expected, size) <= limit, name


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("batch", [1, 3, 24])
def test_threads_do_not_change_a_bit(cpu_target, cell, batch):
    # One feature: torch's input product has no sum that could depend on threads.
    values = inside_values(cell, "recurrent", steps=20, batch=batch, size=150, directions=2,
                             seed=3, scale=True, rates=(0.2, 0.2, 0.2), features=1,
                             dtype=torch.float32)  # fmt: skip
    torch.set_num_threads(1)
    one, losses = with_gradients(autograd.layer, values)
    for threads in (2, 3, 4):
        torch.set_num_threads(threads)
        several, _ = with_gradients(autograd.layer, values, losses)
        for name, value in one.items():
            assert torch.equal(value, several[name]), (name, threads)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("norm", NORMS)
def test_numerical_derivatives(cell, norm):
    """First derivatives of the kernels, second ones of the equations."""
    values = inside_values(cell, norm, steps=3, batch=2, size=3, scale=True,
                             seed=4, rates=(0.3, 0.3, 0.3))  # fmt: skip
    named = moved(values)

    def call(*tensors):
        return run_inside(autograd.layer, with_tensors(values, tensors))

    tensors = [value.requires_grad_() for value in named.values()]
    assert torch.autograd.gradcheck(call, tensors, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)


def second_derivatives(layer, values, losses=None):
    """Tangents of results in a direction, and gradients of a penalty on gradients, by name."""
    named = moved(values)
    tensors = [value.detach().clone().requires_grad_() for value in named.values()]
    if losses is None:
        losses = [like(v) for v in (*run_inside(layer, values), *tensors)]
    count = len(losses) - len(tensors)
    losses, directions = losses[:count], losses[count:]
    results = run_inside(layer, with_tensors(values, tensors))
    first = torch.autograd.grad(results, tensors, losses, create_graph=True)
    second = torch.autograd.grad(
        sum((u * g).sum() for u, g in zip(directions, first)), tensors, allow_unused=True
    )
    found = {f"d_{name}": torch.zeros(1) if g is None else g for name, g in zip(named, second)}

    def run(*tensors):
        return tuple(run_inside(layer, with_tensors(values, tensors)))

    primals = tuple(value.detach() for value in named.values())
    tangents = torch.func.jvp(run, primals, tuple(directions))[1]
    found |= {f"t_{i}": t for i, t in enumerate(tangents)}
    return found, [*losses, *directions]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_second_derivatives(each_target, cell, norm, options):
    """By kernels, against torch's of the equations."""
    settings = [
        inside_values(cell, norm, directions=directions, lengths=lengths, size=size, **options)
        for directions, lengths, size in ((1, None, 17), (2, None, 16), (2, (5, 3, 3, 1), 5))
    ]
    check(each_target, settings, 1e-9, second_derivatives)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("norm", NORMS)
def test_second_derivatives_of_any_subset(cell, norm):
    """Frozen parameters, of which the backward pass needs less."""
    values = inside_values(cell, norm, directions=2, scale=True, seed=1, rates=(0.2, 0.2, 0.2))
    names = [*moved(values)]
    for wanted in (["input"], ["h0"], [n for n in names if "w_hh" not in n], ["w_ih[0]"]):
        found = []
        for layer in (autograd.layer, variants_reference.layer):
            named = {n: v.detach().clone() for n, v in moved(values).items()}
            leaves = [named[n].requires_grad_() for n in wanted]
            output = run_inside(layer, with_tensors(values, named.values()))[0]
            first = torch.autograd.grad(output.sin().sum(), leaves, create_graph=True)
            second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
            found.append([*first, *second])
        for ours, theirs in zip(*found, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-11)


def test_without_kernels(monkeypatch):
    """An empty batch has masks too, and gates are values alone."""
    monkeypatch.setattr(ops, "has_inside", lambda tensor: False)
    values = inside_values("lstm", seed=1, rates=(0.2, 0.2, 0.2), batch=0, states=False)
    assert run_inside(autograd.layer, values)[0].shape == (4, 0, 17)
    values = inside_values("lstm", seed=1, rates=(0.2, 0.2, 0.2))
    values["input"].requires_grad_()
    *_, cells, gates = run_inside(autograd.layer, values, keep=True)
    assert cells.requires_grad and not gates.requires_grad


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("norm", NORMS)
def test_second_derivatives_in_float(cpu_target, cell, norm):
    """As near to float64 as torch's of the equations, within a factor and a floor."""
    values = inside_values(cell, norm, steps=9, batch=9, size=40, seed=2, rates=(0.1, 0.1, 0.1),
                           dtype=torch.float32, scale=True)  # fmt: skip
    exact = with_tensors(values, [t.double() for t in moved(values).values()])
    exact["inside"] = values["inside"]._replace(h_scale=values["inside"].h_scale.double())
    ours, losses = second_derivatives(autograd.layer, values)
    theirs, _ = second_derivatives(variants_reference.layer, values, losses)
    wide = [w.double() for w in losses]
    oracle, _ = second_derivatives(variants_reference.layer, exact, wide)
    eps = torch.finfo(torch.float32).eps
    largest = max(t.abs().max().item() for n, t in oracle.items() if n[:2] == "d_")
    for name, expected in oracle.items():
        size = largest if name[:2] == "d_" else 0.0
        limit = 2 * error(theirs[name], expected, size) + 64 * eps
        assert error(ours[name], expected, size) <= limit, name


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("norm", NORMS)
def test_vmap(cell, norm):
    """Each sample is a call of its own, with the same masks."""
    values = inside_values(cell, norm, seed=3, rates=(0.2, 0.2, 0.2), scale=True, batch=2)
    inputs, (h0, *_) = random(3, *values["input"].shape), values["states"]

    def loss(input, h0, *params):
        states = [h0, *values["states"][1:]]
        mine = values | {"input": input, "states": states, "params": [*params]}
        return run_inside(autograd.layer, mine)[0].square().sum()

    def one(input):
        return torch.func.grad(loss, argnums=(0, 1, *range(2, 2 + len(values["params"]))))(
            input, h0, *values["params"]
        )

    each = [one(input) for input in inputs]
    for ours, theirs in zip(torch.func.vmap(one)(inputs), zip(*each), strict=True):
        assert torch.allclose(ours, torch.stack(theirs), rtol=1e-10, atol=1e-12)
    output, *_ = run_inside(autograd.layer, values | {"input": values["input"].requires_grad_()})
    many = torch.eye(output.numel(), dtype=output.dtype)[:3].view(3, *output.shape)
    (batched,) = torch.autograd.grad(
        output, values["input"], many, is_grads_batched=True, retain_graph=True
    )
    single = [torch.autograd.grad(output, values["input"], d, retain_graph=True)[0] for d in many]
    assert torch.allclose(batched, torch.stack(single), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("directions", [1, 2])
def test_checkpoint_every(cell, norm, directions):
    """Chunks that are computed again have the masks of their steps."""
    values = inside_values(cell, norm, steps=7, directions=directions, seed=3, scale=True,
                           rates=(0.3, 0.3, 0.3), counter=(4, 3, 2))  # fmt: skip
    layer = functools.partial(autograd.layer, cell)

    def checkpointed(cell, *arguments, **options):
        return checkpoint.layer(layer, cell, 3, *arguments, **options)

    plain, losses = with_gradients(autograd.layer, values)
    ours, _ = with_gradients(checkpointed, values, losses)
    assert_close(ours, plain, 1e-12)
    plain, losses = second_derivatives(autograd.layer, values)
    ours, _ = second_derivatives(checkpointed, values, losses)
    assert_close(ours, plain, 1e-12)


def test_backward_twice_gives_the_same():
    values = inside_values("lstm", "recurrent", seed=1, rates=(0.2, 0.2, 0.2))
    w_hh = values["params"][1].requires_grad_()
    output, _, _ = run_inside(autograd.layer, values)
    loss = output.square().sum()
    first = torch.autograd.grad(loss, w_hh, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(loss, w_hh)[0])


def test_rows_of():
    values = torch.randn(2, 3, 4)
    assert torch.equal(dropout.rows_of(values, 6, 3, None), torch.cat([values, values], 1))
    packed = dropout.rows_of(values, 6, 3, torch.tensor([3, 2, 1]))
    assert torch.equal(packed, torch.cat([values, values[:, :2], values[:, :1]], 1))


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("cell", "elman", "expected cell"),
        ("norm", "batch", "expected norm"),
        ("norm", "joint", "expected 4 params for each"),
        ("norm", "none", "expected 2 or 4 params"),
        ("counter", None, "expected counter with options"),
        ("states", [torch.zeros(1, 5, 3), None], "expected h0"),
        ("h_scale", torch.zeros(1, 5, 3), "expected h_scale"),
        ("seed", torch.zeros(1), "expected seed"),
        ("counter", (-1, 0, 1), "expected counter"),
        ("counter", (0, 1), "expected counter"),
        ("rates", (0.0, 1.0, 0.0), "rates in"),
        ("rates", (0.0, 0.5), "expected rates"),
        ("eps", 0.0, "expected eps > 0"),
        ("resets", torch.zeros(4, 5, dtype=torch.bool), "expected no resets on cpu"),
    ],
)
def test_errors(name, value, message):
    values = of_inside("layer_forward", inside_values("lstm", "recurrent", seed=1))
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastrnn.layer_forward(*(values | {name: value}).values())


def test_errors_of_backward():
    values = of_inside("layer_backward", inside_values("lstm", "recurrent", seed=1))
    for changed, message in (
        ({"saved": values["saved"][1:]}, "expected normed|expected 5 saved"),
        ({"saved": [*values["saved"][:1], values["saved"][1].double()[..., 0],
                    *values["saved"][2:]]}, "expected rstd of shape"),
        ({"weights": values["weights"][:5]}, "expected cell_bias among the weights"),
        ({"weights": values["weights"][:4]}, "expected 5 or 6 weights"),
        ({"wanted": values["wanted"][1:]}, "expected 8 flags, or 11 with biases"),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            torch.ops.fastrnn.layer_backward(*(values | changed).values())


def test_no_projection_goes_with_options():
    values = of_inside("layer_forward", inside_values("lstm", seed=1, rates=(0.1, 0.1, 0.0)))
    values["params"] = [*values["params"], torch.zeros(17, 17, dtype=torch.float64)]
    with pytest.raises(RuntimeError, match="expected 2 or 4 params"):
        torch.ops.fastrnn.layer_forward(*values.values())


# -- Dropped weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (5, 64), (4, 65), (2, 128), (3, 129), (9, 300)])
def test_dropped_weights_are_the_reference_ones(cpu_target, shape, dtype):
    weights = torch.randn(shape, dtype=torch.float64).to(dtype)
    for seed, stream in ((0, 0), (-1, 3), (2**63 - 1, 6), (-(2**63), 1)):
        seed = torch.tensor([seed])
        ours = dropout.dropped(weights, seed, stream, 0.3)
        factors = variants_reference.weight_factors(seed, stream, 0.3, weights.double())
        assert torch.equal(ours == 0, factors == 0)
        torch.testing.assert_close(ours, (weights.double() * factors).to(dtype))
    strided = torch.randn(shape[1], shape[0], dtype=torch.float64).to(dtype).t()
    expected = dropout.dropped(strided.contiguous(), seed, stream, 0.3)
    assert torch.equal(dropout.dropped(strided, seed, stream, 0.3), expected)


def test_dropped_weights_statistics(cpu_target):
    """Rates and means are met, and no seed, stream, row or column tells of another."""
    ones, seed = torch.ones(512, 384), torch.tensor([7])
    for rate in (0.05, 0.5, 0.9):
        factors = dropout.dropped(ones, seed, 0, rate)
        deviation = 5 * (rate * (1 - rate) / ones.numel()) ** 0.5
        assert abs((factors == 0).double().mean() - rate) < deviation
        assert abs(factors.double().mean() - 1) < deviation / (1 - rate)
        assert torch.equal(factors[factors != 0].unique(), torch.tensor([1 / (1 - rate)]))
    base = dropout.dropped(ones, seed, 0, 0.5)
    others = [
        dropout.dropped(ones, seed + 1, 0, 0.5),
        dropout.dropped(ones, seed, 2, 0.5),
        *(base.roll(shift, dim) for shift in (1, 16, 64, 192) for dim in (0, 1)),
    ]
    for other in others:
        agree = (base == other).double().mean()
        assert abs(agree - 0.5) < 5 * 0.5 / ones.numel() ** 0.5
    zoneout = variants_reference.masks(seed, (0.5, 0.5, 0.0), 0, 0, 512, ones)[0]
    assert abs((base == 2 * zoneout).double().mean() - 0.5) < 5 * 0.5 / ones.numel() ** 0.5


def test_dropped_weights_do_not_depend_on_threads(cpu_target):
    weights, seed = torch.randn(1030, 257), torch.tensor([5])
    torch.set_num_threads(1)
    expected = dropout.dropped(weights, seed, 0, 0.4)
    for threads in (2, 3, 4):
        torch.set_num_threads(threads)
        assert torch.equal(dropout.dropped(weights, seed, 0, 0.4), expected)


def test_dropped_weights_derivatives():
    weights = torch.randn(5, 70, dtype=torch.float64, requires_grad=True)
    seed = torch.tensor([11])

    def call(w):
        return dropout.dropped(w, seed, 2, 0.4).square()

    assert torch.autograd.gradcheck(call, weights, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, weights)
    ours = torch.autograd.grad(call(weights).sum(), weights)[0]
    assert torch.equal(ours, torch.func.grad(lambda w: call(w).sum())(weights.detach()))


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("weights", torch.zeros(3), "expected weights of 2 dimensions"),
        ("seed", torch.zeros(1), "expected seed"),
        ("stream", -1, "expected stream >= 0"),
        ("rate", 1.0, r"rate in \[0, 1\)"),
    ],
)
def test_drop_errors(name, value, message):
    values = arguments_of("drop_weights", False, False) | {name: value}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastrnn.drop_weights(*values.values())
