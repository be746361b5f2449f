"""resets, lengths, every step's states: what may be asked for, ours and the reference's results."""

import torch

import fastrnn
from fastrnn import reference
from tests.tolerances import magnitude

SETTINGS = {
    "plain": {},
    "wide": {"seq_len": 9, "batch": 7, "input_size": 16, "hidden_size": 33},
    "stack": {"options": {"num_layers": 2, "bidirectional": True, "batch_first": True}},
    "no_bias": {"hx": False, "options": {"bias": False, "bidirectional": True}},
    "one_step": {"seq_len": 1, "options": {"bidirectional": True, "num_layers": 2}},
    "one_sequence": {"batch": 1, "seq_len": 12},
}
ASKED = {
    "resets": {"resets": 0.3},
    "resets_to_hx": {"resets": 0.3, "reset_to": "hx"},
    "lengths": {"lengths": True},
    "both": {"resets": 0.3, "lengths": True},
    "all": {"resets": 0.5, "lengths": True, "reset_to": "hx", "return_states": True},
    "states": {"return_states": True},
    "every_reset": {"resets": 1.0, "return_states": True},
    "no_reset": {"resets": 0.0},
    "no_row": {"lengths": 0},
    "no_row_all": {"lengths": 0, "resets": 0.5, "return_states": True},
    "no_row_to_hx": {"lengths": 0, "resets": 0.5, "reset_to": "hx"},
}
# Relative to the largest value of a tensor; sums over rows in 16 bits round their terms.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 3e-5, torch.bfloat16: 0.08, torch.float16: 0.01}


def options_of(case, asked, seed=0):
    """Tensors of the options. Lengths: True for random ones, of which the first is the largest that
    may be and others often 0; "any" for none that is certain; or a number for all of them."""
    generator = torch.Generator().manual_seed(seed)
    options = dict(asked)
    sizes = case.seq_len, case.batch
    if "resets" in asked:
        resets = torch.rand(sizes, generator=generator) < asked["resets"]
        options["resets"] = resets.t() if case.arguments.get("batch_first") else resets
    if "lengths" in asked:
        kind = asked["lengths"]
        lengths = torch.randint(0, case.seq_len + 1, (case.batch,), generator=generator)
        if kind is True:
            lengths[0] = case.seq_len
        elif kind != "any":
            lengths.fill_(kind)
        options["lengths"] = lengths
    return options


def results(run, params, data, pair, options, names):
    """Outputs and gradients by name, of a loss that weighs all of them."""
    leaves = [t.detach().clone().requires_grad_() for t in (*data.inputs, *(data.states or []))]
    input, *states = leaves
    hx = None if not states else tuple(states) if pair else states[0]
    output, final, *each = run(input, hx, params, **options)
    found = {"output": output} | dict(zip(("h_n", "c_n"), final if pair else (final,)))
    if each:
        hidden, cells, gates = each[0]
        found |= {"hidden": hidden} | ({} if cells is None else {"cells": cells})
    generator = torch.Generator().manual_seed(1)
    loss = 0
    for tensor in found.values():
        weight = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        loss = loss + (weight.to(tensor.dtype) * tensor).sum()
    sources = dict(zip(["d_input", "d_h0", "d_c0"], leaves)) | dict(zip(names, params))
    gradients = torch.autograd.grad(loss, list(sources.values()), materialize_grads=True)
    if each and gates is not None:
        found["gates"] = gates
    return {k: v.detach() for k, v in (found | dict(zip(sources, gradients))).items()}


def both(case, options, dtype=torch.float64, data=None):
    """`results` of ours and of the reference in float64."""
    module = case.modules(dtype)[1]
    data = case.data(dtype) if data is None else data
    named = dict(module.named_parameters())
    fixed = {"num_layers": module.num_layers, "has_biases": module.bias}
    fixed |= {"bidirectional": module.bidirectional, "batch_first": module.batch_first}
    if case.name == "RNN":
        fixed["nonlinearity"] = module.nonlinearity
    pair, name = case.name == "LSTM", case.name.lower()
    ours = results(getattr(fastrnn.functional, name), list(named.values()), data, pair,
                   fixed | options, list(named))  # fmt: skip
    exact = [p.detach().double().requires_grad_() for p in named.values()]
    theirs = results(getattr(reference, name), exact, data.to(torch.float64), pair,
                     fixed | options, list(named))  # fmt: skip
    return ours, theirs


def assert_close(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys()
    largest = max([magnitude(t) for n, t in theirs.items() if n[:2] == "d_"], default=0.0)
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape, name
        # What cancels keeps the rounding of its terms.
        scale = max(magnitude(expected), 1e-2 * largest if name[:2] == "d_" else 0.0) or 1.0
        error = (ours[name].double() - expected.double()).abs().max().item() / scale
        assert error <= tolerance, f"{name}: {error}"


def pieces(module, x, hx, resets, reset_to):
    """A layer on each piece of each row: what resets mean. x `[T, B, I]`."""
    outputs, finals = [], []
    pair = module.mode[:4] == "LSTM"
    forward = 0
    for b in range(x.shape[1]):
        ends = [*(t for t in range(1, len(x)) if resets[t, b]), len(x)]
        begins = [0, *ends[:-1]]
        states = hx if pair else (hx,)
        row, last = [], []
        for begin, end in zip(begins, ends):
            # Of each direction: hx where it starts or resets go there, else zeros.
            is_hx = [begin == 0 and not resets[0, b], end == len(x)]
            start = []
            for state in states:
                mine = state[:, b].clone()
                for d, has in enumerate(is_hx[: 1 + module.bidirectional]):
                    if not has and reset_to == "zeros":
                        mine[d :: 1 + module.bidirectional] *= 0
                start.append(mine)
            output, final = module(x[begin:end, b], tuple(start) if pair else start[0])
            row.append(output)
            last.append(final if pair else (final,))
        outputs.append(torch.cat(row))
        every = 1 + module.bidirectional
        ended = []
        for i in range(len(states)):
            parts = [last[-1][i][d::every] if d == forward else last[0][i][d::every]
                     for d in range(every)]  # fmt: skip
            ended.append(torch.stack(parts, 1).flatten(0, 1))
        finals.append(ended)
    finals = [torch.stack(s, 1) for s in zip(*finals)]
    return torch.stack(outputs, 1), tuple(finals) if pair else finals[0]
