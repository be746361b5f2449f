"""What a suite is made of: options, jobs, rows, and what is timed.

A row is a dict: what was measured (suite, layer, mode, dtype, threads, case), `check` (checks.Check
as a dict), `times` (contestant to timing.Timing as a dict), and the figures computed from them. A
job whose check failed returns a row without times; report.Report refuses to print it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from . import checks, timing
from .cases import Case

Row = dict[str, Any]


@dataclasses.dataclass
class Options:
    """What the command line chose."""

    layers: list[str]
    modes: list[str]
    grid: list[Case]
    dtypes: list[str]
    threads: list[int] | None = None
    repeats: int = 7
    round_seconds: float = timing.ROUND_SECONDS
    peers: list[str] = dataclasses.field(default_factory=list)
    check_flops: float = checks.CHECK_FLOPS

    def thread_counts(self, *default: int) -> list[int]:
        available = os.cpu_count() or 1
        return self.threads or list(dict.fromkeys(min(n, available) for n in default))


@dataclasses.dataclass
class Job:
    label: str
    run: Callable[[], Row]


def row_of(suite: str, layer: str, mode: str, dtype: str, threads: int, case: Case) -> Row:
    return {
        "suite": suite,
        "layer": layer,
        "mode": mode,
        "dtype": dtype,
        "threads": threads,
        "case": str(case),
        **dataclasses.asdict(case),
    }


def measure(
    options: Options, row: Row, contestants: dict[str, Callable[[], object]]
) -> dict[str, timing.Timing]:
    """Times all contestants and adds the times to the row."""
    use = timing.ProcessorUse()
    times = timing.interleave(contestants, options.repeats, options.round_seconds)
    row["others"] = use.share_of_others()
    row["times"] = {name: one.as_dict() for name, one in times.items()}
    return times


def add_check(row: Row, check: checks.Check) -> bool:
    row["check"] = dataclasses.asdict(check)
    return check.passed


def inference_call(module: nn.Module, x: Any) -> Callable[[], object]:
    """One forward pass with no graph."""

    def call() -> object:
        with torch.no_grad():
            return module(x)

    return call


def training_call(module: nn.Module, x: Any, d_output: torch.Tensor) -> Callable[[], object]:
    """Forward and backward; gradients of the input and of all parameters, made anew."""
    packed = isinstance(x, PackedSequence)
    leaf = (x.data if packed else x).detach().requires_grad_()
    if packed:
        x = PackedSequence(leaf, x.batch_sizes, x.sorted_indices, x.unsorted_indices)
    else:
        x = leaf
    leaves = [leaf, *module.parameters()]

    def call() -> None:
        for tensor in leaves:
            tensor.grad = None
        output = module(x)[0]
        (output.data if packed else output).backward(d_output)

    return call


def layer_call(module: nn.Module, x: Any, mode: str, d_output: torch.Tensor):
    return training_call(module, x, d_output) if mode == "training" else inference_call(module, x)
