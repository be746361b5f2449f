"""Interleaved timing: every contestant in every round, so that noise hits all alike."""

from __future__ import annotations

import dataclasses
import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch

#: A round of one contestant lasts about this long: long against a clock tick
#: and a scheduler slice, short against the drift of a shared machine.
ROUND_SECONDS = 0.1

#: Pause before each contestant. Thread pools spin after their work (OpenMP about a millisecond,
#: ONNX Runtime about fifty) and would steal the next one's cores.
SETTLE_SECONDS = 0.08

#: A contestant whose single call takes longer than this runs in at most
#: SLOW_ROUNDS rounds: torch.nn's packed training takes tens of seconds a call.
SLOW_CALL_SECONDS = 4.0
SLOW_ROUNDS = 3

#: A round is taken again, at most this often, when the machine was not whole before or after it.
RETAKES = 5

#: How long a round waits for the machine to be whole before it starts all the same.
WAIT_SECONDS = 30.0

#: Below this share of what as many threads would multiply, each as fast as one alone, the machine
#: is not whole: a divided one has half.
WHOLE = 0.65


@dataclasses.dataclass
class Timing:
    """Seconds per call of one contestant, one value a round."""

    rounds: list[float]
    calls: int
    retaken: int = 0  # rounds thrown away because the machine was not whole
    disturbed: int = 0  # rounds kept although it was not: it stayed so, or the call is slow

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
            "retaken": self.retaken,
            "disturbed": self.disturbed,
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


class Machine:
    """Whether all threads have a core each: whether together they multiply faster than one alone.

    Hypervisors put two virtual CPUs on one core for seconds at a time; two threads then multiply
    as fast as one. That slows down whoever is bound by multiplications more than whoever waits.
    """

    #: Waited in vain: this process will not have more of the machine.
    _gave_up: ClassVar[bool] = False

    def __init__(self) -> None:
        side = round(300 * torch.get_num_threads() ** (1 / 3))
        self._a, self._b = torch.randn(side, side), torch.randn(side, side)

    def _rate(self) -> float:
        with torch.no_grad():
            return 1 / min(time_calls(lambda: torch.mm(self._a, self._b), 1) for _ in range(3))

    def is_whole(self) -> bool:
        threads = torch.get_num_threads()
        if threads == 1 or Machine._gave_up:
            return True
        torch.set_num_threads(1)
        try:
            alone = self._rate()
        finally:
            torch.set_num_threads(threads)
        return self._rate() >= WHOLE * threads * alone

    def wait(self) -> bool:
        """Waits until it is whole; false, once in a process, where WAIT_SECONDS were not enough."""
        end = time.perf_counter() + WAIT_SECONDS
        while not self.is_whole():
            if time.perf_counter() > end:
                Machine._gave_up = True
                return False
            time.sleep(0.05)
        return True


def time_round(
    call: Callable[[], object], calls: int, warm_up: bool, machine: Machine
) -> tuple[float, int, bool]:
    """Seconds a call, rounds that had to be taken again, and whether the machine was whole."""
    retaken = 0
    while True:
        time.sleep(SETTLE_SECONDS)
        before = machine.wait()
        if warm_up:
            call()
        elapsed = time_calls(call, calls)
        whole = before and machine.is_whole()
        if whole or not before or retaken == RETAKES or elapsed > SLOW_CALL_SECONDS:
            return elapsed / calls, retaken, whole
        retaken += 1


def interleave(
    contestants: Mapping[str, Callable[[], object]],
    repeats: int,
    round_seconds: float = ROUND_SECONDS,
) -> dict[str, Timing]:
    """Times all contestants in `repeats` rounds.

    The order is reversed from round to round, so that none profits from always
    following the same neighbour. Short calls get one untimed call first, which
    brings their data back into the caches. Rounds in which the machine was not
    whole (see Machine) are taken again.
    """
    machine = Machine()
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
                timing = timings[name]
                value, retaken, whole = time_round(
                    contestants[name], calls, seconds < round_seconds / 2, machine
                )
                timing.rounds.append(value)
                timing.retaken += retaken
                timing.disturbed += not whole
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
