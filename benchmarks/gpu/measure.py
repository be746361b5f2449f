"""What the workers share: devices, layers and their data, errors against float64, times.

A worker is one process. `--device cpu` runs the same code without a GPU, with a clock for events
and calls for graphs, so that it has run before a GPU is there.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)

# By name: the dtype, and whether products may be TF32.
NUMERICS = {
    "bf16": (torch.bfloat16, False),
    "fp16": (torch.float16, False),
    "tf32": (torch.float32, True),
    "fp32": (torch.float32, False),
}
#: Largest error against float64 that a row may have without a flag, as a share of the norm.
TOLERANCE = {"bf16": 0.05, "fp16": 0.01, "tf32": 0.01, "fp32": 1e-4}
#: Rows of the batch that the float64 check looks at.
CHECKED = 4
#: Dense peak in flop/s of an H100 or H200, of NVIDIA's data sheet.
PEAK = {"bf16": 989e12, "fp16": 989e12, "tf32": 494e12, "fp32": 67e12}


def arguments(doc):
    """A parser with what every worker takes."""
    parser = argparse.ArgumentParser(description=doc.partition("\n")[0])
    parser.add_argument("--rows", type=Path, default=Path("rows.jsonl"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--until", type=float, default=time.time() + 60, help="begin nothing after this time.time()"
    )
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a dry run")
    return parser


def set_precision(numeric):
    """The switches of both libraries, by the older names, which every torch has.

    Nothing in a worker may use the newer ones as well: reading an older one raises then.
    """
    tf32 = NUMERICS[numeric][1]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32


def precision():
    """What fp32 products of matmul (ours) and of cuDNN's RNNs (torch.nn) are computed in."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    try:
        return {"matmul": matmul.fp32_precision, "cudnn": cudnn.rnn.fp32_precision}
    except (AttributeError, RuntimeError):  # a torch that has the older switches alone
        names = {True: "tf32", False: "ieee"}
        return {"matmul": names[matmul.allow_tf32], "cudnn": names[cudnn.allow_tf32]}


class CudaDevice:
    """Time by events, calls replayed from graphs, peaks of torch's allocator."""

    name = "cuda"

    def synchronize(self):
        """Waits for the device."""
        torch.cuda.synchronize()

    def times(self, call, budget):
        """Milliseconds of each of at least 3 calls, for `budget` seconds; one call before them."""
        call()
        torch.cuda.synchronize()
        found, begin = [], time.monotonic()
        while len(found) < 3 or time.monotonic() - begin < budget:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end))
        return found

    def replay_of(self, call):
        """A function that replays the call from a CUDA graph."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def peak_bytes(self, call):
        """Memory that a call needs beyond what is there, and the peak of all."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        return peak - before, peak


class CpuDevice:
    """The same by the clock, for a dry run."""

    name = "cpu"

    def synchronize(self):
        """Nothing is under way."""

    def times(self, call, budget):
        """As of CudaDevice."""
        call()
        found, begin = [], time.perf_counter()
        while len(found) < 3 or time.perf_counter() - begin < budget:
            start = time.perf_counter()
            call()
            found.append(1e3 * (time.perf_counter() - start))
        return found

    def replay_of(self, call):
        """The call itself."""
        return call

    def peak_bytes(self, call):
        """Not known."""
        call()
        return 0, 0


DEVICES = {"cuda": CudaDevice, "cpu": CpuDevice}


def median_ms(device, call, budget=0.03):
    """Facts of a call's times: median, fastest, how many."""
    found = device.times(call, budget)
    return {"ms": statistics.median(found), "ms_min": min(found), "calls": len(found)}


def layer(library, cell, device, dtype=None):
    """The layer of a cell from torch.nn or fastrnn."""
    dtype = NUMERICS[cell.numeric][0] if dtype is None else dtype
    module = getattr(library, cell.cell)(
        cell.hidden, cell.hidden, dtype=dtype, device=device.name, **cell.options()
    )
    if library is nn:
        module.flatten_parameters()
    return module


def exact_of(module, cell, device):
    """torch.nn's layer in float64 with the same weights, rounded as they are."""
    exact = layer(nn, cell, device, torch.float64)
    exact.load_state_dict({name: value.double() for name, value in module.state_dict().items()})
    return exact


class Data:
    """Input of a cell and, where it has them, lengths and resets."""

    def __init__(self, cell, device):
        dtype = NUMERICS[cell.numeric][0]
        self.x = torch.randn(cell.steps, cell.batch, cell.hidden, dtype=dtype, device=device.name)
        self.lengths = self.resets = None
        if cell.variant == "packed":
            self.lengths = torch.linspace(max(1, cell.steps // 4), cell.steps, cell.batch)
            self.lengths = self.lengths.long().flip(0)
        elif cell.variant == "resets":
            self.resets = torch.rand(cell.steps, cell.batch, device=device.name) < 0.03
            self.resets[cell.steps // 2, 0] = True

    def exact_part(self):
        """The first rows, in float64."""
        part = object.__new__(Data)
        part.x = self.x[:, :CHECKED].double()
        part.lengths = None if self.lengths is None else self.lengths[:CHECKED]
        part.resets = None if self.resets is None else self.resets[:, :CHECKED]
        return part

    def count(self):
        """Rows of all steps."""
        if self.lengths is not None:
            return int(self.lengths.sum())
        return self.x.shape[0] * self.x.shape[1]


class Work:
    """The calls that are timed: one layer on its data."""

    def __init__(self, module, data):
        self.module, self.lengths = module, data.lengths
        self.keywords = {} if data.resets is None else {"resets": data.resets}
        self.values, self.counts = data.x, None
        if data.lengths is not None:
            self.values, self.counts = pack_padded_sequence(data.x, data.lengths)[:2]
        self.values = self.values.clone().requires_grad_()
        self.parameters = list(module.parameters())
        self.gradient = None

    def output(self):
        """The output's values, packed where the input is."""
        if self.counts is None:
            return self.module(self.values, **self.keywords)[0]
        return self.module(PackedSequence(self.values, self.counts))[0].data

    def forward(self):
        """Without what backward needs."""
        with torch.no_grad():
            return self.output()

    def both(self):
        """Forward and backward: the output, and gradients of the input and of the parameters."""
        output = self.output()
        if self.gradient is None:
            self.gradient = torch.randn_like(output)
        inputs = [self.values, *self.parameters]
        return output.detach(), torch.autograd.grad(output, inputs, self.gradient)

    def padded(self, values):
        """`[T, B, ...]` from values that are packed where the input is."""
        if self.counts is None:
            return values
        return pad_packed_sequence(PackedSequence(values, self.counts))[0]

    def flops(self):
        """Multiplications and additions of all products in a forward pass."""
        matrices = sum(p.numel() for p in self.parameters if p.dim() == 2)
        steps = self.values.shape[0] if self.counts is not None else self.values[..., 0].numel()
        return 2 * steps * matrices


def segmented(module, x, resets):
    """torch.nn's layer on `[T, B, I]` with a state of zeros before every step of `resets`."""
    pieces, places = [], []
    for row in range(x.shape[1]):
        starts = sorted({0, *resets[:, row].nonzero().flatten().tolist()})
        for start, stop in zip(starts, [*starts[1:], x.shape[0]]):
            pieces.append(x[start:stop, row])
            places.append((row, stop - start))
    packed = pack_sequence(pieces, enforce_sorted=False)
    padded = pad_packed_sequence(module(packed)[0])[0]
    columns = [[] for _ in range(x.shape[1])]
    for index, (row, length) in enumerate(places):
        columns[row].append(padded[:length, index])
    return torch.stack([torch.cat(column) for column in columns], 1)


def difference(got, expected):
    """Norm of the difference, as a share of the expected norm."""
    norm = expected.norm()
    return ((got.double() - expected).norm() / norm.clamp_min(1e-300)).item()


class Check:
    """Errors of a piece of work against torch.nn in float64, on the first rows of the batch.

    Where the gradient of the output is zero in all other rows, gradients of the weights are those
    of the first rows too.
    """

    def __init__(self, work, data, cell, device):
        self.work, self.batch, part = work, data.x.shape[1], data.exact_part()
        exact, resets, part.resets = exact_of(work.module, cell, device), part.resets, None
        self.exact = Work(exact, part)
        if resets is not None:
            self.exact.output = lambda: segmented(exact, self.exact.values, resets)
        self.expected = self.exact.forward()

    def output_error(self, output):
        """Of the output."""
        rows = self.work.padded(output)[:, :CHECKED]
        return difference(rows, self.exact.padded(self.expected))

    def gradient_error(self):
        """The largest of the gradients'."""
        work, exact = self.work, self.exact
        # Rounded to the dtype of what is checked.
        gradient = torch.randn_like(self.expected).to(work.values.dtype)
        exact.gradient = gradient.double()
        expected, part = exact.both()[1], exact.padded(gradient)
        whole = work.values.new_zeros(part.shape[0], self.batch, part.shape[2])
        whole[:, :CHECKED] = part
        before = work.gradient
        work.gradient = whole
        if work.counts is not None:
            work.gradient = pack_padded_sequence(whole, work.lengths).data
        try:
            gradients = work.both()[1]
        finally:
            work.gradient = before
        got = [work.padded(gradients[0])[:, :CHECKED], *gradients[1:]]
        wanted = [exact.padded(expected[0]), *expected[1:]]
        return max(difference(a, b) for a, b in zip(got, wanted))


def kind_of(error):
    """Whether an error says that a forced regime cannot run a layer, or that something failed."""
    return "impossible" if "is impossible here" in str(error) else "failed"


def first_line(error):
    """Of an error's message."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def usable(device):
    """Whether this process can still use its device, and its random numbers, which a capture that
    failed may leave unusable."""
    try:
        torch.randn(1, device=device.name)
        device.synchronize()
    except RuntimeError:
        return False
    return True
