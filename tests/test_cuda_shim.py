"""The CUDA engine's own sources, host code and kernels, on a CPU (tests/cuda_shim)."""

import functools

import pytest
import torch

from fastrnn import _ops, _options
from tests import cuda_shim
from tests.cases import KINDS, Case
from tests.test_numbers import PACKED, check
from tests.test_operators import first_order, leaves, sample
from tests.test_options import assert_close, both, options_of

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def shim():
    return cuda_shim.load()


@pytest.fixture
def engine(shim, monkeypatch):
    """fastrnn over the shim's operators."""
    torch.set_num_threads(1)  # small products; threads would only wait for each other
    for name in first_order():
        monkeypatch.setattr(_ops, name, getattr(shim, name).default)
    return monkeypatch


@pytest.fixture
def by_steps(engine):
    engine.setenv("FASTRNN_CUDA_REGIME", "P")


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


@pytest.mark.parametrize("name", first_order())
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("proj", [False, True], ids=["plain", "proj"])
def test_operators_agree(shim, name, packed, proj):
    """Every output of every operator, the saved ones too, is the CPU engine's."""
    arguments = sample(name, packed, True, proj and name[:3] in ("lst", "lay"))
    ours = leaves(getattr(shim, name)(*arguments))
    expected = leaves(getattr(torch.ops.fastrnn, name)(*arguments))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
        assert a.stride() == b.stride()


@pytest.mark.parametrize("name", first_order())
def test_gradients_required_of_a_raw_operator(shim, name):
    """An operator called with a graph being recorded computes the same."""
    arguments = sample(name, False, True)
    expected = leaves(getattr(shim, name)(*arguments))
    tracked = torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda t: t.requires_grad_() if t.is_floating_point() else t, arguments
    )
    for a, b in zip(leaves(getattr(shim, name)(*tracked)), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", first_order())
def test_no_rows(shim, name):
    """A batch of none: tensors of the right shape, gradients of weights zero."""

    def none(t):
        return t[:, :0] if t.dim() == 3 else t[:0] if name == "layer_gradients" else t

    arguments = [none(a) if torch.is_tensor(a) else a for a in sample(name, False, True)]
    arguments = [0 if isinstance(a, int) and a == 3 else a for a in arguments]
    ours = leaves(getattr(shim, name)(*arguments))
    expected = leaves(getattr(torch.ops.fastrnn, name)(*arguments))
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(a, b)


def test_checks(shim):
    arguments = list(sample("lstm_forward", False, False))
    arguments[2] = arguments[2][:, :2]
    with pytest.raises(RuntimeError, match="lstm_forward: expected h0 of shape"):
        shim.lstm_forward(*arguments)
    with pytest.raises(RuntimeError, match="expected input with 3 dimensions on cpu"):
        shim.lstm_forward(arguments[0][0], *arguments[1:])


# -- Regime S --------------------------------------------------------------------------------------

# A name, the dtype, whether products may be TF32.
NUMERICS = {
    "fp32": (torch.float32, False),
    "tf32": (torch.float32, True),
    "bf16": (torch.bfloat16, False),
    "fp16": (torch.float16, False),
}
SINGLE_KINDS = [kind for kind in KINDS if kind != "lstm_proj"]


@pytest.fixture(params=NUMERICS)
def single(request, engine):
    """Regime S in one number format; returns `check` for it."""
    dtype, tf32 = NUMERICS[request.param]
    engine.setenv("FASTRNN_CUDA_REGIME", "S")
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, tf32
    yield functools.partial(check, dtype=dtype, tf32=tf32)
    matmul.allow_tf32 = before


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


@pytest.mark.parametrize("name", [n for n in first_order() if n != "layer_gradients"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_regimes_agree(shim, monkeypatch, name, packed):
    """Every output, the saved ones too; in S and P the same sums in another order."""
    arguments = torch.utils._pytree.tree_map_only(
        torch.Tensor, lambda t: t.float() if t.is_floating_point() else t,
        sample(name, packed, True),
    )  # fmt: skip
    results = []
    for regime in ("P", "S"):
        monkeypatch.setenv("FASTRNN_CUDA_REGIME", regime)
        results.append(leaves(getattr(shim, name)(*arguments)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert a.stride() == b.stride()


@pytest.mark.parametrize("kind", SINGLE_KINDS)
def test_infinite_stays_in_its_sequence(single, engine, kind):
    """A row that is not finite leaves the others of its block as they are, bit for bit."""
    dtype = single.keywords["dtype"]
    case = Case(kind, batch=8, hidden_size=9, hx=False)
    _, module = case.modules(dtype)
    x = case.data(dtype).inputs[0]
    clean, _ = module(x)
    x[1, 3, 0] = torch.nan
    output, _ = module(x)
    others = [0, 1, 2, 4, 5, 6, 7]
    assert torch.equal(output[:, others], clean[:, others])
    assert output[1:, 3].isnan().all() and torch.equal(output[0], clean[0])


@pytest.mark.parametrize(
    ("regime", "kind"),
    [("P", kind) for kind in KINDS] + [("S", k) for k in KINDS if "proj" not in k],
)
def test_lengths_and_states(engine, regime, kind):
    """Lengths as on a device whose values nobody reads, and gradients of every step's cells."""
    engine.setenv("FASTRNN_CUDA_REGIME", regime)
    engine.setattr(_options, "_reads_values", lambda input: False)
    case = Case(kind, 7, 6, options={"num_layers": 2, "bidirectional": True})
    options = options_of(case, {"lengths": True, "return_states": True})
    assert_close(*both(case, options, torch.float32), 3e-5)
