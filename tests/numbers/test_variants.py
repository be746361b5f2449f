"""fastrnn.variants: the papers' equations, training and eval, and all a layer is used with."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import layer_norm
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import fastrnn
from fastrnn import variants
from fastrnn._layer import dropout
from fastrnn._stack import inside

ROOT = Path(__file__).parents[2]
T, B, F, H = 6, 5, 4, 17  # seq_len, batch, input_size, hidden_size

LAYERS = {"LSTM": variants.LSTM, "GRU": variants.GRU, "RNN": variants.RNN}
# Options that change what a layer computes, by the layers that have them.
OPTIONS = {
    "layer_norm": ({"layer_norm": True}, LAYERS),
    "zoneout": ({"zoneout": 0.3}, LAYERS),
    "zoneout_pair": ({"zoneout": (0.5, 0.1)}, ["LSTM"]),
    "recurrent_dropout": ({"recurrent_dropout": 0.4}, ["LSTM", "GRU"]),
    "variational": ({"variational_dropout": 0.3}, LAYERS),
    "variational_input": ({"variational_dropout": (0.5, 0.0)}, LAYERS),
    "weight_drop": ({"weight_drop": 0.5}, LAYERS),
    "most": ({"layer_norm": True, "zoneout": 0.1, "variational_dropout": 0.2, "weight_drop": 0.3,
              "dropout": 0.1}, LAYERS),
}  # fmt: skip
SETTINGS = [
    pytest.param(name, options, id=f"{name}-{option}")
    for option, (options, names) in OPTIONS.items()
    for name in names
]


def make(name, options, dtype=torch.float64, **more):
    module = LAYERS[name](F, H, dtype=dtype, **{"num_layers": 2, **options, **more})
    with torch.no_grad():  # gains and their biases away from 1 and 0
        for parameter_name, parameter in module.named_parameters():
            if parameter_name.startswith("norm_"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def states(module, batch=B):
    rows = module.num_layers * (2 if module.bidirectional else 1)
    h = torch.randn(rows, batch, H, dtype=module.weight_ih_l0.dtype)
    return (h, torch.randn_like(h)) if module.mode == "LSTM" else h


def flat(output, hx):
    return [output, *(hx if isinstance(hx, tuple) else (hx,))]


# -- Equations, written down once more from the papers ------------------------------------------


def one_layer(module, x, h, c=None):
    """A layer of one direction in eval, step by step."""
    p = dict(module.named_parameters())
    b_ih, b_hh = p["bias_ih_l0"], p["bias_hh_l0"]
    outputs = []
    for x_t in x:
        xs, hs = x_t @ p["weight_ih_l0"].t(), h @ p["weight_hh_l0"].t()
        if module.layer_norm:
            xs = layer_norm(xs, xs.shape[-1:], p["norm_ih_l0"], eps=module.eps)
            hs = layer_norm(hs, hs.shape[-1:], p["norm_hh_l0"], eps=module.eps)
        xs, hs = xs + b_ih, hs + b_hh
        if module.mode == "LSTM":
            i, f, g, o = (xs + hs).chunk(4, -1)
            fresh = f.sigmoid() * c + i.sigmoid() * g.tanh()
            cell = fresh
            if module.layer_norm:
                cell = layer_norm(cell, (H,), p["norm_c_l0"], p["norm_c_bias_l0"], module.eps)
            new = o.sigmoid() * cell.tanh()
            c = module.zoneout[0] * c + (1 - module.zoneout[0]) * fresh
        elif module.mode == "GRU":
            (xr, xz, xn), (hr, hz, hn) = xs.chunk(3, -1), hs.chunk(3, -1)
            z = (xz + hz).sigmoid()
            new = (1 - z) * (xn + (xr + hr).sigmoid() * hn).tanh() + z * h
        else:
            new = (xs + hs).tanh()
        h = module.zoneout[1] * h + (1 - module.zoneout[1]) * new
        outputs.append(h)
    return torch.stack(outputs), h, c


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("options", [{"layer_norm": True}, {"layer_norm": True, "zoneout": 0.25},
                                     {"zoneout": 0.4}], ids=str)  # fmt: skip
def test_equations(cpu_target, name, options):
    module = make(name, options, num_layers=1).eval()
    x, hx = torch.randn(T, B, F, dtype=torch.float64), states(module)
    output, final = module(x, hx)
    h, c = (s[0] for s in hx) if name == "LSTM" else (hx[0], None)
    expected, h, c = one_layer(module, x, h, c)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(flat(output, final)[1][0], h, rtol=1e-12, atol=1e-12)
    if name == "LSTM":
        torch.testing.assert_close(final[1][0], c, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(output.square().sum(), list(module.parameters())),
        torch.autograd.grad(expected.square().sum(), list(module.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def dreamer_step(x, h, weight, gain, bias, update_bias=-1.0, eps=1e-3):
    """As Dreamer's code has it: one matrix, and the order reset, candidate, update."""
    parts = layer_norm(torch.cat([x, h], -1) @ weight.t(), gain.shape, gain, bias, eps)
    reset, candidate, update = parts.chunk(3, -1)
    candidate = torch.tanh(torch.sigmoid(reset) * candidate)
    update = torch.sigmoid(update + update_bias)
    return update * candidate + (1 - update) * h


def to_dreamer(w):
    r, z, n = w.chunk(3)
    return torch.cat([r, n, z])


@pytest.mark.parametrize("update_bias", [-1.0, 0.5])
def test_dreamer(cpu_target, update_bias):
    options = {"update_bias": update_bias, "dtype": torch.float64}
    module = variants.DreamerGRU(F, H, **options)
    cell = variants.DreamerGRUCell(F, H, **options)
    with torch.no_grad():
        module.norm_l0.add_(0.3 * torch.randn(3 * H))
        module.norm_bias_l0.add_(0.3 * torch.randn(3 * H))
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in module.state_dict().items()})
    x, h = torch.randn(T, B, F, dtype=torch.float64), torch.randn(B, H, dtype=torch.float64)
    weight = to_dreamer(torch.cat([module.weight_ih_l0, module.weight_hh_l0], 1))
    gain, bias = to_dreamer(module.norm_l0), to_dreamer(module.norm_bias_l0)

    output, h_n = module(x, h.unsqueeze(0))
    expected, by_cell, stepped = h, h, []
    for t in range(T):
        expected = dreamer_step(x[t], expected, weight, gain, bias, update_bias)
        by_cell = cell(x[t], by_cell)
        stepped.append(by_cell)
        torch.testing.assert_close(output[t], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.stack(stepped), output, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(h_n[0], expected, rtol=1e-12, atol=1e-12)
    ours = torch.autograd.grad(output[-1].square().sum(), list(module.parameters()))
    theirs = torch.autograd.grad(expected.square().sum(), list(module.parameters()))
    stepwise = torch.autograd.grad(by_cell.square().sum(), list(cell.parameters()))
    for a, b, c in zip(ours, theirs, stepwise, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(c, b, rtol=1e-9, atol=1e-9)


def test_dreamer_cell_without_batch_or_state():
    cell = variants.DreamerGRUCell(F, H)
    x = torch.randn(B, F)
    assert torch.equal(cell(x), cell(x, torch.zeros(B, H)))
    torch.testing.assert_close(cell(x[0]), cell(x)[0])
    assert cell(x[0]).shape == (H,)


# -- Training and eval -----------------------------------------------------------------------------


@pytest.mark.parametrize("name, options", SETTINGS)
def test_seed_reproduces_and_eval_is_deterministic(name, options):
    module = make(name, options)
    x = torch.randn(T, B, F, dtype=torch.float64)

    def run(seed):
        torch.manual_seed(seed)
        return module(x)[0]

    if options != {"layer_norm": True}:
        assert not torch.equal(run(0), run(1))
    assert torch.equal(run(0), run(0))
    module.eval()
    assert torch.equal(run(0), run(1))


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_alone_is_off_in_eval(name):
    options = {"variational_dropout": 0.4, "weight_drop": 0.5, "dropout": 0.2}
    if name != "RNN":
        options["recurrent_dropout"] = 0.3
    module = make(name, options).eval()
    plain = getattr(fastrnn, name)(F, H, 2, dtype=torch.float64).eval()
    plain.load_state_dict(module.state_dict())
    x, hx = torch.randn(T, B, F, dtype=torch.float64), states(module)
    for ours, theirs in zip(flat(*module(x, hx)), flat(*plain(x, hx)), strict=True):
        assert torch.equal(ours, theirs)


def test_options_that_are_off_change_nothing():
    for name, layer in LAYERS.items():
        module = layer(F, H, 2, bidirectional=True)
        plain = getattr(fastrnn, name)(F, H, 2, bidirectional=True)
        plain.load_state_dict(module.state_dict())
        x = torch.randn(T, B, F)
        assert torch.equal(module(x)[0], plain(x)[0])


def test_zoneout_keeps_values_at_its_rate():
    module = variants.LSTM(F, 400, zoneout=(0.0, 0.3))
    output, _ = module(torch.randn(50, 8, F))
    kept = (output[1:] == output[:-1]).float().mean().item()
    assert abs(kept - 0.3) < 0.01
    module.eval()
    output, _ = module(torch.randn(50, 8, F))
    assert (output[1:] == output[:-1]).float().mean().item() < 1e-3


def test_variational_masks_do_not_change_over_time():
    """The gradient of the input is zero exactly where its mask is, at all steps alike."""
    module = variants.GRU(40, H, variational_dropout=(0.5, 0.0))
    x = torch.randn(T, B, 40, requires_grad=True)
    module(x)[0].sum().backward()
    dropped = x.grad == 0
    assert 0.3 < dropped.float().mean() < 0.7
    assert (dropped == dropped[0]).all()
    packed = pack_sequence([x.detach()[:n, b].requires_grad_() for b, n in enumerate((6, 3, 2))])
    data = packed.data.detach().requires_grad_()
    module(packed._replace(data=data))[0].data.sum().backward()
    padded, _ = pad_packed_sequence(packed._replace(data=(data.grad == 0).float()))
    assert (padded[:2, :3] == padded[0, :3]).all() and padded[0, :3].mean() > 0.2


def test_weight_drop_is_one_mask_a_call():
    module = variants.LSTM(F, H, weight_drop=0.5)
    module(torch.randn(T, B, F))[0].sum().backward()
    gradient = module.weight_hh_l0.grad
    assert 0.4 < (gradient == 0).float().mean() < 0.6
    plain = fastrnn.LSTM(F, H)
    plain.load_state_dict(module.state_dict())
    torch.manual_seed(3)
    x = torch.randn(T, B, F)
    torch.manual_seed(4)
    dropped = dropout.dropped(module.weight_hh_l0.detach(), inside.draw_seed(), 0, 0.5)
    torch.manual_seed(4)
    ours, _ = module(x)
    with torch.no_grad():
        plain.weight_hh_l0.copy_(dropped)
    assert torch.equal(ours, plain(x)[0])


def test_weight_drop_of_layers_and_directions_differ():
    module = variants.GRU(H, H, 2, bidirectional=True, weight_drop=0.5)
    module(torch.randn(T, B, H))[0].sum().backward()
    masks = [p.grad == 0 for name, p in module.named_parameters() if name.startswith("weight_hh")]
    for i, a in enumerate(masks):
        for b in masks[:i]:
            assert 0.4 < (a == b).float().mean() < 0.6


def test_variational_dropout_of_h_by_hand():
    """h is multiplied by one mask at every step, where only the product sees it."""
    module = make("LSTM", {"variational_dropout": (0.0, 0.5)}, num_layers=1)
    x = torch.randn(T, B, F, dtype=torch.float64)
    torch.manual_seed(1)
    output, (h_n, _) = module(x)
    torch.manual_seed(1)
    mask = dropout.batch_mask(x, (1, B, H), 0.5)[0]
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    h = c = torch.zeros(B, H, dtype=torch.float64)
    for t in range(T):
        h, c = nn.functional.linear(x[t], module.weight_ih_l0, module.bias_ih_l0), c
        gates = h + nn.functional.linear(
            (output[t - 1] if t else torch.zeros(B, H, dtype=torch.float64)) * mask,
            module.weight_hh_l0, module.bias_hh_l0,
        )  # fmt: skip
        i, f, g, o = gates.chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        torch.testing.assert_close(output[t], o.sigmoid() * c.tanh(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name, options", SETTINGS)
def test_threads_do_not_change_masks(name, options):
    """Input products are torch's and may differ in rounding; another mask would differ in all."""
    module = make(name, options)
    x = torch.randn(T, B, F, dtype=torch.float64)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        results.append(module(x)[0])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-12, atol=1e-12)


# -- What a layer is used with -----------------------------------------------------------------


@pytest.mark.parametrize("name, options", SETTINGS)
def test_gradcheck(name, options):
    """Second derivatives are test_inside.py's, but for one of everything together."""
    module = LAYERS[name](2, 3, **{"num_layers": 2, **options}, bidirectional=True,
                          dtype=torch.float64)  # fmt: skip
    names = [n for n, _ in module.named_parameters()]

    def call(x, *weights):
        torch.manual_seed(0)
        output, hx = torch.func.functional_call(module, dict(zip(names, weights)), x)
        return flat(output, hx)

    x = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    leaves = [x, *(p.detach().clone().requires_grad_() for p in module.parameters())]
    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
    if options is OPTIONS["most"][0]:
        assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


@pytest.mark.parametrize("name, options", SETTINGS)
def test_batch_first_and_unbatched(name, options):
    module = make(name, options, bidirectional=True)
    first = copy.deepcopy(module)
    first.batch_first = True
    x, hx = torch.randn(T, B, F, dtype=torch.float64), states(module)
    torch.manual_seed(0)
    output, final = module(x, hx)
    torch.manual_seed(0)
    other, other_final = first(x.transpose(0, 1), hx)
    assert torch.equal(other.transpose(0, 1), output)
    for a, b in zip(flat(output, final)[1:], flat(other, other_final)[1:], strict=True):
        assert torch.equal(a, b)
    one = tuple(s[:, 1:2] for s in hx) if isinstance(hx, tuple) else hx[:, 1:2]
    torch.manual_seed(0)
    expected = flat(*module(x[:, 1:2], one))
    bare = tuple(s[:, 0] for s in one) if isinstance(one, tuple) else one[:, 0]
    torch.manual_seed(0)
    for a, b in zip(flat(*module(x[:, 1], bare)), expected, strict=True):
        assert torch.equal(a, b.squeeze(1))


@pytest.mark.parametrize("name, options", SETTINGS)
@pytest.mark.parametrize("training", [True, False])
def test_packed_is_each_sequence_alone(name, options, training):
    """In eval to the number; in training, outputs, shapes and gradients exist and reproduce."""
    module = make(name, options, bidirectional=True).train(training)
    lengths, hx = (3, 6, 1, 4), states(module, 4)
    sequences = [torch.randn(n, F, dtype=torch.float64) for n in lengths]
    packed = pack_sequence(sequences, enforce_sorted=False)
    torch.manual_seed(0)
    output, final = module(packed, hx)
    padded, _ = pad_packed_sequence(output)
    if training:
        torch.manual_seed(0)
        assert torch.equal(module(packed, hx)[0].data, output.data)
        gradients = torch.autograd.grad(output.data.sum(), list(module.parameters()))
        assert all(g.isfinite().all() for g in gradients) and any(g.any() for g in gradients)
        return
    for b, sequence in enumerate(sequences):
        one = tuple(s[:, b] for s in hx) if isinstance(hx, tuple) else hx[:, b]
        expected = flat(*module(sequence, one))
        torch.testing.assert_close(padded[: len(sequence), b], expected[0], rtol=1e-10, atol=1e-12)
        for a, e in zip(flat(output, final)[1:], expected[1:], strict=True):
            torch.testing.assert_close(a[:, b], e, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name, options", SETTINGS)
def test_compile(name, options):
    module = make(name, options, dtype=torch.float32)
    x, hx = torch.randn(T, B, F), states(module)

    def run(call):
        torch._dynamo.reset()
        torch.manual_seed(0)
        output, final = call(x, hx)
        return [*flat(output, final), *torch.autograd.grad(output.sum(), module.parameters())]

    # Not inductor: it draws random numbers of its own; what is traced is the same.
    compiled = run(torch.compile(module, fullgraph=True, backend="aot_eager"))
    for ours, theirs in zip(compiled, run(module), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_compile_dreamer():
    module, cell = variants.DreamerGRU(F, H), variants.DreamerGRUCell(F, H)
    x = torch.randn(T, B, F)
    for call, input in ((module, x), (cell, x[0])):
        torch._dynamo.reset()
        ours = torch.compile(call, fullgraph=True, backend="aot_eager")(input)
        theirs = call(input)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", LAYERS)
def test_autocast_computes_in_the_parameters_dtype(name):
    module = make(name, {"layer_norm": True, "weight_drop": 0.2}, dtype=torch.float32).eval()
    x = torch.randn(T, B, F)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = module(x)
    assert torch.equal(output, module(x)[0])


def test_meta_device():
    module = variants.LSTM(F, H, layer_norm=True, device="meta")
    assert module(torch.empty(T, B, F, device="meta"))[0].shape == (T, B, H)


@pytest.mark.parametrize("name", LAYERS)
def test_vmap_and_jacobian(name):
    """torch.func runs the equations."""
    module = make(name, {"layer_norm": True}, num_layers=1).eval()
    x = torch.randn(3, 2, B, F, dtype=torch.float64)
    mapped = torch.func.vmap(lambda one: module(one)[0])(x)
    torch.testing.assert_close(mapped, torch.stack([module(one)[0] for one in x]))
    gradient = torch.func.grad(lambda one: module(one)[0].sum())(x[0])
    leaf = x[0].clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(module(leaf)[0].sum(), leaf)[0])


def test_parameters_and_repr():
    module = variants.LSTM(F, H, 2, bidirectional=True, layer_norm=True, zoneout=(0.1, 0.2))
    added = {n: tuple(p.shape) for n, p in module.named_parameters() if n.startswith("norm_")}
    assert len(added) == 4 * 4
    assert added["norm_ih_l1_reverse"] == added["norm_hh_l0"] == (4 * H,)
    assert added["norm_c_l0"] == added["norm_c_bias_l1_reverse"] == (H,)
    assert "layer_norm=True, zoneout=(0.1, 0.2)" in repr(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(5.0)
    module.reset_parameters()
    for name in added:
        assert (getattr(module, name) == (0.0 if "bias" in name else 1.0)).all()
    assert module.weight_hh_l0.abs().max() < 1
    without = variants.LSTM(F, H, bias=False, layer_norm=True)
    assert not any("bias" in n for n, _ in without.named_parameters())
    assert without(torch.randn(T, B, F))[0].isfinite().all()
    cell = variants.DreamerGRUCell(F, H)
    with torch.no_grad():
        cell.norm.fill_(3.0)
    cell.reset_parameters()
    assert (cell.norm == 1).all()


@pytest.mark.parametrize(
    "layer, options, error, message",
    [
        ("LSTM", {"zoneout": 1.0}, ValueError, r"zoneout in \[0, 1\), got 1.0"),
        ("LSTM", {"zoneout": (0.1, -0.1)}, ValueError, r"zoneout\[1\] in \[0, 1\)"),
        ("LSTM", {"zoneout": (0.1, 0.1, 0.1)}, ValueError, "a number or a pair, got 3"),
        ("GRU", {"zoneout": (0.1, 0.1)}, ValueError, "zoneout to be one number"),
        ("LSTM", {"zoneout": "much"}, TypeError, "zoneout to be a number, got str"),
        ("LSTM", {"weight_drop": True}, TypeError, "weight_drop to be a number, got bool"),
        ("GRU", {"recurrent_dropout": 1.5}, ValueError, "recurrent_dropout in"),
        ("RNN", {"recurrent_dropout": 0.1}, ValueError, "recurrent_dropout = 0"),
        ("GRU", {"layer_norm": 1}, TypeError, "layer_norm to be a bool"),
        ("GRU", {"eps": 0.0}, ValueError, "eps > 0"),
        ("GRU", {"checkpoint_every": 0}, ValueError, "checkpoint_every"),
        ("GRU", {"eps": None}, TypeError, "eps to be a number"),
        ("LSTM", {"proj_size": 3, "layer_norm": True}, ValueError, "proj_size = 0 with layer_norm"),
        ("LSTM", {"proj_size": 3, "zoneout": 0.1}, ValueError, "proj_size = 0 with zoneout"),
        ("LSTM", {"layernorm": True}, TypeError, "layernorm"),
    ],
)
def test_construction_errors(layer, options, error, message):
    with pytest.raises(error, match=message):
        LAYERS[layer](F, H, **options)


def test_projection_with_weight_drop():
    module = variants.LSTM(F, H, proj_size=3, weight_drop=0.4, variational_dropout=(0.2, 0.0))
    output, (h, c) = module(torch.randn(T, B, F))
    assert output.shape == (T, B, 3) and h.shape == (1, B, 3) and c.shape == (1, B, H)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("options", [{"layer_norm": True}, {"weight_drop": 0.2}], ids=str)
def test_call_errors(name, options):
    """The exceptions of torch.nn for the same mistakes."""
    module = LAYERS[name](F, H, **options)
    theirs = getattr(nn, name)(F, H)
    h = torch.zeros(1, B, H + 1)
    mistakes = {
        "features": (torch.randn(T, B, F + 1), None),
        "dimensions": (torch.randn(1, T, B, F), None),
        "dtype": (torch.randn(T, B, F, dtype=torch.float64), None),
        "state": (torch.randn(T, B, F), (h, h) if name == "LSTM" else h),
        "steps": (torch.randn(0, B, F), None),
        "tensor": ([1.0], None),
    }
    for what, (x, hx) in mistakes.items():
        with pytest.raises(Exception) as expected:
            theirs(x, hx)
        with pytest.raises(expected.type) as raised:
            module(x, hx)
        assert str(raised.value), what


def test_dreamer_cell_errors():
    cell, theirs = variants.DreamerGRUCell(F, H), nn.GRUCell(F, H)
    for x, h in (
        (torch.randn(B, F + 1), None),
        (torch.randn(1, B, F), None),
        (torch.randn(B, F), torch.randn(B, H + 1)),
        (torch.randn(B, F).double(), None),
    ):
        with pytest.raises(Exception) as expected:
            theirs(x, h)
        with pytest.raises(expected.type, match="DreamerGRUCell"):
            cell(x, h)


def test_zero_batch():
    for module in (variants.LSTM(F, H, layer_norm=True, zoneout=0.1), variants.DreamerGRU(F, H)):
        x = torch.randn(T, 0, F, requires_grad=True)
        output, _ = module(x)
        assert output.shape == (T, 0, H)
        output.sum().backward()
        assert all((p.grad == 0).all() for p in module.parameters())


def test_documentation_runs():
    """Every example of docs/variants.md, in order and in one namespace."""
    text = (ROOT / "docs" / "variants.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert len(blocks) >= 7
    namespace = {}
    for block in blocks:
        exec(compile(block, "docs/variants.md", "exec"), namespace)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "DreamerGRU"])
@pytest.mark.parametrize("autocast", [False, True])
def test_wrong_states(name, autocast):
    options = {} if name == "DreamerGRU" else {"zoneout": 0.1}
    layer, x = getattr(variants, name)(4, 6, **options), torch.randn(5, 3, 4)
    h = torch.zeros(1, 3, 6)
    pair = (lambda h: (h, h)) if name == "LSTM" else lambda h: h
    of_number = TypeError if name == "LSTM" else AttributeError  # as torch.nn
    with torch.autocast("cpu", enabled=autocast):
        for hx in ("a", (h, "a"), {"h": h}):
            with pytest.raises(AttributeError, match="expected hx to be a"):
                layer(x, hx)
        for input in (x, x[:, 0]):
            with pytest.raises(of_number, match="expected hx to be a"):
                layer(input, 3)
        with pytest.raises(RuntimeError, match="expected h_0 of shape .* = \\(1, 3, 6\\), got"):
            layer(x, pair(h[:, :2]))
        with pytest.raises(ValueError, match="expected input of the weights' dtype"):
            layer(x.double())
    with pytest.raises(RuntimeError, match="expected all tensors on one device"):
        layer(x, pair(h.to("meta")))


def test_wrong_dreamer_arguments():
    for value, kind in (("a", TypeError), (None, TypeError), (float("nan"), ValueError)):
        for make in (variants.DreamerGRU, variants.DreamerGRUCell):
            with pytest.raises(kind, match="expected update_bias to be"):
                make(2, 3, update_bias=value)
    with pytest.raises(ValueError, match="expected eps > 0 and finite"):
        variants.GRU(2, 3, layer_norm=True, eps=float("inf"))
    with pytest.raises(RuntimeError, match="as many dimensions as input"):
        variants.DreamerGRUCell(2, 3)(torch.randn(2), torch.randn(1, 3))
