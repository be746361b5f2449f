"""The worker of builds.py: one build of fastrnn in a process of its own, driven by a pipe.

Of fastrnn it uses public names only; all else is of this tree's benchmarks/. Between two turns it
sleeps in the pipe.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import io
import signal
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from .lib import cases, checks, jobs, steps, suites, timing
from .lib.cases import Case

#: Pause before each turn: as long as the other build's OpenMP threads may spin after theirs
#: (7 ms were seen).
SETTLE_SECONDS = 0.02

#: A turn is cut into at most so many batches of calls.
BATCHES = 10


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is timed; kind is plain, call, packed, layer norm or a name in suites.QUANTIZED.

    The modes are those of the grid and, for calls, graph: forward alone, with gradients enabled.
    """

    kind: str
    layer: str
    mode: str
    dtype: str
    threads: int
    case: Case

    def __str__(self) -> str:
        return f"{self.kind} {self.layer} {self.mode} {self.dtype} {self.case}"

    def group(self) -> str:
        return f"{self.layer} {self.mode}" + (", one call" if self.kind == "call" else "")


#: Kind, layer, mode, dtype, and B and H of a case of the full grid; (16, 256) is bidirectional.
QUICK = (
    ("plain", "LSTM", "inference", "float32", 32, 32),
    ("plain", "LSTM", "training", "float32", 32, 32),
    ("plain", "GRU", "inference", "float32", 1, 128),
    ("plain", "LSTM", "inference", "float32", 1, 512),
    ("plain", "GRU", "training", "float32", 16, 128),
    ("plain", "RNN", "inference", "float32", 64, 512),
    ("plain", "RNN", "training", "float32", 32, 32),
    ("plain", "LSTM", "training", "float32", 64, 512),
    ("plain", "GRU", "inference", "float32", 16, 256),
    ("plain", "GRU", "inference", "bfloat16", 64, 512),
    ("plain", "LSTM", "training", "bfloat16", 16, 128),
    ("packed", "GRU", "inference", "float32", 16, 128),
    ("packed", "LSTM", "training", "float32", 16, 128),
    ("layer norm", "LSTM", "training", "float32", 16, 128),
    ("int8", "LSTM", "inference", "float32", 1, 512),
)


def quick_cells(threads: int) -> list[Cell]:
    """Some of everything, in about half a minute."""
    sizes: dict[tuple[int, int], Case] = {}
    for case in cases.FULL_GRID:
        sizes.setdefault((case.batch, case.hidden_size), case)
    return [Cell(*what, threads, sizes[batch, hidden]) for *what, batch, hidden in QUICK]


def call_cells(layers: list[str], threads: int) -> list[Cell]:
    """One step so small that only the call is left."""
    return [
        Cell("call", layer, mode, "float32", threads, steps.OVERHEAD_CASE)
        for layer in layers
        for mode in ("inference", "graph", "training")
    ]


def build_module(cell: Cell) -> nn.Module:
    """The layer of the build that this process has loaded, with weights that no build chooses."""
    import fastrnn

    dtype = cases.DTYPES[cell.dtype]
    module = cases.build_layers(cell.layer, cell.case, dtype, cell.mode)["fastrnn"]
    if cell.kind in suites.QUANTIZED:
        return fastrnn.quantize(module, suites.QUANTIZED[cell.kind][0], inplace=False)
    if cell.kind == "layer norm":
        plain = module
        module = getattr(fastrnn.variants, cell.layer)(
            plain.input_size, plain.hidden_size, layer_norm=True
        )
        module.load_state_dict(plain.state_dict(), strict=False)  # gains stay 1
    return module.train(cell.mode == "training")


def prepare(cell: Cell, seconds: float) -> tuple[Callable[[], float], dict[str, torch.Tensor], int]:
    """A turn that returns seconds per call, what both builds must agree on, and calls a turn."""
    torch.set_num_threads(cell.threads)
    dtype = cases.DTYPES[cell.dtype]
    module = build_module(cell)
    x, d_output = cases.make_input(cell.case, dtype), cases.make_d_output(cell.case, dtype)
    if cell.kind == "packed":
        lengths = suites.ragged_lengths(cell.case.seq_len, cell.case.batch)
        x = pack_padded_sequence(x, lengths, enforce_sorted=False)
        d_output = pack_padded_sequence(d_output, lengths, enforce_sorted=False).data
    if cell.mode == "graph":
        call = functools.partial(module, x)
    else:
        call = jobs.layer_call(module, x, cell.mode, d_output)
    if cell.kind in suites.QUANTIZED:  # no parameters, which run_layer asks for its dtype
        found = {"output": call()[0]}
    else:
        found = checks.run_layer(module, x, cell.mode, d_output)
    calls, each = timing.autorange(call, seconds / BATCHES)
    batches = max(1, min(BATCHES, round(seconds / (calls * each))))

    def turn() -> float:
        time.sleep(SETTLE_SECONDS)
        if each < seconds / 2:  # brings its data back into the caches
            call()
        return statistics.median(timing.time_calls(call, calls) / calls for _ in range(batches))

    return turn, found, calls * batches


def work(connection: Connection, root: str, seconds: float) -> None:
    """Answers a Cell with its tensors and calls a turn, None with the seconds of one turn."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent closes the pipe
    turn: Callable[[], float] | None = None

    def load() -> None:
        sys.path.insert(0, root)
        import fastrnn

        sys.path.remove(root)
        if not Path(fastrnn.__file__).resolve().is_relative_to(root):
            raise ImportError(f"asked for the fastrnn in {root}, got {fastrnn.__file__}")

    def answer(cell: Cell | None) -> Any:
        nonlocal turn
        if cell is None:
            return turn()
        turn = None
        gc.collect()
        turn, found, calls = prepare(cell, seconds)
        file = io.BytesIO()
        torch.save({name: tensor.detach() for name, tensor in found.items()}, file)
        return file.getvalue(), calls

    def send(function: Callable[..., Any], *arguments: Any) -> None:
        try:
            connection.send((True, function(*arguments)))
        except Exception as error:
            connection.send((False, f"{type(error).__name__}: {error}"))

    gc.disable()
    with contextlib.suppress(EOFError, OSError):  # the other end is closed
        send(load)
        while True:
            send(answer, connection.recv())
