"""Measures the step costs of benchmarks/step_costs.py on this GPU.

For each cell, pass, number format and compiled hidden size, and each regime that runs there, two
batches and two lengths are timed with the regime forced; the three numbers of a cost solve the
times: start + T * (base + row_tile * n). The input product and, for the pass, all that surrounds
the recurrence are in the times of every regime alike, so they change no comparison. What cannot
run keeps the model's number, and the JSON says which those are.
"""

import itertools
import os

import torch

from benchmarks import gpu, step_costs

STEPS = (64, 512)
BATCHES = {"steps": (8, 256), "cluster": (8, 16), "grid": (8, 64)}
LETTERS = {"steps": "P", "cluster": "C", "grid": "G"}
NAMES = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}


def time_us(cell, way, numeric, hidden, batch, steps):
    """One call of the pass in the regime that the environment forces, in microseconds."""
    dtype, tf32 = gpu.NUMERICS[numeric]
    torch.backends.cuda.matmul.allow_tf32 = tf32
    import fastrnn

    module = getattr(fastrnn, NAMES[cell])(32, hidden, dtype=dtype, device="cuda")
    x = torch.randn(steps, batch, 32, dtype=dtype, device="cuda")
    forward = 1e3 * gpu.median_ms(gpu.call_of(module, x, False), 0.02)
    if way == "forward":
        return forward
    # The forward pass that saves costs about as much as the one that does not.
    return 1e3 * gpu.median_ms(gpu.call_of(module, x, True), 0.02) - forward


def solved(times, row_tiles):
    """(base, row_tile, start) from times by (index of steps, index of batch)."""
    per_step = [(times[1, b] - times[0, b]) / (STEPS[1] - STEPS[0]) for b in (0, 1)]
    row_tile = max(0.0, (per_step[1] - per_step[0]) / (row_tiles[1] - row_tiles[0]))
    base = max(0.0, per_step[0] - row_tile * row_tiles[0])
    start = max(0.0, times[0, 0] - STEPS[0] * per_step[0])
    return [round(v, 3) for v in (base, row_tile, start)]


def row_tiles_of(cell, way, numeric, hidden, batch, regime):
    """Row tiles that a team, or for P the whole batch, has; None where the regime cannot run."""
    from fastrnn import _ops, _overlap

    dtype, tf32 = gpu.NUMERICS[numeric]
    name = "rnn_tanh" if cell == "rnn" else cell
    try:
        plan = _ops.cuda_plan(name, way == "backward", str(dtype).removeprefix("torch."), tf32,
                              hidden, batch, 1, False, 512, _overlap.limits(0))  # fmt: skip
    except ValueError:
        return None
    return plan["row_tiles"] if regime != "steps" else -(-batch // 8)


def measured(cell, way, numeric, hidden, regime):
    """The cost of one regime, or None where it cannot run or its team cannot have two loads."""
    tiles = [row_tiles_of(cell, way, numeric, hidden, batch, regime) for batch in BATCHES[regime]]
    if None in tiles:
        return None
    times = {
        (s, b): time_us(cell, way, numeric, hidden, BATCHES[regime][b], STEPS[s])
        for s, b in itertools.product((0, 1), (0, 1))
    }
    if tiles[0] == tiles[1]:  # enough teams for both batches: the model's part of a row tile
        row_tile = step_costs.modelled(cell, way, numeric, hidden)[regime][1]
        base, _, start = solved({(s, b): times[s, 0] for s, b in times}, (0, 1))
        return [round(max(0.0, base - row_tile * tiles[0]), 3), row_tile, start]
    return solved(times, tiles)


def measure(seconds_left):
    """The content of step_costs.json; where the time is over, what is left is the model's."""
    content = step_costs.model()
    content["source"] = f"measured on {torch.cuda.get_device_name()}, torch {torch.__version__}"
    content["modelled"] = []
    forced = os.environ.get("FASTRNN_CUDA_REGIME")
    try:
        for key, regime in itertools.product(content["costs"], LETTERS):
            cell, way, numeric, hidden = key.split()
            os.environ["FASTRNN_CUDA_REGIME"] = LETTERS[regime]
            try:
                cost = None
                if seconds_left() > 10:
                    cost = measured(cell, way, numeric, int(hidden), regime)
            except (RuntimeError, ValueError) as error:
                content["modelled"].append(f"{key} {regime}: {str(error).splitlines()[0][:120]}")
                continue
            if cost is None:
                content["modelled"].append(f"{key} {regime}: not measured")
            else:
                content["costs"][key][regime] = cost
    finally:
        os.environ.pop("FASTRNN_CUDA_REGIME", None)
        if forced is not None:
            os.environ["FASTRNN_CUDA_REGIME"] = forced
    return content


def write(content):
    """Into the JSON and the header that the plan is compiled with."""
    step_costs.write(content)
