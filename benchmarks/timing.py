"""Interleaved timing: every contestant in every round, so that noise hits all alike."""

from __future__ import annotations

import dataclasses
import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

#: A round of one contestant lasts about this long: long against a clock tick
#: and a scheduler slice, short against the drift of a shared machine.
ROUND_SECONDS = 0.1

#: Pause before each contestant. Thread pools (OpenMP, ONNX Runtime) spin for
#: about a millisecond after their work and would steal the next one's cores.
SETTLE_SECONDS = 0.005

#: A contestant whose single call takes longer than this runs in at most
#: SLOW_ROUNDS rounds: torch.nn's packed training takes tens of seconds a call.
SLOW_CALL_SECONDS = 4.0
SLOW_ROUNDS = 3


@dataclasses.dataclass
class Timing:
    """Seconds per call of one contestant, one value a round."""

    rounds: list[float]
    calls: int

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        return interquartile_range(self.rounds) / self.median

    def as_dict(self) -> dict:
        return {
            "median_s": self.median,
            "min_s": min(self.rounds),
            "max_s": max(self.rounds),
            "spread": self.spread,
            "rounds_s": self.rounds,
            "calls_per_round": self.calls,
        }


def interquartile_range(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    quartiles = statistics.quantiles(values, n=4, method="inclusive")
    return quartiles[2] - quartiles[0]


def geometric_mean(values: Sequence[float]) -> float:
    """Geometric mean; NaN when there is nothing to average."""
    if not values:
        return math.nan
    return math.exp(sum(math.log(value) for value in values) / len(values))


def round_ratio(slower: Timing, faster: Timing) -> float:
    """Median over rounds of slower / faster, both taken in the same round."""
    return statistics.median(a / b for a, b in zip(slower.rounds, faster.rounds, strict=False))


def time_calls(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - start


def autorange(call: Callable[[], object], round_seconds: float) -> tuple[int, float]:
    """Warms up and returns (calls that fill a round, seconds per call)."""
    seconds = time_calls(call, 1)
    if seconds > SLOW_CALL_SECONDS:
        return 1, seconds
    calls = 1
    while True:
        seconds = time_calls(call, calls)
        if seconds >= round_seconds / 4:
            return max(1, round(calls * round_seconds / seconds)), seconds / calls
        calls *= 2


def interleave(
    contestants: Mapping[str, Callable[[], object]],
    repeats: int,
    round_seconds: float = ROUND_SECONDS,
) -> dict[str, Timing]:
    """Times all contestants in `repeats` rounds.

    The order is reversed from round to round, so that none profits from always
    following the same neighbour. Short calls get one untimed call first, which
    brings their data back into the caches.
    """
    plans = {name: autorange(call, round_seconds) for name, call in contestants.items()}
    timings = {name: Timing([], calls) for name, (calls, _) in plans.items()}
    names = list(contestants)
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for index in range(repeats):
            for name in names if index % 2 == 0 else reversed(names):
                calls, seconds = plans[name]
                if seconds > SLOW_CALL_SECONDS and index >= SLOW_ROUNDS:
                    continue
                time.sleep(SETTLE_SECONDS)
                if seconds < round_seconds / 2:
                    contestants[name]()
                elapsed = time_calls(contestants[name], calls)
                timings[name].rounds.append(elapsed / calls)
    finally:
        if was_enabled:
            gc.enable()
    return timings


class ProcessorUse:
    """How much of the machine others took since this object was made.

    Two threads that wait for each other at a barrier suffer a hundredfold when
    a third wants one of two cores: a row taken then says little.
    """

    def __init__(self) -> None:
        self._start = self._read()

    @staticmethod
    def _read() -> tuple[float, float, float] | None:
        """Seconds since boot of all CPUs, their busy part, and ours; None without /proc."""
        try:
            with open("/proc/stat") as stat:
                ticks = [int(field) for field in stat.readline().split()[1:9]]
        except OSError:
            return None
        second = os.sysconf("SC_CLK_TCK")
        idle = ticks[3] + ticks[4]
        own = sum(os.times()[:2])
        return sum(ticks) / second, (sum(ticks) - idle) / second, own

    def share_of_others(self) -> float | None:
        """CPU time of other processes and of the hypervisor, over all CPU time there was."""
        end = self._read()
        if self._start is None or end is None or end[0] <= self._start[0]:
            return None
        total, busy, own = (b - a for a, b in zip(self._start, end, strict=True))
        return max(0.0, (busy - own) / total)


def matrix_products(
    dtype: torch.dtype, rows: int, reduction: int, columns: int, square: int = 2048
) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """The machine's yardstick: a large square product and one of the cell's own shape.

    Returns the contestants for `interleave` and the flops of each.
    """
    a, b = torch.randn(square, square).to(dtype), torch.randn(square, square).to(dtype)
    x, w = torch.randn(rows, reduction).to(dtype), torch.randn(columns, reduction).to(dtype)
    calls = {"gemm_square": lambda: torch.mm(a, b), "gemm_cell": lambda: torch.mm(x, w.t())}
    counts = {"gemm_square": 2 * square**3, "gemm_cell": 2 * rows * reduction * columns}
    return calls, counts
