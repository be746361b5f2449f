"""Measures the step costs of one regime on this GPU: rows that tools/step_costs.py reads.

    python -m benchmarks.gpu.calibrate --regime cluster --rows rows.jsonl

For each cell, pass, number format and compiled hidden size, two batches and two lengths are timed
with the regime forced; the three numbers of a cost solve the times: start + T * (base + row_tile *
n). The input product and, for the pass, all that surrounds the recurrence are in the times of every
regime alike, so they change no comparison.
"""

import itertools
import os
import sys
import time

from benchmarks.gpu import measure, rows
from benchmarks.gpu.cells import Cell
from benchmarks.tools import step_costs

#: Two lengths, and two batches by regime.
STEPS = (64, 512)
BATCHES = {"steps": (8, 256), "cluster": (8, 16), "grid": (8, 64)}
TINY_STEPS, TINY_BATCHES = (2, 6), (2, 9)
LAYERS = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}


class Narrow(measure.Data):
    """Data of few features: the input product is not what is measured."""

    FEATURES = 32

    def __init__(self, cell, device):
        super().__init__(cell, device)
        self.x = self.x[..., : self.FEATURES].contiguous()


def time_us(cell, way, device):
    """One call of the pass, in microseconds."""
    import fastrnn

    measure.set_precision(cell.numeric)
    dtype = measure.NUMERICS[cell.numeric][0]
    features = min(Narrow.FEATURES, cell.hidden)
    module = getattr(fastrnn, cell.cell)(features, cell.hidden, dtype=dtype, device=device.name)
    work = measure.Work(module, Narrow(cell, device))
    forward = measure.median_ms(device, work.forward, 0.02)["ms"]
    if way == "forward":
        return 1e3 * forward
    # The forward pass that saves costs about as much as the one that does not.
    return 1e3 * (measure.median_ms(device, work.both, 0.02)["ms"] - forward)


def solved(times, steps, row_tiles):
    """(base, row_tile, start) from times by (index of steps, index of batch)."""
    per_step = [(times[1, b] - times[0, b]) / (steps[1] - steps[0]) for b in (0, 1)]
    row_tile = max(0.0, (per_step[1] - per_step[0]) / (row_tiles[1] - row_tiles[0]))
    base = max(0.0, per_step[0] - row_tile * row_tiles[0])
    start = max(0.0, times[0, 0] - steps[0] * per_step[0])
    return [round(v, 3) for v in (base, row_tile, start)]


def row_tiles_of(cell, way, regime, device):
    """Row tiles that a team, or for steps the whole batch, has; None where it cannot run."""
    if regime == "steps" or device.name == "cpu":
        return -(-cell.batch // 8)
    from fastrnn._layer import extension
    from fastrnn._stack import overlap

    dtype, tf32 = measure.NUMERICS[cell.numeric]
    name = "rnn_tanh" if cell.cell == "RNN" else cell.cell.lower()
    try:
        plan = extension.cuda_plan(
            name, way == "backward", str(dtype).removeprefix("torch."), tf32, cell.hidden,
            cell.batch, 1, False, cell.steps, overlap.limits(0),
        )  # fmt: skip
    except ValueError:
        return None
    return plan["row_tiles"]


def measured(key, regime, device, steps, batches):
    """The cost of one regime, or None where it cannot run; key: as of step_costs."""
    name, way, numeric, hidden = key
    work = {
        (s, b): Cell(LAYERS[name], numeric, hidden, batches[b], steps[s])
        for s, b in itertools.product((0, 1), (0, 1))
    }
    tiles = [row_tiles_of(work[1, b], way, regime, device) for b in (0, 1)]
    if None in tiles:
        return None
    times = {index: time_us(cell, way, device) for index, cell in work.items()}
    if tiles[0] == tiles[1]:  # enough teams for both batches: the model's part of a row tile
        row_tile = step_costs.modelled(name, way, numeric, hidden)[regime][1]
        base, _, start = solved({(s, b): times[s, 0] for s, b in times}, steps, (0, 1))
        return [round(max(0.0, base - row_tile * tiles[0]), 3), row_tile, start]
    return solved(times, steps, tiles)


def keys(tiny):
    """Keys of the table, those that decide most first."""
    if tiny:
        return [("lstm", "forward", "fp32", 256)]
    order = itertools.product(
        (("lstm", "gru"), ("rnn",)), (("bf16",), ("tf32",), ("fp16", "fp32")),
        step_costs.HIDDEN, step_costs.PASSES,
    )  # fmt: skip
    return [
        (name, way, numeric, hidden)
        for names, numerics, hidden, way in order
        for name in names
        for numeric in numerics
    ]


def main(arguments=None):
    """Measures until the time is over; the exit status."""
    parser = measure.arguments(__doc__)
    parser.add_argument("--regime", choices=BATCHES, required=True)
    options = parser.parse_args(arguments)
    os.environ["FASTRNN_CUDA_REGIME"] = options.regime
    device = measure.DEVICES[options.device]()
    steps = TINY_STEPS if options.tiny else STEPS
    batches = TINY_BATCHES if options.tiny else BATCHES[options.regime]
    for key in keys(options.tiny):
        if time.time() > options.until:
            break
        row = {"stage": "calibrate", "key": " ".join(map(str, key))}
        row["regime"] = options.regime
        print(row, flush=True)
        try:
            row["cost"] = measured(key, options.regime, device, steps, batches)
        except Exception as error:  # one key must not cost the others; its row says what it was
            row[measure.kind_of(error)] = measure.first_line(error)
        rows.append(options.rows, row)
        if not measure.usable(device):
            return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
