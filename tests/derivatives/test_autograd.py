"""What is saved, what is computed, and what may change between forward and backward."""

import pytest
import torch

import fastrnn
from tests.cases import CELLS, KINDS, LAYERS, Case


def tensors_of(result):
    if isinstance(result, torch.Tensor):
        return [result]
    return [t for part in result for t in tensors_of(part)]


def make(name, *arguments, **options):
    module = getattr(fastrnn, name)(3, 4, *arguments, **options)
    x = torch.randn(5, 3) if name in CELLS else torch.randn(6, 5, 3)
    return module, x.requires_grad_()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [(), (2, 5, 3)], ids=["padded", "packed"])
def test_any_subset_of_gradients(kind, lengths):
    """Each gradient is the same whichever others are asked for."""
    from torch.nn.utils.rnn import pack_sequence

    case = Case(kind, lengths=lengths, options={"bidirectional": True})
    _, module = case.modules()
    data = case.data()
    leaves = {f"input{i}": t for i, t in enumerate(data.inputs)}
    leaves |= dict(zip(("h0", "c0"), data.states)) | dict(module.named_parameters())

    def gradients(wanted):
        for name, tensor in leaves.items():
            tensor.requires_grad_(name in wanted)
        inputs = [leaves[k] for k in leaves if k.startswith("input")]
        input = pack_sequence(inputs, enforce_sorted=False) if lengths else inputs[0]
        states = [leaves[k] for k in ("h0", "c0") if k in leaves]
        output, final = module(input, tuple(states) if case.name == "LSTM" else states[0])
        outputs = [output.data if lengths else output, *tensors_of(final)]
        loss = sum((w * t).sum() for w, t in zip(data.losses, outputs, strict=True))
        return dict(zip(wanted, torch.autograd.grad(loss, [leaves[k] for k in wanted])))

    full = gradients(list(leaves))
    for name in leaves:
        torch.testing.assert_close(gradients([name])[name], full[name], rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_frozen_parameters_have_no_gradient(name):
    module, x = make(name)
    frozen = [p for n, p in module.named_parameters() if "weight_ih" in n or "bias_hh" in n]
    for parameter in frozen:
        parameter.requires_grad_(False)
    sum(t.sum() for t in tensors_of(module(x))).backward()
    assert all((p.grad is None) == any(p is f for f in frozen) for p in module.parameters())
    assert x.grad is not None


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_second_backward_is_the_same(name):
    module, x = make(name)
    loss = sum(t.square().sum() for t in tensors_of(module(x)))
    sources = [x, *module.parameters()]
    first = torch.autograd.grad(loss, sources, retain_graph=True)
    second = torch.autograd.grad(loss, sources, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_no_two_gradients_share_memory(name):
    module, x = make(name)
    loss = sum(t.sum() for t in tensors_of(module(x)))
    gradients = torch.autograd.grad(loss, [x, *module.parameters()])
    storages = {g.untyped_storage().data_ptr() for g in gradients}
    assert len(storages) == len(gradients)


@pytest.mark.parametrize("name", LAYERS + CELLS)
@pytest.mark.parametrize("changed", ["input", "weight_ih", "weight_hh"])
def test_changed_in_place(name, changed):
    module, x = make(name)
    x = x.detach().requires_grad_()
    y = x * 1
    outputs = tensors_of(module(y))
    with torch.no_grad():
        (y if changed == "input" else next(
            p for n, p in module.named_parameters() if changed in n
        )).add_(1)  # fmt: skip
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sum(t.sum() for t in outputs).backward()


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_biases_may_change(name):
    module, x = make(name)
    outputs = tensors_of(module(x))
    sources = list(module.parameters())
    loss = sum(t.sum() for t in outputs)
    expected = torch.autograd.grad(loss, sources, retain_graph=True)
    with torch.no_grad():
        for n, parameter in module.named_parameters():
            if "bias" in n:
                parameter.add_(1)
    actual = torch.autograd.grad(loss, sources)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_outputs_may_change(name):
    """Rollout code zeroes rows of returned states; gradients stay those of the call."""
    module, x = make(name)
    results = []
    for change in (False, True):
        outputs = tensors_of(module(x))
        loss = sum((2 * t).sum() for t in outputs)
        if change:
            with torch.no_grad():
                for tensor in outputs:
                    tensor[0].zero_()
        results.append(torch.autograd.grad(loss, [x, *module.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_results_share_no_memory(name):
    module, x = make(name)
    state = torch.randn(5, 4) if name in CELLS else torch.randn(1, 5, 4)
    hx = (state, state) if name.startswith("LSTM") else state
    for argument in (x[:1], x):  # a single step too
        hx_of = hx
        if name in CELLS:
            argument = x
        tensors = [*tensors_of(module(argument, hx_of)), argument, state]
        storages = [t.untyped_storage().data_ptr() for t in tensors]
        assert len(set(storages)) == len(storages)


@pytest.mark.parametrize("name", LAYERS + CELLS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_nothing_is_saved_without_gradients(name, mode, through_operators, monkeypatch):
    from fastrnn._layer import ops

    module, x = make(name)
    seen, real = [], ops.layer_forward
    monkeypatch.setattr(ops, "layer_forward", lambda *a: seen.append(a[-1]) or real(*a))
    with mode():
        results = tensors_of(module(x))
    assert seen == [False] and not any(t.requires_grad for t in results)
    module.requires_grad_(False)
    module(x.detach())
    assert seen == [False, False]
    module(x)
    assert seen == [False, False, True]


@pytest.mark.parametrize("name", LAYERS)
def test_frozen_layers_save_nothing(name, monkeypatch):
    from fastrnn._layer import ops

    module, x = make(name, 2)
    for n, parameter in module.named_parameters():
        parameter.requires_grad_("_l1" in n)
    seen, real = [], ops.layer_forward
    monkeypatch.setattr(ops, "layer_forward", lambda *a: seen.append(a[-1]) or real(*a))
    module(x.detach())
    assert seen == [False, True]


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_saved(name):
    """At most what csrc/ops.cpp lists, each tensor once, and no bias."""
    module, x = make(name)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        output, _ = module(x)
    rows, hidden = 30, 4
    per_row = {"LSTM": 4 + 1 + 1, "GRU": 4 + 1, "RNN": 1}[name] * hidden
    weights = [p for n, p in module.named_parameters() if "weight" in n]
    total = sum(t.numel() for t in saved)
    assert total == rows * per_row + x.numel() + sum(w.numel() for w in weights)
    assert all(t.untyped_storage().data_ptr() != output.untyped_storage().data_ptr() for t in saved)


@pytest.mark.parametrize("name", LAYERS)
def test_training_keeps_no_more_than_torch(name):
    """The storage held between forward and backward, for a layer as wide as its input."""
    sizes = []
    for library in (torch.nn, fastrnn):
        module = getattr(library, name)(32, 32)
        x, storages = torch.randn(20, 8, 32), {}
        held = {t.untyped_storage().data_ptr() for t in (x, *module.parameters())}

        def pack(t, storages=storages, held=held):
            storage = t.untyped_storage()
            if storage.data_ptr() not in held:
                storages[storage.data_ptr()] = storage.nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            output, _ = module(x)
        storages[output.untyped_storage().data_ptr()] = output.untyped_storage().nbytes()
        sizes.append(sum(storages.values()))
    assert sizes[1] <= sizes[0]


@pytest.mark.parametrize("name", LAYERS)
def test_partial_losses(name):
    """Gradients of the output alone, of one state alone: those that are missing count as zero."""
    module, x = make(name)
    outputs = tensors_of(module(x))
    sources = [x, *module.parameters()]
    zeros = [torch.zeros_like(t) for t in outputs]
    for i, output in enumerate(outputs):
        weights = [*zeros[:i], torch.randn_like(output), *zeros[i + 1 :]]
        alone = torch.autograd.grad(output, sources, weights[i], retain_graph=True)
        full = torch.autograd.grad(outputs, sources, weights, retain_graph=True)
        assert all(torch.equal(a, b) for a, b in zip(alone, full, strict=True))


def test_create_graph_alone_is_fine():
    module, x = make("GRU")
    gradients = torch.autograd.grad(
        module(x)[0].sum(), [x, *module.parameters()], create_graph=True
    )
    expected = torch.autograd.grad(module(x)[0].sum(), [x, *module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_anomaly_mode(name):
    module, x = make(name)
    with torch.autograd.detect_anomaly(check_nan=True):
        module(x)[0].sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", LAYERS)
def test_training_follows_torch(name):
    """Five steps of an optimizer from the same start."""
    losses = []
    for library in (torch.nn, fastrnn):
        torch.manual_seed(3)
        module = getattr(library, name)(3, 4, 2).double()
        optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
        x = torch.randn(6, 5, 3, dtype=torch.float64)
        for _ in range(5):
            optimizer.zero_grad()
            loss = (module(x)[0] - 0.3).square().mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 0.1)
            optimizer.step()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-10)


@pytest.mark.parametrize(
    "options", [{}, {"lengths": [6, 3, 0, 1, 2]}, {"return_states": True}, {"checkpoint_every": 2}]
)
@pytest.mark.parametrize("name", LAYERS)
def test_nodes_keep_tensors_alone(name, options):
    """What torchviz and tools like it read: everything that a node of the graph keeps."""
    every = options.get("checkpoint_every")
    module, x = make(name, num_layers=2, **({"checkpoint_every": every} if every else {}))
    call = {} if every else options
    output = module(x, **call)[0]
    (d_x,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    pending, seen, kept = [output.grad_fn, d_x.grad_fn], set(), 0
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        saved = getattr(node, "saved_tensors", ())
        kept += len(saved)
        assert all(isinstance(tensor, torch.Tensor) for tensor in saved), node
        pending += [next_node for next_node, _ in node.next_functions]
    assert kept > 0
