"""torch.export, AOTInductor packages and ONNX: the program has eager's numbers at other sizes."""

import pytest
import torch
from torch import nn
from torch.export import Dim, export
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from fastrnn import variants
from tests.cases import CELLS, LAYERS

OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.5},
    {"bias": False},
    {"proj_size": 2},
]
SETTINGS = [(name, o) for name in LAYERS for o in OPTIONS if name == "LSTM" or "proj_size" not in o]
SETTINGS += [("RNN", {"nonlinearity": "relu"}), *((name, {}) for name in CELLS)]
T, B = Dim("T", min=2, max=4096), Dim("B", min=2, max=4096)


def leaves(result):
    return torch.utils._pytree.tree_leaves(result)


def arguments_of(name, options, hx, steps=5, batch=6):
    """Positional arguments of a layer or cell with input_size 3 and hidden_size 4."""
    if name in CELLS:
        x, shape = torch.randn(batch, 3), (batch,)
    else:
        sizes = (batch, steps) if options.get("batch_first") else (steps, batch)
        layers = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
        x, shape = torch.randn(*sizes, 3), (layers, batch)
    if not hx:
        return (x,)
    h, c = torch.randn(*shape, options.get("proj_size", 4)), torch.randn(*shape, 4)
    return x, ((h, c) if name.startswith("LSTM") else h)


def dynamic_shapes(name, options, hx):
    if name in CELLS:
        x, state = {0: B}, {0: B}
    else:
        x = {0: B, 1: T} if options.get("batch_first") else {0: T, 1: B}
        state = {1: B}
    return (x, (state, state) if name.startswith("LSTM") else state) if hx else (x,)


def operators(program):
    return [n.target for n in program.graph.nodes if "fastrnn" in str(n.target)]


@pytest.mark.parametrize(("strict", "hx"), [(True, False), (False, True)], ids=str)
@pytest.mark.parametrize(("name", "options"), SETTINGS, ids=str)
def test_export(name, options, hx, strict):
    module = getattr(fastrnn, name)(3, 4, **options).eval()
    shapes = dynamic_shapes(name, options, hx)
    program = export(module, arguments_of(name, options, hx), dynamic_shapes=shapes, strict=strict)
    expected = torch.ops.fastrnn.layer_forward.default
    assert operators(program) == [expected] * options.get("num_layers", 1)
    for node in program.graph.nodes:  # an exported program keeps nothing for a backward
        assert node.target is not expected or node.args[-1] is False
    for sizes in ((5, 6), (9, 2), (2, 30)):
        arguments = arguments_of(name, options, hx, *sizes)
        actual, wanted = program.module()(*arguments), module(*arguments)
        torch.testing.assert_close(leaves(actual), leaves(wanted), rtol=0, atol=0)


TRAINED = [
    *((getattr(fastrnn, name), o, {}) for name, o in SETTINGS if "dropout" not in o),
    (fastrnn.GRU, {"bidirectional": True}, {"lengths": torch.tensor([5, 2, 0, 1, 3, 5])}),
    (fastrnn.LSTM, {}, {"resets": torch.arange(30).view(5, 6) % 4 == 1}),
    (fastrnn.LSTM, {}, {"return_states": True}),
    (variants.LSTM, {"layer_norm": True, "zoneout": 0.2, "bidirectional": True}, {}),
    (variants.PeepholeLSTM, {}, {}),
    (variants.CoupledLSTM, {"num_layers": 2}, {}),
]


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
@pytest.mark.parametrize(("kind", "options", "call"), TRAINED, ids=str)
def test_exported_programs_train(kind, options, call, strict, tmp_path):
    """Gradients of inputs, states and parameters are eager's; of a saved program too."""
    module = kind(3, 4, **options).double().eval()
    hx = not call and kind.__module__ == "fastrnn.modules"
    arguments = arguments_of(kind.__name__, options, hx)
    arguments = torch.utils._pytree.tree_map(lambda t: t.double().requires_grad_(), arguments)
    program = export(module, arguments, call, strict=strict)
    torch.export.save(program, tmp_path / "program.pt2")
    loaded = torch.export.load(tmp_path / "program.pt2")

    def gradients(run, parameters):
        results = [t for t in leaves(run(*arguments, **call)) if t is not None]
        loss = sum(t.cos().sum() for t in results)
        wanted = [*leaves(arguments), *parameters]
        return results, torch.autograd.grad(loss, wanted)

    expected = gradients(module, module.parameters())
    for each in (program.module(), loaded.module()):
        parameters = dict(each.named_parameters())
        ours = [parameters[name] for name, _ in module.named_parameters()]
        torch.testing.assert_close(gradients(each, ours), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_exported_programs_under_torch_func(name):
    """Derivatives of any order, forward mode and gradients of samples are the module's."""
    module = getattr(fastrnn, name)(3, 4, bidirectional=True).double()
    x, v = torch.randn(2, 5, 2, 3).double()
    program = export(module, (x,)).module()

    def results(layer):
        def loss(x):
            return layer(x)[0].sin().sum()

        def of_params(params, x):
            return torch.func.functional_call(layer, params, (x,))[0].sum()

        params = {k: p.detach() for k, p in layer.named_parameters()}
        of_samples = torch.func.vmap(torch.func.grad(of_params), (None, 0))
        samples = of_samples(params, torch.stack([x, v]))
        with torch.autograd.forward_ad.dual_level():
            dual = layer(torch.autograd.forward_ad.make_dual(x, v))[0]
            tangent = torch.autograd.forward_ad.unpack_dual(dual).tangent
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf)
        return [
            torch.func.grad(loss)(x),
            torch.func.grad(lambda x: torch.func.grad(loss)(x).square().sum())(x),
            torch.func.jvp(loss, (x,), (v,))[1],
            torch.func.jvp(torch.func.grad(loss), (x,), (v,))[1],
            torch.func.jacfwd(torch.func.jacrev(loss))(x),
            *(samples[name] for name, _ in module.named_parameters()),
            tangent,
            second,
        ]

    torch.testing.assert_close(results(program), results(module), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
def test_export_of_packed_data(strict):
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = fastrnn.LSTM(3, 4, bidirectional=True)

        def forward(self, data, batch_sizes, hx):
            packed = nn.utils.rnn.PackedSequence(data, batch_sizes)
            output, (h_n, _) = self.rnn(packed, hx)
            return output.data, h_n

    def arguments(*lengths):
        packed = pack_sequence([torch.randn(n, 3) for n in lengths])
        h = torch.randn(2, len(lengths), 4)
        return packed.data, packed.batch_sizes, (h, h)

    module = Encoder()
    rows = Dim("rows", min=2, max=4096)
    shapes = ({0: rows}, {0: T}, ({1: B}, {1: B}))
    program = export(module, arguments(6, 5, 3), dynamic_shapes=shapes, strict=strict)
    for lengths in ((6, 5, 3), (9, 2), (4, 4, 4, 1)):
        values = arguments(*lengths)
        actual, wanted = program.module()(*values), module(*values)
        torch.testing.assert_close(actual, wanted, rtol=0, atol=0)


def test_saved_program(tmp_path):
    module = fastrnn.GRU(3, 4, 2)
    program = export(module, (torch.randn(5, 6, 3),), dynamic_shapes=({0: T, 1: B},))
    torch.export.save(program, tmp_path / "gru.pt2")
    loaded, x = torch.export.load(tmp_path / "gru.pt2").module(), torch.randn(7, 2, 3)
    torch.testing.assert_close(loaded(x), module(x), rtol=0, atol=0)


def test_aot_inductor(tmp_path):
    """One package of a layer and a cell, loaded and run at sizes that it was not compiled for."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = fastrnn.LSTM(3, 4, 2, bidirectional=True, batch_first=True)
            self.cell = fastrnn.GRUCell(8, 5)

        def forward(self, x):
            y, (h_n, _) = self.lstm(x)
            return self.cell(y[:, -1].relu()), h_n

    module = Model().eval()
    program = export(module, (torch.randn(6, 5, 3),), dynamic_shapes=({0: B, 1: T},))
    path = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "model.pt2")
    )
    loaded = torch._inductor.aoti_load_package(path)
    for sizes in ((6, 5), (3, 11)):
        x = torch.randn(*sizes, 3)
        torch.testing.assert_close(leaves(loaded(x)), leaves(module(x)))


# -- ONNX ----------------------------------------------------------------------------------------


def exported_to_onnx(module, arguments, shapes):
    pytest.importorskip("onnx", reason="optional: pip install onnx onnxscript onnxruntime")
    pytest.importorskip("onnxscript", reason="optional: pip install onnx onnxscript onnxruntime")
    table = fastrnn.onnx.translation_table()
    program = torch.onnx.export(
        module, arguments, dynamo=True, dynamic_shapes=shapes, custom_translation_table=table,
        verbose=False,
    )  # fmt: skip
    return program.model_proto


@pytest.mark.parametrize("hx", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize(
    ("name", "options"), [s for s in SETTINGS if "proj_size" not in s[1]], ids=str
)
def test_onnx(name, options, hx):
    module = getattr(fastrnn, name)(3, 4, **options).eval()
    shapes = dynamic_shapes(name, options, hx)
    model = exported_to_onnx(module, arguments_of(name, options, hx), shapes)
    import onnx

    onnx.checker.check_model(model, full_check=True)
    kind = name.removesuffix("Cell")
    nodes = [node.op_type for node in model.graph.node]
    assert nodes.count(kind) == options.get("num_layers", 1)
    # Weights are constants in ONNX's order: what is left of the graph moves data.
    moves = {"Transpose", "Reshape", "Split", "Concat", "Squeeze", "Unsqueeze"}
    assert set(nodes) <= {kind} | moves and len(nodes) <= 12
    assert all(node.domain == "" for node in model.graph.node)
    onnxruntime = pytest.importorskip("onnxruntime", reason="optional: pip install onnxruntime")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for sizes in ((5, 6), (9, 2)):
        arguments = arguments_of(name, options, hx, *sizes)
        names = [value.name for value in session.get_inputs()]
        feed = {n: t.numpy() for n, t in zip(names, leaves(arguments), strict=True)}
        actual = [torch.from_numpy(t) for t in session.run(None, feed)]
        expected = [t.detach() for t in leaves(module(*arguments))]
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["CoupledLSTM", "PeepholeLSTM"])
def test_onnx_of_variants(name, bias):
    """A node a layer: coupled gates are two of the same weights, with the sign of one changed."""
    cls = getattr(fastrnn.variants, name)
    module = cls(3, 4, num_layers=2, bidirectional=True, bias=bias).eval()
    x = torch.randn(5, 6, 3)
    model = exported_to_onnx(module, (x,), None)
    nodes = [node.op_type for node in model.graph.node]
    assert nodes.count("LSTM") == 2 and "Neg" not in nodes  # it was folded
    onnxruntime = pytest.importorskip("onnxruntime", reason="optional: pip install onnxruntime")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (name,) = (value.name for value in session.get_inputs())
    actual = [torch.from_numpy(t) for t in session.run(None, {name: x.numpy()})]
    expected = [t.detach() for t in leaves(module(x))]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


class Lengths(torch.nn.Module):
    def __init__(self, module, **options):
        super().__init__()
        self.rnn, self.options = module, options

    def forward(self, x, n):
        return self.rnn(x, lengths=n, **self.options)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LSTM", {"num_layers": 2, "bidirectional": True}),
        ("GRU", {"batch_first": True, "checkpoint_every": 2}),
        ("RNN", {"bidirectional": True}),
    ],
    ids=str,
)
def test_onnx_of_lengths(name, options, dtype):
    """Lengths are the node's own, of 0 too; final states are those at them."""
    model = Lengths(getattr(fastrnn, name)(3, 4, **options)).eval()
    dynamic = torch.export.Dim.DYNAMIC

    def arguments(steps, lengths):
        x = torch.randn(steps, len(lengths), 3)
        x = x.transpose(0, 1).contiguous() if "batch_first" in options else x
        return x, torch.tensor(lengths, dtype=dtype)

    shapes = {"x": {0: dynamic, 1: dynamic}, "n": {0: dynamic}}
    exported = exported_to_onnx(model, arguments(5, [5, 2, 0, 1]), shapes)
    nodes = [node for node in exported.graph.node if node.op_type == name]
    assert len(nodes) == options.get("num_layers", 1)
    assert all(node.input[4] and all(node.output) for node in nodes)
    onnxruntime = pytest.importorskip("onnxruntime", reason="optional: pip install onnxruntime")
    session = onnxruntime.InferenceSession(
        exported.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    for steps, lengths in ((5, [5, 2, 0, 1]), (7, [0, 7, 3])):
        x, n = arguments(steps, lengths)
        actual = session.run(None, dict(zip(names, (x.numpy(), n.numpy()), strict=True)))
        expected = [t.detach() for t in leaves(model(x, n))]
        torch.testing.assert_close([torch.from_numpy(a) for a in actual], expected)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_the_operator_of_lengths(name):
    """What stands for a node of ONNX computes it too, and its fake kernel has its shapes."""
    module = getattr(fastrnn, name)(3, 4, bidirectional=True)
    x, n = torch.randn(5, 4, 3), torch.tensor([5, 0, 2, 1], dtype=torch.int32)
    states = [torch.randn(2, 4, 4) for _ in range(2 if name == "LSTM" else 1)]
    operator = torch.ops.fastrnn.layer_of_lengths.default
    with torch.no_grad():
        expected = leaves(module(x, tuple(states) if len(states) > 1 else states[0], lengths=n))
        arguments = name.lower(), x, n, states, list(module.parameters()), True
        found = operator(*arguments)
        assert all(map(torch.equal, found, expected))
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("shapes", [None, {"input": {1: torch.export.Dim.DYNAMIC}}], ids=str)
def test_onnx_initial_states(shapes):
    """Constants of zeros, two for an LSTM."""
    pytest.importorskip("onnxscript", reason="optional: pip install onnx onnxscript onnxruntime")
    table = fastrnn.onnx.translation_table(initial_states=True)
    program = torch.onnx.export(
        fastrnn.LSTM(3, 4).eval(), (torch.randn(5, 2, 3),), dynamo=True, dynamic_shapes=shapes,
        custom_translation_table=table, verbose=False,
    )  # fmt: skip
    (node,) = [n for n in program.model_proto.graph.node if n.op_type == "LSTM"]
    h, c = node.input[5:7]
    assert h and c and h != c


def test_onnx_warns_of_relu():
    with pytest.warns(UserWarning, match="take it for tanh"):
        exported_to_onnx(fastrnn.RNN(3, 4, nonlinearity="relu"), (torch.randn(5, 2, 3),), None)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"resets": torch.zeros(5, 2, dtype=torch.bool)}, "resets and cu_seqlens cannot"),
        ({"return_states": True}, "GRU with return_states cannot"),
    ],
    ids=["resets", "return_states"],
)
def test_onnx_refuses(options, reason):
    model = Lengths(fastrnn.GRU(3, 4), **options).eval()
    with pytest.raises(Exception, match="ONNX") as raised:
        exported_to_onnx(model, (torch.randn(5, 2, 3), None), None)
    assert any(reason in text for text in causes(raised.value))


def causes(error):
    while error is not None:
        yield str(error)
        error = error.__cause__


def test_onnx_has_no_projection():
    with pytest.raises(Exception, match="ONNX") as raised:
        exported_to_onnx(fastrnn.LSTM(3, 4, proj_size=2), (torch.randn(5, 6, 3),), None)
    assert any("ONNX's LSTM has no projection" in text for text in causes(raised.value))


def test_onnx_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ImportError, match="pip install onnx onnxscript"):
        fastrnn.onnx.translation_table()
