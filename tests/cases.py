"""A layer, its options and its data: torch.nn's module, ours and the reference, compared."""

import itertools
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastrnn
from fastrnn import reference
from tests.tolerances import assert_accurate

LAYERS = ("LSTM", "GRU", "RNN")
CELLS = ("LSTMCell", "GRUCell", "RNNCell")
# Every kind of recurrence there is, as (class name, options).
KINDS = {
    "lstm": ("LSTM", {}),
    "lstm_proj": ("LSTM", {"proj_size": True}),
    "gru": ("GRU", {}),
    "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
}
NO_PROJ = tuple(kind for kind in KINDS if "proj" not in kind)
# The one table of them.
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def gates_of(kind):
    """Number of gates of a kind, by a name in KINDS or an operator's, "rnn"."""
    return GATES[kind.partition("_")[0].upper()]


# Sizes straddle vectors and tiles; each hidden size meets several batches and lengths.
BATCHES, LENGTHS, INPUTS = (1, 2, 5, 6, 7, 13, 33), (1, 2, 9), (1, 3, 16, 40)
SHAPES = [
    (LENGTHS[(i + j) % 3], BATCHES[(3 * i + j) % 7], INPUTS[(i + j) % 4], hidden_size)
    for i, hidden_size in enumerate((1, 7, 15, 16, 17, 33, 64, 100))
    for j in (0, 1, 3)
]
OPTIONS = [
    {"num_layers": layers, "bidirectional": bidirectional, "bias": bias, "batch_first": first}
    for layers, bidirectional, bias, first in itertools.product(
        (1, 2), (False, True), (True, False), (False, True)
    )
]
PACKED = {
    "sorted": (5, 5, 3, 1),
    "unsorted": (2, 6, 1, 6, 3),
    "equal": (3, 3, 3),
    "single": (4,),
    "wide": tuple(1 + (7 * i) % 9 for i in range(33)),
}


@dataclass(frozen=True)
class Case:
    """One setting. A proj_size of True stands for about half of hidden_size."""

    kind: str
    seq_len: int = 4
    batch: int = 5
    input_size: int = 6
    hidden_size: int = 17
    options: dict = field(default_factory=dict)
    hx: bool = True
    lengths: tuple = ()  # of packed data, in any order

    @property
    def name(self):
        return KINDS[self.kind][0]

    @property
    def arguments(self):
        arguments = {**KINDS[self.kind][1], **self.options}
        if arguments.get("proj_size") is True:
            arguments["proj_size"] = max(1, self.hidden_size // 2)
        return arguments

    @property
    def possible(self):
        return self.arguments.get("proj_size", 0) < self.hidden_size

    def with_(self, **changes):
        return replace(self, **changes)

    def modules(self, dtype=torch.float32, device="cpu"):
        """`(theirs, ours)` with the same weights, drawn on the CPU whatever the device."""
        sizes = self.input_size, self.hidden_size
        theirs = getattr(nn, self.name)(*sizes, dtype=dtype, **self.arguments)
        ours = getattr(fastrnn, self.name)(*sizes, dtype=dtype, **self.arguments)
        ours.load_state_dict(theirs.state_dict())
        return theirs.to(device), ours.to(device)

    def data(self, dtype=torch.float32, scale=1.0):
        """Input, states and the weights of the loss, random and representable in dtype."""
        arguments = self.arguments
        directions = 2 if arguments.get("bidirectional") else 1
        batch = len(self.lengths) or self.batch
        features = arguments.get("proj_size") or self.hidden_size
        indices = arguments.get("num_layers", 1) * directions
        state_sizes = [features, self.hidden_size] if self.name == "LSTM" else [features]

        def random(*shape):
            return (scale * torch.randn(*shape, dtype=torch.float64)).to(dtype)

        if self.lengths:
            inputs = [random(length, self.input_size) for length in self.lengths]
            output = (sum(self.lengths), directions * features)
        elif arguments.get("batch_first"):
            inputs = [random(batch, self.seq_len, self.input_size)]
            output = (batch, self.seq_len, directions * features)
        else:
            inputs = [random(self.seq_len, batch, self.input_size)]
            output = (self.seq_len, batch, directions * features)
        states = [random(indices, batch, size) for size in state_sizes]
        losses = [random(*output), *(random(indices, batch, size) for size in state_sizes)]
        return Data(inputs, states if self.hx else None, losses, bool(self.lengths))


@dataclass
class Data:
    """Tensors of one call. `losses` weight the outputs in the sum that is differentiated."""

    inputs: list
    states: list | None
    losses: list
    packed: bool

    def to(self, place):
        """All tensors in another dtype or on another device."""

        def cast(tensors):
            return None if tensors is None else [t.to(place) for t in tensors]

        return Data(cast(self.inputs), cast(self.states), cast(self.losses), self.packed)


def results(call, parameters, data, pair):
    """Outputs and every gradient by name, of `call(input, hx)`; pair: hx is `(h, c)`."""
    inputs = [t.detach().clone().requires_grad_() for t in data.inputs]
    states = [t.detach().clone().requires_grad_() for t in data.states or []]
    input = pack_sequence(inputs, enforce_sorted=False) if data.packed else inputs[0]
    hx = None if data.states is None else tuple(states) if pair else states[0]
    output, final = call(input, hx)
    output = output.data if isinstance(output, PackedSequence) else output
    named = dict(zip(("output", "h_n", "c_n"), (output, *(final if pair else (final,)))))
    loss = sum((w * t).sum() for w, t in zip(data.losses, named.values(), strict=True))
    sources = {f"d_input{i}": t for i, t in enumerate(inputs)}
    sources |= {f"d_{name}0": t for name, t in zip("hc", states)}
    sources |= {f"d_{name}": p for name, p in parameters.items()}
    gradients = torch.autograd.grad(loss, list(sources.values()))
    return {k: v.detach().cpu() for k, v in (named | dict(zip(sources, gradients))).items()}


def module_results(module, data):
    """`results` of a layer of torch.nn or ours."""
    return results(module, dict(module.named_parameters()), data, module.mode == "LSTM")


def reference_results(module, data):
    """`results` of the reference in float64, with the weights of a layer."""
    parameters = {
        name: p.detach().cpu().double().requires_grad_() for name, p in module.named_parameters()
    }
    options = {"num_layers": module.num_layers, "has_biases": module.bias}
    options["bidirectional"] = module.bidirectional
    options["batch_first"] = module.batch_first
    if module.mode.startswith("RNN"):
        options["nonlinearity"] = module.nonlinearity
    run = getattr(reference, module.mode.partition("_")[0].lower())

    def call(input, hx):
        if not isinstance(input, PackedSequence):
            return run(input, hx, list(parameters.values()), **options)
        rows, batch_sizes, order, back = input
        pair = isinstance(hx, tuple)
        if hx is not None:
            hx = tuple(s[:, order] for s in hx) if pair else hx[:, order]
        output, hx = run(rows, hx, list(parameters.values()), batch_sizes=batch_sizes, **options)
        return output, tuple(s[:, back] for s in hx) if module.mode == "LSTM" else hx[:, back]

    return results(call, parameters, data.to(torch.float64), module.mode == "LSTM")


def check(case, dtype=torch.float32, tf32=False, device="cpu"):
    """Outputs and every gradient of a case against torch.nn and the float64 reference."""
    theirs, ours = case.modules(dtype, device)
    data = case.data(dtype)
    there = data.to(device)
    steps = max(case.lengths) if case.lengths else case.seq_len
    layers = case.arguments.get("num_layers", 1)
    assert_accurate(
        module_results(ours, there),
        module_results(theirs, there),
        reference_results(theirs, data),
        dtype,
        steps * layers,
        data.losses,
        tf32=tf32,
    )
