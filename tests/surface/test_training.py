"""What training loops wrap around layers: autocast, GradScaler, checkpoints, averages, files."""

import copy

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.utils.rnn import pack_sequence
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import fastrnn
from fastrnn._layer import ops
from tests.cases import CELLS, LAYERS

SETTINGS = [(name, {}) for name in LAYERS + CELLS]
SETTINGS += [
    ("LSTM", {"proj_size": 2}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    ("GRU", {"num_layers": 2, "bidirectional": True, "bias": False}),
    ("RNN", {"nonlinearity": "relu", "bias": False}),
]


def pair(name, options, dtype=torch.float32):
    theirs = getattr(nn, name)(3, 4, dtype=dtype, **options)
    ours = getattr(fastrnn, name)(3, 4, dtype=dtype, **options)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def leaves(result):
    return torch.utils._pytree.tree_leaves(result)


def data(name):
    return torch.randn(5, 3) if name in CELLS else torch.randn(6, 5, 3)


# -- Autocast and GradScaler ---------------------------------------------------------------------


@pytest.mark.parametrize("outside", [False, True], ids=["backward-inside", "backward-outside"])
@pytest.mark.parametrize(
    ("name", "options", "packed"),
    [(*s, False) for s in SETTINGS] + [(*s, True) for s in SETTINGS if s[0] in LAYERS],
    ids=str,
)
def test_autocast(name, options, packed, outside):
    """Outputs and every gradient in torch.nn's dtypes, and its numbers to bfloat16's precision."""
    theirs, ours = pair(name, options)
    x, results = data(name), []
    if packed:
        x = x[:4].flatten(0, 1)
    for module in (theirs, ours):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            input = pack_sequence(leaf.split([9, 6, 5])) if packed else leaf
            output, *finals = module(input) if name != "GRUCell" else (module(input),)
            tensors = [output.data if packed else output, *leaves(finals)]
            loss = sum(t.float().square().sum() for t in tensors)
            if not outside:
                loss.backward()
        if outside:
            loss.backward()
        gradients = [leaf.grad, *(p.grad for p in module.parameters())]
        results.append([[t.detach() for t in tensors], gradients])
    for actual, expected in zip(leaves(results[1]), leaves(results[0]), strict=True):
        assert actual.dtype == expected.dtype
        # Relative to the largest value: bfloat16 keeps 8 bits, and errors of six steps add up.
        limit = 0.04 * expected.float().abs().max().item()
        torch.testing.assert_close(actual.float(), expected.float(), rtol=0, atol=limit)


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_cuda_autocast_without_a_device(name, monkeypatch):
    """Fake CUDA tensors, as if there were kernels: everything comes in the autocast dtype."""
    monkeypatch.setattr(ops, "DEVICE_TYPES", ops.DEVICE_TYPES | {"cuda"})
    module, x = getattr(fastrnn, name)(3, 4), data(name)

    def dtypes():
        return {t.dtype for t in leaves(torch.func.functional_call(module, weights, fake))}

    with FakeTensorMode():
        weights = {n: torch.empty(p.shape, device="cuda") for n, p in module.named_parameters()}
        fake = torch.empty(x.shape, device="cuda")
        assert dtypes() == {torch.float32}
        with torch.autocast("cpu", dtype=torch.bfloat16):  # of another device
            assert dtypes() == {torch.float32}
        enabled, dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        torch.set_autocast_enabled("cuda", True)  # torch.autocast would ask for a device
        torch.set_autocast_dtype("cuda", torch.float16)
        try:
            assert dtypes() == {torch.float16}
        finally:
            torch.set_autocast_enabled("cuda", enabled)
            torch.set_autocast_dtype("cuda", dtype)


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_grad_scaler(name):
    """Scaled training is plain training while nothing overflows; a step that does is left out."""
    _, plain = pair(name, {}, torch.float64)
    scaled, x = copy.deepcopy(plain), data(name).double()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)

    def loss_of(module):
        return sum(t.square().mean() for t in leaves(module(x)))

    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (plain, scaled)]
    for _ in range(5):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(plain).backward()
        optimizers[0].step()
        scaler.scale(loss_of(scaled)).backward()
        scaler.unscale_(optimizers[1])
        nn.utils.clip_grad_norm_(scaled.parameters(), 1e6)
        scaler.step(optimizers[1])
        scaler.update()
    torch.testing.assert_close(list(scaled.parameters()), list(plain.parameters()))
    assert scaler.get_scale() == 2.0**12
    before = [p.detach().clone() for p in scaled.parameters()]
    optimizers[1].zero_grad()
    scaler.scale(loss_of(scaled) * float("inf")).backward()
    scaler.step(optimizers[1])
    scaler.update()
    assert scaler.get_scale() == 2.0**11
    torch.testing.assert_close(list(scaled.parameters()), before, rtol=0, atol=0)


def test_grad_scaler_with_float16_autocast():
    losses = []
    for module in pair("RNN", {}):  # torch.nn's LSTM cannot: oneDNN refuses float16
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        scaler = torch.amp.GradScaler("cpu")
        for _ in range(10):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                output, _ = module(torch.ones(6, 5, 3))
                assert output.dtype == torch.float16
                loss = (output.float() - 0.3).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        losses.append(loss.item())
    # Ten steps of float16, whose rounding each step's gradients carry on.
    assert losses[1] == pytest.approx(losses[0], rel=0.05) and losses[1] < 0.1


# -- Activation checkpoints, averaged copies, files ----------------------------------------------


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_checkpoint(name, reentrant):
    """With dropout between layers, which draws the same numbers again, and several outputs."""
    options = {} if name in CELLS else {"num_layers": 3, "dropout": 0.5, "bidirectional": True}
    _, module = pair(name, options)
    results = []

    def run(x):  # flat: the reentrant kind loses gradients of nested outputs
        return tuple(leaves(module(x)))

    for call in (run, lambda x: checkpoint(run, x, use_reentrant=reentrant)):
        torch.manual_seed(4)
        x = data(name).requires_grad_()
        outputs = call(x)
        loss = sum(t.square().sum() for t in outputs)
        module.zero_grad()
        loss.backward()
        results.append([*outputs, x.grad, *(p.grad.clone() for p in module.parameters())])
    for actual, expected in zip(results[1], results[0], strict=True):
        assert torch.equal(actual, expected)


def test_checkpoint_frees_what_backward_needs():
    """Between forward and backward only the input and the states at the borders are held."""
    module, sizes, held = fastrnn.LSTM(4, 4, 2), [], []

    def keep(tensor):
        held.append(tensor)
        return tensor

    for call in (module, lambda x: checkpoint(module, x, use_reentrant=False)):
        held.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            call(torch.randn(50, 8, 4, requires_grad=True))
        sizes.append(sum(t.numel() for t in held))
    assert sizes[1] <= 50 * 8 * 4 < sizes[0] / 4


def test_checkpoint_sequential():
    class First(fastrnn.GRU):
        def forward(self, x):
            return super().forward(x)[0]

    model = nn.Sequential(*(First(3, 3) for _ in range(4)))
    x = torch.randn(6, 5, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    output = checkpoint_sequential(model, 2, x, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(output.sum(), x)[0], expected)


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_averaged_model(name):
    """An EMA copy follows torch.nn's, and the model that it was copied from does not notice."""
    results = []
    for module in pair(name, {}, torch.float64):
        torch.manual_seed(0)
        x = data(name).double()
        average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        for _ in range(4):
            optimizer.zero_grad()
            sum(t.square().mean() for t in leaves(module(x))).backward()
            optimizer.step()
            average.update_parameters(module)
        update_bn([x], average)
        assert type(average.module) is type(module)
        results.append([*leaves(average(x)), *leaves(module(x))])
    torch.testing.assert_close(results[1], results[0])
    assert not torch.equal(results[1][0], results[1][-1])


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_files(name, tmp_path):
    """state_dicts go both ways between the libraries, and a whole module loads as it was."""
    theirs, ours = pair(name, {})
    x, path = data(name), tmp_path / "file.pt"
    for source, target in ((ours, type(theirs)(3, 4)), (theirs, type(ours)(3, 4))):
        torch.save(source.state_dict(), path)
        target.load_state_dict(torch.load(path, weights_only=True), strict=True)
        torch.testing.assert_close(leaves(target(x)), leaves(source(x)))
    ours.eval().requires_grad_(False)
    torch.save({"model": ours, "again": ours}, path)
    loaded = torch.load(path, weights_only=False)
    assert loaded["model"] is loaded["again"] and type(loaded["model"]) is type(ours)
    assert not loaded["model"].training
    assert not any(p.requires_grad for p in loaded["model"].parameters())
    assert all(torch.equal(a, b) for a, b in zip(leaves(loaded["model"](x)), leaves(ours(x))))
    with pytest.raises(Exception, match="weights_only"):  # a module is code: only where asked for
        torch.load(path)


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_parameters_can_be_swapped_after_training(name, monkeypatch):
    """Nobody holds on to a parameter once its graph is gone."""
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    module = getattr(fastrnn, name)(3, 4)
    x = torch.randn(5, 3) if name in CELLS else torch.randn(2, 5, 3)
    for dtype in (torch.float32, torch.float64):
        result = module(x.to(dtype))
        output = result[0] if isinstance(result, tuple) else result
        output.sum().backward()
        del result, output
        assert module.to(torch.float64) is module
    if name in CELLS:  # nn.RNNBase keeps weak references, which swap_tensors refuses
        other = torch.nn.Parameter(torch.zeros_like(module.weight_ih))
        torch.utils.swap_tensors(module.weight_ih, other)
        assert not module.weight_ih.any()
