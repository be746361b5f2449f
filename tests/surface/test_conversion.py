"""fastrnn.convert, restore and patch_torch_nn: the same modules, with another class."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from tests.cases import CELLS, LAYERS

NAMES = LAYERS + CELLS


def build(name):
    return getattr(nn, name)(3, 4)


def call(module):
    """Outputs of a layer or cell on fixed data, states first not given and then given."""
    generator = torch.Generator().manual_seed(1)
    options = {"generator": generator, "dtype": next(module.parameters()).dtype}
    cell = isinstance(module, nn.RNNCellBase)
    lstm = isinstance(module, nn.LSTM | nn.LSTMCell | fastrnn.LSTM | fastrnn.LSTMCell)
    x = torch.randn(*(() if cell else (6,)), 5, 3, **options)
    h = torch.randn(*(() if cell else (1,)), 5, 4, **options)
    return torch.utils._pytree.tree_leaves([module(x), module(x, (h, h) if lstm else h)])


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def weight_of(module):
    return next(n for n, _ in module.named_parameters() if "weight_hh" in n)


class Network(nn.Module):
    """Recurrent modules at the top, in containers, in two places, with tied weights."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 3)
        self.stack = nn.ModuleList([nn.GRU(3, 3), nn.Sequential(nn.RNN(3, 3))])
        self.table = nn.ModuleDict({"a": nn.LSTM(3, 3, batch_first=True)})
        self.again = self.stack[0]
        self.cell = nn.LSTMCell(3, 3)
        self.tied = nn.LSTM(3, 3)
        self.tied.weight_hh_l0 = self.table["a"].weight_hh_l0

    def forward(self, x):
        x = self.embed(x)
        x = self.stack[1][0](self.again(self.stack[0](x)[0])[0])[0]
        x = self.tied(self.table["a"](x)[0])[0]
        return self.cell(x.flatten(0, 1))[0]


@pytest.mark.parametrize("name", NAMES)
def test_root(name):
    module = build(name)
    before, state = vars(module).copy(), call(module)
    assert fastrnn.convert(module).converted == {"": name}
    assert type(module) is getattr(fastrnn, name)
    assert vars(module) == before
    close(call(module), state)
    assert fastrnn.convert(module) == fastrnn.Conversion()  # nothing is left
    assert fastrnn.restore(module).converted == {"": name}
    assert type(module) is getattr(nn, name) and vars(module) == before
    assert all(torch.equal(a, b) for a, b in zip(call(module), state, strict=True))


def test_model():
    model, x = Network().double(), torch.randn(5, 2, 3, dtype=torch.float64)
    expected, parameters = model(x), dict(model.named_parameters(remove_duplicate=False))
    modules = dict(model.named_modules(remove_duplicate=False))
    report = fastrnn.convert(model)
    assert report.converted == {
        "stack.0": "GRU", "stack.1.0": "RNN", "table.a": "LSTM", "cell": "LSTMCell", "tied": "LSTM",
    }  # fmt: skip
    assert report.skipped == {} and "table.a: LSTM" in str(report)
    assert type(model.again) is fastrnn.GRU and model.again is model.stack[0]
    assert dict(model.named_modules(remove_duplicate=False)) == modules
    after = dict(model.named_parameters(remove_duplicate=False))
    assert after.keys() == parameters.keys()
    assert all(after[k] is parameters[k] for k in after)
    assert model.tied.weight_hh_l0 is model.table["a"].weight_hh_l0
    torch.testing.assert_close(model(x), expected)
    assert fastrnn.restore(model).converted == report.converted
    assert not [m for m in model.modules() if type(m).__module__.startswith("fastrnn")]
    assert torch.equal(model(x), expected)


def test_optimizer_goes_on():
    """Converted in the middle of training, Adam's moments and all."""
    losses = []
    for convert in (False, True):
        torch.manual_seed(2)
        model, x = Network().double(), torch.randn(5, 2, 3, dtype=torch.float64)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for step in range(6):
            if convert and step == 3:
                fastrnn.convert(model)
            optimizer.zero_grad()
            loss = (model(x) - 0.3).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_flags_buffers_and_hooks(name):
    module, calls = build(name).eval(), []
    parameter = next(module.parameters()).requires_grad_(False)
    module.register_buffer("note", torch.ones(2), persistent=False)
    module.register_forward_pre_hook(lambda m, a: calls.append("pre"))
    module.register_forward_hook(lambda m, a, r: calls.append("forward"))
    module.register_full_backward_pre_hook(lambda m, g: calls.append("backward pre"))
    module.register_full_backward_hook(lambda m, *g: calls.append("backward"))
    module.register_state_dict_pre_hook(lambda *a: calls.append("state pre"))
    module.register_state_dict_post_hook(lambda *a: calls.append("state"))
    module.register_load_state_dict_pre_hook(lambda *a: calls.append("load pre"))
    module.register_load_state_dict_post_hook(lambda *a: calls.append("load"))
    handle = parameter.requires_grad_().register_hook(lambda g: calls.append("gradient"))
    fastrnn.convert(module)
    assert not module.training and torch.equal(module.note, torch.ones(2))
    x = torch.randn(5, 3) if name in CELLS else torch.randn(2, 5, 3)
    torch.utils._pytree.tree_leaves(module(x.requires_grad_()))[0].sum().backward()
    module.load_state_dict(module.state_dict())
    expected = ["pre", "forward", "backward pre", "gradient", "backward"]
    assert sorted(calls[:5]) == sorted(expected)
    assert calls[5:] == ["state pre", "state", "load pre", "load"]
    handle.remove()
    module.requires_grad_(False)
    fastrnn.restore(module)
    assert not any(p.requires_grad for p in module.parameters())


def new_weight_norm(module):
    parametrizations.weight_norm(module, weight_of(module))


def new_spectral_norm(module):
    parametrizations.spectral_norm(module, weight_of(module))


def old_weight_norm(module):
    nn.utils.weight_norm(module, weight_of(module))


def old_spectral_norm(module):
    nn.utils.spectral_norm(module, weight_of(module))


def pruning(module):
    prune.l1_unstructured(module, weight_of(module), amount=0.5)


def two_parametrizations(module):
    parametrizations.orthogonal(module, weight_of(module).replace("hh", "ih"))
    parametrizations.weight_norm(module, weight_of(module))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "change",
    [new_weight_norm, new_spectral_norm, old_weight_norm, old_spectral_norm, pruning,
     two_parametrizations],
    ids=lambda f: f.__name__,
)  # fmt: skip
@pytest.mark.parametrize("name", NAMES)
def test_reparametrized(name, change):
    modules = []
    for _ in range(2):  # not copied: the hook styles leave a tensor that cannot be
        torch.manual_seed(1)
        modules.append(build(name).double())
        change(modules[-1])
        modules[-1].eval()  # in training, spectral_norm's vectors move with every call
    theirs, ours = modules
    parameters = dict(ours.named_parameters())
    assert fastrnn.convert(ours).converted == {"": name}
    assert isinstance(ours, getattr(fastrnn, name)) and not isinstance(ours, getattr(nn, name))
    assert all(p is parameters[n] for n, p in ours.named_parameters())
    assert type(ours).__name__ == type(theirs).__name__
    for module in (theirs, ours):  # trains: the step changes the weight that the layer reads
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        sum(t.square().sum() for t in call(module)).backward()
        optimizer.step()
    close(call(ours), call(theirs))
    if parametrize.is_parametrized(ours):
        close(call(copy.deepcopy(ours)), call(theirs))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    if "prun" in change.__name__:
        prune.remove(ours, weight_of(theirs).removesuffix("_orig"))
        assert type(ours) is getattr(fastrnn, name)
    elif parametrize.is_parametrized(ours):
        for weight in list(ours.parametrizations):
            parametrize.remove_parametrizations(ours, weight)
        assert type(ours) is getattr(fastrnn, name)
    expected = call(ours)
    fastrnn.restore(ours)
    assert isinstance(ours, getattr(nn, name))
    close(call(ours), expected)


def test_restores_a_parametrized_module():
    module = build("LSTM")
    new_weight_norm(module)
    expected = call(module)
    fastrnn.convert(module)
    fastrnn.restore(module)
    assert isinstance(module, nn.LSTM) and parametrize.is_parametrized(module)
    assert all(torch.equal(a, b) for a, b in zip(call(module), expected, strict=True))


def test_copies_of_a_parametrized_module():
    """They share a class: a copy that is not in the model keeps it, two that are share the new."""
    module = build("GRU")
    new_weight_norm(module)
    outside, other = copy.deepcopy(module), copy.deepcopy(module)
    fastrnn.convert(nn.ModuleList([module, other]))
    assert type(module) is type(other) and isinstance(module, fastrnn.GRU)
    assert isinstance(outside, nn.GRU)


def test_inside_parametrized_modules():
    """A model that is parametrized itself, and a layer that computes a weight."""

    class Generated(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.RNN(3, 3)

        def forward(self, weight):
            return self.rnn(weight.unsqueeze(1))[0].squeeze(1)

    model = nn.Sequential(nn.Linear(3, 3))
    parametrize.register_parametrization(model[0], "weight", Generated())
    model.extra = nn.Parameter(torch.ones(3))
    parametrizations.weight_norm(model, "extra", dim=None)
    model.add_module("1", nn.GRU(3, 3))
    x = torch.randn(2, 3)
    expected = model[0](x)
    report = fastrnn.convert(model)
    assert report.converted == {"0.parametrizations.weight.0.rnn": "RNN", "1": "GRU"}
    assert report.skipped == {} and type(model).__name__ == "ParametrizedSequential"
    torch.testing.assert_close(model[0](x), expected)


def test_subclasses_are_left_alone():
    class Peephole(nn.LSTM):
        def forward(self, input, hx=None):
            return super().forward(2 * input, hx)

    parametrized = Peephole(3, 4)
    new_weight_norm(parametrized)
    model = nn.ModuleDict({"a": Peephole(3, 4), "b": parametrized, "c": nn.LSTM(3, 4)})
    report = fastrnn.convert(model)
    assert list(report.converted) == ["c"] and list(report.skipped) == ["a", "b"]
    assert all("Peephole is a subclass of torch.nn.LSTM" in why for why in report.skipped.values())
    assert type(model["a"]) is Peephole
    mine = type("Mine", (fastrnn.GRU,), {})(3, 4)
    assert "subclass of fastrnn.GRU" in fastrnn.restore(mine).skipped[""]
    assert type(mine).__name__ == "Mine"
    assert "(model): skipped" in str(fastrnn.restore(mine))


def test_replaced_forward_is_left_alone():
    module = build("GRU")
    old = module.forward
    module.forward = lambda *a: old(*a)
    assert "forward was replaced" in fastrnn.convert(module).skipped[""]
    assert type(module) is nn.GRU


def test_wants_a_module():
    with pytest.raises(TypeError, match=r"convert: expected a torch\.nn\.Module, got list"):
        fastrnn.convert([build("GRU")])
    assert str(fastrnn.convert(nn.Linear(1, 1))) == "no recurrent modules"


@pytest.mark.parametrize("name", NAMES)
def test_pickle_and_packed_input_afterwards(name):
    module = build(name)
    fastrnn.convert(module)
    other = pickle.loads(pickle.dumps(module))
    assert type(other) is getattr(fastrnn, name)
    close(call(other), call(module))
    if name in LAYERS:
        packed = pack_sequence([torch.randn(n, 3) for n in (2, 4)], enforce_sorted=False)
        expected = module(packed)[0].data
        fastrnn.restore(module)
        close(module(packed)[0].data, expected)


# -- patch_torch_nn ------------------------------------------------------------------------------

STORED = {name: getattr(nn, name) for name in NAMES}  # as a library that imported them long ago


@pytest.mark.parametrize("name", NAMES)
def test_patch(name):
    constructor = STORED[name].__init__
    with fastrnn.patch_torch_nn():
        torch.manual_seed(0)
        modules = [STORED[name](3, 4), getattr(nn, name)(input_size=3, hidden_size=4)]
        assert getattr(nn, name) is STORED[name]
        assert type(pickle.loads(pickle.dumps(modules[0]))) is getattr(fastrnn, name)
    assert all(type(m) is getattr(fastrnn, name) for m in modules)
    assert STORED[name].__init__ is constructor
    torch.manual_seed(0)
    theirs = build(name)
    assert type(theirs) is STORED[name]
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), modules[0].parameters()))
    close(call(modules[0]), call(theirs))


def test_patch_leaves_subclasses_and_copies():
    theirs = build("LSTM")

    class Before(nn.LSTM):
        pass

    with fastrnn.patch_torch_nn():

        class Inside(nn.GRU):
            pass

        assert type(Before(3, 4)) is Before and type(Inside(3, 4)) is Inside
        assert type(copy.deepcopy(theirs)) is nn.LSTM
        assert type(pickle.loads(pickle.dumps(theirs))) is nn.LSTM
        assert type(fastrnn.LSTM(3, 4)) is fastrnn.LSTM
    assert type(Inside(3, 4)) is Inside


def test_patch_nests_and_survives_exceptions():
    constructor = nn.LSTM.__init__
    with pytest.raises(ZeroDivisionError), fastrnn.patch_torch_nn():
        with fastrnn.patch_torch_nn():
            pass
        assert type(build("LSTM")) is fastrnn.LSTM  # the outer block is still open
        with pytest.raises(ValueError, match="hidden_size"):
            nn.LSTM(3, 0)
        1 / 0  # noqa: B018
    assert nn.LSTM.__init__ is constructor
    assert type(build("LSTM")) is nn.LSTM


def test_patch_is_of_one_thread():
    """Two blocks overlap, and a third thread builds in between."""
    built, inside, leave = {}, threading.Barrier(3, timeout=60), threading.Barrier(3, timeout=60)

    def patched(name):
        with fastrnn.patch_torch_nn():
            inside.wait()
            built[name] = build(name)
            leave.wait()

    def plain():
        inside.wait()
        built["RNN"] = build("RNN")
        leave.wait()

    threads = [threading.Thread(target=patched, args=(name,)) for name in ("LSTM", "GRU")]
    threads.append(threading.Thread(target=plain))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {name: type(m) for name, m in built.items()} == {
        "LSTM": fastrnn.LSTM, "GRU": fastrnn.GRU, "RNN": nn.RNN,
    }  # fmt: skip
    assert type(build("LSTM")) is nn.LSTM


def nested():
    """A model with layers at two depths, one of them in two places."""
    model = nn.Module()
    model.encoder = nn.ModuleList([nn.LSTM(3, 4), nn.GRU(4, 4)])
    model.decoder = nn.GRU(4, 3)
    model.shared = model.decoder
    return model


def test_excluded_modules_are_left_alone():
    model = nested()
    result = fastrnn.convert(model, exclude=["encoder.1", "shared"])
    assert result.converted == {"encoder.0": "LSTM"}
    assert result.skipped == dict.fromkeys(("encoder.1", "decoder"), "it was excluded")
    assert type(model.decoder) is nn.GRU and type(model.encoder[0]) is fastrnn.LSTM
    assert fastrnn.convert(model, exclude="encoder").converted == {"decoder": "GRU"}
    result = fastrnn.restore(model, exclude="encoder")
    assert result.converted == {"decoder": "GRU"} and "encoder.0" in result.skipped
    for function in (fastrnn.convert, fastrnn.restore, fastrnn.quantize):
        with pytest.raises(ValueError, match="expected exclude to name modules, got 'encoder.2'"):
            function(model, exclude=["encoder.2"])


def test_quantize_tells_what_it_did(caplog):
    model = nested()
    with caplog.at_level("INFO", logger="fastrnn"):
        small = fastrnn.quantize(model, exclude=["encoder.0"], inplace=False)
    assert type(small.encoder[0]) is nn.LSTM and small.decoder is small.shared
    again = fastrnn.quantize(model, exclude=(name for name in ["encoder.0"]), inplace=False)
    assert type(again.encoder[0]) is nn.LSTM
    assert [type(m).__name__ for m in (small.encoder[1], small.decoder)] == ["QuantizedLayer"] * 2
    assert caplog.messages == [
        "quantize: encoder.0 left alone: it was excluded",
        "quantize: encoder.1: GRU, weights in torch.int8",
        "quantize: decoder: GRU, weights in torch.int8",
    ]
    with pytest.warns(UserWarning, match="quantize: the model has no recurrent layer or cell"):
        fastrnn.quantize(nn.Linear(2, 2), inplace=False)
