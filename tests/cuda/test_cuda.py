"""The CUDA engine on a CUDA device: the tests of the CPU engine's numbers, and what only a GPU has.

Each runs in regime steps and, where it can, in single, cluster and grid, or in those of them that
the environment variable FASTRNN_TEST_REGIMES names ("single grid"). Without a device they are
skipped, and say so; the same sources are then tested by tests/cuda/test_cuda_shim.py.
"""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from fastrnn._stack import overlap
from tests.arguments import arguments_of, device_operators, overload, tensors_in
from tests.cases import KINDS, LAYERS, OPTIONS, PACKED, SHAPES, Case, check, module_results
from tests.precision import tf32_products

pytestmark = pytest.mark.cuda

REGIMES = os.environ.get("FASTRNN_TEST_REGIMES", "steps single cluster grid").split()
# A name, the dtype, whether products may be TF32, the regime.
SETTINGS = {
    f"{name}-{regime}": (dtype, tf32, regime)
    for name, dtype, tf32 in [
        ("fp64", torch.float64, False),
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bf16", torch.bfloat16, False),
        ("fp16", torch.float16, False),
    ]
    for regime in REGIMES
    if dtype is not torch.float64 or regime == "steps"
}


def clusters_or(regime):
    """Whether the device has what a regime needs."""
    return regime != "cluster" or torch.cuda.get_device_capability() >= (9, 0)


@pytest.fixture(params=SETTINGS)
def run(request, cuda, monkeypatch):
    """`check` on the device in one number format and regime."""
    dtype, tf32, regime = SETTINGS[request.param]

    def run(case):
        persistent = case.hidden_size <= (1024 if regime in ("cluster", "grid") else 128)
        persistent = persistent and case.kind != "lstm_proj" and clusters_or(regime)
        monkeypatch.setenv("FASTRNN_CUDA_REGIME", regime if persistent else "steps")
        if case.kind == "rnn_relu" and (tf32 or dtype.itemsize == 2) and case.hidden_size > 33:
            case = case.with_(hidden_size=33)  # see test_cuda_shim.test_steps
        check(case, dtype, tf32, "cuda")

    with tf32_products(tf32):
        yield run


@pytest.fixture(params=REGIMES)
def regime(request, cuda, monkeypatch):
    if not clusters_or(request.param):
        pytest.skip("clusters need a device of compute capability 9.0")
    monkeypatch.setenv("FASTRNN_CUDA_REGIME", request.param)
    return request.param


def layer(name="LSTM", sizes=(24, 40), **options):
    return getattr(fastrnn, name)(*sizes, **options).cuda()


def results(module, *arguments):
    """Outputs and gradients of one call."""
    inputs = [a.detach().clone().requires_grad_() for a in arguments]
    output = tensors_in(module(*inputs))
    torch.autograd.backward([o.sum() for o in output])
    gradients = [t.grad.clone() for t in (*inputs, *module.parameters())]
    module.zero_grad()
    return [*(o.detach() for o in output), *gradients]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(run, kind, shape):
    case = Case(kind, *shape)
    run(case if case.possible else case.with_(hidden_size=2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hx", [True, False], ids=["hx", "no_hx"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))
def test_options(run, kind, options, hx):
    run(Case(kind, options=options, hx=hx))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("hx", [True, False], ids=["hx", "no_hx"])
def test_packed(run, kind, lengths, hx):
    lengths = lengths[:9] if kind == "rnn_relu" else lengths
    run(Case(kind, lengths=lengths, hx=hx, options={"bidirectional": True, "num_layers": 2}))


@pytest.mark.parametrize(
    "shape",
    [
        (70, 64, 32, 256),
        (20, 300, 16, 128),
        (300, 3, 40, 64),
        (40, 70, 32, 512),
        (40, 33, 16, 1000),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_larger(run, monkeypatch, kind, shape):
    """Beyond 256, or 512 in 16 bits, clusters have no kernels, and the plan decides."""
    try:
        run(Case(kind, *shape))
    except (RuntimeError, ValueError) as error:
        if "is impossible here" not in str(error):
            raise
        pytest.skip(str(error).splitlines()[0])


@pytest.mark.parametrize("name", device_operators())
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("proj", [False, True], ids=["plain", "proj"])
def test_operators_agree_with_the_cpu(cuda, name, packed, proj):
    arguments = arguments_of(name, packed, True, proj)
    there = torch.utils._pytree.tree_map_only(torch.Tensor, lambda t: t.cuda(), arguments)
    if packed:
        there["batch_sizes"] = arguments["batch_sizes"]
    ours = tensors_in(overload(name)(*there.values()))
    expected = tensors_in(overload(name)(*arguments.values()))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-11, atol=1e-11)
        assert a.stride() == b.stride()


@pytest.mark.parametrize("name", LAYERS)
def test_gradcheck(cuda, name):
    module = layer(name, (3, 5), bidirectional=True).double()
    x = torch.randn(4, 2, 3, dtype=torch.float64, device=cuda, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: module(x)[0], x)


@pytest.mark.parametrize("name", LAYERS)
def test_repeatable(regime, name):
    """Bit for bit, also where other rows are in the batch's place and after retain_graph."""
    module = layer(name, bidirectional=True)
    x = torch.randn(33, 21, 24, device="cuda")
    first = results(module, x)
    for _ in range(3):
        assert same(first, results(module, x))
    x.requires_grad_()
    output = module(x)[0].sum()
    once = torch.autograd.grad(output, [x, *module.parameters()], retain_graph=True)
    assert same(once, torch.autograd.grad(output, [x, *module.parameters()]))


@pytest.mark.parametrize("name", LAYERS)
def test_stream(regime, name):
    """Work goes to the current stream: input that another stream would not see yet is seen."""
    module = layer(name)
    x = torch.randn(50, 9, 24, device="cuda")
    expected = results(module, x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        late = torch.zeros_like(x)
        torch.cuda._sleep(20_000_000)
        late.copy_(x)
        got = results(module, late)
    torch.cuda.current_stream().wait_stream(stream)
    assert same(expected, got)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_graph(regime, name, packed):
    """A captured forward and backward pass repeats itself on new data, and never synchronises."""
    module = layer(name, bidirectional=True)

    def data(seed):
        torch.manual_seed(seed)
        rows = [torch.randn(n, 24, device="cuda") for n in (9, 9, 5, 1)]
        return pack_sequence(rows).data if packed else torch.randn(9, 4, 24, device="cuda")

    counts = pack_sequence([torch.empty(n, 1) for n in (9, 9, 5, 1)]).batch_sizes

    def call(x):
        input = torch.nn.utils.rnn.PackedSequence(x, counts) if packed else x
        output = module(input)[0]
        output = output.data if packed else output
        return [output, *torch.autograd.grad(output.square().sum(), [x, *module.parameters()])]

    x = data(0).requires_grad_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call(x)
    for seed in (1, 2):
        new = data(seed)
        with torch.no_grad():
            x.copy_(new)
        graph.replay()
        expected = call(new.requires_grad_())
        for a, b in zip(captured, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("asked", [(), ("resets",), ("lengths",), ("resets", "lengths")], ids=str)
def test_no_synchronisation(regime, name, asked):
    module = layer(name, bidirectional=True)
    options = {"resets": torch.rand(9, 4, device="cuda") < 0.3,
               "lengths": torch.tensor([3, 9, 0, 5], device="cuda")}  # fmt: skip

    def call(x):
        return module(x, **{name: options[name] for name in asked})

    def gradients():
        x = torch.randn(9, 4, 24, device="cuda", requires_grad=True)
        torch.autograd.grad(call(x)[0].sum(), [x, *module.parameters()])

    gradients()
    torch.cuda.set_sync_debug_mode("error")
    try:
        gradients()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", LAYERS)
def test_graph_with_resets(regime, name):
    """A captured call forgets where the mask of the replay says, not that of the capture."""
    module, x = layer(name), torch.randn(9, 4, 24, device="cuda")
    resets = torch.zeros(9, 4, dtype=torch.bool, device="cuda")
    with torch.no_grad():
        module(x, resets=resets)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = module(x, resets=resets)[0]
        for _ in range(2):
            resets.copy_(torch.rand(9, 4, device="cuda") < 0.4)
            graph.replay()
            assert torch.equal(output, module(x, resets=resets)[0])


def test_many_steps(regime):
    """More steps than a grid has rows in y or z, and cuDNN takes."""
    module = layer("GRU", (2, 8))
    x = torch.randn(70_000, 1, 2, device="cuda")
    with torch.no_grad():
        got = module(x)[0]
        expected = module.cpu()(x.cpu())[0]
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-4, atol=1e-5)


def test_beyond_32_bits(regime):
    """Offsets beyond 2^31 elements, in the saved gates alone."""
    free = torch.cuda.mem_get_info()[0]
    if free < 48 << 30:
        pytest.skip(f"needs 48 GB of free memory on the CUDA device, there are {free >> 30}")
    module = layer("LSTM", (8, 128), dtype=torch.bfloat16)
    seq_len, batch = 2100, 2048
    assert seq_len * batch * 4 * 128 > 2**31
    x = torch.randn(seq_len, batch, 8, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    output = module(x)[0]
    output[-1].float().sum().backward()
    part = x[:, -8:].detach().requires_grad_()
    expected = module(part)[0]
    # bfloat16 keeps 8 bits, and two batch sizes may go by different regimes.
    torch.testing.assert_close(output[:, -8:], expected, rtol=2e-2, atol=2e-2)
    expected[-1].float().sum().backward()
    torch.testing.assert_close(x.grad[-9:, -8:], part.grad[-9:], rtol=5e-2, atol=1e-2)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("chunks", [2, 4])
def test_overlapped_layers(cuda, monkeypatch, name, chunks):
    """A wavefront on streams gives what the layers give one after the other, however often."""
    module = layer(name, (24, 256), num_layers=3)
    x = torch.randn(200, 9, 24, device="cuda")
    monkeypatch.setenv("FASTRNN_CUDA_OVERLAP", "0")
    expected = results(module, x)
    monkeypatch.delenv("FASTRNN_CUDA_OVERLAP")
    monkeypatch.setattr(overlap, "chunk_count", lambda *arguments: chunks)
    first = results(module, x)
    for a, b in zip(first, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())
    for _ in range(20):
        late = torch.zeros_like(x)
        torch.cuda._sleep(2_000_000)
        late.copy_(x)
        assert same(first, results(module, late))
    graph, still = torch.cuda.CUDAGraph(), torch.zeros_like(x)
    with torch.no_grad():
        module(still)
        with torch.cuda.graph(graph):
            output = module(still)[0]
    still.copy_(x)
    graph.replay()
    assert torch.equal(output, first[0])


@pytest.mark.parametrize("value", [20.0, 90.0, 200.0, 1e4, 3e38])
@pytest.mark.parametrize("name", LAYERS)
def test_saturated_gates(regime, name, value):
    for sign in (1, -1):
        module = layer(name, (1, 17))
        with torch.no_grad():
            module.weight_ih_l0.fill_(sign * value)
        outcome = results(module, torch.ones(3, 2, 1, device="cuda"))
        assert all(t.isfinite().all() for t in outcome)


@pytest.mark.parametrize("name", LAYERS)
def test_regimes_agree(cuda, monkeypatch, name):
    case = Case(name.lower() if name != "RNN" else "rnn_tanh", 40, 37, 24, 100)
    _, module = case.modules(device="cuda")
    data = case.data().to("cuda")
    outcome = []
    for regime in filter(clusters_or, dict.fromkeys(["steps", *REGIMES])):
        monkeypatch.setenv("FASTRNN_CUDA_REGIME", regime)
        outcome.append(module_results(module, data))
    for other in outcome[1:]:
        for key, value in outcome[0].items():
            torch.testing.assert_close(other[key], value, rtol=1e-4, atol=1e-4)


# Tests of the grid regime alone.
of_grids = pytest.mark.parametrize("regime", [r for r in REGIMES if r == "grid"], indirect=True)


@of_grids
def test_beside_another_kernel(regime):
    """A grid whose blocks must all be resident waits for room, and then runs."""
    module, x = layer("LSTM", (24, 700)), torch.randn(20, 9, 24, device="cuda")
    expected = results(module, x)
    busy, stream = torch.randn(8192, 8192, device="cuda"), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(20):
            busy @ busy
    assert same(expected, results(module, x))


TWO_GRIDS = """
import torch, fastrnn
torch.manual_seed(0)
layers = [fastrnn.LSTM(24, 1024, dtype=torch.bfloat16).cuda() for _ in range(2)]
x = torch.randn(40, 24, 24, device="cuda", dtype=torch.bfloat16)
expected = [layer(x)[0].detach() for layer in layers]
streams = [torch.cuda.Stream() for _ in layers]
torch.cuda.synchronize()
for _ in range(50):
    outputs = []
    for layer, stream in zip(layers, streams):
        with torch.cuda.stream(stream), torch.no_grad():
            outputs.append(layer(x)[0])
torch.cuda.synchronize()
assert all(map(torch.equal, outputs, expected))
"""


@of_grids
def test_two_cooperative_grids_at_once(regime):
    """More than half of the device each, on two streams: neither waits for the other for ever. In a
    process of its own, which ends if they do."""
    command = [sys.executable, "-c", TWO_GRIDS]
    done = subprocess.run(command, timeout=60, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-2000:]


def test_cooperative_ruled_out(cuda, monkeypatch):
    """What runs then is cluster or steps."""
    monkeypatch.setenv("FASTRNN_CUDA_COOPERATIVE", "0")
    module, x = layer("LSTM", (24, 700)), torch.randn(200, 9, 24, device="cuda")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        module(x)
        torch.cuda.synchronize()
    assert not any("team_forward" in event.key for event in profile.key_averages())


@pytest.mark.parametrize("bad", ["input", "h0", "weight"])
def test_devices_do_not_mix(cuda, bad):
    module, x = layer("GRU", (3, 5)), torch.randn(2, 4, 3, device="cuda")
    h0 = torch.zeros(1, 4, 5, device="cuda")
    if bad == "input":
        x = x.cpu()
    elif bad == "h0":
        h0 = h0.cpu()
    else:
        module = module.cpu()
    with pytest.raises(RuntimeError, match="(?i)device|cuda|cpu"):
        module(x, h0)


def test_other_device(cuda):
    """A tensor's device counts, not the current one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    module = layer("LSTM").to("cuda:1")
    x = torch.randn(5, 3, 24, device="cuda:1")
    with torch.cuda.device(0):
        first = results(module, x)
    with torch.cuda.device(1):
        assert same(first, results(module, x))


def test_kernels_are_ours(cuda, monkeypatch):
    """A layer on the device runs this engine, not torch's."""
    monkeypatch.setenv("FASTRNN_CUDA_REGIME", "single")
    module, x = layer("LSTM"), torch.randn(5, 3, 24, device="cuda")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        module(x)
        torch.cuda.synchronize()
    names = [event.key for event in profile.key_averages()]
    assert any("single_forward_kernel" in name for name in names), names
