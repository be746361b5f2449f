"""torch.jit: what is traced is torch's own implementation or the equations, and runs without us."""

import io
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from fastrnn import variants
from tests.cases import CELLS, LAYERS

SETTINGS = [
    *((name, {}) for name in LAYERS + CELLS),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    ("LSTM", {"proj_size": 2, "bias": False}),
    ("RNN", {"nonlinearity": "relu"}),
]
VARIANTS = [
    (variants.LSTM, {"layer_norm": True, "zoneout": 0.2}),
    (variants.GRU, {"bidirectional": True}),
    (variants.CoupledLSTM, {}),
    (variants.PeepholeLSTM, {"num_layers": 2}),
    (variants.DreamerGRU, {}),
]


def leaves(value):
    return [t for t in torch.utils._pytree.tree_leaves(value) if torch.is_tensor(t)]


def saved_and_loaded(traced):
    file = io.BytesIO()
    torch.jit.save(traced, file)
    return torch.jit.load(io.BytesIO(file.getvalue()))


def input_of(name, *sizes):
    return torch.randn(*sizes[: 1 if name in CELLS else 2], 3)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("name", "options"), SETTINGS, ids=str)
@pytest.mark.parametrize("grad", [True, False])
def test_traced(name, options, grad):
    """Of other sizes than it was traced with, and trained."""
    module = getattr(fastrnn, name)(3, 4, **options)
    with torch.set_grad_enabled(grad):
        traced = saved_and_loaded(torch.jit.trace(module, input_of(name, 5, 2)))
    x = input_of(name, 7, 3)
    for ours, right in zip(leaves(traced(x)), leaves(module(x)), strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-6)
    found = [
        torch.autograd.grad(sum(t.square().sum() for t in leaves(run(x))), run.parameters())
        for run in (traced, module)
    ]
    for ours, right in zip(*found, strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("cls", "options"), VARIANTS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_traced_variants(cls, options):
    """Their steps are unrolled: other batches, but no other lengths."""
    module = cls(3, 4, **options).eval()
    traced = saved_and_loaded(torch.jit.trace(module, torch.randn(5, 2, 3)))
    x = torch.randn(5, 2, 3)
    for ours, right in zip(leaves(traced(x)), leaves(module(x)), strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced_model_with_states():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = fastrnn.LSTM(3, 4, 2)
            self.head = nn.Linear(4, 2)

        def forward(self, x, h, c):
            output, (h, c) = self.lstm(x, (h, c))
            return self.head(output), h, c

    model = Model()
    inputs = torch.randn(5, 2, 3), torch.randn(2, 2, 4), torch.randn(2, 2, 4)
    traced = torch.jit.trace(model, inputs)
    inputs = torch.randn(6, 3, 3), torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    for ours, right in zip(traced(*inputs), model(*inputs), strict=True):
        torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_traced_packed_data():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = fastrnn.GRU(3, 4)

        def forward(self, data, batch_sizes):
            return self.gru(nn.utils.rnn.PackedSequence(data, batch_sizes))[0].data

    packed = pack_sequence([torch.randn(3, 3), torch.randn(1, 3)])
    model, arguments = Model(), (packed.data, packed.batch_sizes)
    torch.testing.assert_close(torch.jit.trace(model, arguments)(*arguments), model(*arguments))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_traced_model_needs_no_fastrnn(tmp_path):
    module, x = fastrnn.LSTM(3, 4), torch.ones(5, 2, 3)
    torch.jit.save(torch.jit.trace(module, x), tmp_path / "model.pt")
    script = f"""
        import sys, torch
        output, _ = torch.jit.load({str(tmp_path / "model.pt")!r})(torch.ones(5, 2, 3))
        assert "fastrnn" not in sys.modules
        torch.save(output, {str(tmp_path / "output.pt")!r})
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, cwd=tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "output.pt"), module(x)[0])


@pytest.mark.parametrize("name", LAYERS + CELLS)
def test_script_says_what_to_do(name):
    model = nn.Sequential(getattr(fastrnn, name)(3, 4))
    with pytest.raises(RuntimeError, match=r"fastrnn: .*fastrnn.restore\(model\)"):
        torch.jit.script(model)
    assert type(model[0]) is getattr(fastrnn, name)
    fastrnn.restore(model)
    x, scripted = input_of(name, 5, 2), torch.jit.script(model)
    for ours, right in zip(leaves(scripted(x)), leaves(model(x)), strict=True):
        torch.testing.assert_close(ours, right)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_quantized_layers_say_so():
    module = fastrnn.quantize(fastrnn.LSTM(3, 4), inplace=False)
    with pytest.raises(RuntimeError, match="torch.jit.trace cannot record an operator of fastrnn"):
        torch.jit.trace(module, torch.randn(5, 2, 3))
