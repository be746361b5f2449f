"""Every operator of the namespace: opcheck, fake kernels, and the contract of docs/design.md."""

import re
from pathlib import Path

import pytest
import torch
from torch.library import opcheck

import fastrnn  # noqa: F401  (loads the operators)
from tests.cases import gates_of
from tests.test_extended import arguments as extended_arguments
from tests.test_extended import of_operator

ROOT = Path(__file__).parent.parent


def operators():
    names = torch._C._dispatch_get_all_op_names()
    return sorted({n.partition("::")[2].partition(".")[0] for n in names if n[:9] == "fastrnn::"})


def first_order():
    """Those that the CUDA engine implements too."""
    cpu_only = {"layer_tangent", "layer_backward", "layer_backward_tangent", "quantized_forward",
                "extended_forward", "extended_backward", "drop_weights", "segments",
                "gather_rows", "sample_gradients", "layer_vjp"}  # fmt: skip
    return [name for name in operators() if name not in cpu_only]


def sample(name, packed, bidirectional, proj=False):
    """Arguments of an operator; those of a backward are what its forward returned."""
    if name == "quantized_forward":
        return quantized_sample(packed, bidirectional, proj)
    if name.startswith("extended_"):
        return extended_sample(name, packed, bidirectional, "lstm" if proj else "gru")
    cell, _, direction = name.partition("_")
    if cell not in ("lstm", "gru", "rnn"):
        cell = "lstm" if proj else "gru"
    gates = gates_of(cell)
    d, batch, features, hidden = 2 if bidirectional else 1, 3, 2, 5
    h_size = 4 if proj else hidden
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sizes = [(gates * hidden, features), (gates * hidden, h_size)]
    sizes += [(gates * hidden,), (gates * hidden,)] + ([(h_size, hidden)] if proj else [])
    params = [random(*s) for _ in range(d) for s in sizes]
    batch_sizes = torch.tensor([3, 3, 1]) if packed else None
    rows = (7,) if packed else (4, batch)
    count = 7 if packed else 4 * batch
    states = [random(d, batch, h_size)] + ([random(d, batch, hidden)] if cell == "lstm" else [])
    flags = [True, bidirectional]
    extra = ["tanh"] if cell == "rnn" else []
    if name == "layer_gradients":
        d_gates, h = random(d, count, 4 * hidden), random(d, count, h_size)
        w_ih = params[:: len(sizes)]
        wanted = [True, True, not packed, True] * d
        input = random(count, features)
        return cell, d_gates, batch_sizes, batch, input, h, states[0], w_ih, wanted
    if name == "sample_gradients":
        d_gates, h = random(d, 2 * count, 4 * hidden), random(d, 2 * count, h_size)
        h0, input = random(d, 2 * batch, h_size), random(2 * count, features)
        wanted = [True, True, not packed, True] * d
        return cell, d_gates, 2, batch_sizes, batch, input, h, h0, wanted
    if name == "segments":
        resets = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 0], [1, 0, 1]]).bool()
        return resets, torch.tensor([4, 2, 0]) if packed else None, 4, 3, d, False
    if name == "drop_weights":
        return random(gates * hidden, h_size), torch.tensor([3]), 2, 0.25
    if name == "gather_rows":
        inputs = [random(2 * d, 5, features), random(d, 5, hidden)]
        index = torch.tensor([[3, -1, 0, 2], [2, 4, 1, -1]])[:d]
        return [*inputs, random(5, hidden)], [index, index.view(d, 2, 2) + 0, index[:1] + 0]
    if name.startswith("layer_"):
        return second_order_sample(name, cell, random, (d, count, batch, hidden, h_size), rows,
                                   batch_sizes, states, params, len(sizes))  # fmt: skip
    forward = (random(*rows, features), batch_sizes, *states, params, *flags, *extra, True)
    if direction == "forward":
        return forward
    outputs = getattr(torch.ops.fastrnn, f"{cell}_forward")(*forward)
    gradients = [random(*rows, d * h_size), *(random(*s.shape) for s in states)]
    if cell == "lstm":
        gradients.append(random(d, count, hidden))
    if cell == "lstm":
        saved = (states[1], outputs[3], outputs[5])
    elif cell == "gru":
        saved = (states[0], outputs[2], outputs[3])
    else:
        saved = (outputs[2],)
    return (*gradients, batch_sizes, *saved, params, *flags, *extra)


def quantized_sample(packed, bidirectional, proj):
    """Arguments of quantized_forward; a layer without projection is a GRU in bfloat16."""
    layer = (fastrnn.LSTM if proj else fastrnn.GRU)(
        2, 5, bidirectional=bidirectional, **({"proj_size": 4} if proj else {})
    )
    layer = fastrnn.quantize(layer, torch.int8 if proj else torch.bfloat16)
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    batch_sizes = torch.tensor([3, 3, 1]) if packed else None
    d, params = 2 if bidirectional else 1, [layer._buffers[name] for name in layer._layers[0]]
    states = (random(d, 3, 4), random(d, 3, 5)) if proj else (random(d, 3, 5), None)
    input = random(7, 2) if packed else random(4, 3, 2)
    return layer.cell, input, batch_sizes, *states, params, 5, layer.proj_size, bidirectional


def second_order_sample(name, cell, random, sizes, rows, batch_sizes, states, params, each):
    """Arguments of the operators behind second derivatives; saved tensors are those of a forward.

    What is random where a sweep would have left it: no operator checks values.
    """
    d, count, batch, hidden, h_size = sizes
    lstm, gates = cell == "lstm", gates_of(cell)
    flags = True, d == 2
    input = random(*rows, params[0].shape[1])
    outputs = getattr(torch.ops.fastrnn, f"{cell}_forward")(
        input, batch_sizes, *states, params, *flags, True
    )
    saved, h, *cells = outputs[3:] if lstm else outputs[2:]
    w_hh, w_hr = params[1::each], params[4::each] if each == 5 else []
    c0, cells = (states[1], cells[0]) if lstm else (None, None)
    of_rows = batch_sizes, batch, states[0], c0, saved, h, cells
    layer = *of_rows, w_hh, w_hr

    def like(tensor):
        return None if tensor is None else random(*tensor.shape)

    t_states = like(states[0]), like(c0)
    v = random(*rows, d * h_size), like(states[0]), like(c0), like(cells)
    if name == "layer_tangent":
        t_params = [like(p) for i, p in enumerate(params) if i % each < 4]
        t_params[1] = None
        through = [random(d, count, gates * hidden) for _ in range(2)]
        through.append(random(d, count, h_size) if w_hr else None)
        input = input.flatten(0, -2)
        return (cell, like(input), t_params, *through, *t_states, input, *of_rows, params[::each],
                w_hh, w_hr, True)  # fmt: skip
    if name == "layer_backward":
        return cell, *v, *layer
    if name == "layer_vjp":
        wanted = [True, True, batch_sizes is None, True] * d
        return cell, *v, input.flatten(0, -2), *of_rows, params[::each], w_hh, w_hr, wanted
    assert name == "layer_backward_tangent"
    through = random(d, count, h_size), random(d, count, hidden) if w_hr else None
    tangents = like(saved), like(h), like(cells)
    received = random(d, count, hidden), like(cells)
    return cell, *v, *through, *t_states, *tangents, *received, *layer


def extended_sample(name, packed, bidirectional, cell):
    """With every option that the cell has."""
    values = of_operator(extended_arguments(
        cell, "recurrent", size=5, directions=2 if bidirectional else 1, cell_norm=True, scale=True,
        lengths=(3, 2, 2) if packed else None, seed=1, rates=(0.1, 0.2, 0.3),
    ))  # fmt: skip
    if name == "extended_forward":
        return *values, True
    output, h_n, c_n, *saved = torch.ops.fastrnn.extended_forward(*values, True)
    _, norm, gates_x, batch_sizes, batch, h0, c0, w_hh, gain_x, bias_x, bias, *rest = values
    d_c_n = torch.randn_like(c_n) if cell == "lstm" else None
    return (cell, norm, torch.randn_like(output), torch.randn_like(h_n), d_c_n, batch_sizes, batch,
            h0, c0, gates_x, *saved, w_hh, gain_x, bias_x is not None, bias is not None,
            *rest)  # fmt: skip


def leaves(value):
    return [t for t in torch.utils._pytree.tree_leaves(value) if torch.is_tensor(t)]


def test_namespace_is_the_contract():
    text = (ROOT / "docs" / "design.md").read_text()
    assert operators() == sorted(re.findall(r"^    (\w+)\(", text, re.M))


@pytest.mark.parametrize("name", operators())
def test_schema_is_the_contract(name):
    text = (ROOT / "docs" / "design.md").read_text()
    arguments = re.search(rf"^    {name}\(([^)]*)\)", text, re.M).group(1)
    schema = getattr(torch.ops.fastrnn, name).default._schema
    assert str(schema).partition("(")[2].partition(") ->")[0] == arguments


@pytest.mark.parametrize("name", operators())
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "two"])
@pytest.mark.parametrize("proj", [False, True], ids=["plain", "proj"])
def test_opcheck(name, packed, bidirectional, proj):
    own = proj and name[:3] in ("lst", "lay", "qua", "ext")
    arguments = sample(name, packed, bidirectional, own)
    # Without tensors that require gradients: those are fastrnn._autograd's, not the operators'.
    opcheck(getattr(torch.ops.fastrnn, name).default, arguments)


@pytest.mark.parametrize(
    "name", sorted({*operators()} - {"segments"})
)  # sizes that depend on values
def test_fake_without_saving_or_states(name):
    """Absent optional arguments: the fake kernel's shapes are the kernel's."""
    arguments = list(sample(name, False, True))
    schema = getattr(torch.ops.fastrnn, name).default._schema
    for i, argument in enumerate(schema.arguments[: len(arguments)]):  # the rest has defaults
        required = (
            "d_output", "input", "hidden", "gates", "cells", "t_gates", "t_hidden", "t_cells",
            "d_cell_c", "gain", "gain_x", "gates_x",
        )  # fmt: skip
        if str(argument.type) == "Optional[Tensor]" and argument.name not in required:
            arguments[i] = None
        if argument.name == "save":
            arguments[i] = False
    op = getattr(torch.ops.fastrnn, name).default
    meta = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), arguments)
    for real, fake in zip(leaves(op(*arguments)), leaves(op(*meta)), strict=True):
        assert real.shape == fake.shape and real.dtype == fake.dtype
        assert real.stride() == fake.stride()


@pytest.mark.parametrize("name", operators())
def test_no_operator_changes_or_returns_its_arguments(name):
    arguments = sample(name, True, True)
    tensors = leaves(arguments)
    before = [t.clone() for t in tensors]
    results = leaves(getattr(torch.ops.fastrnn, name)(*arguments))
    assert all(torch.equal(a, b) for a, b in zip(tensors, before))
    storages = [t.untyped_storage().data_ptr() for t in (*tensors, *results) if t.numel()]
    assert len(set(storages)) == len(storages)


@pytest.mark.parametrize("columns", [1, 3, 15, 16, 17, 31, 33, 127, 255, 256, 257, 1000])
def test_gather_rows_of_any_size(columns):
    """Short rows are copied another way than long ones."""
    rows = torch.randint(0, 256, (2, 40, columns), dtype=torch.uint8)
    index = torch.randint(0, 40, (2, 30))
    index[:, ::7] = -1
    expected = torch.stack([r[i] for r, i in zip(rows, index)])
    expected[index < 0] = 0
    (actual,) = torch.ops.fastrnn.gather_rows([rows], [index])
    assert torch.equal(actual, expected)
    (actual,) = torch.ops.fastrnn.gather_rows([rows[1]], [index[1:].view(1, 5, 6)])
    assert torch.equal(actual, expected[1].view(5, 6, columns))
    for wrong in ([[40]], [[0], [1], [2]]):
        with pytest.raises(RuntimeError, match="gather_rows: expected"):
            torch.ops.fastrnn.gather_rows([rows], [torch.tensor(wrong)])


def test_targets():
    from fastrnn import _C

    targets = _C.cpu_targets()
    assert targets[0] == "generic" and set(targets) <= {
        "generic", "avx2", "avx512", "avx512_vnni",
    }  # fmt: skip
    assert _C.cpu_target() in targets
    with pytest.raises(Exception, match="(?i)target"):
        _C.set_cpu_target("abacus")
