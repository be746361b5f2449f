"""fastrnn.variants.PeepholeLSTM against the paper's equations, step by step."""

import copy

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from fastrnn import variants
from fastrnn._layer import ops
from fastrnn._layer.cells import CELLS
from tests.cases import PACKED
from tests.options import TOLERANCE
from tests.tolerances import error


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64).to(dtype)


def one_direction(x, h, c, w_ih, w_hh, b_ih, b_hh, w_ch, reverse):
    """`(output, h, c)` of one sequence `[T, I]`; biases may be None."""
    p_i, p_f, p_o = w_ch.chunk(3)
    outputs = [None] * len(x)
    for t in reversed(range(len(x))) if reverse else range(len(x)):
        a = w_ih @ x[t] + w_hh @ h
        a = a if b_ih is None else a + b_ih + b_hh
        i, f, g, o = a.chunk(4)
        i, f = torch.sigmoid(i + p_i * c), torch.sigmoid(f + p_f * c)
        c = f * c + i * torch.tanh(g)
        h = torch.sigmoid(o + p_o * c) * torch.tanh(c)
        outputs[t] = h
    return torch.stack(outputs), h, c


def by_equations(module, inputs, h0, c0):
    """Outputs of all sequences, one after the other, and final states."""
    finals = []
    for index in range(module.num_layers):
        parts = []
        for d, ending in enumerate(("", "_reverse")[: 1 + module.bidirectional]):
            names = "weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_ch"
            weights = [getattr(module, f"{name}_l{index}{ending}", None) for name in names]
            row = index * (1 + module.bidirectional) + d
            each = [
                one_direction(x, h0[row, b], c0[row, b], *weights, d == 1)
                for b, x in enumerate(inputs)
            ]
            parts.append([output for output, _, _ in each])
            finals.append([torch.stack(states) for states in zip(*((h, c) for _, h, c in each))])
        inputs = [torch.cat(each, -1) for each in zip(*parts)]
    return inputs, *(torch.stack(states) for states in zip(*finals))


def everything(run, module, inputs, states, losses):
    """Results and gradients of a loss that weighs all of them."""
    leaves = [t.detach().clone().requires_grad_() for t in (*inputs, *states)]
    results = run(leaves[: len(inputs)], *leaves[len(inputs) :])
    outputs = results[0]
    loss = sum((w * t).sum() for w, t in zip(losses, (*outputs, *results[1:]), strict=True))
    gradients = torch.autograd.grad(loss, [*leaves, *module.parameters()])
    return [t.detach() for t in (*outputs, *results[1:], *gradients)]


def check(module, inputs, states, run):
    """run: of inputs, h0 and c0 the outputs of all sequences and the final states."""
    features = (1 + module.bidirectional) * module.hidden_size
    losses = [random(len(x), features) for x in inputs]
    losses += [random(*s.shape) for s in states]
    dtype = module.weight_ih_l0.dtype
    found = everything(run, module, inputs, states, [w.to(dtype) for w in losses])
    wide = copy.deepcopy(module).double()
    exact = ([t.to(dtype).double() for t in tensors] for tensors in (inputs, states, losses))
    expected = everything(lambda *a: by_equations(wide, *a), wide, *exact)
    for ours, right in zip(found, expected, strict=True):
        assert error(ours, right, 1.0) <= TOLERANCE[dtype]  # a gradient's terms may cancel


def padded(module):
    def run(inputs, h0, c0):
        output, (h_n, c_n) = module(torch.stack(inputs, 1), (h0, c0))
        return output.unbind(1), h_n, c_n

    return run


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"num_layers": 2, "bidirectional": True}],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 3, 5), (4, 5, 6, 33), (3, 2, 40, 70), (9, 17, 3, 16)])
def test_equations(cpu_target, options, dtype, shape):
    T, B, F, H = shape
    module = variants.PeepholeLSTM(F, H, dtype=dtype, **options)
    rows = module.num_layers * (1 + module.bidirectional)
    states = [random(rows, B, H, dtype=dtype) for _ in range(2)]
    check(module, [random(T, F, dtype=dtype) for _ in range(B)], states, padded(module))


@pytest.mark.parametrize("lengths", [v for v in PACKED.values() if len(v) > 1], ids=str)
def test_packed(cpu_target, lengths):
    module = variants.PeepholeLSTM(6, 17, num_layers=2, bidirectional=True, dtype=torch.float64)

    def run(inputs, h0, c0):
        output, (h_n, c_n) = module(pack_sequence(inputs, enforce_sorted=False), (h0, c0))
        return torch.nn.utils.rnn.unpack_sequence(output), h_n, c_n

    inputs = [random(length, 6) for length in lengths]
    check(module, inputs, [random(4, len(lengths), 17) for _ in range(2)], run)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_cuda_kernels(engine, dtype):
    """The steps regime, the only one that the cell is compiled for, on the CPU shim."""
    module = variants.PeepholeLSTM(5, 33, bidirectional=True, num_layers=2, dtype=dtype)
    states = [random(4, 3, 33, dtype=dtype) for _ in range(2)]
    check(module, [random(4, 5, dtype=dtype) for _ in range(3)], states, padded(module))


@pytest.mark.parametrize("reset_to", ["zeros", "hx"])
def test_cuda_resets(engine, monkeypatch, reset_to):
    module = variants.PeepholeLSTM(5, 33, bidirectional=True, dtype=torch.float64)
    x, resets = random(6, 3, 5).requires_grad_(), torch.rand(6, 3) < 0.3
    hx = tuple(random(2, 3, 33).requires_grad_() for _ in range(2))
    found = []
    for dtypes in (ops.DTYPES, frozenset()):
        monkeypatch.setattr(ops, "DTYPES", dtypes)
        output, final = module(x, hx, resets=resets, reset_to=reset_to)
        loss = sum((t * t.detach().cos()).sum() for t in (output, *final))
        found.append([output, *torch.autograd.grad(loss, [x, *hx, *module.parameters()])])
    for ours, right in zip(*found, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-9)


def test_parameters():
    module = variants.PeepholeLSTM(3, 4, num_layers=2, bidirectional=True)
    names = [n for n, _ in module.named_parameters() if "weight_ch" in n]
    assert names == [f"weight_ch_l{i}{end}" for i in (0, 1) for end in ("", "_reverse")]
    assert module.weight_ch_l0.shape == (12,) and 0 < module.weight_ch_l0.abs().max() <= 0.5
    before = module.weight_ch_l0.clone()
    fastrnn.init_(module)
    assert torch.equal(module.weight_ch_l0, before)
    module.reset_parameters()
    assert not torch.equal(module.weight_ch_l0, before)
    cell = CELLS["lstm_peephole"]
    assert (cell.products, cell.columns, cell.states, cell.vectors) == (4, 4, 2, 3)
    with pytest.raises(ValueError, match="expected proj_size = 0 with peepholes, got 2"):
        variants.PeepholeLSTM(3, 4, proj_size=2)
    with pytest.raises(RuntimeError, match="without vectors of its own"):
        ops.quantized_forward(
            "lstm_peephole", torch.zeros(1, 1, 3), None, [None] * 2, [torch.zeros(1)], 4, 0, False
        )


@pytest.mark.parametrize("wanted", [["weight_ch_l0"], ["weight_hh_l0"], ["weight_ch_l0", "x"]])
def test_frozen_parameters(wanted):
    """Gradients of some alone are those of all, once and twice."""
    module, x = variants.PeepholeLSTM(3, 4, dtype=torch.float64), random(5, 2, 3)
    named = dict(module.named_parameters()) | {"x": x}
    found = []
    for asked in (wanted, [*named]):
        for name, tensor in named.items():
            tensor.requires_grad_(name in asked)
        leaves = [named[name] for name in wanted]
        first = torch.autograd.grad(module(x)[0].sin().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        found.append([*first, *second])
    for ours, right in zip(*found, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-10, atol=1e-12)
