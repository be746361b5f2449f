"""The suites of single steps: streaming, and what a call costs. Functions as in suites.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from . import cases, checks, timing
from .cases import Case
from .jobs import (
    Job,
    Options,
    Row,
    add_check,
    measure,
    row_of,
)

# ----------------------------------------------------------------- one step at a time

STREAMING_SIZES = (24, 128, 256, 512)
CHECKED_STEPS = 8


def step_modules(layer: str, case: Case, mode: str) -> dict[str, nn.Module]:
    """Layer and cell of both libraries, all with the weights of one torch.nn layer."""
    modules: dict[str, nn.Module] = {}
    weights: dict[str, torch.Tensor] = {}
    for library, module in cases.build_layers(layer, case, torch.float32, mode).items():
        modules[f"{library}_layer"] = module
        weights = {name[: -len("_l0")]: value for name, value in module.state_dict().items()}
    for library, namespace in cases.library_modules().items():
        cell = getattr(namespace, layer + "Cell")(case.input_size, case.hidden_size)
        cell.load_state_dict(weights)
        modules[f"{library}_cell"] = cell.train(mode == "training")
    return modules


def _step_call(layer: str, name: str, module: nn.Module, x: torch.Tensor, mode: str):
    """One step with carried state; in training, that step's backward too.

    The call returns the new h. x is ``[1, B, I]``.
    """
    is_layer = name.endswith("_layer")
    training = mode == "training"
    x = (x if is_layer else x[0]).detach().requires_grad_(training)
    leaves = [x, *module.parameters()]
    state: list[Any] = [None]

    def step() -> torch.Tensor:
        result = module(x, state[0])
        state[0] = result[1] if is_layer else result
        h = state[0][0] if layer == "LSTM" else state[0]
        return h[0] if is_layer else h

    def call() -> torch.Tensor:
        if not training:
            with torch.no_grad():
                return step()
        state[0] = None
        for tensor in leaves:
            tensor.grad = None
        h = step()
        h.backward(torch.ones_like(h))
        return h

    return call


def _check_steps(layer: str, modules: dict[str, nn.Module], x: torch.Tensor) -> checks.Check:
    """h after CHECKED_STEPS steps of each contestant, with x carried in float64 too."""

    def run(name: str, module: nn.Module, value: torch.Tensor) -> torch.Tensor:
        call = _step_call(layer, name, module, value, "inference")
        for _ in range(CHECKED_STEPS):
            h = call()
        return h

    exact_module = cases.exact_copy(modules["torch_layer"])
    exact = {"h": run("torch_layer", exact_module, x.double())}
    found = []
    for kind in ("layer", "cell"):
        ours = {"h": run(f"fastrnn_{kind}", modules[f"fastrnn_{kind}"], x)}
        reference = {"h": run(f"torch_{kind}", modules[f"torch_{kind}"], x)}
        check = checks.worst_of(checks.compare_each(ours, reference, exact, x.dtype))
        check.tensor, check.seq_len = f"h of the {kind}", CHECKED_STEPS
        found.append(check)
    return checks.worst_of(found)


def _step_job(options: Options, suite: str, layer: str, mode: str, threads: int, case: Case) -> Job:
    def run() -> Row:
        torch.set_num_threads(threads)
        row = row_of(suite, layer, mode, "float32", threads, case)
        modules = step_modules(layer, case, mode)
        x = cases.make_input(case, torch.float32)
        if not add_check(row, _check_steps(layer, modules, x)):
            return row
        calls = {name: _step_call(layer, name, m, x, mode) for name, m in modules.items()}
        times = measure(options, row, calls)
        ours = times["fastrnn_layer"]
        row["ratio"] = timing.round_ratio(times["torch_layer"], ours)
        row["ratio_to_cell"] = timing.round_ratio(times["torch_cell"], ours)
        row["cell_ratio"] = timing.round_ratio(times["torch_cell"], times["fastrnn_cell"])
        return row

    return Job(f"{suite} {layer} {mode} {threads} threads H={case.hidden_size}", run)


def streaming(options: Options) -> list[Job]:
    """One step of one stream with carried state: layer and cell of both libraries."""
    return [
        _step_job(options, "streaming", layer, "inference", threads, Case(1, 1, size, size))
        for threads in options.thread_counts(2, 1)
        for layer in options.layers
        if layer != "RNN"
        for size in STREAMING_SIZES
    ]


OVERHEAD_CASE = Case(1, 1, 4, 4)


def overhead(options: Options) -> list[Job]:
    """A step so small that only Python and dispatch are left."""
    return [
        _step_job(options, "overhead", layer, mode, threads, OVERHEAD_CASE)
        for threads in options.thread_counts(2)
        for layer in options.layers
        for mode in options.modes
    ]
