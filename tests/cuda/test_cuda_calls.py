"""What users call, not only the kernels: each feature with each layer, on three sorts of places.

cuda  a CUDA device, in every regime of the engine
shim  the CUDA engine's own sources on CPU tensors (tests/cuda_shim)
cpu   the CPU's kernels, for what the shim has no part in: that these tests themselves are right

The oracle are the equations of `fastrnn.reference` in float64 on the CPU. A call passes when its
error is at most that of the same equations in its own dtype, plus what tests/tolerances.py derives.

Each test is a cell of a table of features and layers. This prints the table:

    python -m pytest tests/cuda/test_cuda_calls.py --junitxml=calls.xml
    python -m tests.cuda.test_cuda_calls --table calls.xml
"""

import argparse
import copy
import functools
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from xml.etree import ElementTree

import pytest
import torch
from torch import distributed, nn
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

import fastrnn
from fastrnn import reference, variants
from fastrnn._layer import autograd, batching, by_reference, ops
from fastrnn._stack import beyond
from tests.arguments import device_operators, operators
from tests.cases import KINDS, LAYERS, Case
from tests.options import options_of
from tests.precision import tf32_products
from tests.tolerances import assert_accurate, floor, magnitude

# -- Places ----------------------------------------------------------------------------------------


@pytest.fixture
def on_cuda(cuda):
    torch.set_num_threads(1)  # the equations are small, and other processes test beside this one
    with tf32_products(False):  # torch.nn's own layers are compared too, whose default it is
        yield cuda


@pytest.fixture
def on_shim(engine):
    """What fastrnn does on tensors for whose values nobody may wait, and that fewer operators have
    kernels for."""
    engine.setattr(beyond, "_stays_padded", lambda input, resets: True)
    engine.setattr(
        ops, "gather_rows", lambda rows, index: list(map(autograd._gather_by_torch, rows, index))
    )
    engine.setattr(by_reference, "serves", lambda tensor: True)
    engine.setattr(ops, "has_inside", lambda tensor: False)
    for name in NO_KERNEL:
        engine.setattr(ops, name, functools.partial(no_kernel, name))
    engine.setattr(ops, "sample_products", batching.sample_products_by_torch)
    return torch.device("cpu")


# Those that no device but the CPU has. `segments` is asked on the host.
NO_KERNEL = set(operators()) - {*device_operators(), "segments", "gather_rows", "quantized_forward"}


def no_kernel(name, *arguments):
    raise NotImplementedError(f"{name} has no kernel on a device")


@pytest.fixture
def on_cpu():
    torch.set_num_threads(1)
    return torch.device("cpu")


# -- A layer, and its equations --------------------------------------------------------------------


class Equations(nn.Module):
    """`fastrnn.reference` as a module with the parameters of a layer, by the same names."""

    def __init__(self, layer):
        super().__init__()
        for name, parameter in layer.named_parameters():
            self.register_parameter(name, nn.Parameter(parameter.detach().cpu().clone()))
        self.mode, self.batch_first = layer.mode, layer.batch_first
        self.options = {"num_layers": layer.num_layers, "has_biases": layer.bias}
        self.options |= {"bidirectional": layer.bidirectional, "batch_first": layer.batch_first}
        if layer.mode.startswith("RNN"):
            self.options["nonlinearity"] = layer.nonlinearity

    def forward(self, input, hx=None, **options):
        run = getattr(reference, self.mode.partition("_")[0].lower())
        return run(input, hx, list(self.parameters()), **self.options, **options)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def close(actual, expected, tolerance=1e-4):
    """Each tensor within tolerance of the largest value expected of it."""
    for a, e in zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True):
        assert a.shape == e.shape
        a, e = a.detach().cpu().double(), e.detach().cpu().double()
        error = (a - e).abs().max().item() if e.numel() else 0.0
        assert error <= tolerance * max(magnitude(e), 1e-6), error


def outcome(output, final, states, sources, dtype):
    """Outputs and every gradient by name, of a loss that weighs all outputs, and its weights."""
    finals = final if isinstance(final, tuple) else (final,)
    found = {"output": output} | dict(zip(("h_n", "c_n"), finals))
    for each in states:
        found |= {n: t for n, t in zip(("hidden", "cells"), each) if t is not None}
    generator = torch.Generator().manual_seed(1)
    weights = {
        name: torch.randn(t.shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, t in found.items()
    }
    loss = sum((weights[name].to(t) * t).sum() for name, t in found.items())
    gradients = torch.autograd.grad(loss, list(sources.values()), materialize_grads=True)
    found |= {n: s[2] for n, s in zip(["gates"], states) if s[2] is not None}
    found |= {f"d_{name}": g for name, g in zip(sources, gradients)}
    return {name: t.detach().cpu() for name, t in found.items()}, list(weights.values())


def apart(layer):
    """Keeps the arguments of a ReLU away from 0, on both sides of it: what is within rounding of 0
    has no right gradient, and in 16 bits there is always something (test_cuda_shim.test_steps)."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "weight" in name:
                parameter.mul_(0.25)
            elif "bias_ih" in name:
                parameter.fill_(2.0)[::2] = -2.0
    return layer


# -- Calls of a layer ------------------------------------------------------------------------------

# A number format, hidden units and the regime: single up to 128 units, cluster and grid beyond.
SETTINGS = {
    "fp32-single": (torch.float32, 24, "single"),
    "bf16-single": (torch.bfloat16, 40, "single"),
    "fp16-single": (torch.float16, 100, "single"),
    "fp32-cluster": (torch.float32, 200, "cluster"),
    "bf16-cluster": (torch.bfloat16, 200, "cluster"),
    "fp16-grid": (torch.float16, 136, "grid"),
    "fp32-grid": (torch.float32, 136, "grid"),
    "bf16-grid": (torch.bfloat16, 200, "grid"),
    "fp64-steps": (torch.float64, 24, "steps"),
}
LENGTHS = torch.tensor([4, 7, 1, 7, 3, 2, 7, 5, 6])
SORTED = LENGTHS.sort(descending=True).values


@dataclass(frozen=True)
class Feature:
    """What a call asks for."""

    options: dict = field(default_factory=dict)  # of the constructor
    hx: bool = True
    asked: dict = field(default_factory=dict)  # of the call: tests/options.py
    packed: torch.Tensor | None = None
    unbatched: bool = False
    masks: str = "there"  # resets and lengths: on the layer's device, or on the host


FEATURES = {
    "padded": Feature(),
    "without hx": Feature(hx=False),
    "without biases": Feature({"bias": False}),
    "batch_first": Feature({"batch_first": True}),
    "unbatched": Feature(unbatched=True),
    "both directions": Feature({"bidirectional": True}),
    "two layers": Feature({"num_layers": 2, "dropout": 0.0}),
    "packed": Feature(packed=SORTED),
    "packed, unsorted": Feature(packed=LENGTHS),
    "lengths": Feature(asked={"lengths": True}),
    "resets": Feature(asked={"resets": 0.3}),
    "resets to hx": Feature(asked={"resets": 0.3, "reset_to": "hx"}),
    "return_states": Feature(asked={"return_states": True}),
    "resets, lengths, states": Feature(
        asked={"resets": 0.5, "lengths": True, "reset_to": "hx", "return_states": True}
    ),
    "masks on the host": Feature(asked={"resets": 0.3, "lengths": True}, masks="host"),
    "checkpoint_every": Feature({"checkpoint_every": 3}),
}


def check_call(device, kind, feature, dtype, hidden_size, stacked):
    """Forward and gradients against the equations."""
    options = {"num_layers": 2, "bidirectional": True} if stacked else {}
    options = options | feature.options
    every = options.pop("checkpoint_every", None)
    case = Case(kind, 7, 1 if feature.unbatched else len(LENGTHS), 6, hidden_size, options)
    layer = case.modules(dtype)[1]
    if kind == "rnn_relu" and layer.bias:
        apart(layer)
    data = case.data(dtype)
    asked = options_of(case, feature.asked)

    def run(module, dtype, device):
        x = data.inputs[0].to(device, dtype).requires_grad_()
        states = [s.to(device, dtype).requires_grad_() for s in data.states]
        hx = (tuple(states) if case.name == "LSTM" else states[0]) if feature.hx else None
        sources = {"input": x} | (dict(zip(("h0", "c0"), states)) if feature.hx else {})
        sources |= dict(module.named_parameters())
        there = device if feature.masks == "there" else "cpu"
        given = {k: v.to(there) if torch.is_tensor(v) else v for k, v in asked.items()}
        call = call_equations if isinstance(module, Equations) else call_layer
        results = call(module, x, hx, feature, given)
        return outcome(*results, sources, dtype)

    same, exact = Equations(layer), Equations(layer).double()
    layer.to(device).checkpoint_every = every
    theirs, oracle = (run(m, t, "cpu")[0] for m, t in ((same, dtype), (exact, torch.float64)))
    ours, incoming = run(layer, dtype, device)
    if dtype is torch.float64:  # the rule for it is against torch.nn, which these equations match
        theirs = oracle
    steps = case.seq_len * options.get("num_layers", 1)
    assert_accurate(ours, theirs, oracle, dtype, steps, incoming)


def call_equations(module, x, hx, feature, given):
    """`(output, final states, [States])`. Packed data as lengths, whose results are the same."""
    if feature.packed is None:
        output, final, states = module(x, hx, **given | {"return_states": True})
        return output, final, [states] if "return_states" in given else []
    output, final = module(x, hx, lengths=feature.packed)
    return pack(output, feature.packed).data, final, []


def call_layer(module, x, hx, feature, given):
    if feature.packed is not None:
        output, final = module(pack(x, feature.packed), hx)
        assert isinstance(output, PackedSequence)
        return output.data, final, []
    if not feature.unbatched:
        output, final, *states = module(x, hx, **given)
        return output, final, states
    dim = 0 if module.batch_first else 1
    row = pytree.tree_map(lambda s: s[:, 0], hx)
    output, final = module(x.select(dim, 0), row, **given)
    return output.unsqueeze(dim), pytree.tree_map(lambda s: s.unsqueeze(1), final), []


def pack(x, lengths):
    in_order = bool((lengths.diff() <= 0).all())
    return pack_padded_sequence(x, lengths, enforce_sorted=in_order)


# -- Cells -----------------------------------------------------------------------------------------


def check_cell(device, kind, dtype, hidden_size=24, hx=True, bias=True, batched=True):
    """One step of a cell, forward and gradients."""
    name, options = KINDS[kind]
    cell = getattr(fastrnn, name + "Cell")(6, hidden_size, bias, dtype=dtype, **options)
    if kind == "rnn_relu" and bias:
        apart(cell)
    step = getattr(reference, name.lower() + "_cell")
    tensors = [random(9 if batched else 1, 6).to(dtype)]
    tensors += [random(len(tensors[0]), hidden_size).to(dtype) for _ in range(1 + (name == "LSTM"))]

    def run(call, parameters, dtype, device, row):
        leaves = [t.to(device, dtype).requires_grad_() for t in tensors]
        sources = dict(zip(("input", "h0", "c0"), leaves if hx else leaves[:1]))
        sources |= {n: p.detach().to(device, dtype).requires_grad_() for n, p in parameters}
        x, *states = [t[0] if row else t for t in leaves]
        states = (tuple(states) if name == "LSTM" else states[0]) if hx else None
        result = call(x, states, {n: sources[n] for n, _ in parameters})
        result = pytree.tree_map(lambda t: t[None] if row else t, result)
        first = result[0] if name == "LSTM" else result
        return outcome(first, result, (), sources, dtype)

    def equations(x, states, weights):
        return step(x, states, *weights.values(), **options)

    parameters = [(n, p.detach()) for n, p in cell.named_parameters()]
    theirs, oracle = (
        run(equations, parameters, t, "cpu", False)[0] for t in (dtype, torch.float64)
    )
    cell.to(device)
    ours, incoming = run(
        lambda x, states, weights: functional_call(cell, weights, (x, states)),
        parameters, dtype, device, not batched,
    )  # fmt: skip
    if dtype is torch.float64:
        theirs = oracle
    assert_accurate(ours, theirs, oracle, dtype, 1, incoming)


# -- What training does ----------------------------------------------------------------------------


def layer_and_data(device, name, dtype=torch.float32, hidden_size=24, batch=9, **options):
    layer = getattr(fastrnn, name)(6, hidden_size, dtype=dtype, **options)
    return layer.to(device), random(7, batch, 6).to(device, dtype)


def weighted(output):
    """A loss whose gradient differs from element to element."""
    weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
    return (weights.to(output) * output).sum()


def gradients(call, x, sources):
    """Of `weighted(output)`; call: x -> `(output, ...)`."""
    return list(torch.autograd.grad(weighted(call(x)[0]), list(sources)))


def assert_gradients(actual, layer, x, dtype=torch.float32):
    """Gradients of a layer's parameters, by `gradients`, are as right as their dtype allows."""
    found = []
    for each in (dtype, torch.float64):
        same = Equations(layer).to(each)
        found.append(gradients(same, x.detach().cpu().to(each), same.parameters()))
    every = []
    for tensors in (actual, *found):
        named = zip(dict(layer.named_parameters()), tensors, strict=True)
        every.append({f"d_{name}": t.detach().cpu() for name, t in named})
    assert_accurate(*every, dtype, len(x), [torch.ones(())])


def check_frozen(device, name):
    """Whatever requires no gradient: the others' are what they are without that."""
    layer, x = layer_and_data(device, name, num_layers=2)
    named = dict(layer.named_parameters()) | {"input": x.requires_grad_()}
    every = dict(zip(named, gradients(layer, x, named.values())))
    for frozen in ("weight_hh", "weight_ih", "bias", "_l0", "weight", "input", "_l"):
        for key, tensor in named.items():
            tensor.requires_grad_(frozen not in key)
        free = [key for key, tensor in named.items() if tensor.requires_grad]
        found = gradients(layer, x, [named[key] for key in free])
        close(found, [every[key] for key in free], 1e-6)


def check_retain_graph(device, name):
    layer, x = layer_and_data(device, name, bidirectional=True)
    sources = [x.requires_grad_(), *layer.parameters()]
    loss = weighted(layer(x)[0])
    first = torch.autograd.grad(loss, sources, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, sources)))


def check_outputs_changed(device, name):
    """Outputs and states changed in place before backward."""
    layer, x = layer_and_data(device, name)
    parameters = list(layer.parameters())
    expected = gradients(layer, x, parameters)
    results = layer(x)
    loss = weighted(results[0])
    with torch.no_grad():
        for tensor in pytree.tree_leaves(results):
            tensor.zero_()
    assert all(map(torch.equal, torch.autograd.grad(loss, parameters), expected))


def check_torch_checkpoint(device, name):
    """torch.utils.checkpoint, both kinds."""
    layer, x = layer_and_data(device, name)
    expected = gradients(layer, x, layer.parameters())
    x.requires_grad_()
    for reentrant in (True, False):
        layer.zero_grad()
        # The reentrant kind refuses torch.autograd.grad.
        weighted(checkpoint(layer, x, use_reentrant=reentrant)[0]).backward()
        close([p.grad for p in layer.parameters()], expected, 1e-6)


def check_strides(device, name):
    """An input that is a slice of a wider tensor, states with strides, an expanded gradient."""
    layer, x = layer_and_data(device, name)
    wide = torch.full((9, 14, 11), torch.nan, dtype=x.dtype, device=device)
    view = wide.transpose(0, 1)[::2, :, 3:9]
    view.copy_(x)
    states = [s.t()[None] for s in random(24, 9, 2).to(x).unbind(2)]
    found = []
    for input, hx in ((view, states), (x, [s.contiguous() for s in states])):
        output = layer(input, tuple(hx) if name == "LSTM" else hx[0])[0]
        found.append([output, *torch.autograd.grad(output.sum(), list(layer.parameters()))])
    assert all(map(torch.equal, *found))


def check_no_gradients(device, name):
    """no_grad and inference_mode give what training gives; the plan may be another one."""
    layer, x = layer_and_data(device, name, num_layers=2, bidirectional=True)
    expected = pytree.tree_leaves(layer(x))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            close(pytree.tree_leaves(layer(x)), expected, 1e-6)


def check_cut(device, name):
    """A sequence in two calls, through whose states the gradient goes."""
    layer, x = layer_and_data(device, name)

    def in_two(x):
        first, hx = layer(x[:3])
        return torch.cat([first, layer(x[3:], hx)[0]]), hx

    assert_gradients(gradients(in_two, x, layer.parameters()), layer, x)


def check_no_rows(device, name):
    """An empty batch, and a sequence of one step."""
    layer, x = layer_and_data(device, name, batch=0, num_layers=2)
    assert layer(x)[0].shape == (7, 0, 24)
    assert not any(g.any() for g in gradients(layer, x, layer.parameters()))
    x = random(1, 9, 6).to(device, torch.float32)
    assert_gradients(gradients(layer, x, layer.parameters()), layer, x)


class Output(nn.Module):
    def forward(self, results):
        return results[0]


def check_called_twice(device, name):
    """On its own output: gradients of one layer's weights from two calls."""
    layer, x = layer_and_data(device, name, hidden_size=6)
    found = []
    for module, data in ((layer, x), (Equations(layer).double(), x.cpu().double())):
        twice = nn.Sequential(module, Output(), module)
        found.append(gradients(twice, data, module.parameters()))
    close(*found, 3e-5)


def check_copies(device, name):
    """deepcopy, state_dict, files, and moving to the device and back."""
    layer, x = layer_and_data("cpu", name, num_layers=2, bidirectional=True)
    expected = layer(x)[0]
    there = copy.deepcopy(layer).to(device)
    output = there(x.to(device))[0]
    close(output, expected, 3e-5)
    assert torch.equal(copy.deepcopy(there)(x.to(device))[0], output)
    assert torch.equal(copy.deepcopy(there).cpu()(x)[0], expected)
    theirs = getattr(nn, name)(6, 24, num_layers=2, bidirectional=True)
    theirs.load_state_dict(there.state_dict(), strict=True)
    assert all(map(torch.equal, theirs.parameters(), layer.parameters()))
    file = io.BytesIO()
    torch.save(there, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x.to(device))[0], output)
    file.seek(0)
    back = torch.load(file, weights_only=False, map_location="cpu")
    assert torch.equal(back(x)[0], expected)
    average = torch.optim.swa_utils.AveragedModel(there)
    average.update_parameters(there)
    assert torch.equal(average(x.to(device))[0], output)


def check_conversion(device, name):
    """A model of torch.nn becomes ours and torch.nn's again, trained by one optimizer."""
    model = nn.Sequential(getattr(nn, name)(6, 24, 2, bidirectional=True)).to(device)
    exact = copy.deepcopy(model).cpu().double()
    x, parameters = random(7, 9, 6), list(model.parameters())
    both = (model, x.float().to(device)), (exact, x)
    optimizers = [torch.optim.SGD(m.parameters(), lr=1.0) for m, _ in both]
    for change, library in ((fastrnn.convert, fastrnn), (fastrnn.restore, nn)):
        assert change(model).converted
        assert type(model[0]) is getattr(library, name)
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
        outputs = []
        for (module, data), optimizer in zip(both, optimizers, strict=True):
            optimizer.zero_grad()
            outputs.append(module(data)[0])
            outputs[-1].square().mean().backward()
            optimizer.step()
        close(*outputs, 3e-5)
    close(list(model.parameters()), list(exact.parameters()), 3e-5)


# -- Autocast --------------------------------------------------------------------------------------


def check_autocast(device, name, dtype, packed):
    """Results are in the autocast dtype, gradients in that of the parameters."""
    layer, x = layer_and_data(device, name, num_layers=2)
    lengths = LENGTHS if packed else None

    def run(module, x, cast):
        x = x.detach().requires_grad_()
        sources = {"input": x} | dict(module.named_parameters())
        if cast is None:
            input = x if lengths is None else pack(x, lengths)
            output, final = module(input)
            output = output.data if packed else output
            return outcome(output, final, (), sources, dtype)
        weights = {n: p.to(cast) for n, p in module.named_parameters()}
        given = {} if lengths is None else {"lengths": lengths}
        output, final = functional_call(module, weights, (x.to(cast),), given)
        output = pack(output, lengths).data if packed else output
        return outcome(output, final, (), sources, dtype)

    host = x.cpu()
    theirs = run(Equations(layer), host, dtype)[0]
    oracle = run(Equations(layer).double(), host.double(), torch.float64)[0]
    with torch.autocast(device.type, dtype=dtype):
        output, final = layer(x if lengths is None else pack(x, lengths))
        ours, incoming = run(layer, x, None)
    output = output.data if packed else output
    if device.type == "cuda":  # on the CPU torch.nn's dtypes are mixed, and so are ours
        assert {t.dtype for t in pytree.tree_leaves((output, final))} == {dtype}
    assert ours["d_weight_hh_l0"].dtype is torch.float32
    assert_accurate(ours, theirs, oracle, dtype, 2 * len(x), incoming)


def check_autocast_cell(device, name, dtype):
    cell = getattr(fastrnn, name + "Cell")(6, 24).to(device)
    x = random(9, 6).to(device, torch.float32)
    step = getattr(reference, name.lower() + "_cell")
    with torch.autocast(device.type, dtype=dtype):
        result = cell(x)
        gradients = torch.autograd.grad(
            sum(t.float().square().sum() for t in pytree.tree_leaves(result)), cell.parameters()
        )
    weights = [p.detach().cpu().double().requires_grad_() for p in cell.parameters()]
    exact = step(x.cpu().double(), None, *weights)
    loss = sum(t.square().sum() for t in pytree.tree_leaves(exact))
    # One step rounds input, weights, gates and result, each by half of eps at most.
    limit = 4 * torch.finfo(dtype).eps
    close(result, exact, limit)
    close(gradients, torch.autograd.grad(loss, weights), limit)


def check_backward_under_autocast(device, name):
    """A float32 layer whose backward pass somebody runs inside of autocast stays in float32."""
    layer, x = layer_and_data(device, name)
    sources = [x.requires_grad_(), *layer.parameters()]
    expected = gradients(layer, x, sources)
    loss = weighted(layer(x)[0])
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = torch.autograd.grad(loss, sources)
    assert all(map(torch.equal, found, expected))


def check_checkpoint_under_autocast(device, name):
    """checkpoint_every in a training step that is under autocast as a whole."""
    layer, x = layer_and_data(device, name)
    found = []
    for every in (None, 3):
        layer.checkpoint_every = every
        with torch.autocast(device.type, dtype=torch.bfloat16):
            found.append(gradients(layer, x, layer.parameters()))
    assert_gradients(found[1], layer, x, torch.bfloat16)
    # States that pass from chunk to chunk are rounded: some roundings, of values of one size.
    close(found[1], found[0], 8 * torch.finfo(torch.bfloat16).eps)


def check_scaler(device, name):
    """GradScaler: a step in float16 is that without it; one with infinite gradients is left out."""
    layer, x = layer_and_data(device, name)
    layer_before = copy.deepcopy(layer)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**10)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    with torch.autocast(device.type, dtype=torch.float16):
        loss = layer(x)[0].float().square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    exact = Equations(layer_before).double()
    exact(x.cpu().double())[0].square().mean().backward()
    moved = [a - b for a, b in zip(layer_before.parameters(), layer.parameters(), strict=True)]
    largest = max(magnitude(p.grad) for p in exact.parameters())
    for a, p in zip(moved, exact.parameters(), strict=True):
        limit = floor(torch.float16, len(x), largest / magnitude(p.grad), 1.0)
        # The rounding of the weights and the input, besides that of the results.
        close(a, p.grad, 2 * limit)
    before = copy.deepcopy(layer.state_dict())
    optimizer.zero_grad()
    with torch.autocast(device.type, dtype=torch.float16):
        loss = layer(x)[0].float().square().mean() * float("inf")
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert all(torch.equal(before[key], value) for key, value in layer.state_dict().items())


# -- Graphs ----------------------------------------------------------------------------------------


def check_compiled(device, name, packed=False):
    """Without inductor, which compiles for half a minute."""
    torch._dynamo.reset()
    layer, x = layer_and_data(device, name, num_layers=2)
    input = pack(x, LENGTHS) if packed else x

    def call(run):
        output = run(input)[0]
        output = output.data if packed else output
        return [output, *torch.autograd.grad(output.square().sum(), list(layer.parameters()))]

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    close(call(compiled), call(layer), 1e-6)


def check_compiled_options(device, name):
    """resets, lengths and states, with values that change between calls."""
    torch._dynamo.reset()
    layer, x = layer_and_data(device, name)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for seed in (0, 1):
        case = Case("lstm", *x.shape, 24)
        given = options_of(case, {"resets": 0.3, "lengths": True, "return_states": True}, seed)
        given = {k: v.to(device) if torch.is_tensor(v) else v for k, v in given.items()}
        found = []
        for run in (compiled, layer):
            output, _, states = run(x, **given)
            loss = output.square().sum() + states.hidden.sum()
            found.append([output, *torch.autograd.grad(loss, list(layer.parameters()))])
        close(*found, 1e-6)


def check_exported(device, name):
    """For any length and batch."""
    layer, x = layer_and_data(device, name, num_layers=2)
    steps, batch = torch.export.Dim("T", min=2, max=999), torch.export.Dim("B", min=2, max=999)
    program = torch.export.export(
        layer.eval(), (x,), dynamic_shapes=({0: steps, 1: batch},), strict=False
    )
    for shape in ((7, 9, 6), (4, 3, 6)):
        x = random(*shape).to(device, torch.float32)
        with torch.no_grad():
            close(program.module()(x), layer(x), 1e-6)


class Step:
    """A training step on data that stays in its place: forward, loss, backward, optimizer."""

    def __init__(self, layer, input, target, packed=None):
        self.layer, self.input, self.target, self.packed = layer, input, target, packed
        self.optimizer = torch.optim.SGD(layer.parameters(), lr=0.3, momentum=0.9)

    def __call__(self):
        self.optimizer.zero_grad(set_to_none=True)
        input = self.input if self.packed is None else PackedSequence(self.input, self.packed)
        output = self.layer(input)[0]
        output = output if self.packed is None else output.data
        loss = (output - self.target).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss


def check_graph(device, name, packed=False, **options):
    """A captured training step: three replays on new data are three steps."""
    layer, x = layer_and_data(device, name, **options)
    counts = pack(x, SORTED).batch_sizes if packed else None

    def data():
        x = random(7, 9, 6).to(device, torch.float32)
        x = pack(x, SORTED).data if packed else x
        return x, random(*x.shape[:-1], layer.hidden_size).to(x)

    plain = Step(copy.deepcopy(layer), *data(), counts)
    captured = Step(layer, *(t.clone() for t in (plain.input, plain.target)), counts)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            captured()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    captured.optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        loss = captured()
    for _ in range(3):
        plain()
    for _ in range(3):
        for old, new, other in zip(
            (captured.input, captured.target), data(), (plain.input, plain.target), strict=True
        ):
            old.copy_(new)
            other.copy_(new)
        graph.replay()
        close(loss, plain(), 1e-5)
    close(list(layer.parameters()), list(plain.layer.parameters()), 1e-5)


def check_graphed_callables(device, name):
    layer, x = layer_and_data(device, name)
    x.requires_grad_()
    graphed = torch.cuda.make_graphed_callables(copy.deepcopy(layer), (x,))
    new = random(*x.shape).to(x).requires_grad_()
    close(
        gradients(graphed, new, graphed.parameters()),
        gradients(layer, new, layer.parameters()),
        1e-5,
    )


def check_data_parallel(device, name, folder):
    """DistributedDataParallel over one process: nccl on a device, gloo on the CPU."""
    layer, x = layer_and_data(device, name, num_layers=2)
    expected = gradients(layer, x, layer.parameters())
    distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{folder}/meet", rank=0, world_size=1,
    )  # fmt: skip
    try:
        weighted(nn.parallel.DistributedDataParallel(layer)(x)[0]).backward()
        close([p.grad for p in layer.parameters()], expected, 1e-6)
    finally:
        distributed.destroy_process_group()


# -- What runs on plain equations where the engine has no kernels ----------------------------------


def small(device, name, **options):
    """`(layer and data on the device, the equations and data in float64)`."""
    layer = getattr(fastrnn, name)(3, 6, **options)
    x = random(5, 4, 3)
    return (layer.to(device), x.float().to(device)), (Equations(layer).double(), x)


def loss_of(module, x):
    return module(x)[0].square().sum()


def weights_of(module):
    return {n: p.detach() for n, p in module.named_parameters()}


def penalty(module, x):
    """Gradients of a gradient penalty."""
    leaves = [x.clone().requires_grad_(), *module.parameters()]
    inner = torch.autograd.grad(loss_of(module, leaves[0]), leaves, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in inner), leaves)


def dual(module, x):
    """forward_ad, of the outputs and all states."""
    forward_ad = torch.autograd.forward_ad
    with forward_ad.dual_level():
        results = pytree.tree_leaves(module(forward_ad.make_dual(x, x.cos())))
        return [forward_ad.unpack_dual(t).tangent for t in results]


def directional(module, x):
    """jvp of the weights."""
    weights = weights_of(module)
    moved = {n: w.cos() for n, w in weights.items()}
    return jvp(lambda w: functional_call(module, w, x)[0], (weights,), (moved,))


def hessians(module, x):
    return hessian(lambda x: loss_of(module, x))(x[:3, :1])


def over_inputs(module, x):
    xs = torch.stack([x, x.cos(), x.sin()])
    return vmap(lambda x: module(x)[0])(xs)


def per_sample(module, x):
    def one(weights, row):
        return functional_call(module, weights, row.unsqueeze(1))[0].square().sum()

    return vmap(grad(one), in_dims=(None, 1))(weights_of(module), x)


def ensemble(module, x):
    modules = [copy.deepcopy(module) for _ in range(3)]
    for i, each in enumerate(modules):
        for p in each.parameters():
            p.data.mul_(1 + i / 4)
    weights, buffers = stack_module_state(modules)
    return vmap(lambda w, b: functional_call(module, (w, b), x)[0])(weights, buffers)


DERIVATIVES = {
    "second derivatives": penalty,
    "forward mode": dual,
    "func.jvp of weights": directional,
    "func.hessian": hessians,
    "vmap over inputs": over_inputs,
    "per-sample gradients": per_sample,
    "ensembles": ensemble,
}


def check_derivative(device, name, compute):
    ours, exact = small(device, name)
    # Float32 over five steps, squared in a penalty: some hundred roundings of the largest value.
    close(compute(*ours), compute(*exact), 1e-4)


# In training their masks follow from torch's seed on the CPU, whatever the device.
VARIANTS = {
    "layer_norm": {"layer_norm": True},
    "zoneout": {"zoneout": 0.3},
    "weight_drop": {"weight_drop": 0.4},
    "recurrent_dropout": {"recurrent_dropout": 0.3},
    "DreamerGRU": {},
}


def check_variant(device, name, option):
    """Outputs and gradients are the CPU's in float64."""
    cls = getattr(variants, "DreamerGRU" if option == "DreamerGRU" else name)
    layer, x = cls(6, 24, num_layers=2, bidirectional=True, **VARIANTS[option]), random(7, 9, 6)
    exact = copy.deepcopy(layer).double()
    layer.to(device)
    found = []
    for module, data in ((layer, x.float().to(device)), (exact, x)):
        torch.manual_seed(3)
        data.requires_grad_()
        output = module(data)[0]
        sources = [data, *module.parameters()]
        found.append([output, *torch.autograd.grad(output.square().sum(), sources)])
    # A layer normalisation divides by a deviation that may be small.
    close(*found, 1e-4)


def check_dreamer_cell(device):
    cell, x, h = variants.DreamerGRUCell(6, 24), random(9, 6), random(9, 24)
    exact = copy.deepcopy(cell).double()
    cell.to(device)
    found = []
    for module, to in ((cell, {"device": device, "dtype": torch.float32}), (exact, {})):
        output = module(x.to(**to), h.to(**to))
        gradients = torch.autograd.grad(output.square().sum(), list(module.parameters()))
        found.append([output, *gradients])
    close(*found, 1e-4)


def check_quantized(device, name, dtype):
    """What the CPU computes. Of int8, a rounded state may fall on either side of a tie."""
    layer, x = layer_and_data("cpu", name)
    quantized = fastrnn.quantize(layer, dtype, inplace=False)
    with torch.inference_mode():
        expected = quantized(x)
        actual = copy.deepcopy(quantized).to(device)(x.to(device))
    # One unit of one state changes a gate by a weight times 1/127.
    unit = max(magnitude(p.detach()) for p in layer.parameters()) / 127
    limit = 2 * unit if dtype is torch.int8 else 1e-5
    for a, e in zip(pytree.tree_leaves(actual), pytree.tree_leaves(expected), strict=True):
        assert a.device.type == device.type
        assert (a.cpu() - e).abs().max().item() <= limit * max(1.0, magnitude(e))


# -- The table -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A feature of a layer: `run(device)` raises where it fails."""

    feature: str
    layer: str
    run: Callable
    setting: str = ""
    places: tuple = ("cuda", "shim")
    regime: str | None = None  # None: the plan chooses

    def __str__(self):
        return "-".join(filter(None, (self.feature, self.layer, self.setting)))


LABELS = {"lstm": "LSTM", "lstm_proj": "LSTM proj_size", "gru": "GRU", "rnn_tanh": "RNN tanh",
          "rnn_relu": "RNN relu"}  # fmt: skip


def call_cells():
    """Each feature and kind in two settings, the second a stack; every setting meets each feature
    and each kind."""
    names = list(SETTINGS)
    for i, (title, feature) in enumerate(FEATURES.items()):
        for k, kind in enumerate(KINDS):
            for stacked in (False, True):
                setting = names[(2 * i + k + 4 * stacked) % len(names)]
                if kind == "rnn_relu" and feature.options.get("bias") is False:  # see `apart`
                    setting = ("fp32-single", "fp64-steps")[stacked]
                dtype, size, regime = SETTINGS[setting]
                if kind == "lstm_proj":  # which steps alone has
                    setting, regime = setting[:5] + "steps", "steps"
                # A thread of the shim is slow.
                for place, most in (("cuda", 1024), ("shim", 40)):
                    arguments = kind, feature, dtype, min(size, most), stacked

                    def run(device, arguments=arguments):
                        check_call(device, *arguments)

                    label = f"{setting}-H{arguments[3]}" + ("-stack" if stacked else "")
                    yield Cell(title, LABELS[kind], run, label, (place,), regime)


def each_layer(feature, check, places=("cuda", "shim"), setting="", **arguments):
    for name in LAYERS:

        def run(device, name=name):
            check(device, name, **arguments)

        yield Cell(feature, name, run, setting, places)


def other_cells():
    """What is not a call with options: cells, training, graphs, derivatives."""
    for i, (kind, label) in enumerate(LABELS.items()):
        if kind == "lstm_proj":
            continue
        label = label.replace("LSTM", "LSTMCell").replace("GRU", "GRUCell")
        label = label.replace("RNN", "RNNCell")
        for feature, options in (
            ("one step", {"hidden_size": (24, 200, 136)[i % 3]}),
            ("one step without hx", {"hx": False}),
            ("one step, unbatched", {"batched": False, "bias": False}),
        ):
            for setting in ("fp32", "bf16", "fp16", "fp64"):
                dtype = {s[:4]: d for s, (d, _, _) in SETTINGS.items()}[setting]
                if feature != "one step" and setting != ("fp32", "bf16", "fp16")[i % 3]:
                    continue

                def run(device, kind=kind, dtype=dtype, options=options):
                    check_cell(device, kind, dtype, **options)

                yield Cell(feature, label, run, setting)
    for feature, check in (
        ("frozen parameters", check_frozen),
        ("retain_graph", check_retain_graph),
        ("outputs changed before backward", check_outputs_changed),
        ("torch.utils.checkpoint", check_torch_checkpoint),
        ("any strides", check_strides),
        ("no_grad, inference_mode", check_no_gradients),
        ("a sequence in two calls", check_cut),
        ("empty batch, one step", check_no_rows),
        ("a layer called twice", check_called_twice),
        ("convert and restore", check_conversion),
        ("backward under autocast", check_backward_under_autocast),
        ("deepcopy, state_dict, files", check_copies),
        ("checkpoint_every under autocast", check_checkpoint_under_autocast),
        ("GradScaler", check_scaler),
    ):
        yield from each_layer(feature, check)
    for dtype, setting in ((torch.bfloat16, "bf16"), (torch.float16, "fp16")):
        for packed in (False, True):
            feature = "autocast, packed" if packed else "autocast"
            yield from each_layer(
                feature, check_autocast, setting=setting, dtype=dtype, packed=packed
            )
        for cell in each_layer("autocast", check_autocast_cell, setting=setting, dtype=dtype):
            yield Cell(cell.feature, cell.layer + "Cell", cell.run, setting)
    here = "cuda", "cpu"
    yield from each_layer("torch.compile", check_compiled, here, "aot_eager")
    yield from each_layer("torch.compile, packed", check_compiled, here, "aot_eager", packed=True)
    yield from each_layer("torch.compile, options", check_compiled_options, here, "aot_eager")
    yield from each_layer("torch.export", check_exported, here)
    yield from each_layer("CUDA graph of a training step", check_graph, ("cuda",))
    yield from each_layer("CUDA graph of a training step", check_graph, ("cuda",), "packed",
                          packed=True)  # fmt: skip
    yield from each_layer("CUDA graph of a training step", check_graph, ("cuda",), "stack-H200",
                          hidden_size=200, num_layers=2)  # fmt: skip
    yield from each_layer("make_graphed_callables", check_graphed_callables, ("cuda",))
    for title, compute in DERIVATIVES.items():
        # The shim's operators have no batching rules.
        places = here if compute is hessians else ("cuda", "shim")
        yield from each_layer(title, check_derivative, places, compute=compute)
    for option in VARIANTS:
        for cell in each_layer(f"variants: {option}", check_variant, option=option):
            if option == "DreamerGRU" and cell.layer != "GRU":
                continue
            if option == "recurrent_dropout" and cell.layer == "RNN":
                continue
            yield cell
    yield Cell("variants: DreamerGRU", "DreamerGRUCell", check_dreamer_cell)
    for dtype, setting in ((torch.int8, "int8"), (torch.bfloat16, "bf16")):
        yield from each_layer("quantize", check_quantized, here, setting, dtype=dtype)


CELLS = [*call_cells(), *other_cells()]


def parameters(cells):
    return [
        pytest.param(
            cell, place, id=f"{place}-{cell}", marks=[pytest.mark.cuda] * (place == "cuda")
        )
        for cell in cells
        for place in cell.places
    ]


@pytest.mark.parametrize(("cell", "place"), parameters(CELLS))
def test_call(cell, place, request, monkeypatch):
    device = request.getfixturevalue(f"on_{place}")
    if cell.regime is not None:
        monkeypatch.setenv("FASTRNN_CUDA_REGIME", cell.regime)
    if cell.regime == "cluster" and place == "cuda" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("clusters need a device of compute capability 9.0")
    cell.run(device)


DATA_PARALLEL = [
    Cell("DistributedDataParallel", name, check_data_parallel, "", ("cuda", "cpu"))
    for name in LAYERS
]


@pytest.mark.parametrize(("cell", "place"), parameters(DATA_PARALLEL))
def test_data_parallel(cell, place, request, tmp_path):
    cell.run(request.getfixturevalue(f"on_{place}"), cell.layer, tmp_path)


def table(file):
    """Lines of a feature, a layer and a place: yes, no or not tried, and how many tests say so."""
    keys = {
        f"[{place}-{cell}]": (cell.feature, cell.layer, place)
        for cell in (*CELLS, *DATA_PARALLEL)
        for place in cell.places
    }
    tried, passed = Counter(), Counter()
    for test in ElementTree.parse(file).iter("testcase"):
        name = test.get("name")
        key = keys.get(name[name.find("[") :])
        if key is not None and test.find("skipped") is None:
            tried[key] += 1
            passed[key] += test.find("failure") is None and test.find("error") is None
    for key in dict.fromkeys(keys.values()):
        word = "not tried" if not tried[key] else "yes" if passed[key] == tried[key] else "no"
        feature, layer, place = key
        yield f"{feature:32}  {layer:14}  {place:4}  {word:9}  {passed[key]} of {tried[key]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m tests.cuda.test_cuda_calls", description=table.__doc__
    )
    parser.add_argument("--table", required=True, metavar="FILE.xml", help="of pytest --junitxml")
    print(*table(parser.parse_args().table), sep="\n")
