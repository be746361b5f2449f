"""What `checkpoint_every` saves and costs: ``python -m benchmarks.checkpointing``.

Memory is the growth of the peak resident size in a fresh process each (benchmarks.lib.memory), time
the median over rounds in which both layers trained. Gradients must agree, or nothing is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

import torch

import fastrnn

from .lib import cases, timing
from .lib.jobs import training_call
from .lib.report import REPOSITORY

TOLERANCE = 1e-4  # float32, weights' gradients summed over 10,000 steps in another order


def _growth(layer: str, case: cases.Case, threads: int, every: int | None) -> int:
    spec = {"library": "fastrnn", "layer": layer, "mode": "training", "dtype": "float32",
            "threads": threads, "case": str(case), "checkpoint_every": every}  # fmt: skip
    command = [sys.executable, "-m", "benchmarks.lib.memory", json.dumps(spec)]
    # What the child imports is what was imported here.
    paths = [os.path.dirname(os.path.dirname(fastrnn.__file__)), os.environ.get("PYTHONPATH")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, env=environment, check=True
    )
    return json.loads(done.stdout)["growth_bytes"]


def measure(layer: str, case: cases.Case, every: int, threads: int, repeats: int) -> dict:
    """Growth in bytes and median seconds, without and with the option, and the ratios."""
    torch.set_num_threads(threads)
    modules = {}
    for k in (None, every):
        modules[k] = cases.build_layers(layer, case, torch.float32, "training")["fastrnn"]
        modules[k].checkpoint_every = k
    x, d_output = cases.make_input(case, torch.float32), cases.make_d_output(case, torch.float32)
    calls = {str(k): training_call(module, x, d_output) for k, module in modules.items()}
    for call in calls.values():
        call()
    for a, b in zip(*(module.parameters() for module in modules.values()), strict=True):
        error = ((a.grad - b.grad).abs().max() / a.grad.abs().max()).item()
        assert error < TOLERANCE, f"{layer} {case} every {every}: gradients differ by {error:.1e}"
    times = timing.interleave(calls, repeats)
    growth = [_growth(layer, case, threads, k) for k in modules]
    return {
        "growth": growth,
        "seconds": [times[str(k)].median for k in modules],
        "memory_ratio": growth[0] / growth[1],
        "time_ratio": timing.round_ratio(times[str(every)], times["None"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", nargs="+", choices=list(cases.GATES), default=["LSTM", "GRU"])
    parser.add_argument("--cases", nargs="+", default=["10000,1,256,256", "10000,16,64,128"])
    parser.add_argument("--every", type=int, nargs="+", default=[100])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{'layer':5} {'T,B,I,H':>18} {'k':>5} {'MiB':>8} {'with k':>8} {'less':>6} "
          f"{'s':>7} {'with k':>7} {'time':>6}")  # fmt: skip
    for layer in arguments.layers:
        for case in map(cases.parse_case, arguments.cases):
            for every in arguments.every:
                row = measure(layer, case, every, arguments.threads, arguments.repeats)
                plain, less = (g / 2**20 for g in row["growth"])
                print(f"{layer:5} {str(case):>18} {every:5} {plain:8.1f} {less:8.1f} "
                      f"{row['memory_ratio']:6.2f} {row['seconds'][0]:7.3f} "
                      f"{row['seconds'][1]:7.3f} {row['time_ratio']:6.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
