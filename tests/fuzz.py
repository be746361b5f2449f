"""Differential fuzzing against torch.nn.

    python -m tests.fuzz --minutes 10 [--seed 0]

prints the seed and the case of the first disagreement; test_fuzz.py runs a fixed number.
"""

import argparse
import random
import time

import torch

from fastrnn import _C
from tests.cases import KINDS, Case, module_results, reference_results
from tests.tolerances import assert_accurate, magnitude


def draw(seed):
    """A case, its dtype, data and target from a seed."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    options = {
        "num_layers": rng.choice((1, 1, 2, 3)),
        "bidirectional": rng.random() < 0.4,
        "bias": rng.random() < 0.8,
        "batch_first": rng.random() < 0.3,
    }
    lengths = ()
    if rng.random() < 0.3:
        lengths = tuple(rng.randint(1, 7) for _ in range(rng.randint(1, 9)))
    case = Case(
        rng.choice(tuple(KINDS)),
        seq_len=rng.choice((1, 2, 3, 5, 12)),
        batch=rng.choice((1, 2, 3, 6, 7, 12, 19)),
        input_size=rng.choice((1, 2, 7, 16, 33)),
        hidden_size=rng.choice((2, 3, 8, 15, 16, 17, 31, 48, 65)),
        options=options,
        hx=rng.random() < 0.7,
        lengths=lengths,
    )
    dtype = rng.choice((torch.float32, torch.float32, torch.float64))
    scale = rng.choice((1.0, 1.0, 1.0, 30.0, 1e4))
    data = case.data(dtype)
    for tensor in (*data.inputs, *(data.states or [])):
        tensor.mul_(scale)
        if rng.random() < 0.1:
            special = rng.choice((torch.nan, torch.inf, -torch.inf))
            tensor.view(-1)[rng.randrange(tensor.numel())] = special
    return case, dtype, data, rng.choice(_C.cpu_targets()), rng.choice((1, 2))


def compare(theirs, ours, data, steps):
    """Raises where ours departs from torch.nn: in which values are finite, or by too much.

    Where a value that is not finite has spread, torch.nn's own paths disagree on whether inf*0 was
    computed (its fused LSTM and its composed one do), so that only results that both the
    reference and torch.nn have finite are compared there. Without hx, h0 takes no part in d_w_hh
    here, where torch.nn multiplies gradients that may be NaN with zeros. Where infinities
    meet saturated gates, which are 0 in one library and below the normal range in the other, inf*0
    is computed in one of them only.
    """
    dtype = next(ours.parameters()).dtype
    a, b = module_results(ours, data), module_results(theirs, data)
    oracle = reference_results(theirs, data)
    given = (*data.inputs, *(data.states or []))
    size = max(magnitude(t) for t in given)
    vague = any(t.isinf().any() for t in given) and size > 10
    clean = all(t.isfinite().all() for r in (b, oracle) for t in r.values())
    if not clean:
        for name in oracle:
            known = b[name].isfinite() & oracle[name].isfinite()
            broken = ~b[name].isfinite() & ~oracle[name].isfinite()
            assert a[name][known].isfinite().all(), f"{name}: not finite where torch.nn is"
            if not vague and (data.states is not None or "weight_hh" not in name):
                finite = a[name][broken].isfinite().any()
                assert not finite, f"{name}: finite where torch.nn is not"
            for result in (a, b, oracle):
                result[name] = torch.where(known, result[name], 0)
    assert_accurate(a, b, oracle, dtype, steps, data.losses, size if size > 10 else 1.0)


def check(seed):
    """Runs the case of a seed."""
    case, dtype, data, target, threads = draw(seed)
    previous, previous_threads = _C.set_cpu_target(target), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        theirs, ours = case.modules(dtype)
        layers = case.options["num_layers"]
        compare(theirs, ours, data, layers * (max(case.lengths) if case.lengths else case.seq_len))
    except AssertionError as error:
        raise AssertionError(f"seed {seed}, {target}, {dtype}, {case}: {error}") from error
    finally:
        _C.set_cpu_target(previous)
        torch.set_num_threads(previous_threads)


def main():
    """Checks one seed after the other until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=10_000)
    arguments = parser.parse_args()
    end, seed = time.monotonic() + 60 * arguments.minutes, arguments.seed
    while time.monotonic() < end:
        check(seed)
        seed += 1
    print(f"{seed - arguments.seed} cases from seed {arguments.seed} on agree with torch.nn")


if __name__ == "__main__":
    main()
