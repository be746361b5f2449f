"""The numerical check that every row must pass before it is shown.

The oracle is torch.nn in float64 on the same (rounded) weights and inputs. The
error of a tensor is its largest absolute difference over the oracle's largest
absolute value. Ours may be at most ERROR_FACTOR times that of torch.nn plus
FLOOR_EPS units of rounding, for every output and, in training, every gradient.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from . import cases

ERROR_FACTOR = 2.0
#: One rounding of the stored result is eps / 2 on either side; the rest is room
#: for the order of summation when torch.nn happens to be almost exact.
FLOOR_EPS = 4.0

#: Longest float64 check, in forward flops: above it the check runs on fewer
#: steps. A float64 layer runs at about 20 to 60 GFLOP/s on two cores.
CHECK_FLOPS = 20e9

#: A peer is only checked for having been given the right model: engines are
#: free to approximate their activations. Their error is reported.
PEER_ERROR = 1e-3


@dataclasses.dataclass
class Check:
    """Outcome of one check: the tensor closest to, or furthest over, its bound."""

    passed: bool
    tensor: str
    error: float
    reference_error: float
    bound: float
    seq_len: int = 0

    def describe(self) -> str:
        return (
            f"{self.tensor}: error {self.error:.3g} against float64, torch.nn's is "
            f"{self.reference_error:.3g}, bound {self.bound:.3g}"
        )


def relative_error(actual: torch.Tensor, exact: torch.Tensor) -> float:
    """max |actual - exact| / max |exact|, infinite when `actual` is not finite."""
    if actual.shape != exact.shape:
        return math.inf
    actual = actual.detach().double()
    if not bool(torch.isfinite(actual).all()):
        return math.inf
    scale = exact.detach().abs().max().item()
    difference = (actual - exact.detach()).abs().max().item()
    return difference / scale if scale > 0 else difference


def compare_each(
    ours: Mapping[str, torch.Tensor],
    reference: Mapping[str, torch.Tensor],
    exact: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
) -> list[Check]:
    """Holds every tensor of `ours` to the accuracy rule at the top of this file."""
    if ours.keys() != exact.keys() or reference.keys() != exact.keys():
        missing = (ours.keys() ^ exact.keys()) | (reference.keys() ^ exact.keys())
        return [Check(False, f"missing {sorted(missing)}", math.inf, 0.0, 0.0)]
    floor = FLOOR_EPS * torch.finfo(dtype).eps
    checks = []
    for name, value in exact.items():
        error = relative_error(ours[name], value)
        reference_error = relative_error(reference[name], value)
        bound = ERROR_FACTOR * reference_error + floor
        checks.append(Check(error <= bound, name, error, reference_error, bound))
    return checks


def worst_of(checks: Iterable[Check]) -> Check:
    """A failed check if there is one, else the one closest to its bound."""
    return max(checks, key=lambda c: (not c.passed, c.error / c.bound if c.bound else 0.0))


def run_layer(
    module: nn.Module, x: torch.Tensor | PackedSequence, mode: str, d_output: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Outputs of one call and, in training, all gradients, by name.

    The loss is sum(output * d_output) + sum(h_n) + sum(c_n), so that gradients
    enter through the final states as well.
    """
    d_output = d_output.to(next(module.parameters()).dtype)
    data = x.data if isinstance(x, PackedSequence) else x
    data = data.detach().to(d_output.dtype).requires_grad_(mode == "training")
    if isinstance(x, PackedSequence):
        layer_input = PackedSequence(data, x.batch_sizes, x.sorted_indices, x.unsorted_indices)
    else:
        layer_input = data
    with torch.set_grad_enabled(mode == "training"):
        output, state = module(layer_input)
    output = output.data if isinstance(output, PackedSequence) else output
    states = state if isinstance(state, tuple) else (state,)
    results = {"output": output, **dict(zip(("h_n", "c_n"), states, strict=False))}
    if mode == "training":
        module.zero_grad(set_to_none=True)
        gradients = [d_output, *(torch.ones_like(s) for s in states)]
        torch.autograd.backward([output, *states], gradients)
        results["d_input"] = data.grad
        for name, parameter in module.named_parameters():
            results[f"d_{name}"] = parameter.grad
        module.zero_grad(set_to_none=True)
    return results


def check_each(
    layers: Mapping[str, nn.Module],
    x: torch.Tensor | PackedSequence,
    mode: str,
    d_output: torch.Tensor,
) -> list[Check]:
    """Runs both libraries and the float64 oracle on one input and compares."""
    exact = run_layer(cases.exact_copy(layers["torch"]), x, mode, d_output)
    reference = run_layer(layers["torch"], x, mode, d_output)
    ours = run_layer(layers["fastrnn"], x, mode, d_output)
    checks = compare_each(ours, reference, exact, d_output.dtype)
    for check in checks:
        check.seq_len = x.shape[0]
    return checks


def steps_within(layer: str, case: cases.Case, check_flops: float) -> int:
    """How many steps of `case` a check may take: at least 1, at most all."""
    step = cases.flops(layer, case.with_seq_len(1))
    return max(1, min(case.seq_len, int(check_flops / step)))


def check_case(
    layer: str,
    case: cases.Case,
    layers: Mapping[str, nn.Module],
    x: torch.Tensor,
    mode: str,
    d_output: torch.Tensor,
    check_flops: float = CHECK_FLOPS,
) -> Check:
    """The check of one cell of the grid.

    Cells above `check_flops` are held against float64 on their first steps, and
    on the full length against torch.nn in the working dtype: if torch.nn errs by
    e and ours by at most 2 e + floor, they differ by at most 3 e + floor, where e
    is the error on the short run, taken to grow in proportion to the length.
    """
    steps = steps_within(layer, case, check_flops)
    checks = check_each(layers, x[:steps], mode, d_output[:steps])
    worst = worst_of(checks)
    if steps == case.seq_len or not worst.passed:
        return worst
    reference = run_layer(layers["torch"], x, mode, d_output)
    ours = run_layer(layers["fastrnn"], x, mode, d_output)
    floor = FLOOR_EPS * torch.finfo(d_output.dtype).eps
    for check in checks:
        difference = relative_error(ours[check.tensor], reference[check.tensor].double())
        bound = 3 * check.reference_error * case.seq_len / steps + floor
        if not difference <= bound:
            name = f"{check.tensor} (all {case.seq_len} steps, against torch.nn)"
            return Check(False, name, difference, check.reference_error, bound, case.seq_len)
    return worst


def check_peer(actual: torch.Tensor, exact: torch.Tensor) -> Check:
    """Whether a peer computes the same layer at all."""
    error = relative_error(actual, exact)
    return Check(error <= PEER_ERROR, "output", error, 0.0, PEER_ERROR, exact.shape[0])
