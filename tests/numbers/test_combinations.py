"""Layers that torch.nn has not, with resets, lengths and every step's states."""

import copy

import pytest
import torch
from torch.nn.functional import layer_norm
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import fastrnn
from fastrnn import variants
from fastrnn._layer import panels
from tests.options import pieces

T, B, F, H = 7, 4, 3, 5
LENGTHS = torch.tensor([4, 7, 1, 4])
# By name: a constructor, and its keywords.
VARIANTS = {
    "LSTM-layer_norm": (variants.LSTM, {"layer_norm": True}),
    "LSTM-zoneout": (variants.LSTM, {"zoneout": (0.4, 0.2)}),
    "LSTM-all": (variants.LSTM, {"layer_norm": True, "zoneout": 0.1, "recurrent_dropout": 0.2,
                                 "variational_dropout": 0.3, "weight_drop": 0.2, "dropout": 0.1}),
    "LSTM-weight_drop": (variants.LSTM, {"weight_drop": 0.3, "proj_size": 3}),
    "GRU-layer_norm": (variants.GRU, {"layer_norm": True, "bias": False}),
    "GRU-recurrent_dropout": (variants.GRU, {"recurrent_dropout": 0.3}),
    "RNN-layer_norm": (variants.RNN, {"layer_norm": True}),
    "RNN-variational": (variants.RNN, {"variational_dropout": 0.3}),
    "Dreamer": (variants.DreamerGRU, {}),
    "Coupled": (variants.CoupledLSTM, {"proj_size": 2}),
    "Peephole": (variants.PeepholeLSTM, {}),
    "Peephole-all": (variants.PeepholeLSTM, {"layer_norm": True, "zoneout": (0.1, 0.2),
                                             "recurrent_dropout": 0.2, "weight_drop": 0.2,
                                             "variational_dropout": 0.3}),
    "Coupled-all": (variants.CoupledLSTM, {"layer_norm": True, "zoneout": (0.1, 0.2),
                                           "recurrent_dropout": 0.2, "variational_dropout": 0.3,
                                           "weight_drop": 0.2}),
}  # fmt: skip


def variant(name, dtype=torch.float64, **more):
    cls, options = VARIANTS[name]
    module = cls(
        F,
        **{"hidden_size": H, "num_layers": 2, "bidirectional": True, **options, **more},
        dtype=dtype,
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def data(module):
    x = torch.randn(T, B, F, dtype=torch.float64, requires_grad=True)
    count = module.num_layers * (1 + module.bidirectional)
    sizes = module.proj_size or H, H
    states = [torch.randn(count, B, size, dtype=torch.float64, requires_grad=True)
              for size in sizes[: 1 + (module.mode[:4] == "LSTM")]]  # fmt: skip
    return x, states


def hx_of(states):
    return tuple(states) if len(states) > 1 else states[0]


def everything(module, x, states, output, final):
    """Results, and gradients of a loss that weighs all of them."""
    results = [output, *(final if len(states) > 1 else (final,))]
    loss = sum((o * o.detach().cos()).sum() for o in results)
    return [*results, *torch.autograd.grad(loss, [x, *states, *module.parameters()])]


def assert_close(actual, expected, tolerance=1e-10):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", VARIANTS)
def test_lengths_are_packing(name):
    module = variant(name).eval()
    x, states = data(module)
    packed = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    output, final = module(packed, hx_of(states))
    expected = everything(module, x, states, pad_packed_sequence(output)[0], final)
    output, final = module(x, hx_of(states), lengths=LENGTHS)
    assert_close(everything(module, x, states, output, final), expected)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("reset_to", ["zeros", "hx"])
def test_resets_are_splitting(name, reset_to):
    module = variant(name).eval()
    x, states = data(module)
    resets = torch.rand(T, B) < 0.3
    expected = pieces(module, x, hx_of(states), resets, reset_to)
    expected = everything(module, x, states, *expected)
    found = module(x, hx_of(states), resets=resets, reset_to=reset_to)
    assert_close(everything(module, x, states, *found), expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_layouts(name):
    """batch_first and input without a batch, with all that may be asked for."""
    module = variant(name).eval()
    first = copy.deepcopy(module)
    first.batch_first = True
    x, states = data(module)
    resets, hx = torch.rand(T, B) < 0.3, hx_of(states)
    output, final, each = module(x, hx, resets=resets, lengths=LENGTHS, return_states=True)
    behind = torch.arange(T)[:, None] >= LENGTHS
    assert not any(t[:, behind].any() for t in each if t is not None)
    found = first(x.transpose(0, 1), hx, resets=resets.t(), lengths=LENGTHS, return_states=True)
    assert torch.equal(found[0].transpose(0, 1), output)
    assert_close(*((f if isinstance(f, tuple) else (f,)) for f in (found[1], final)), 0)
    one = [s[:, 1] for s in states]
    alone = module(x[:, 1], hx_of(one), resets=resets[:, 1], lengths=LENGTHS[1], return_states=True)
    assert_close([alone[0]], [output[:, 1]])
    for theirs, ours, bare in zip(found[2], each, alone[2], strict=True):
        assert (theirs is None) == (ours is None) == (bare is None)
        if ours is not None:
            assert torch.equal(theirs.transpose(1, 2), ours)
            assert_close([bare], [ours[:, :, 1]])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("training", [False, True])
def test_states_make_the_outputs(name, training):
    """h and c of every step follow from those of the step before and the gates, by the papers."""
    module = variant(name, num_layers=1, dropout=0.0, bidirectional=False).train(training)
    module.zoneout = 0.0, 0.0
    module.recurrent_dropout = 0.0
    x, states = data(module)
    output, final, (hidden, cells, gates) = module(x, hx_of(states), return_states=True)
    assert torch.equal(hidden[0], output)
    h_n = final[0] if module.mode[:4] == "LSTM" else final
    assert torch.equal(hidden[:, -1], h_n)
    before = torch.cat([states[0], hidden[0, :-1]])
    if module.mode[:4] == "LSTM":
        *i, f, g, o = gates.split(H, -1)
        i = i[0] if i else 1 - f
        c_before = torch.cat([states[1][:, None], cells[:, :-1]], 1)
        torch.testing.assert_close(cells, f * c_before + i * g)
        assert torch.equal(cells[:, -1], final[1])
        y = cells
        if module.layer_norm:
            y = layer_norm(y, (H,), module.norm_c_l0, module.norm_c_bias_l0, module.eps)
        expected = o * y.tanh()
        if module.proj_size:
            expected = expected @ module.weight_hr_l0.t()
        torch.testing.assert_close(hidden, expected)
    elif module.mode == "GRU":
        r, z, n = gates[0].chunk(3, -1)
        stays = 1 - z if name == "Dreamer" else z
        torch.testing.assert_close(hidden[0], (1 - stays) * n + stays * before)
    else:
        assert cells is None and gates is None
    assert gates is None or not gates.requires_grad


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("training", [False, True])
def test_gradcheck(name, training):
    """Of every step's states too, with resets and lengths; second and forward-mode derivatives
    run the equations. In training masks are the same at every call with the same seed."""
    module = variant(name, num_layers=1, hidden_size=4).train(training)
    names = [n for n, _ in module.named_parameters()]
    options = {"lengths": torch.tensor([4, 2]), "resets": torch.rand(4, 2) < 0.3}
    options |= {"return_states": True, "reset_to": "hx"}
    lstm = module.mode[:4] == "LSTM"

    def run(x, *rest):
        torch.manual_seed(1)
        hx = rest[:2] if lstm else rest[0]
        weights = dict(zip(names, rest[len(rest) - len(names) :], strict=True))
        output, final, states = torch.func.functional_call(module, weights, (x, hx), options)
        return output, *(final if lstm else (final,)), *(t for t in states[:2] if t is not None)

    x = torch.randn(4, 2, F, dtype=torch.float64)
    states = [torch.randn(2, 2, s, dtype=torch.float64) for s in (module.proj_size or 4, 4)]
    inputs = [t.requires_grad_() for t in (x, *states[: 1 + lstm])]
    inputs += [p.detach().clone().requires_grad_() for p in module.parameters()]
    torch.autograd.gradcheck(run, inputs, check_forward_ad=True, fast_mode=True)
    torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("name", VARIANTS)
def test_training(name):
    """Masks are drawn anew, reproduced by a seed, and what is behind an end is not read."""
    module = variant(name)
    x, _ = data(module)
    options = {"lengths": LENGTHS, "resets": torch.rand(T, B) < 0.3, "return_states": True}
    hidden = x.detach().clone()
    hidden[torch.arange(T)[:, None] >= LENGTHS] = torch.nan
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        output, _, states = module(hidden, **options)
        gradients = torch.autograd.grad(output.sum() + states.hidden.sum(), module.parameters())
        assert all(g.isfinite().all() for g in gradients)
        assert not output[torch.arange(T)[:, None] >= LENGTHS].any()
        found.append((output, *gradients))
    assert all(map(torch.equal, found[0], found[1]))
    draws = not (name in ("Dreamer", "Coupled", "Peephole") or name.endswith("layer_norm"))
    assert torch.equal(found[0][0], found[2][0]) != draws


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("training", [False, True])
def test_compile(name, training):
    module = variant(name, torch.float32).train(training)
    x, resets = torch.randn(T, B, F), torch.rand(T, B) < 0.3
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    every = {"resets": resets, "lengths": LENGTHS, "return_states": True}
    for options in ({"return_states": True}, every):
        found, expected = [], []
        for run, results in ((compiled, found), (module, expected)):
            torch.manual_seed(0)
            output, _, states = run(x, **options)
            loss = output.sum() + sum(s.sum() for s in states[:2] if s is not None)
            results += [output, states.hidden, *torch.autograd.grad(loss, module.parameters())]
        assert_close(found, expected, 1e-4)


@pytest.mark.parametrize("name", ["LSTM-all", "GRU-layer_norm", "RNN-variational", "Dreamer"])
def test_export(name):
    """Other masks of the same shapes than those that the program was made with, and packed data."""
    module, x = variant(name, torch.float32).eval(), torch.randn(T, B, F)
    masks = [{"resets": torch.rand(T, B) < 0.3, "lengths": LENGTHS - i} for i in range(2)]
    program = torch.export.export(module, (x,), masks[0]).module()
    for options in masks:
        assert_close([program(x, **options)[0]], [module(x, **options)[0]], 1e-5)
    packed = pack_padded_sequence(x, LENGTHS.sort(descending=True)[0])
    program = torch.export.export(module, (packed,)).module()
    assert_close([program(packed)[0].data], [module(packed)[0].data], 1e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_transforms(name):
    module = variant(name).eval()
    x, states = data(module)
    x, states = x.detach(), [s.detach() for s in states]
    options = {"lengths": LENGTHS, "resets": torch.rand(T, B) < 0.3}

    def run(x, *states):
        return module(x, hx_of(states), **options)[0]

    xs = torch.stack([x, 2 * x, -x])
    many = torch.func.vmap(run, (0, *(None for _ in states)))(xs, *states)
    assert_close(many, [run(each, *states) for each in xs])
    forward = torch.func.jacfwd(run)(x, *states)
    assert_close([forward], [torch.func.jacrev(run)(x, *states)])


@pytest.mark.parametrize("name", VARIANTS)
def test_errors(name):
    module, x = variant(name), torch.zeros(T, B, F, dtype=torch.float64)
    kind = type(module).__name__.lower()
    with pytest.raises(RuntimeError, match=f"{kind}: expected resets of shape"):
        module(x, resets=torch.zeros(B, T, dtype=torch.bool))
    with pytest.raises(RuntimeError, match=f"{kind}: expected lengths as integers"):
        module(x, lengths=torch.ones(B))
    with pytest.raises(RuntimeError, match="fastrnn: expected lengths"):
        module(x, lengths=torch.tensor([1, 2, 3, T + 1]))
    with pytest.raises(ValueError, match=f"{kind}: expected reset_to"):
        module(x, resets=torch.zeros(T, B, dtype=torch.bool), reset_to="h0")
    packed = pack_sequence([x[:, 0]])
    with pytest.raises(ValueError, match=f"{kind}: expected padded input with return_states"):
        module(packed, return_states=True)
    meta = copy.deepcopy(module).to("meta")
    asked = {"resets": torch.zeros(T, B, dtype=torch.bool, device="meta"), "lengths": LENGTHS}
    output, _, states = meta(x.to("meta"), **asked, return_states=True)
    assert output.is_meta and states.hidden.shape == (4, T, B, module.proj_size or H)
    output, _, states = module(x[:, :0], lengths=LENGTHS[:0], return_states=True)
    assert output.shape[:2] == (T, 0) and states.hidden.shape[:3] == (4, T, 0)


# -- Quantized layers ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16], ids=str)
def test_quantized(name, dtype):
    """A step's numbers do not depend on what is beside it."""
    options = {"proj_size": 3} if name == "LSTM" else {}
    plain = getattr(fastrnn, name)(F, H, 2, bidirectional=True, **options)
    module = fastrnn.quantize(plain, dtype, inplace=False)
    x, states = data(module)
    x, hx = x.detach().float(), hx_of([s.detach().float() for s in states])
    packed = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
    output, final = module(packed, hx)
    found = module(x, hx, lengths=LENGTHS)
    assert torch.equal(pad_packed_sequence(output)[0], found[0])
    resets = torch.rand(T, B) < 0.3
    for reset_to in ("zeros", "hx"):
        expected = pieces(module, x, hx, resets, reset_to)
        found = module(x, hx, resets=resets, reset_to=reset_to)
        assert torch.equal(found[0], expected[0])
        for a, b in zip(*(r[1] if isinstance(r[1], tuple) else (r[1],) for r in (found, expected))):
            assert torch.equal(a, b)
    alone = module(x[:, 0], resets=resets[:, 0])
    assert torch.equal(alone[0], module(x, resets=resets)[0][:, 0])
    options = {"resets": resets, "lengths": LENGTHS, "return_states": True}
    for every in (module(x, hx, return_states=True), module(x, hx, **options)):
        hidden, cells, gates = every[2]
        assert torch.equal(torch.cat([*hidden[2:]], -1), every[0])
        assert all(t is None or t.isfinite().all() for t in every[2])
    one = getattr(fastrnn, name)(F, H, **({"proj_size": 3} if name == "LSTM" else {}))
    one = fastrnn.quantize(one, dtype, inplace=False)
    first = [s[:1].detach().float() for s in states]
    output, _, (hidden, cells, gates) = one(x, hx_of(first), return_states=True)
    assert torch.equal(hidden[0], output)
    for t in range(T):
        final = one(x[: t + 1], hx_of(first))[1]
        for each, last in zip((hidden, cells), final if name == "LSTM" else (final,)):
            assert torch.equal(each[:, t], last)
    assert (cells is None) == (name != "LSTM") and (gates is None) == (name == "RNN")
    if name == "LSTM":
        i, f, g, _ = gates.split(H, -1)
        before = torch.cat([first[1][:, None], cells[:, :-1]], 1)
        torch.testing.assert_close(cells, f * before + i * g)
    elif name == "GRU":
        _, z, n = gates.split(H, -1)
        before = torch.cat([first[0][:, None], hidden[:, :-1]], 1)
        torch.testing.assert_close(hidden, (1 - z) * n + z * before)
    arguments = one.cell, x, None, first, [one._buffers[n] for n in one._layers[0]], H
    arguments = *arguments, one.proj_size, False, True
    slow = panels.quantized_forward(*arguments)  # of devices without kernels
    kernel = torch.ops.fastrnn.quantized_forward(*arguments)
    assert len(slow) == len(kernel)
    for a, b in zip(slow, kernel):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    xs = torch.stack([x, -x, 2 * x])
    many = torch.func.vmap(lambda x: module(x, hx, resets=resets)[0])(xs)
    assert torch.equal(many, torch.stack([module(x, hx, resets=resets)[0] for x in xs]))
    with pytest.raises(RuntimeError, match="a quantized layer has no backward"):
        torch.func.grad(lambda x: module(x)[0].sum())(x)
    with pytest.raises(ValueError, match="expected padded input with lengths"):
        module(packed, lengths=LENGTHS)
    for wrong in (3, torch.randn(4, B, H), (torch.randn(4, B, H),), [torch.randn(4, B, H)] * 3):
        errors = []
        if name != "LSTM" and torch.is_tensor(wrong):
            continue  # is right there
        for layer in (plain, module):
            with pytest.raises((AttributeError, IndexError, RuntimeError, TypeError)) as error:
                layer(packed, wrong)
            errors.append(error.type)
        assert errors[0] is errors[1]
    meta = module.to("meta")
    assert meta(x.to("meta"), lengths=LENGTHS, resets=resets.to("meta"))[0].shape == (T, B, 2 * (
        module.proj_size or H))  # fmt: skip
