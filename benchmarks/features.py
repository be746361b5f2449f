"""`python -m benchmarks.features`: tries every feature of every kind of layer.

It writes docs/features.md. A cell says yes where the layer did it and its numbers were right in
float64 (quantized layers: float32), in eval against a definition and, where a layer draws masks, in
training too, where they are checked to be finite, as all gradients are. Else it names the error.
Nothing in the table is written by hand.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import fastrnn
from fastrnn import reference, variants
from fastrnn.__main__ import cpu_model
from fastrnn._layer import ops

from .lib.report import REPOSITORY
from .lib.trials import attempt, publish

DOCUMENT = REPOSITORY / "docs" / "features.md"
STEPS, BATCH, INPUT_SIZE, HIDDEN_SIZE = 5, 3, 3, 4
LENGTHS = torch.tensor([3, 5, 1])


class Kind(NamedTuple):
    """A kind of layer: how it is made, and whether it draws masks in training."""

    make: Callable[..., nn.Module]
    masks: bool = False
    dtype: torch.dtype | None = torch.float64  # None: quantized to what make does


def kind_of(cls: type, masks: bool = False, **options: Any) -> Kind:
    return Kind(lambda **more: cls(INPUT_SIZE, HIDDEN_SIZE, **options, **more), masks)


def quantized(dtype: torch.dtype) -> Kind:
    def make(**more):
        return fastrnn.quantize(fastrnn.LSTM(INPUT_SIZE, HIDDEN_SIZE, **more), dtype, inplace=False)

    return Kind(make, dtype=None)


EVERY_OPTION = {"layer_norm": True, "zoneout": 0.2, "recurrent_dropout": 0.2,
                "variational_dropout": 0.1, "weight_drop": 0.2}  # fmt: skip

#: The rows of the table.
KINDS = {
    "LSTM": kind_of(fastrnn.LSTM),
    "GRU": kind_of(fastrnn.GRU),
    "RNN": kind_of(fastrnn.RNN),
    "LSTM, proj_size": kind_of(fastrnn.LSTM, proj_size=2),
    "LSTM, layer_norm": kind_of(variants.LSTM, layer_norm=True),
    "GRU, layer_norm": kind_of(variants.GRU, layer_norm=True),
    "LSTM, zoneout": kind_of(variants.LSTM, True, zoneout=(0.3, 0.1)),
    "GRU, recurrent_dropout": kind_of(variants.GRU, True, recurrent_dropout=0.3),
    "RNN, variational_dropout": kind_of(variants.RNN, True, variational_dropout=0.3),
    "LSTM, weight_drop": kind_of(variants.LSTM, True, weight_drop=0.3),
    "DreamerGRU": kind_of(variants.DreamerGRU),
    "CoupledLSTM": kind_of(variants.CoupledLSTM),
    "CoupledLSTM, all options": kind_of(variants.CoupledLSTM, True, **EVERY_OPTION),
    "PeepholeLSTM": kind_of(variants.PeepholeLSTM),
    "PeepholeLSTM, all options": kind_of(variants.PeepholeLSTM, True, **EVERY_OPTION),
    "LSTM, quantized to int8": quantized(torch.int8),
    "LSTM, quantized to bfloat16": quantized(torch.bfloat16),
}


class Trial:
    """One kind of layer, in eval or in training, with data and a way to compare."""

    def __init__(self, kind: Kind, training: bool):
        self.kind, self.training = kind, training
        self.dtype = kind.dtype or torch.float32
        generator = torch.Generator().manual_seed(1)
        size = STEPS, BATCH, INPUT_SIZE
        self.x = torch.randn(size, generator=generator, dtype=torch.float64).to(self.dtype)
        self.resets = torch.rand(STEPS, BATCH, generator=generator) < 0.4

    def layer(self, **options: Any) -> nn.Module:
        """The same weights for the same options."""
        torch.manual_seed(0)
        module = self.kind.make(**options)
        if self.kind.dtype is None:
            return module
        module = module.to(self.dtype).train(self.training)
        with torch.no_grad():
            for parameter in module.parameters():  # gains away from 1, biases from 0
                parameter.add_(0.1 * torch.randn_like(parameter))
        return module

    def states(self, module: nn.Module) -> Any:
        count = module.num_layers * (1 + module.bidirectional)
        h = torch.linspace(-1, 1, count * BATCH * (module.proj_size or HIDDEN_SIZE))
        h = h.view(count, BATCH, -1).to(self.dtype)
        c = torch.linspace(1, -1, count * BATCH * HIDDEN_SIZE).view(count, BATCH, -1)
        return (h, c.to(self.dtype)) if module.mode.startswith("LSTM") else h

    def call(self, module: nn.Module, *arguments: Any, **options: Any) -> Any:
        """Masks are the same at each call."""
        torch.manual_seed(2)
        return module(*arguments, **options)

    def same(self, actual: Any, expected: Any, tolerance: float = 1e-9) -> None:
        """Raises where a tensor is off; of what depends on masks, where one is not finite."""
        tolerance = tolerance if self.dtype is torch.float64 else max(tolerance, 1e-5)
        for a, e in zip(leaves(actual), leaves(expected), strict=True):
            if a.shape != e.shape:
                raise AssertionError(f"shape {tuple(a.shape)} instead of {tuple(e.shape)}")
            off = (a.detach() - e.detach()).abs() if not self.training else a.detach() * 0
            if not off.max() <= tolerance:
                raise AssertionError("wrong numbers")


def leaves(value: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(value) if torch.is_tensor(t)]


def row(states: Any, index: int) -> Any:
    """The states of one sequence."""
    return tuple(s[:, index] for s in states) if isinstance(states, tuple) else states[:, index]


def scaled(states: Any, factor: float) -> Any:
    return tuple(s * factor for s in states) if isinstance(states, tuple) else states * factor


def trains(trial: Trial, module: nn.Module, output: Tensor) -> list[Tensor]:
    """Gradients of the parameters, which must be finite; those of quantized layers are none."""
    if trial.kind.dtype is None:
        return []
    found = torch.autograd.grad(output.square().sum(), list(module.parameters()))
    if not all(gradient.isfinite().all() for gradient in found):
        raise AssertionError("gradients that are not finite")
    return list(found)


#: The columns: title -> probe of a Trial, which raises where the layer does not do it.
FEATURES: dict[str, Callable[[Trial], None]] = {}


def feature(title: str) -> Callable:
    def add(function):
        FEATURES[title] = function
        return function

    return add


@feature("padded")
def padded(trial):
    """Against the equations: of a variant those that run where there are no kernels."""
    module, x = trial.layer(), trial.x
    states = trial.states(module)
    output = trial.call(module, x, states)[0]
    trains(trial, module, output)
    if trial.kind.dtype is None:
        alone = [module(x[:, b], row(states, b))[0] for b in range(BATCH)]
        expected = torch.stack(alone, 1)
    elif hasattr(module, "zoneout"):
        with mock.patch.object(ops, "DTYPES", frozenset()):
            expected = trial.call(module, x, states)[0]
    else:
        run = getattr(reference, module.mode.partition("_")[0].lower())
        expected = run(x, states, list(module.parameters()))[0]
    trial.same(output, expected)


def of_each(trial, module, states):
    """Output and final states of each sequence up to its length, alone."""
    outputs = trial.x.new_zeros(STEPS, BATCH, (module.proj_size or HIDDEN_SIZE))
    finals = []
    for b, n in enumerate(LENGTHS.tolist()):
        output, final = trial.call(module, trial.x[:n, b], row(states, b))
        outputs[:n, b] = output.detach()
        finals.append(leaves(final))
    return [outputs, *(torch.stack(s, 1) for s in zip(*finals))]


@feature("packed")
def packed(trial):
    module = trial.layer()
    states = trial.states(module)
    rows = [trial.x[:n, b] for b, n in enumerate(LENGTHS.tolist())]
    output, final = trial.call(module, pack_sequence(rows, enforce_sorted=False), states)
    output = pad_packed_sequence(output)[0]
    trains(trial, module, output)
    trial.same([output, final], of_each(trial, module, states))


@feature("lengths")
def lengths(trial):
    module = trial.layer()
    states = trial.states(module)
    x = trial.x.clone()
    x[torch.arange(STEPS)[:, None] >= LENGTHS] = torch.nan  # is not read
    output, final = trial.call(module, x, states, lengths=LENGTHS)
    trains(trial, module, output)
    trial.same([output, final], of_each(trial, module, states))


@feature("cu_seqlens")
def ragged(trial):
    module = trial.layer()
    states = trial.states(module)
    rows = torch.cat([trial.x[:n, b] for b, n in enumerate(LENGTHS)])
    borders = [0, *LENGTHS.cumsum(0)]
    output, final = trial.call(module, rows, states, cu_seqlens=borders)
    trains(trial, module, output)
    expected, *last = of_each(trial, module, states)
    expected = torch.cat([expected[:n, b] for b, n in enumerate(LENGTHS)])
    trial.same([output, final], [expected, last])


def pieces(trial, module, states, to_hx):
    """The output of each piece of each sequence between two resets."""
    outputs = []
    for b in range(BATCH):
        begins = sorted({0, *(t for t in range(STEPS) if trial.resets[t, b])})
        parts = []
        for begin, end in zip(begins, [*begins[1:], STEPS]):
            keeps = to_hx or not (begin or trial.resets[0, b])
            start = scaled(row(states, b), 1.0 if keeps else 0.0)
            parts.append(trial.call(module, trial.x[begin:end, b], start)[0])
        outputs.append(torch.cat(parts))
    return torch.stack(outputs, 1)


@feature("resets")
def resets(trial, reset_to="zeros"):
    module = trial.layer()
    states = trial.states(module)
    output = trial.call(module, trial.x, states, resets=trial.resets, reset_to=reset_to)[0]
    trains(trial, module, output)
    trial.same(output, pieces(trial, module, states, reset_to == "hx"))


@feature("reset_to")
def resets_to_hx(trial):
    resets(trial, "hx")


@feature("return_states")
def return_states(trial):
    """Every step's states are the final ones of the sequence up to there."""
    module = trial.layer()
    states = trial.states(module)
    output, _, each = trial.call(module, trial.x, states, return_states=True)
    trains(trial, module, each.hidden if each.cells is None else each.hidden + each.cells.sum())
    trial.same(each.hidden[0], output)
    for t in range(STEPS):
        final = leaves(trial.call(module, trial.x[: t + 1], states)[1])
        trial.same([e[:, t] for e in each[: len(final)]], final)


@feature("checkpoint_every")
def checkpoint_every(trial):
    found = []
    for options in ({"checkpoint_every": 2}, {}):
        module = trial.layer(**options)
        x = trial.x.clone().requires_grad_()
        output = trial.call(module, x, trial.states(module))[0]
        output.sum().backward(retain_graph=True)  # says why where there is no backward
        found.append([output, x.grad, *trains(trial, module, output)])
        if module.checkpoint_every != options.get("checkpoint_every"):
            raise AssertionError("it was lost")
    trial.same(*found)


@feature("bidirectional")
def bidirectional(trial):
    """The second direction is a layer on the reversed sequence."""
    module = trial.layer(bidirectional=True)
    output = trial.call(module, trial.x)[0]
    trains(trial, module, output)
    one, size = trial.layer(), output.shape[-1] // 2
    for suffix, part, turn in (
        ("", output[..., :size], False),
        ("_reverse", output[..., size:], True),
    ):
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        own = dict(one.named_parameters()) | dict(one.named_buffers())
        with torch.no_grad():
            for name, tensor in own.items():
                stem, _, rest = name.partition("_l0")
                tensor.copy_(tensors[f"{stem}_l0{suffix}{rest}"])
        x = trial.x.flip(0) if turn else trial.x
        expected = trial.call(one, x)[0]
        trial.same(part, expected.flip(0) if turn else expected)


@feature("layers")
def layers(trial):
    """Two layers run both directions, dropout between them, and each other's outputs."""
    module = trial.layer(num_layers=2)
    output, final = trial.call(module, trial.x)
    trains(trial, module, output)
    h_n = leaves(final)[0]
    trial.same(h_n[1], output[-1])
    first = trial.layer()
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    with torch.no_grad():
        for name, tensor in [*first.named_parameters(), *first.named_buffers()]:
            tensor.copy_(tensors[name])
    trial.same(h_n[0], trial.call(first, trial.x)[0][-1])


def call_of(trial, module):
    """`(f(x, *parameters), arguments)`."""
    names = [name for name, _ in module.named_parameters()]

    def run(x, *parameters):
        weights = dict(zip(names, parameters, strict=True))
        torch.manual_seed(2)
        return functional_call(module, weights, (x, trial.states(module)))[0]

    arguments = [trial.x, *(p.detach() for p in module.parameters())]
    return run, [a.clone().requires_grad_() for a in arguments]


@feature("double backward")
def double_backward(trial):
    run, arguments = call_of(trial, trial.layer())
    run(*arguments).sum().backward()  # says why where there is no backward
    torch.autograd.gradgradcheck(run, arguments, fast_mode=True)


@feature("forward mode")
def forward_mode(trial):
    run, arguments = call_of(trial, trial.layer())
    arguments = [a.detach() for a in arguments]
    tangents = [torch.cos(a) for a in arguments]
    _, found = jvp(run, tuple(arguments), tuple(tangents))
    step = 1e-6
    high, low = (run(*(a + s * t for a, t in zip(arguments, tangents))) for s in (step, -step))
    trial.same(found, (high - low) / (2 * step), 1e-6)


@feature("vmap")
def mapped(trial):
    module = trial.layer()
    xs = torch.stack([trial.x, -trial.x, 2 * trial.x])
    torch.manual_seed(2)
    found = vmap(lambda x: module(x)[0], randomness="same")(xs)
    trial.same(found, torch.stack([trial.call(module, x)[0] for x in xs]))


@feature("per-sample gradients")
def per_sample(trial):
    module = trial.layer()
    weights = {name: p.detach() for name, p in module.named_parameters()}

    def loss(weights, x):
        return functional_call(module, weights, (x,))[0].square().sum()

    gradient = grad(loss, argnums=(0, 1))  # of the input too: some layers have no parameters
    torch.manual_seed(2)
    found = vmap(gradient, (None, 1), randomness="same")(weights, trial.x)
    trains(trial, module, trial.call(module, trial.x)[0])
    for b in range(BATCH):
        torch.manual_seed(2)
        trial.same([t[b] for t in leaves(found)], gradient(weights, trial.x[:, b]))


@feature("torch.compile")
def compiled(trial):
    module = trial.layer()
    torch._dynamo.reset()
    fast = torch.compile(module, fullgraph=True, backend="aot_eager")
    found = []
    for run in (fast, module):
        output = trial.call(run, trial.x)[0]
        found.append([output, *trains(trial, module, output)])
    trial.same(*found)


@feature("torch.export")
def exported(trial):
    module = trial.layer()
    program = torch.export.export(module, (trial.x,))
    trial.same(trial.call(program.module(), trial.x)[0], trial.call(module, trial.x)[0])


@feature("autocast")
def autocast(trial):
    module = copy.deepcopy(trial.layer()).float()
    x = trial.x.float()
    with torch.autocast("cpu", torch.bfloat16):
        output = trial.call(module, x.bfloat16())[0]
    trains(trial, module, output.float())
    trial.same(output.float(), trial.call(module, x)[0].float(), 0.05)


@feature("CUDA")
def on_cuda(trial):
    if not torch.cuda.is_available():
        raise ImportError("no device")
    module = trial.layer().float()
    expected = trial.call(module, trial.x.float())[0]
    output = trial.call(module.cuda(), trial.x.float().cuda())[0]
    trains(trial, module, output)
    trial.same(output.cpu(), expected, 1e-4)


def tried(kind: Kind, probe: Callable[[Trial], None]) -> str:
    """`yes`, `not tried: ...`, or `no: ` and what the error began with."""
    for training in (False, True) if kind.masks else (False,):
        result = attempt(probe, Trial(kind, training))
        if result != "yes":
            return result
    return "yes"


def document(cells: dict[str, dict[str, str]]) -> str:
    """The Markdown file: what is no yes is a number, with its text below."""
    notes: list[str] = []
    lines = ["| | " + " | ".join(FEATURES) + " |", "|---" * (1 + len(FEATURES)) + "|"]
    for name, results in cells.items():
        marks = []
        for result in results.values():
            if result != "yes" and result not in notes:
                notes.append(result)
            marks.append("yes" if result == "yes" else f"{notes.index(result) + 1}")
        lines.append(f"| {name} | " + " | ".join(marks) + " |")
    head = [
        "# Every feature of every kind of layer",
        "",
        "Each cell was tried by `python -m benchmarks.features`, which wrote this file: in float64",
        "(quantized layers in float32) on the CPU, against the equations, each sequence alone, or",
        "the layer used plainly. Layers that draw masks were tried in training too. A number is a",
        f"note below. torch {torch.__version__}, fastrnn {fastrnn.__version__}, {cpu_model()}.",
        "",
    ]
    return "\n".join([*head, *lines, "", *(f"{i}. {n}" for i, n in enumerate(notes, 1))]) + "\n"


def table() -> dict[str, dict[str, str]]:
    """Every cell, by row and column."""
    cells: dict[str, dict[str, str]] = {}
    for name, kind in KINDS.items():
        cells[name] = {}
        for title, probe in FEATURES.items():
            cells[name][title] = tried(kind, probe)
            print(f"{name}: {title}: {cells[name][title]}", flush=True)
    return cells


if __name__ == "__main__":
    publish("benchmarks.features", __doc__, DOCUMENT, lambda: document(table()))
