"""fastrnn.integrations.opacus against gradients of one sample after the other."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import fastrnn

reason = "optional: pip install opacus==1.6.0"
opacus = pytest.importorskip("opacus", reason=reason)
from opacus.grad_sample import GradSampleModule  # noqa: E402
from opacus.validators import ModuleValidator  # noqa: E402

from fastrnn.integrations import opacus as ours  # noqa: E402

T, B, F, H = 6, 4, 3, 5
LAYERS = {
    "LSTM": (fastrnn.LSTM, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    "LSTM-projected": (fastrnn.LSTM, {"proj_size": 2}),
    "GRU": (fastrnn.GRU, {"bidirectional": True, "batch_first": True, "bias": False}),
    "RNN": (fastrnn.RNN, {"nonlinearity": "relu", "num_layers": 2}),
}


class Model(nn.Module):
    """Whose loss is of some of a layer's results."""

    def __init__(self, name, uses="all"):
        super().__init__()
        cls, options = LAYERS[name]
        self.rnn, self.uses = cls(F, H, **options), uses

    def forward(self, x, hx=None):
        output, final = self.rnn(x, hx)
        if isinstance(output, nn.utils.rnn.PackedSequence):
            output = pad_packed_sequence(output, batch_first=True)[0]
        elif not self.rnn.batch_first:
            output = output.transpose(0, 1)
        final = final if isinstance(final, tuple) else (final,)
        of_samples = [output.sin().flatten(1).sum(1)] if self.uses != "final" else []
        if self.uses != "output":
            of_samples += [(f * f).sum((0, 2)) for f in final]
        return sum(of_samples)


def reduced(losses, reduction):
    return losses.sum() if reduction == "sum" else losses.mean()


def one_by_one(model, samples, *more):
    parameters = [p for p in model.parameters() if p.requires_grad]
    each = [torch.autograd.grad(model(s, *m).sum(), parameters) for s, *m in zip(samples, *more)]
    return [torch.stack(gradients) for gradients in zip(*each)]


def close(module, expected):
    found = [p.grad_sample for p in module.parameters() if p.requires_grad]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("uses", ["all", "output", "final"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_layers(name, uses, reduction):
    model = Model(name, uses)
    first = model.rnn.batch_first
    assert len(ModuleValidator.validate(model)) == 1
    fixed = ModuleValidator.fix(model)
    assert ModuleValidator.validate(fixed) == [] and type(model.rnn) is LAYERS[name][0]
    assert type(fixed.rnn) is getattr(ours, name.partition("-")[0])
    x = torch.randn(B, T, F)
    x = x if first else x.transpose(0, 1)
    parts = x.split(1, 0 if first else 1)
    module = GradSampleModule(fixed, batch_first=first, loss_reduction=reduction)
    reduced(module(x), reduction).backward()
    close(module, one_by_one(model, parts))
    torch.testing.assert_close(
        [p.grad for p in module.parameters()],
        list(torch.autograd.grad(reduced(model(x), reduction), list(model.parameters()))),
    )


@pytest.mark.parametrize("name", LAYERS)
def test_packed_and_states(name):
    model = Model(name)
    module = GradSampleModule(ModuleValidator.fix(model), loss_reduction="sum")
    rows = [torch.randn(n, F) for n in (2, 6, 1, 4)]
    indices = model.rnn.num_layers * (2 if model.rnn.bidirectional else 1)
    sizes = [model.rnn.proj_size or H, H][: 2 if "LSTM" in name else 1]
    states = [torch.randn(indices, B, size) for size in sizes]
    hx = tuple(states) if len(states) > 1 else states[0]
    module(pack_sequence(rows, enforce_sorted=False), hx).sum().backward()
    one = [tuple(s[:, b : b + 1] for s in states) for b in range(B)]
    one = [o if len(o) > 1 else o[0] for o in one]
    close(module, one_by_one(model, [pack_sequence([r]) for r in rows], one))


class FirstLayer(Model):
    def forward(self, x):
        return (self.rnn(x)[1][:1] ** 2).sum((0, 2))


def test_the_state_of_one_layer():
    """What each layer leaves is that layer's, whichever of them the loss is of."""
    model = FirstLayer("RNN")
    model.rnn.batch_first = True
    module = GradSampleModule(ModuleValidator.fix(model), loss_reduction="sum")
    x = torch.randn(B, T, F)
    module(x).sum().backward()
    close(module, one_by_one(model, x.split(1)))


class Steps(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        hx = None
        for step in x.unbind(1):
            hx = self.cell(step, hx)
        return sum((s**3).sum(1) for s in (hx if isinstance(hx, tuple) else (hx,)))


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells(name):
    model = Steps(getattr(fastrnn, name)(F, H))
    module = GradSampleModule(ModuleValidator.fix(model), loss_reduction="mean")
    x = torch.randn(B, T, F)
    module(x).mean().backward()
    close(module, one_by_one(model, x.split(1)))


def test_frozen_tied_and_twice():
    model = Model("GRU")
    model.rnn.weight_hh_l0.requires_grad_(False)
    model.rnn.weight_ih_l0_reverse = model.rnn.weight_ih_l0
    module = GradSampleModule(ModuleValidator.fix(model), loss_reduction="sum")
    x, y = torch.randn(B, T, F), torch.randn(B, 2, F)
    (module(x) + 2 * module(y)).sum().backward()
    parameters = [p for p in model.parameters() if p.requires_grad]
    each = [
        torch.autograd.grad((model(a) + 2 * model(b)).sum(), parameters)
        for a, b in zip(x.split(1), y.split(1))
    ]
    close(module, [torch.stack(g) for g in zip(*each)])


def test_eval_and_errors():
    model = Model("LSTM")
    fixed = ModuleValidator.fix(model)
    x = torch.randn(B, T, F)
    torch.testing.assert_close(fixed.eval()(x), model(x))
    assert torch.equal(fixed.rnn(x, lengths=[1, 2, 3, 6])[0], model.rnn(x, lengths=[1, 2, 3, 6])[0])
    fixed.train()
    with pytest.raises(ValueError, match="LSTM: expected none of lengths in training with Opacus"):
        fixed.rnn(x, lengths=[1, 2, 3, 6])
    with pytest.raises(ValueError, match="LSTM: expected input with a batch"):
        fixed.rnn(x[0])
    with pytest.raises(ValueError, match=r"GRUCell: expected input \(batch, input_size\)"):
        ModuleValidator.fix(fastrnn.GRUCell(F, H))(x[0, 0])
    state = copy.deepcopy(fixed.state_dict())
    model.load_state_dict(state)  # the names are the layer's own


def test_private_training():
    """An LSTM under DP-SGD, without noise and with clipping: the step that clipped sums make."""
    torch.manual_seed(0)
    model = nn.Sequential(fastrnn.LSTM(F, H, batch_first=True), Last(), nn.Linear(H, 2))
    model = ModuleValidator.fix(model)
    plain = copy.deepcopy(model)
    x, y = torch.randn(8, T, F), torch.randint(2, (8,))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
    engine = opacus.PrivacyEngine(accountant="rdp")
    private, optimizer, loader = engine.make_private(
        module=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0), data_loader=loader,
        noise_multiplier=0.0, max_grad_norm=0.1, poisson_sampling=False,
    )  # fmt: skip
    for a, b in loader:
        nn.functional.cross_entropy(private(a), b).backward()
        optimizer.step()
    plain.eval()
    parameters = list(plain.parameters())
    total = [torch.zeros_like(p) for p in parameters]
    for a, b in zip(x.split(1), y.split(1)):
        each = torch.autograd.grad(nn.functional.cross_entropy(plain(a), b), parameters)
        norm = torch.sqrt(sum(g.square().sum() for g in each))
        for t, g in zip(total, each):
            t += g * (0.1 / (norm + 1e-6)).clamp(max=1.0)
    for p, q, t in zip(private.parameters(), parameters, total, strict=True):
        torch.testing.assert_close(p.detach(), q.detach() - t / 8, rtol=1e-4, atol=1e-5)


class Last(nn.Module):
    def forward(self, results):
        return results[1][0][-1]
