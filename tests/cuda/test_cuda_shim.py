"""The CUDA engine's own sources, host code and kernels, on a CPU (tests/cuda_shim)."""

import functools

import pytest
import torch

import fastrnn
from fastrnn import functional, reference
from fastrnn._layer import by_reference
from fastrnn._stack import beyond, overlap
from tests.arguments import arguments_of, device_operators, overload, tensors_in
from tests.cases import KINDS, PACKED, Case, check, module_results
from tests.options import ASKED, SETTINGS, TOLERANCE, assert_close, both, options_of
from tests.precision import tf32_products
from tests.second_order import penalty, tangents

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
PERSISTENT = ["single", "cluster", "grid"]
REGIMES = ["steps", *PERSISTENT]


@pytest.fixture
def by_steps(engine):
    engine.setenv("FASTRNN_CUDA_REGIME", "steps")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 3, 7), (4, 5, 6, 33), (3, 2, 5, 300)], ids=str)
def test_steps(by_steps, kind, dtype, shape):
    """(3, 2, 5, 300) takes several blocks a row."""
    if kind == "rnn_relu" and dtype.itemsize == 2:
        # Among many units some are within rounding of relu's kink, where no gradient is right.
        shape = (*shape[:3], min(shape[3], 33))
    check(Case(kind, *shape, options={"bidirectional": True}), dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("hx", [True, False], ids=["hx", "no_hx"])
def test_steps_packed(by_steps, kind, lengths, hx):
    options = {"bidirectional": True, "num_layers": 2, "bias": hx}
    check(Case(kind, lengths=lengths, hx=hx, options=options))


def arguments_on_device(name, *options):
    """Without what second derivatives alone ask of it."""
    arguments = arguments_of(name, *options)
    return arguments | ({"received": False} if "received" in arguments else {})


@pytest.mark.parametrize("name", device_operators())
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("proj", [False, True], ids=["plain", "proj"])
def test_operators_agree(shim, name, packed, proj):
    """Every output of every operator, the saved ones too, is the CPU engine's."""
    arguments = arguments_on_device(name, packed, True, proj)
    ours = tensors_in(getattr(shim, name)(*arguments.values()))
    expected = tensors_in(overload(name)(*arguments.values()))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert a.stride() == b.stride()


@pytest.mark.parametrize("name", device_operators())
def test_gradients_required_of_a_raw_operator(shim, name):
    """An operator called with a graph being recorded computes the same."""
    arguments = arguments_on_device(name, False, True)
    expected = tensors_in(getattr(shim, name)(*arguments.values()))
    tracked = torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda t: t.requires_grad_() if t.is_floating_point() else t, arguments
    )
    for a, b in zip(tensors_in(getattr(shim, name)(*tracked.values())), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", device_operators())
def test_no_rows(shim, name):
    """A batch of none: tensors of the right shape, gradients of weights zero."""

    def none(t):
        return t[:, :0] if t.dim() == 3 else t

    arguments = arguments_on_device(name, False, True)
    arguments = torch.utils._pytree.tree_map_only(torch.Tensor, none, arguments)
    if name != "layer_forward" and "input" in arguments:
        arguments["input"] = arguments["input"][:0]
    arguments |= {"batch": 0} if "batch" in arguments else {}
    ours = tensors_in(getattr(shim, name)(*arguments.values()))
    expected = tensors_in(overload(name)(*arguments.values()))
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(a, b)


def test_checks(shim):
    arguments = arguments_of("layer_forward", False, False)
    arguments["states"] = [arguments["states"][0][:, :2]]
    with pytest.raises(RuntimeError, match="gru: expected h0 of shape"):
        shim.layer_forward(*arguments.values())
    arguments["input"] = arguments["input"][0]
    with pytest.raises(RuntimeError, match="expected input with 3 dimensions, got"):
        shim.layer_forward(*arguments.values())
    arguments = arguments_of("gate_gradients", False, False)
    with pytest.raises(RuntimeError, match="gate_gradients: expected received to be False on cpu"):
        shim.gate_gradients(*(arguments | {"received": True}).values())


# -- Regime single ---------------------------------------------------------------------------------

# A name, the dtype, whether products may be TF32.
NUMERICS = {
    "fp32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bf16": (torch.bfloat16, False),
    "fp16": (torch.float16, False),
}
SINGLE_KINDS = [kind for kind in KINDS if kind != "lstm_proj"]


@pytest.fixture(params=NUMERICS)
def numeric(request, engine):
    """One number format; returns `check` for it."""
    dtype, tf32 = NUMERICS[request.param]
    with tf32_products(tf32):
        yield functools.partial(check, dtype=dtype, tf32=tf32)


@pytest.fixture
def single(numeric, engine):
    """The single regime in one number format; returns `check` for it."""
    engine.setenv("FASTRNN_CUDA_REGIME", "single")
    return numeric


# Padded up to 32, 64 and 128; blocks of rows that are full, that are not, and more than one.
@pytest.mark.parametrize("kind", SINGLE_KINDS)
@pytest.mark.parametrize(
    "shape", [(1, 1, 3, 7), (4, 8, 4, 32), (3, 9, 4, 33), (4, 5, 6, 64), (2, 3, 5, 101)], ids=str
)
def test_single(single, kind, shape):
    single(Case(kind, *shape, options={"bidirectional": shape[3] < 100}))


@pytest.mark.parametrize("kind", SINGLE_KINDS)
@pytest.mark.parametrize("lengths", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("hx", [True, False], ids=["hx", "no_hx"])
def test_single_packed(single, kind, lengths, hx):
    if kind == "rnn_relu":  # see test_steps
        lengths = lengths[:9]
    options = {"bidirectional": True, "bias": hx}
    single(Case(kind, lengths=lengths, hx=hx, options=options))


@pytest.mark.parametrize("name", [n for n in device_operators() if n != "products"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_regimes_agree(shim, monkeypatch, name, packed):
    """Every output, the saved ones too; the same sums in another order."""
    arguments = torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda t: t.float() if t.is_floating_point() else t,
        arguments_on_device(name, packed, True),
    )  # fmt: skip
    results = []
    for regime in REGIMES:
        monkeypatch.setenv("FASTRNN_CUDA_REGIME", regime)
        results.append(tensors_in(getattr(shim, name)(*arguments.values())))
    for others in results[1:]:
        for a, b in zip(results[0], others, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
            assert a.stride() == b.stride()


# Each switch of torch that may speak of float32, what it is set to and then restored to, and
# whether products of ours are TF32 in between.
SWITCHES = {
    "matmul": ("cuda.matmul", "fp32_precision", "tf32", "none", True),
    "matmul_legacy": ("cuda.matmul", "allow_tf32", True, False, True),
    "all": ("", "fp32_precision", "tf32", "none", True),
    "cuda_ieee": ("cudnn", "fp32_precision", "ieee", "none", False),
    "all_ieee": ("", "fp32_precision", "ieee", "none", False),
    "cuda": ("cudnn", "fp32_precision", "tf32", "none", True),  # of all that CUDA has, to torch
    "cudnn_rnn": ("cudnn.rnn", "fp32_precision", "tf32", "tf32", False),
    "cudnn_rnn_ieee": ("cudnn.rnn", "fp32_precision", "ieee", "tf32", False),
    "cudnn_legacy": ("cudnn", "allow_tf32", False, True, False),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_precision_switches(engine, switch):
    """None makes a float32 layer raise, and those of matrix products are followed."""
    name, attribute, value, restored, expected = SWITCHES[switch]
    owner = functools.reduce(getattr, name.split(".") if name else [], torch.backends)
    engine.setenv("FASTRNN_CUDA_REGIME", "single")
    _, module = Case("lstm", input_size=4, hidden_size=20, hx=False).modules()
    x = torch.randn(6, 2, 4)
    torch.backends.cuda.matmul.fp32_precision = "none"
    strict = module(x)[0]
    setattr(owner, attribute, value)
    try:
        assert torch.equal(module(x)[0], strict) is not expected
        module(x)[0].sum().backward()
        assert overlap._products_are_tf32() is expected
    finally:
        setattr(owner, attribute, restored)
    assert torch.equal(module(x)[0], strict)


def infinite_row(check, kind):
    """A row that is not finite leaves the others of its block as they are, bit for bit."""
    dtype = check.keywords["dtype"]
    case = Case(kind, batch=8, hidden_size=9, hx=False)
    _, module = case.modules(dtype)
    x = case.data(dtype).inputs[0]
    clean, _ = module(x)
    x[1, 3, 0] = torch.nan
    output, _ = module(x)
    others = [0, 1, 2, 4, 5, 6, 7]
    assert torch.equal(output[:, others], clean[:, others])
    assert output[1:, 3].isnan().all() and torch.equal(output[0], clean[0])


@pytest.mark.parametrize("kind", SINGLE_KINDS)
def test_infinite_stays_in_its_sequence(single, kind):
    infinite_row(single, kind)


# -- Regimes cluster and grid ----------------------------------------------------------------------


@pytest.fixture(params=["cluster", "grid"])
def team(request, numeric, engine):
    """A regime of teams in one number format; returns `check` for it."""
    engine.setenv("FASTRNN_CUDA_REGIME", request.param)
    return numeric


# Teams of 1, 2 and 5 blocks (fp32: 1, 3, 9; clusters: 1, 2, 4, 8, 16), the last one not full;
# row tiles that are full, that are not, and more than one. relu: see test_steps.
@pytest.mark.parametrize("kind", SINGLE_KINDS)
@pytest.mark.parametrize("shape", [(1, 1, 3, 7), (3, 9, 4, 33), (2, 3, 5, 131)], ids=str)
def test_team(team, kind, shape):
    if kind == "rnn_relu":
        shape = (*shape[:3], min(shape[3], 33))
    team(Case(kind, *shape, options={"bidirectional": shape[3] < 100}))


@pytest.mark.parametrize("kind", SINGLE_KINDS)
@pytest.mark.parametrize("lengths", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("hx", [True, False], ids=["hx", "no_hx"])
def test_team_packed(team, kind, lengths, hx):
    """33 rows in five row tiles, some of which end early or begin late."""
    # relu: see test_steps; with 33 and 35 units every regime meets the kink in bf16.
    size, lengths = (36, lengths[:9]) if kind == "rnn_relu" else (35, lengths)
    options = {"bidirectional": True, "bias": hx}
    team(Case(kind, lengths=lengths, hx=hx, hidden_size=size, options=options))


def room(engine, blocks, clusters=(0, 0), found=None):
    """Pretends that the device has room for so much, or for less when it comes to a launch."""
    numbers = (blocks, *clusters, blocks if found is None else found)
    engine.setenv("FASTRNN_SHIM_ROOM", ",".join(map(str, numbers)))


@pytest.mark.parametrize("blocks", [6, 12, 20])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_row_tiles_of_a_team(engine, kind, blocks):
    """A device with room for one to three teams of 3 blocks a direction: the rest are row tiles."""
    engine.setenv("FASTRNN_CUDA_REGIME", "grid")
    room(engine, blocks)
    options = {"bidirectional": True}
    check(Case(kind, lengths=PACKED["wide"], hidden_size=35, options=options))
    check(Case(kind, 3, 25, 4, 35, options=options))


@pytest.mark.parametrize("clusters", [1, 2])
def test_clusters_queue(engine, clusters):
    engine.setenv("FASTRNN_CUDA_REGIME", "cluster")
    room(engine, 0, (clusters, 0))
    check(Case("lstm", lengths=PACKED["wide"], hidden_size=35, options={"bidirectional": True}))


# Every compiled size, whose kernels differ. Without steps to add up errors, and few rows: a team
# of 64 blocks is 16,384 threads here.
@pytest.mark.parametrize("hidden_size", [500, 700, 1000])
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn_tanh"])
def test_large_teams(numeric, engine, name, hidden_size):
    engine.setenv("FASTRNN_CUDA_REGIME", "grid")
    numeric(Case(name, 2, 2, 3, hidden_size))


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn_tanh"])
@pytest.mark.parametrize("numeric", ["bf16", "fp16"], indirect=True)
def test_large_clusters(numeric, engine, name):
    """Clusters of 16."""
    engine.setenv("FASTRNN_CUDA_REGIME", "cluster")
    numeric(Case(name, 2, 9, 3, 400))


@pytest.mark.parametrize("regime", PERSISTENT)
@pytest.mark.parametrize("kind", SINGLE_KINDS)
def test_repeatable(engine, kind, regime):
    """Bit for bit."""
    engine.setenv("FASTRNN_CUDA_REGIME", regime)
    case = Case(kind, 4, 19, 3, 40, options={"bidirectional": True})
    module, data = case.modules()[1], case.data()
    first, second = (module_results(module, data) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", SINGLE_KINDS)
def test_infinite_stays_in_its_sequence_of_a_team(team, kind):
    infinite_row(team, kind)


# Nothing is forced: what runs is seen in the bits, which differ from regime to regime.
@pytest.fixture
def by_regime(engine):
    """A function to the result of a long layer of 200 units with an environment."""
    _, module = Case("lstm", input_size=4, hidden_size=200, hx=False).modules()
    x = torch.randn(60, 2, 4)

    def run(**environment):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            with torch.no_grad():
                return module(x)[0]

    return run


def test_fall_backs(by_regime):
    """A shared or small device gets what fits, without a word."""
    known = {r: by_regime(FASTRNN_CUDA_REGIME=r) for r in ("steps", "cluster", "grid")}
    assert not torch.equal(known["steps"], known["cluster"])
    torch.testing.assert_close(known["steps"], known["cluster"], rtol=1e-4, atol=1e-5)

    def runs(regime, **environment):
        return torch.equal(by_regime(**environment), known[regime])

    assert torch.equal(known["cluster"], known["grid"])  # the same sums in the same order
    for room in ("132,16,7,132", "0,0,1,0", "0,16,7,0", "132,0,0,132", "13,0,0,13"):
        assert runs("grid", FASTRNN_SHIM_ROOM=room)
    for room in ("12,0,0,12", "0,0,0,0", "132,0,0,12"):
        assert runs("steps", FASTRNN_SHIM_ROOM=room)
    assert runs("steps", FASTRNN_SHIM_ROOM="132,0,0,132", FASTRNN_CUDA_COOPERATIVE="0")
    assert runs("cluster", FASTRNN_CUDA_COOPERATIVE="0")


def test_kernels_without_clusters(by_regime, engine):
    """Compiled from PTX that knows no clusters, those of cluster are empty: it is not taken."""
    known = {r: by_regime(FASTRNN_CUDA_REGIME=r) for r in ("steps", "grid")}
    engine.setenv("FASTRNN_SHIM_PTX", "80")
    assert torch.equal(by_regime(), known["grid"])
    assert torch.equal(by_regime(FASTRNN_CUDA_COOPERATIVE="0"), known["steps"])
    with pytest.raises(Exception, match="impossible here: the device holds no cluster of"):
        by_regime(FASTRNN_CUDA_REGIME="cluster")


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_waits_end(engine, backward):
    """A block that waits in vain ends the kernel, and the error says so."""
    _, module = Case("lstm", input_size=4, hidden_size=200, hx=False).modules()
    engine.setenv("FASTRNN_CUDA_REGIME", "grid")
    output = module(torch.randn(5, 2, 4))[0] if backward else None
    engine.setenv("FASTRNN_SHIM_APART", "1")
    what = "backward" if backward else "forward"
    op = "layer_backward" if backward else "lstm"
    message = f"{op}: a CUDA kernel failed.*: unspecified launch failure; before that, a wait "
    with pytest.raises(RuntimeError, match=message + f"between blocks of the {what} kernel of"):
        output.sum().backward() if backward else module(torch.randn(5, 2, 4))
    engine.delenv("FASTRNN_SHIM_APART")
    assert module(torch.randn(5, 2, 4))[0].isfinite().all()


def test_short_sequences_go_by_steps(engine):
    """A single step must not pay for packing the weights, let alone a cooperative launch."""
    _, module = Case("lstm", input_size=4, hidden_size=200, hx=False).modules()
    x, hx = torch.randn(1, 2, 4), (torch.randn(1, 2, 200), torch.randn(1, 2, 200))
    with torch.no_grad():
        got = module(x, hx)[0]
        engine.setenv("FASTRNN_CUDA_REGIME", "steps")
        assert torch.equal(got, module(x, hx)[0])
        engine.setenv("FASTRNN_CUDA_REGIME", "grid")
        assert not torch.equal(got, module(x, hx)[0])


def test_forced_regimes_that_do_not_fit(engine):
    _, module = Case("lstm", input_size=4, hidden_size=200, hx=False).modules()
    x = torch.randn(2, 2, 4)
    engine.setenv("FASTRNN_CUDA_REGIME", "grid")
    for blocks, found in ((12, 12), (13, 12)):
        room(engine, blocks, found=found)
        with pytest.raises(Exception, match="FASTRNN_CUDA_REGIME=grid is impossible here"):
            module(x)
    engine.setenv("FASTRNN_CUDA_REGIME", "cluster")
    with pytest.raises(Exception, match="holds no cluster of 16 blocks"):
        module(x)


# What a regime can run.
REGIME_KINDS = [("steps", kind) for kind in KINDS] + [
    (regime, kind) for regime in PERSISTENT for kind in KINDS if "proj" not in kind
]


@pytest.fixture
def padded(engine):
    """Resets and lengths as on a device, whose values nobody reads: no rows are moved."""
    engine.setattr(beyond, "_stays_padded", lambda input, resets: True)
    engine.setattr(beyond, "_Segments", None)
    return engine


@pytest.mark.parametrize(("regime", "kind"), REGIME_KINDS)
@pytest.mark.parametrize("asked", [a for a in ASKED if a != "states"])
def test_resets_and_lengths(padded, regime, kind, asked):
    """And every step's states, with gradients of their cells; rows of more than one block."""
    padded.setenv("FASTRNN_CUDA_REGIME", regime)
    case = Case(kind, 7, 10, options={"num_layers": 2, "bidirectional": True})
    assert_close(*both(case, options_of(case, ASKED[asked]), torch.float32), 3e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_resets_of_other_layers(padded, kind, setting):
    """One step, one row, no states given, batch_first; in float64."""
    case = Case(kind, **{"hidden_size": 5, "seq_len": 7, **SETTINGS[setting]})
    for asked in ("resets", "resets_to_hx", "all", "no_row_all"):
        assert_close(*both(case, options_of(case, ASKED[asked])), 1e-10)


@pytest.mark.parametrize("numeric", ["bf16", "fp16", "tf32"], indirect=True)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_resets_in_other_formats(numeric, padded, regime, name):
    padded.setenv("FASTRNN_CUDA_REGIME", regime)
    dtype = numeric.keywords["dtype"]
    case = Case(name, 9, 12, 8, 40, options={"bidirectional": True})
    tolerance = {torch.float32: 5e-3}.get(dtype, TOLERANCE[dtype])
    assert_close(*both(case, options_of(case, ASKED["resets_to_hx"]), dtype), tolerance)


def test_second_derivatives_with_resets(padded):
    padded.setattr(by_reference, "serves", lambda tensor: True)
    x, h0 = torch.randn(6, 3, 4, dtype=torch.float64), torch.randn(1, 3, 5, dtype=torch.float64)
    params = [p.detach().double() for p in fastrnn.GRU(4, 5).parameters()]
    resets = torch.rand(6, 3) < 0.4

    def layer(library):
        def run(x, h0, *params):
            options = {"resets": resets, "reset_to": "hx"}
            return library.gru(x, h0, list(params), **options)

        return run

    tensors = [x, h0, *params]
    found = [penalty(layer(library), tensors, range(6)) for library in (functional, reference)]
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    directed = [tangents(layer(library), tensors, range(6)) for library in (functional, reference)]
    for a, b in zip(*directed):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_wrong_resets(shim):
    arguments = arguments_of("layer_forward", False, False)
    with pytest.raises(RuntimeError, match=r"gru: expected resets as bool \(4, 3\) on cpu"):
        shim.layer_forward(*arguments.values(), torch.zeros(3, 4, dtype=torch.bool))
    packed = arguments_of("layer_forward", True, False)
    with pytest.raises(RuntimeError, match="gru: expected padded data with resets"):
        shim.layer_forward(*packed.values(), torch.zeros(3, 3, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="gru: expected no resets on cpu"):
        torch.ops.fastrnn.layer_forward(*arguments.values(), torch.zeros(4, 3, dtype=torch.bool))
