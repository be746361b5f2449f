"""Times of one contestant over the cells of a wave, a row for each pass and way of calling.

    python -m benchmarks.gpu.core --who plan --wave core --rows rows.jsonl [--first 0]

Contestants: "nn" is torch.nn on cuDNN, "plan" fastrnn, a regime's name fastrnn in that regime,
"apart" fastrnn with the layers of a stack one after the other, "haste" and "flashrnn" these
packages. A row that differs from float64 by more than the tolerance is timed, and has a flag. The
row {"begin": i} comes before cell i, so that a cell that hangs or crashes is known.
Exit status 3: a cell has made the device unusable for this process.
"""

import gc
import os
import sys
import time
import traceback

import torch
from torch import nn

from benchmarks.gpu import cells, measure, peers, rows


def plan_text(cell, way):
    """What the plan says of one layer of a cell, on the device."""
    from fastrnn._layer import extension
    from fastrnn._stack import overlap

    dtype, tf32 = measure.NUMERICS[cell.numeric]
    names = {"LSTM": "lstm", "GRU": "gru", "RNN": "rnn_tanh" if not cell.variant else "rnn_relu"}
    directions = 2 if cell.variant == "bidirectional" else 1
    return extension.cuda_plan(
        names[cell.cell], way == "backward", str(dtype).removeprefix("torch."), tf32, cell.hidden,
        cell.batch, directions, cell.variant == "projected", cell.steps, overlap.limits(0),
    )["text"]  # fmt: skip


def bound_ms(cell, work, backward):
    """Arithmetic at the data sheet's peak: nothing can take less."""
    return 1e3 * work.flops() * (3 if backward else 1) / measure.PEAK[cell.numeric]


class Turn:
    """One cell of one contestant: its rows, as they come."""

    def __init__(self, who, cell, device, emit):
        self.who, self.cell, self.device, self.emit = who, cell, device, emit
        torch.manual_seed(1)
        measure.set_precision(cell.numeric)
        self.data = measure.Data(cell, device)
        if who == "nn":  # torch.nn's layers take no resets, and are timed without
            self.data.resets = None

    def run(self):
        """All rows of the cell. Raises where it cannot be run."""
        if self.who in cells.PEERS:
            calls = peers.calls(self.who, self.cell, self.data.x)
            for backward, call in zip((False, True), calls):
                self.time(backward, call, {"error": None, "wrong": False}, None)
            return
        library = nn
        if self.who != "nn":
            import fastrnn as library
        module = measure.layer(library, self.cell, self.device)
        work = measure.Work(module, self.data)
        output = work.forward()
        check = measure.Check(work, self.data, self.cell, self.device)
        self.time(False, work.forward, self.judged(check.output_error(output)), work)
        del output
        try:
            error = check.gradient_error()
        except (RuntimeError, ValueError) as failure:
            self.failed(failure, "forward+backward")
            return
        del check
        self.time(True, work.both, self.judged(error), work)

    def judged(self, error):
        """The error, and whether it is beyond the tolerance (or not a number)."""
        return {"error": error, "wrong": not error <= measure.TOLERANCE[self.cell.numeric]}

    def time(self, backward, call, facts, work):
        """Rows of a pass: eager, then from a graph."""
        facts = facts | {"pass": cells.PASSES[backward], "precision": measure.precision()}
        if work is not None:
            facts["bound_ms"] = bound_ms(self.cell, work, backward)
        if self.who == "plan" and self.device.name == "cuda":
            try:
                facts["plan"] = plan_text(self.cell, "backward" if backward else "forward")
            except Exception as error:  # what is only told must not cost a time
                facts["plan"] = measure.first_line(error)
        added, peak = self.device.peak_bytes(call)
        memory = {"peak_bytes": added, "allocated_bytes": peak}
        self.timed("eager", call, facts | memory, work)
        try:
            replay = self.device.replay_of(call)
        except RuntimeError as error:  # not everything can be captured
            if not measure.usable(self.device):
                raise
            self.emit({**facts, "how": "graph", "failed": measure.first_line(error)})
            return
        self.timed("graph", replay, facts, work)

    def timed(self, how, call, facts, work):
        """One row."""
        found = measure.median_ms(self.device, call)
        cell, seconds = self.cell, 1e-3 * found["ms"]
        found["us_step"] = 1e6 * seconds / cell.steps
        found["sequences_s"] = cell.batch / seconds
        if work is not None:
            passes = 3 if facts["pass"] == cells.PASSES[1] else 1
            found["tflops"] = 1e-12 * passes * work.flops() / seconds
        self.emit({"how": how, **facts, **found})

    def failed(self, error, way):
        """A row that says why there are no times."""
        self.emit({"pass": way, measure.kind_of(error): measure.first_line(error)})


def main(arguments=None):
    """Goes through the wave; the exit status."""
    parser = measure.arguments(__doc__)
    parser.add_argument("--who", required=True)
    parser.add_argument("--wave", choices=cells.WAVES, required=True)
    parser.add_argument("--first", type=int, default=0, help="index of the cell to begin with")
    options = parser.parse_args(arguments)
    if options.who in cells.REGIMES:
        os.environ["FASTRNN_CUDA_REGIME"] = options.who
    elif options.who == "apart":
        os.environ["FASTRNN_CUDA_OVERLAP"] = "0"
    device = measure.DEVICES[options.device]()
    gc.freeze()  # torch collects garbage before every capture; what was imported is none
    start = {"stage": options.wave, "who": options.who}
    wave = list(cells.WAVES["tiny" if options.tiny else options.wave]())
    for index, cell in enumerate(wave):
        if index < options.first or not cells.takes(options.who, cell):
            continue
        if time.time() > options.until:
            rows.append(options.rows, {**start, "stopped": index, "of": len(wave)})
            return 0
        rows.append(options.rows, {**start, "begin": index})
        print(f"{options.who} {index}: {cell.text()}", flush=True)

        def emit(row, cell=cell):
            rows.append(options.rows, {**start, **cell._asdict(), **row})

        try:
            Turn(options.who, cell, device, emit).run()
        except Exception as error:  # one cell must not cost the others; its row says what it was
            emit({measure.kind_of(error): measure.first_line(error)})
            traceback.print_exc()
            if not measure.usable(device):
                return 3
    rows.append(options.rows, {**start, "stopped": len(wave), "of": len(wave)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
