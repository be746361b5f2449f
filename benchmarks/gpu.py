"""All that a few minutes on a GPU are for, in one command, in order of importance.

    python -m benchmarks.gpu --out gpu.json [--minutes 10] [--only build tests ...]

Builds the extension with CUDA, runs the GPU tests, compute-sanitizer on the smallest cases, names
of cuDNN's kernels, a training job, then the grid of issues 3 and 5 beside torch.nn (cuDNN), and
FlashRNN and Haste where they are installed, until the time is over. The JSON is written after every
part and every row, so that whatever was done is kept; a part that fails says so there and does not
stop the others. Each row is checked against torch.nn first, and a row that is wrong has no times.

A time is the median over runs between CUDA events of one call: T = 512 steps unless it says
otherwise, input product included, random data. `us` is per step, `graph_us` the same replayed from
a CUDA graph; `shares` are of our kernels' time: the recurrence, products of all steps, the rest.

`--only build calibrate` measures every regime on this GPU and writes its step costs where the plan
reads them (benchmarks/step_costs.py); build again afterwards.
"""

import argparse
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).parent.parent
PARTS = ("build", "tests", "sanitizer", "names", "training", "grid")
STEPS = 512
# A name, the dtype, whether products may be TF32.
NUMERICS = {
    "bf16": (torch.bfloat16, False),
    "fp16": (torch.float16, False),
    "tf32": (torch.float32, True),
    "fp32": (torch.float32, False),
}
# Largest difference from torch.nn, relative to the largest value, that a row may have.
TOLERANCE = {"bf16": 0.03, "fp16": 4e-3, "tf32": 4e-3, "fp32": 1e-4}
# Dense peak of an H200 in flop/s and its bandwidth in bytes/s, of NVIDIA's data sheet.
PEAK = {"bf16": 989e12, "fp16": 989e12, "tf32": 494e12, "fp32": 67e12}
BANDWIDTH = 4.8e12
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")


class Record:
    """The results, written to the file whenever they change."""

    def __init__(self, path, deadline):
        self.path, self.deadline = path, deadline
        self.content = {"environment": environment(), "parts": {}, "grid": []}
        self.write()

    def left(self):
        """Seconds until the time is over."""
        return self.deadline - time.monotonic()

    def write(self):
        """Replaces the file at once, so that it is whole whenever the machine is taken away."""
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.content, indent=1) + "\n")
        partial.replace(self.path)

    def part(self, name, **facts):
        """Adds to what is known of a part."""
        self.content["parts"].setdefault(name, {}).update(facts)
        self.write()
        print(f"{name}: {facts}", flush=True)


def environment():
    """What the numbers depend on."""
    facts = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "platform": platform.platform(),
        "commit": said("git", "rev-parse", "HEAD"),
        "nvcc": said("nvcc", "--version").splitlines()[-1:],
        "nvidia_smi": said(
            "nvidia-smi", "--format=csv",
            "--query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit",
        ),
    }  # fmt: skip
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts["device"] = properties.name
        facts["capability"] = f"{properties.major}.{properties.minor}"
        facts["multiprocessors"] = properties.multi_processor_count
    return facts


def said(*command):
    """What a command prints; nothing where it cannot run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    except OSError:
        return ""


def run(record, name, command, limit, **environ):
    """Runs a command as a part of the record; whether it went well."""
    begin, limit = time.monotonic(), max(1, min(limit, record.left()))
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, timeout=limit,
            env=os.environ | environ,
        )  # fmt: skip
        status, text = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        status = f"stopped after {limit:.0f} s"
        text = (error.stdout or b"").decode(errors="replace")
    seconds = round(time.monotonic() - begin, 1)
    record.part(name, status=status, seconds=seconds, tail=text[-4000:])
    return status == 0


def build(record):
    """The extension, in place."""
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    capability = record.content["environment"].get("capability", "9.0")
    architecture = "9.0a" if capability == "9.0" else capability
    run(record, "build", command, 400, FASTRNN_CUDA="1", TORCH_CUDA_ARCH_LIST=architecture)


def tests(record):
    """The GPU tests, the cheapest and most telling first."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "tests/test_cuda.py"]
    run(record, "tests", command, 240)


def sanitizer(record):
    """Every tool of compute-sanitizer on small layers of every regime."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        record.part("sanitizer", status="not run: no compute-sanitizer on this machine")
        return
    for check, regime in itertools.product(SANITIZERS, "SGCP"):
        command = [
            tool, "--tool", check, "--error-exitcode", "9",
            "--kernel-name-exclude", "kernel_substring=at::",
            sys.executable, "-m", "benchmarks.gpu", "--smallest",
        ]  # fmt: skip
        run(record, f"sanitizer {check} {regime}", command, 60, FASTRNN_CUDA_REGIME=regime,
            PYTORCH_NO_CUDA_MEMORY_CACHING="1")  # fmt: skip


def smallest():
    """What the sanitizers watch: every cell and number format, forward and backward, once."""
    import fastrnn

    for cell, (dtype, tf32) in itertools.product(("LSTM", "GRU", "RNN"), NUMERICS.values()):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        module = getattr(fastrnn, cell)(5, 40, bidirectional=True, dtype=dtype, device="cuda")
        rows = [torch.randn(n, 5, dtype=dtype, device="cuda") for n in (4, 4, 2, 1)] * 3
        packed = nn.utils.rnn.pack_sequence(rows, enforce_sorted=False)
        module(packed)[0].data.float().sum().backward()
    torch.cuda.synchronize()


def modules(cell, numeric, hidden, features, **options):
    """`(torch.nn's, ours)` with the same weights, and the switches of the number format set."""
    import fastrnn

    dtype, tf32 = NUMERICS[numeric]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    theirs = getattr(nn, cell)(features, hidden, dtype=dtype, device="cuda", **options)
    ours = getattr(fastrnn, cell)(features, hidden, dtype=dtype, device="cuda", **options)
    ours.load_state_dict(theirs.state_dict())
    theirs.flatten_parameters()
    return theirs, ours


def data(numeric, batch, features, packed, steps=STEPS):
    """Random input; packed: lengths spread evenly from a quarter of T up to T."""
    x = torch.randn(steps, batch, features, dtype=NUMERICS[numeric][0], device="cuda")
    if not packed:
        return x
    lengths = torch.linspace(steps // 4, steps, batch).long().flip(0)
    return nn.utils.rnn.pack_padded_sequence(x, lengths)


def call_of(module, x, backward):
    """A function of no arguments that runs one call, and returns the output's values."""
    values = x.data if isinstance(x, nn.utils.rnn.PackedSequence) else x
    if not backward:

        def forward():
            with torch.no_grad():
                output = module(x)[0]
            return output.data if isinstance(output, nn.utils.rnn.PackedSequence) else output

        return forward
    values.requires_grad_()
    gradient = None

    def both():
        nonlocal gradient
        output = module(x)[0]
        output = output.data if isinstance(output, nn.utils.rnn.PackedSequence) else output
        if gradient is None:
            gradient = torch.randn_like(output)
        torch.autograd.grad(output, [values, *module.parameters()], gradient)
        return output.detach()

    return both


def median_ms(function, budget=0.12):
    """Median over calls between events, for `budget` seconds, at least 3 calls."""
    function()
    torch.cuda.synchronize()
    times, begin = [], time.monotonic()
    while len(times) < 3 or time.monotonic() - begin < budget:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def graph_ms(function):
    """The same, replayed from a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return median_ms(graph.replay, 0.06)


def bound_us(cell, numeric, hidden, batch, backward):
    """Arithmetic at peak and saved tensors at the memory's bandwidth, whichever is longer."""
    gates, size = (4 if cell == "LSTM" else 3), NUMERICS[numeric][0].itemsize
    flops = 2 * batch * gates * hidden * 2 * hidden * (3 if backward else 1)
    values = batch * hidden * ((3 * gates + 6) if backward else (2 * gates + 2))
    return 1e6 * max(flops / PEAK[numeric], values * size / BANDWIDTH)


#: How a kernel's name tells what it is for.
PHASES = {
    "recurrence": ("single_forward", "single_backward", "team_forward", "team_backward",
                   "pointwise_forward", "pointwise_backward", "gradient_sum"),
    "packing": ("pack_kernel",),
    "products": ("gemm", "cutlass", "xmma", "nvjet", "splitK", "cublas"),
}  # fmt: skip


def shares(call):
    """Share of each phase in the time of our kernels, by their names."""
    activity = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activity) as profile:
        call()
        torch.cuda.synchronize()
    times = dict.fromkeys([*PHASES, "rest"], 0.0)
    for event in profile.key_averages():
        phase = next((p for p, parts in PHASES.items() if any(n in event.key for n in parts)),
                     "rest")  # fmt: skip
        times[phase] += event.self_device_time_total
    total = sum(times.values()) or 1.0
    # Regime P's recurrence has products of its own, which nothing tells from the others.
    return {phase: round(time / total, 3) for phase, time in times.items()}


def row(cell, numeric, hidden, batch, packed, backward, steps=STEPS, **options):
    """One row of the grid."""
    from fastrnn import _ops, _overlap

    facts = {"cell": cell, "numeric": numeric, "hidden": hidden, "batch": batch, "packed": packed,
             "pass": "forward+backward" if backward else "forward", "steps": steps,
             **options}  # fmt: skip
    theirs, ours = modules(cell, numeric, hidden, hidden, **options)
    x = data(numeric, batch, hidden, packed, steps)
    dtype, tf32 = NUMERICS[numeric]
    directions = 2 if options.get("bidirectional") else 1
    facts["plan"] = {
        way: _ops.cuda_plan(
            cell.lower(), way == "backward", str(dtype).removeprefix("torch."), tf32, hidden, batch,
            directions, False, steps, _overlap.limits(0),
        )["text"]
        for way in (("forward", "backward") if backward else ("forward",))
    }  # fmt: skip
    calls = call_of(theirs, x, backward), call_of(ours, x, backward)
    expected, got = (call().float() for call in calls)
    error = ((got - expected).abs().max() / expected.abs().max()).item()
    facts["error"] = error
    if not error <= TOLERANCE[numeric]:
        facts["refused"] = f"differs from torch.nn by {error:.3g} > {TOLERANCE[numeric]}"
        return facts
    for name, call in zip(("cudnn", "fastrnn"), calls):
        facts[name] = {"us": 1e3 * median_ms(call) / steps}
        try:
            facts[name]["graph_us"] = 1e3 * graph_ms(call) / steps
        except RuntimeError as error:  # cuDNN cannot be captured everywhere
            torch.cuda.synchronize()
            facts[name]["no_graph"] = str(error).splitlines()[0][:200]
    if options.get("num_layers", 1) > 1:
        os.environ["FASTRNN_CUDA_OVERLAP"] = "0"
        apart = {"us": 1e3 * median_ms(calls[1]) / steps,
                 "graph_us": 1e3 * graph_ms(calls[1]) / steps}  # fmt: skip
        del os.environ["FASTRNN_CUDA_OVERLAP"]
        facts["fastrnn, layers one after the other"] = apart
    for name, peer in peers(cell, numeric, hidden, packed, options, x, backward).items():
        try:
            facts[name] = {"us": 1e3 * median_ms(peer) / steps}
        except Exception as error:  # a peer that cannot take the shape says so in the row
            facts[name] = {"failed": f"{type(error).__name__}: {error}"[:200]}
    facts["ratio"] = facts["cudnn"]["us"] / facts["fastrnn"]["us"]
    best = [facts[name].get("graph_us", facts[name]["us"]) for name in ("cudnn", "fastrnn")]
    facts["graph_ratio"] = best[0] / best[1]
    facts["bound_us"] = (
        bound_us(cell, numeric, hidden, batch, backward)
        * directions**2  # the layers above the first have twice the features, all twice the units
        * options.get("num_layers", 1)
    )
    facts["share_of_bound"] = facts["bound_us"] / best[1]
    facts["shares"] = shares(calls[1])
    return facts


def peers(cell, numeric, hidden, packed, options, x, backward):
    """Calls of other packages by name, those that are installed and have such a layer.

    Haste has fp32 LSTM and GRU layers; FlashRNN has the recurrence alone, in bf16 and fp16, so that
    its time lacks the input product.
    """
    calls = {}
    if packed or options:
        return calls
    if numeric in ("fp32", "tf32"):
        try:
            import haste_pytorch
        except ImportError:
            pass
        else:
            layer = getattr(haste_pytorch, cell)(hidden, hidden).cuda()
            calls["haste"] = call_of(layer, x, backward)
    elif cell == "LSTM":
        try:
            from flashrnn import flashrnn
        except ImportError:
            pass
        else:
            calls["flashrnn"] = flashrnn_call(flashrnn, x, hidden, backward)
    return calls


def flashrnn_call(flashrnn, x, hidden, backward):
    """FlashRNN's fused LSTM with one head: pre-activations [B, T, gates, heads, H]."""
    gates = torch.randn(
        x.shape[1], x.shape[0], 4, 1, hidden, dtype=x.dtype, device="cuda", requires_grad=backward
    )
    weight = torch.randn(4, 1, hidden, hidden, dtype=x.dtype, device="cuda") / hidden**0.5
    weight.requires_grad_(backward)
    bias = torch.zeros(4, 1, hidden, dtype=x.dtype, device="cuda", requires_grad=backward)

    def call():
        states, _ = flashrnn(gates, weight, bias, function="lstm", backend="cuda_fused")
        if backward:
            torch.autograd.grad(states[0].sum(), [gates, weight, bias])
        return states[0]

    return call


def cells():
    """The grid in order of priority: what the bars are about, then what lies beyond.

    Each is the arguments of row() and its options.
    """
    small, large, huge = (64, 128, 32, 96), (1024, 512, 256, 768), (2048,)
    batches = (64, 1, 256, 32, 8, 128)
    both = (False, True)
    for hiddens, packed in ((large, False), (small, False), (large, True), (small, True)):
        for batch, hidden, numeric, cell, backward in itertools.product(
            batches, hiddens, NUMERICS, ("LSTM", "GRU"), both
        ):
            yield (cell, numeric, hidden, batch, packed, backward), {}
        if (hiddens, packed) != (large, False):
            continue
        stacks = ({"bidirectional": True}, {"num_layers": 2}, {"num_layers": 4})
        for options, hidden, batch, cell, backward in itertools.product(
            stacks, (512, 1024, 256), (64, 8), ("LSTM", "GRU"), both
        ):
            yield (cell, "bf16", hidden, batch, False, backward), options
        for steps, hidden, batch, numeric, cell, backward in itertools.product(
            (1, 8, 32), (128, 512, 1024), (1, 64), ("bf16", "tf32"), ("LSTM", "GRU"), both
        ):
            yield (cell, numeric, hidden, batch, False, backward), {"steps": steps}
    for packed, batch, numeric, cell, backward in itertools.product(
        both, batches, NUMERICS, ("LSTM", "GRU"), both
    ):
        yield (cell, numeric, huge[0], batch, packed, backward), {}


def grid(record):
    """Rows until the time is over."""
    rows = list(cells())
    for done, (arguments, options) in enumerate(rows):
        if record.left() < 5:
            record.part("grid", status=f"time is over: {done} of {len(rows)} rows")
            return
        try:
            facts = row(*arguments, **options)
        except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
            facts = {"arguments": arguments, "options": options, "failed": str(error)[:500]}
        record.content["grid"].append(facts)
        record.write()
        print(json.dumps(facts), flush=True)
    record.part("grid", status="all rows", rows=len(rows))


def training(record):
    """The demo's language model; each cell and size is a part of its own."""
    from benchmarks import gpu_training

    for cell, hidden in itertools.product(("LSTM", "GRU"), (512, 1024)):
        name = f"training {cell} {hidden}"
        record.part(name, **gpu_training.compare(cell, hidden, seconds=0.02 * record.left()))


def calibrate(record):
    """Step costs of every regime on this GPU, into the files that the plan is built from."""
    from benchmarks import gpu_calibrate

    content = gpu_calibrate.measure(record.left)
    content["source"] += f", commit {record.content['environment']['commit'][:12]}"
    gpu_calibrate.write(content)
    record.part("calibrate", status=0, **content)


def names(record):
    """Which kernels cuDNN runs, and ours."""
    found = {}
    for cell, numeric, hidden, batch, packed in (
        ("LSTM", "bf16", 128, 64, False),
        ("LSTM", "fp16", 768, 16, False),
        ("GRU", "bf16", 128, 64, False),
        ("LSTM", "bf16", 1024, 64, False),
        ("LSTM", "bf16", 128, 64, True),
    ):
        for name, module in zip(("cudnn", "fastrnn"), modules(cell, numeric, hidden, hidden)):
            call = call_of(module, data(numeric, batch, hidden, packed), True)
            call()
            activity = [torch.profiler.ProfilerActivity.CUDA]
            with torch.profiler.profile(activities=activity) as profile:
                call()
                torch.cuda.synchronize()
            label = f"{name} {cell} {numeric} H={hidden} B={batch}{' packed' if packed else ''}"
            found[label] = {e.key[:160]: e.count for e in profile.key_averages()}
    record.part("names", status=0, kernels=found)


def main():
    """Runs the parts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", nargs="+", choices=(*PARTS, "calibrate"), default=PARTS)
    parser.add_argument("--smallest", action="store_true", help="what compute-sanitizer runs")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks.gpu: this machine has no CUDA device")
    if arguments.smallest:
        smallest()
        return
    record = Record(arguments.out, time.monotonic() + 60 * arguments.minutes)
    every = {"build": build, "tests": tests, "sanitizer": sanitizer, "names": names,
             "calibrate": calibrate, "training": training, "grid": grid}  # fmt: skip
    for part in every:
        if part not in arguments.only:
            continue
        try:
            every[part](record)
        except Exception as error:  # one part must not cost the others; the record says what it was
            record.part(part, status=f"{type(error).__name__}: {error}"[:2000])


if __name__ == "__main__":
    main()
