"""What ncu watches, and which kernels run.

    python -m benchmarks.gpu.profile --regime single --hidden 128 --batch 32 [--backward]
    python -m benchmarks.gpu.profile --names --rows rows.jsonl

The first makes two calls of a layer with the regime forced; ncu takes the second's kernel. The
second writes rows with the kernels of torch.nn and of fastrnn, their numbers, and the share of each
phase in the time.
"""

import os
import sys

import torch
from torch import nn

from benchmarks.gpu import measure, rows
from benchmarks.gpu.cells import PASSES, REGIMES, Cell

#: Whose kernels' names are written down.
NAMED = (
    Cell("LSTM", "bf16", 128, 64),
    Cell("LSTM", "fp16", 768, 16),
    Cell("GRU", "bf16", 128, 64),
    Cell("LSTM", "bf16", 1024, 64),
    Cell("LSTM", "bf16", 128, 64, variant="packed"),
)
#: How a kernel's name tells what it is for. The steps regime's recurrence has products of its
#: own, which nothing tells from the others.
PHASES = {
    "recurrence": ("single_forward", "single_backward", "team_forward", "team_backward",
                   "pointwise_forward", "pointwise_backward", "gradient_sum"),
    "packing": ("pack_kernel",),
    "products": ("gemm", "cutlass", "xmma", "nvjet", "splitK", "cublas"),
}  # fmt: skip


def work_of(library, cell, device):
    """A layer of a library on random data."""
    torch.manual_seed(1)
    measure.set_precision(cell.numeric)
    module = measure.layer(library, cell, device)
    return measure.Work(module, measure.Data(cell, device))


def phase_of(name):
    """What a kernel is for."""
    for phase, parts in PHASES.items():
        if any(part in name for part in parts):
            return phase
    return "rest"


def kernels(call, device):
    """`(number of calls by kernel, share of each phase)` of a call."""
    kind = torch.profiler.ProfilerActivity
    activity = kind.CUDA if device.name == "cuda" else kind.CPU
    call()
    with torch.profiler.profile(activities=[activity]) as profile:
        call()
        device.synchronize()
    events, times = profile.key_averages(), dict.fromkeys([*PHASES, "rest"], 0.0)
    for event in events:
        times[phase_of(event.key)] += event.self_device_time_total
    total = sum(times.values()) or 1.0
    counts = {event.key[:160]: event.count for event in events}
    return counts, {phase: round(time / total, 3) for phase, time in times.items()}


def names(options, device):
    """Rows of which kernels run."""
    import fastrnn

    for cell in (Cell("LSTM", "fp32", 8, 4, 3),) if options.tiny else NAMED:
        for who, library in (("nn", nn), ("plan", fastrnn)):
            counts, shares = kernels(work_of(library, cell, device).both, device)
            row = {"stage": "names", "who": who, **cell._asdict(), "pass": PASSES[1]}
            rows.append(options.rows, {**row, "kernels": counts, "shares": shares})
            print(who, cell.text(), shares, flush=True)


def main(arguments=None):
    """One of the two."""
    parser = measure.arguments(__doc__)
    parser.add_argument("--names", action="store_true")
    parser.add_argument("--regime", choices=REGIMES, default="steps")
    parser.add_argument("--cell", default="LSTM")
    parser.add_argument("--numeric", choices=measure.NUMERICS, default="bf16")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--backward", action="store_true")
    options = parser.parse_args(arguments)
    device = measure.DEVICES[options.device]()
    if options.names:
        names(options, device)
        return 0
    os.environ["FASTRNN_CUDA_REGIME"] = options.regime
    import fastrnn

    steps = 3 if options.tiny else 512
    cell = Cell(options.cell, options.numeric, options.hidden, options.batch, steps)
    work = work_of(fastrnn, cell, device)
    for _ in range(2):
        work.both() if options.backward else work.forward()
        device.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
