"""Small layers of one regime against torch.nn in float64, forward and backward: a row for each.

    python -m benchmarks.gpu.smoke --regime single --rows rows.jsonl [--tiny]

Exit status 1: most of what ran is wrong. 3: the device cannot be used any more. --tiny leaves the
smallest sizes, which is also what compute-sanitizer watches.
"""

import itertools
import os
import sys
import time
import traceback

import torch

from benchmarks.gpu import cells, measure, rows

#: (H, B, T), straddling tiles of 8 rows, and teams of several blocks.
SIZES = ((40, 5, 6), (256, 20, 33), (96, 9, 17), (128, 33, 20), (512, 9, 20), (1024, 17, 12))
KINDS = (("LSTM", ""), ("GRU", ""), ("RNN", ""), ("LSTM", "packed"), ("GRU", "bidirectional"))


def errors(cell, device):
    """`(output, gradients)` of a cell."""
    import fastrnn

    torch.manual_seed(1)
    measure.set_precision(cell.numeric)
    data = measure.Data(cell, device)
    work = measure.Work(measure.layer(fastrnn, cell, device), data)
    output = work.forward()
    check = measure.Check(work, data, cell, device)
    found = check.output_error(output), check.gradient_error()
    device.synchronize()
    return found


def main(arguments=None):
    """Goes through the sizes; the exit status."""
    parser = measure.arguments(__doc__)
    parser.add_argument("--regime", choices=cells.REGIMES, required=True)
    options = parser.parse_args(arguments)
    os.environ["FASTRNN_CUDA_REGIME"] = options.regime
    device = measure.DEVICES[options.device]()
    sizes = SIZES[:1] if options.tiny else SIZES
    right = bad = 0
    for size, (name, variant), numeric in itertools.product(sizes, KINDS, cells.NUMERICS):
        if time.time() > options.until:
            break
        cell = cells.Cell(name, numeric, *size, variant)
        row = {"stage": "smoke", "who": options.regime, **cell._asdict()}
        try:
            row["errors"] = errors(cell, device)
            row["wrong"] = not max(row["errors"]) <= measure.TOLERANCE[numeric]
            bad, right = bad + row["wrong"], right + (not row["wrong"])
        except Exception as error:  # the row says what it was
            row[measure.kind_of(error)] = measure.first_line(error)
            if "failed" in row:
                bad += 1
                traceback.print_exc()
        rows.append(options.rows, row)
        print(row, flush=True)
        if not measure.usable(device):
            return 3
    return 1 if bad > right else 0


if __name__ == "__main__":
    sys.exit(main())
