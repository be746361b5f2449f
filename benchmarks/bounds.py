"""What the machine of docs/decisions.md could do at best, and how near a run of the grid came.

    python -m benchmarks.bounds benchmarks/results/grid.json [--cells]

A bound of one cell is the time of its multiplications at the rate of the register tile alone, with
operands in L1; of its transcendentals where they run undisturbed; and, at B = 1, of reading the
recurrent weights at every step at the measured rate of L2 or L3. Nothing is counted for Python,
packing, barriers, saved tensors or caches. All constants were measured on its two cores and
mean nothing elsewhere.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib

from benchmarks.lib.cases import GATES
from benchmarks.lib.timing import geometric_mean

#: Floating-point operations a second of both cores: 94 % of one 512-bit FMA a cycle and core.
TILE_RATE = 221e9

#: Seconds that one core takes for the cell of a row and 16 units, forward and backward: csrc/cells
#: in a loop of rows in L1.
CELL_SECONDS = {"LSTM": (22e-9, 11e-9), "GRU": (15e-9, 4e-9), "RNN": (5e-9, 1e-9)}

#: Bytes a second that one core reads, both reading, by the most bytes it reads over and over: the
#: best of what docs/decisions.md has for it.
READ_RATES = ((256 << 10, 125e9), (1 << 20, 112e9), (3 << 20, 99e9), (math.inf, 95e9))

CORES = 2


def bound(row: dict) -> float:
    """Seconds that a row of the grid takes at least."""
    steps, batch, hidden = row["seq_len"], row["batch"], row["hidden_size"]
    directions, gates = row["directions"], GATES[row["layer"]]
    forward, backward = CELL_SECONDS[row["layer"]]
    training = row["mode"] == "training"
    seconds = 0.0
    for index in range(row["num_layers"]):
        inputs = hidden * directions if index else row["input_size"]
        product = 2 * steps * batch * directions * gates * hidden / TILE_RATE
        recurrence = product * hidden
        if batch == 1:
            share = 4 * gates * hidden * hidden / CORES
            rate = next(rate for limit, rate in READ_RATES if share <= limit)
            recurrence = max(recurrence, steps * directions * share / rate)
        cells = steps * batch * directions * math.ceil(hidden / 16) / CORES
        seconds += product * inputs + recurrence + cells * forward
        if training:  # d_input and the weights' gradients, and the recurrence in reverse
            seconds += product * (2 * inputs + hidden) + recurrence + cells * backward
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("grid", type=pathlib.Path, help="what --json of python -m benchmarks wrote")
    parser.add_argument("--cells", action="store_true", help="every cell too")
    options = parser.parse_args()
    rows = [row for row in json.loads(options.grid.read_text())["rows"] if row["suite"] == "grid"]
    for layer in GATES:
        for mode in ("inference", "training"):
            ceilings, shares = [], []
            for row in rows:
                if (row["layer"], row["mode"], row["threads"]) != (layer, mode, CORES):
                    continue
                seconds = bound(row)
                ceilings.append(row["times"]["torch"]["median_s"] / seconds)
                shares.append(seconds / row["times"]["fastrnn"]["median_s"])
                if options.cells:
                    print(
                        f"{layer} {mode} {row['case']:>20}: bound {seconds * 1e3:8.3f} ms, "
                        f"torch.nn / bound {ceilings[-1]:6.2f}, bound / ours {shares[-1]:.2f}"
                    )
            if not ceilings:
                continue
            print(
                f"{layer} {mode}: torch.nn / bound {geometric_mean(ceilings):.2f} (worst "
                f"{min(ceilings):.2f}), bound / ours {geometric_mean(shares):.2f}"
            )


if __name__ == "__main__":
    main()
