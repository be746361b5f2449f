"""resets, lengths and every step's states: against the reference, torch.nn on pieces, packing."""

import random

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import fastrnn
from fastrnn import reference
from fastrnn._layer import autograd
from fastrnn._stack import beyond
from tests.arguments import call, tensors_in
from tests.cases import KINDS, LAYERS, Case
from tests.options import ASKED, SETTINGS, TOLERANCE, assert_close, both, options_of, pieces


def numbered(tensors):
    return {f"d_{i}": tensor.detach() for i, tensor in enumerate(tensors)}


@pytest.fixture(params=["segments", "masked"])
def path(request, monkeypatch):
    """Both ways that lengths are kept to: the second is that of other devices."""
    if request.param == "masked":
        monkeypatch.setattr(beyond, "_stays_padded", lambda input, resets: resets is None)
    return request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("asked", ASKED)
def test_against_the_reference(kind, setting, asked):
    case = Case(kind, **{"hidden_size": 5, "seq_len": 7, **SETTINGS[setting]})
    assert_close(*both(case, options_of(case, ASKED[asked])), 1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_nothing_to_split_is_the_plain_layer(kind, setting, monkeypatch):
    """No reset, or none but at the first step, and full lengths: no row is moved."""
    case = Case(kind, **{"hidden_size": 5, "seq_len": 7, **SETTINGS[setting]})
    options = options_of(case, {"resets": 0.0, "lengths": True})
    options["lengths"].fill_(case.seq_len)
    torch.manual_seed(0)
    plain, _ = both(case, {})
    monkeypatch.setattr(beyond.autograd, "gather_rows", None)
    for asked in ({"resets"}, {"lengths"}, {"resets", "lengths"}):
        torch.manual_seed(0)
        ours, theirs = both(case, {name: options[name] for name in asked})
        assert_close(ours, theirs, 1e-10)
        assert all(torch.equal(ours[name], value) for name, value in plain.items())
    steps = options["resets"].t() if case.arguments.get("batch_first") else options["resets"]
    steps[0] = True
    assert_close(*both(case, options), 1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("states", [False, True], ids=["", "states"])
def test_lengths_without_reading_them(kind, setting, states, monkeypatch):
    monkeypatch.setattr(beyond, "_stays_padded", lambda input, resets: resets is None)
    monkeypatch.setattr(beyond, "_Segments", None)
    case = Case(kind, **{"hidden_size": 5, "seq_len": 7, **SETTINGS[setting]})
    options = options_of(case, {"lengths": True, "return_states": states})
    assert_close(*both(case, options), 1e-10)


@pytest.mark.parametrize("seed", range(150))
def test_random_configurations(seed, monkeypatch):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    case = Case(
        rng.choice(tuple(KINDS)),
        seq_len=rng.choice((1, 2, 5, 11, 20)),
        batch=rng.choice((1, 1, 2, 5, 8, 17)),
        input_size=rng.choice((1, 3, 16)),
        hidden_size=rng.choice((2, 7, 16, 33)),
        hx=rng.random() < 0.6,
        options={
            "num_layers": rng.choice((1, 1, 2, 3)),
            "bidirectional": rng.random() < 0.4,
            "bias": rng.random() < 0.8,
            "batch_first": rng.random() < 0.4,
        },
    )
    asked = {"return_states": rng.random() < 0.5, "reset_to": rng.choice(("zeros", "hx"))}
    if rng.random() < 0.7:
        asked["resets"] = rng.choice((0.0, 0.02, 0.3, 1.0))
    if rng.random() < 0.6:
        asked["lengths"] = rng.choice((True, "any", 0))
    if rng.random() < 0.3:
        monkeypatch.setattr(beyond, "_stays_padded", lambda input, resets: resets is None)
    dtype = rng.choice((torch.float32, torch.float64, torch.bfloat16, torch.float16))
    if "rnn_relu" in case.kind and dtype.itemsize == 2:
        dtype = torch.float32  # within rounding of the kink no gradient is right
    torch.set_num_threads(rng.choice((1, 2)))
    options = options_of(case, asked, seed)
    data = case.data(dtype)
    if "lengths" in options:
        # What is behind a sequence's end is never read.
        x = data.inputs[0].transpose(0, 1) if case.arguments["batch_first"] else data.inputs[0]
        x[torch.arange(case.seq_len)[:, None] >= options["lengths"]] = torch.nan
    assert_close(*both(case, options, dtype, data), TOLERANCE[dtype])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "two"])
@pytest.mark.parametrize("reset_to", ["zeros", "hx"])
def test_resets_are_splitting(kind, bidirectional, reset_to):
    options = {"num_layers": 2, "bidirectional": bidirectional}
    case = Case(kind, seq_len=9, options=options, hidden_size=6)
    theirs, ours = case.modules(torch.float64)
    data = case.data(torch.float64)
    resets = options_of(case, {"resets": 0.25})["resets"]
    found = []
    for module in (theirs, ours):
        x, *states = [t.clone().requires_grad_() for t in (*data.inputs, *data.states)]
        hx = tuple(states) if case.name == "LSTM" else states[0]
        if module is theirs:
            output, final = pieces(module, x, hx, resets, reset_to)
        else:
            output, final = module(x, hx, resets=resets, reset_to=reset_to)
        outs = [output, *(final if case.name == "LSTM" else (final,))]
        loss = sum((w * o).sum() for w, o in zip(data.losses, outs, strict=True))
        grads = torch.autograd.grad(loss, [x, *states, *module.parameters()])
        found.append(numbered([*outs, *grads]))
    assert_close(found[1], found[0], 1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_first", [False, True], ids=["", "batch_first"])
def test_lengths_are_packing(kind, batch_first, path):
    options = {"num_layers": 2, "bidirectional": True, "batch_first": batch_first}
    case = Case(kind, seq_len=9, batch=6, options=options)
    theirs, ours = case.modules(torch.float64)
    lengths = torch.tensor([3, 9, 1, 7, 7, 2])
    data, found = case.data(torch.float64), []
    for module in (theirs, ours):
        x, *states = [t.clone().requires_grad_() for t in (*data.inputs, *data.states)]
        hx = tuple(states) if case.name == "LSTM" else states[0]
        if module is theirs:
            packed = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
            output, final = module(packed, hx)
            output = pad_packed_sequence(output, batch_first)[0]
        else:
            output, final = module(x, hx, lengths=lengths)
        outs = [output, *(final if case.name == "LSTM" else (final,))]
        loss = sum((w * o).sum() for w, o in zip(data.losses, outs, strict=True))
        grads = torch.autograd.grad(loss, [x, *states, *module.parameters()])
        found.append(numbered([*outs, *grads]))
    assert_close(found[1], found[0], 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_no_true_reset_changes_no_bit(kind):
    """Nor do lengths that are all seq_len: rows meet other tiles, sums stay what they are."""
    module, data = Case(kind, 12, 7, 16, 33).modules()[1], Case(kind, 12, 7, 16, 33).data()
    x = data.inputs[0]
    plain = module(x)
    for options in (
        {"resets": torch.zeros(12, 7, dtype=torch.bool)},
        {"lengths": torch.full((7,), 12)},
        {"return_states": True},
    ):
        output, final = module(x, **options)[:2]
        assert torch.equal(output, plain[0])
        assert all(map(torch.equal, final, plain[1]))


@pytest.mark.parametrize("name", LAYERS)
def test_all_lengths_zero(name, path):
    """No sequence has a step: outputs are zero, states what they were, gradients zero."""
    module = getattr(fastrnn, name)(3, 4, bidirectional=True)
    x = torch.full((5, 2, 3), torch.nan, requires_grad=True)
    h = torch.randn(2, 2, 4, requires_grad=True)
    lengths = torch.zeros(2, dtype=torch.int64)
    output, final = module(x, (h, h) if name == "LSTM" else h, lengths=lengths)
    final = final[1] if name == "LSTM" else final
    assert torch.equal(output, torch.zeros(5, 2, 8)) and torch.equal(final, h)
    gradients = torch.autograd.grad(output.sum() + final.sum(), [x, h, *module.parameters()])
    assert torch.equal(gradients[1], torch.ones_like(h))
    assert not any(g.any() for g in (gradients[0], *gradients[2:]))


@pytest.mark.parametrize("name", LAYERS)
def test_unbatched(name):
    module = getattr(fastrnn, name)(3, 4, 2, bidirectional=True, batch_first=True)
    x = torch.randn(6, 3)
    resets, lengths = torch.tensor([0, 0, 1, 0, 1, 0]).bool(), torch.tensor(5)
    options = {"resets": resets, "lengths": lengths, "return_states": True}
    output, final, states = module(x, **options)
    batched = {"resets": resets[None], "lengths": lengths[None], "return_states": True}
    expected, final_of_one, states_of_one = module(x[None], **batched)
    assert torch.equal(output, expected[0])
    pairs = zip(final, final_of_one) if name == "LSTM" else [(final, final_of_one)]
    assert all(torch.equal(a, b[:, 0]) for a, b in pairs)
    for a, b in zip(states, states_of_one):
        assert (a is b is None) or torch.equal(a, b[:, 0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asked", ["states", "all"])
def test_what_requires_no_gradient_gets_none(kind, asked):
    """Rows move together, but each has a history of its own: gates have none."""
    case = Case(kind, hidden_size=5, seq_len=7)
    module, data = case.modules(torch.float64)[1], case.data(torch.float64)
    hx = data.states if case.name == "LSTM" else data.states[0]
    options = options_of(case, {**ASKED["all"], **ASKED[asked]})
    *_, states = module(data.inputs[0], hx, **options)
    assert states.hidden.requires_grad
    assert states.cells is None or states.cells.requires_grad
    assert states.gates is None or not states.gates.requires_grad
    index = torch.tensor([[1, 0]])
    leaves = [torch.randn(1, 2, 3, requires_grad=needed) for needed in (True, False)]
    moved = autograd.gather_rows(leaves, index, index)
    assert [t.requires_grad for t in moved] == [True, False]


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_the_outputs(kind):
    case = Case(kind, 6, 3, options={"num_layers": 2, "bidirectional": True})
    module, x = case.modules()[1], case.data().inputs[0]
    output, final, states = module(x, return_states=True)
    assert isinstance(states, fastrnn.functional.States)
    h_n = final[0] if case.name == "LSTM" else final
    assert torch.equal(torch.cat([states.hidden[2], states.hidden[3]], -1), output)
    assert torch.equal(states.hidden[0::2, -1], h_n[0::2])
    assert torch.equal(states.hidden[1::2, 0], h_n[1::2])
    assert states.gates is None or not states.gates.requires_grad
    if case.name == "LSTM":
        assert torch.equal(states.cells[0::2, -1], final[1][0::2])
        i, f, g, o = states.gates.chunk(4, -1)
        torch.testing.assert_close(
            states.cells[0, 1:], f[0, 1:] * states.cells[0, :-1] + (i * g)[0, 1:]
        )


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("layers", [1, 2])
def test_results_may_be_changed_before_backward(name, layers):
    module = getattr(fastrnn, name)(3, 4, layers)
    x = torch.randn(5, 2, 3, requires_grad=True)
    found = []
    for change in (False, True):
        output, final, states = module(x, return_states=True)
        every = [
            output,
            *(final if name == "LSTM" else (final,)),
            *(s for s in states if s is not None),
        ]
        pointers = {t.untyped_storage().data_ptr() for t in every}
        assert len(pointers) == len(every)
        weights = [t.detach().cos() for t in every]
        loss = sum((w * t).sum() for w, t in zip(weights, every) if t.requires_grad)
        if change:
            for tensor in every:
                tensor.detach().zero_()
        loss.backward()
        found.append([p.grad.clone() for p in (x, *module.parameters())])
        x.grad = None
        module.zero_grad()
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("reset_to", ["zeros", "hx"])
def test_gradcheck(name, reset_to, path):
    """First, second and forward-mode derivatives, of states too, through both ways."""
    torch.manual_seed(2)
    module = getattr(fastrnn, name)(2, 3, bidirectional=True, dtype=torch.float64)
    lstm, names = name == "LSTM", [n for n, _ in module.named_parameters()]
    options = {"lengths": torch.tensor([4, 2, 3]), "return_states": True}
    if path == "segments":
        options |= {"resets": torch.rand(4, 3) < 0.4, "reset_to": reset_to}

    def call(x, *rest):
        hx = rest[:2] if lstm else rest[0]
        weights = dict(zip(names, rest[len(rest) - len(names) :], strict=True))
        output, final, states = torch.func.functional_call(module, weights, (x, hx), options)
        return output, *(final if lstm else (final,)), *(t for t in states[:2] if t is not None)

    inputs = [torch.randn(4, 3, 2), *(torch.randn(2, 3, 3) for _ in range(1 + lstm))]
    inputs = [t.double().requires_grad_() for t in inputs]
    weights = [p.detach().clone().requires_grad_() for p in module.parameters()]
    torch.autograd.gradcheck(call, (*inputs, *weights), check_forward_ad=True, fast_mode=True)
    torch.autograd.gradgradcheck(call, (*inputs, *weights), fast_mode=True)


@pytest.mark.parametrize("name", ["LSTM"])
@pytest.mark.parametrize("what", ["cells", "hidden"])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}], ids=str)
def test_a_loss_on_states_alone(name, what, options, cpu_target):
    """Nothing but one field is differentiated, twice: on every instruction set."""
    case = Case("lstm", 6, 9, 5, 19, options=options)
    module = case.modules(torch.float64)[1]
    x = case.data(torch.float64).inputs[0]
    params = list(module.parameters())
    found = []
    for library in (fastrnn.functional, reference):
        leaf = x.clone().requires_grad_()
        sizes = {"num_layers": module.num_layers, "bidirectional": module.bidirectional}
        states = library.lstm(leaf, None, params, **sizes, return_states=True)[2]
        value = states[0 if what == "hidden" else 1]
        first = torch.autograd.grad(
            (value * value.detach().cos()).sum(), [leaf, *params], create_graph=True,
            materialize_grads=True,
        )  # fmt: skip
        second = torch.autograd.grad(sum(g.square().sum() for g in first), [leaf, *params],
                                     materialize_grads=True)  # fmt: skip
        found.append(numbered([*first, *second]))
    assert_close(*found, 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_functional_transforms(kind):
    """vmap over inputs, per-sample gradients and Hessian products with resets."""
    case = Case(kind, 6, 4, 3, 5)
    module = case.modules(torch.float64)[1]
    params = {n: p.detach() for n, p in module.named_parameters()}
    options = options_of(case, {"resets": 0.3, "lengths": True})
    xs = torch.randn(3, 6, 4, 3, dtype=torch.float64)

    def loss(params, x):
        return torch.func.functional_call(module, params, (x,), options)[0].square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, xs)
    for i, x in enumerate(xs):
        expected = torch.func.grad(loss)(params, x)
        torch.testing.assert_close({n: g[i] for n, g in each.items()}, expected)
    product = torch.func.jvp(torch.func.grad(lambda x: loss(params, x)), (xs[0],), (xs[1],))[1]
    leaf = xs[0].clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(params, leaf), leaf, create_graph=True)
    torch.testing.assert_close(product, torch.autograd.grad((first * xs[1]).sum(), leaf)[0])
    masks = torch.rand(3, 6, 4) < 0.3
    with pytest.raises(RuntimeError, match="same resets and lengths"):
        torch.func.vmap(lambda m: module(xs[0], resets=m)[0])(masks)


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_between_layers(name):
    """Of probability 1: the second layer gets zeros, and states are those before dropout."""
    module = getattr(fastrnn, name)(3, 4, 2, dropout=1.0)
    x, resets = torch.randn(6, 3, 3), torch.rand(6, 3) < 0.4
    output, _, states = module(x, resets=resets, return_states=True)
    blind = module(torch.full_like(x, 7.0), resets=resets)[0]
    assert torch.equal(output, blind) and states.hidden[0].abs().min() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_dtypes(kind):
    """Those of the layer without options."""
    case = Case(kind, 4, 3, options={"num_layers": 2})
    module, x = case.modules()[1], case.data().inputs[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = module(x)
        output, final, states = module(x, resets=torch.rand(4, 3) < 0.5, return_states=True)
    assert output.dtype is plain[0].dtype is states.hidden.dtype
    pairs = zip(final, plain[1]) if case.name == "LSTM" else [(final, plain[1])]
    assert all(a.dtype is b.dtype for a, b in pairs)


@pytest.mark.parametrize("name", LAYERS)
def test_nothing_more_is_kept_than_asked_for(name, through_operators, monkeypatch):
    """Without return_states no operator saves, and none is called that was not."""
    from fastrnn._layer import ops

    flags, forward = [], ops.layer_forward

    def counted(*arguments):
        flags.append(dict(zip((a.name for a in forward._schema.arguments), arguments))["save"])
        return forward(*arguments)

    monkeypatch.setattr(ops, "layer_forward", counted)
    monkeypatch.setattr(beyond, "apply", None)
    module = getattr(fastrnn, name)(3, 4)
    with torch.no_grad():
        module(torch.randn(5, 2, 3))
    assert flags == [False]


BAD = {
    "resets_shape": (RuntimeError, {"resets": torch.zeros(2, 5, dtype=torch.bool)}),
    "resets_1d": (RuntimeError, {"resets": torch.zeros(5, dtype=torch.bool)}),
    "resets_list": (RuntimeError, {"resets": [True, False]}),
    "resets_string": (TypeError, {"resets": "ab"}),
    "resets_object": (TypeError, {"resets": object()}),
    "resets_ragged": (TypeError, {"resets": [[True], [True, False]]}),
    "lengths_float": (RuntimeError, {"lengths": torch.ones(2)}),
    "lengths_bool": (RuntimeError, {"lengths": torch.ones(2, dtype=torch.bool)}),
    "lengths_shape": (RuntimeError, {"lengths": torch.ones(3, dtype=torch.int64)}),
    "lengths_long": (RuntimeError, {"lengths": torch.tensor([5, 6])}),
    "lengths_negative": (RuntimeError, {"lengths": torch.tensor([5, -1], dtype=torch.int8)}),
    "lengths_list": (RuntimeError, {"lengths": [5, 2, 1]}),
    "lengths_none": (TypeError, {"lengths": [5, None]}),
    "lengths_string": (TypeError, {"lengths": "52"}),
    "reset_to": (ValueError, {"resets": torch.zeros(5, 2, dtype=torch.bool), "reset_to": "h0"}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_kinds_of_masks(name):
    """Whatever holds the numbers: dones of an environment, lists of lengths."""
    module, x = getattr(fastrnn, name)(3, 4, batch_first=True), torch.randn(2, 5, 3)
    resets, lengths = torch.rand(2, 5) < 0.4, torch.tensor([5, 2])
    expected = module(x, resets=resets, lengths=lengths)[0]
    masks = [resets.float(), resets.to(torch.uint8), 3 * resets.long(), resets.numpy(),
             resets.tolist(), resets.int().tolist()]  # fmt: skip
    for mask in masks:
        assert torch.equal(module(x, resets=mask, lengths=lengths)[0], expected)
    for kind in (lengths.int(), lengths.to(torch.uint8), [5, 2], (5, 2), lengths.numpy()):
        assert torch.equal(module(x, resets=resets, lengths=kind)[0], expected)
    alone = module(x[1], resets=resets[1].tolist(), lengths=2)[0]
    torch.testing.assert_close(alone, expected[1])


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("label", BAD)
def test_errors(name, label):
    kind, options = BAD[label]
    argument = next(iter(options)) if "reset_to" not in label else "reset_to"
    with pytest.raises(kind, match=f"({name.lower()}|fastrnn): expected {argument}.* got"):
        getattr(fastrnn, name)(3, 4)(torch.zeros(5, 2, 3), **options)


@pytest.mark.parametrize("name", LAYERS)
def test_errors_of_unbatched_and_packed_input(name):
    module = getattr(fastrnn, name)(3, 4)
    mask = torch.zeros(5, 1, dtype=torch.bool)
    with pytest.raises(RuntimeError, match="expected resets of 1 dimensions .* got"):
        module(torch.zeros(5, 3), resets=mask)
    with pytest.raises(RuntimeError, match="expected lengths of 0 dimensions .* got"):
        module(torch.zeros(5, 3), lengths=torch.ones(1, dtype=torch.int64))
    packed = pack_sequence([torch.zeros(5, 3)])
    for options in ({"resets": mask}, {"lengths": torch.tensor([5])}, {"return_states": True}):
        with pytest.raises(
            ValueError, match=f"{name.lower()}: expected padded input with {next(iter(options))}"
        ):
            module(packed, **options)


@pytest.mark.parametrize("name", LAYERS)
def test_options_are_keywords_alone(name):
    with pytest.raises(TypeError):
        getattr(fastrnn, name)(3, 4)(torch.zeros(5, 2, 3), None, torch.zeros(5, 2).bool())


def test_any_byte_but_zero_resets():
    """A bool tensor may view memory in which true is not 1."""
    mask = torch.zeros(5, 2, dtype=torch.uint8)
    mask[2, 1] = 254
    layer, x = fastrnn.GRU(3, 4), torch.randn(5, 2, 3)
    expected = layer(x, resets=mask != 0)[0]
    torch.testing.assert_close(layer(x, resets=mask.view(torch.bool))[0], expected)


@pytest.mark.parametrize("seq_len", [2**62, 2**62 + 1, 2**60])
def test_more_rows_than_there_can_be(seq_len):
    lengths = torch.ones(4, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="fastrnn: expected fewer rows"):
        call("segments", lengths=lengths, seq_len=seq_len, batch=4, directions=1,
             none_if_whole=False)  # fmt: skip


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("reset_to", ["zeros", "hx"])
def test_empty_batch(name, reset_to):
    layer = getattr(fastrnn, name)(3, 4, 2, bidirectional=True)
    x = torch.randn(5, 0, 3, requires_grad=True)
    h = torch.zeros(4, 0, 4)
    masks = {"resets": torch.zeros(5, 0, dtype=torch.bool), "lengths": torch.zeros(0).long()}
    for asked in ({"resets"}, {"lengths"}, {"resets", "lengths"}):
        for hx in (None, (h, h) if name == "LSTM" else h):
            given = {key: masks[key] for key in asked}
            output, _, states = layer(x, hx, **given, reset_to=reset_to, return_states=True)
            assert output.shape == (5, 0, 8) and states.hidden.shape == (4, 5, 0, 4)
            output.sum().backward()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert compiled(x, **masks, reset_to=reset_to)[0].shape == (5, 0, 8)


def test_masks_without_values():
    layer, x = fastrnn.LSTM(3, 4), torch.randn(5, 2, 3)
    resets, lengths = torch.zeros(5, 2, dtype=torch.bool), torch.ones(2, dtype=torch.int64)
    for name, value in (
        ("lengths", lengths.to("meta")), ("resets", resets.to("meta")),
        ("resets", resets.to_sparse()), ("lengths", lengths.to_sparse()),
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=f"lstm: expected {name} as a dense tensor"):
            layer(x, **{name: value})


@pytest.mark.parametrize("name", LAYERS)
def test_on_meta(name):
    """Shapes depend on no value."""
    module = getattr(fastrnn, name)(3, 4, num_layers=2, bidirectional=True, device="meta")
    x = torch.randn(5, 2, 3, device="meta", requires_grad=True)
    options = {"resets": torch.empty(5, 2, dtype=torch.bool, device="meta"),
               "lengths": torch.empty(2, dtype=torch.int64, device="meta")}  # fmt: skip
    for asked in ({"resets"}, {"lengths"}, {"resets", "lengths"}):
        output, final, states = module(
            x, **{name: options[name] for name in asked}, return_states=True
        )
        assert output.shape == (5, 2, 8) and states.hidden.shape == (4, 5, 2, 4)
        assert tensors_in(final)[0].shape == (4, 2, 4)
        assert torch.autograd.grad(output.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_resets_are_not_mapped(name):
    """Off the CPU they have no batching rule; a layer inside vmap takes segments."""
    module, x = getattr(fastrnn, name)(3, 4, device="meta"), torch.randn(5, 2, 3, device="meta")
    resets = torch.empty(5, 2, dtype=torch.bool, device="meta")
    output = module(x.requires_grad_(), resets=resets)[0]

    def gradient(d_output, create_graph=False):
        return torch.autograd.grad(output, x, d_output, create_graph=create_graph)[0]

    for create_graph in (False, True):
        with pytest.raises(RuntimeError, match="call the layer inside vmap"):
            torch.func.vmap(gradient, (0, None))(
                torch.empty(3, 5, 2, 4, device="meta"), create_graph
            )
