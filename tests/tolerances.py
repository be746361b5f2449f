"""Every tolerance of the tests, and how it follows from dtype and length.

Errors are largest absolute differences of a tensor, relative to the largest magnitude in it.
"""

import torch

# float64 against torch.nn: the number. Errors seen are near 1e-15 times the steps.
FLOAT64_TO_TORCH = 1e-10

# Against the float64 reference: this many times the error of torch.nn in the same dtype, plus a
# floor, for torch.nn's error may be small or zero by luck where a tensor has few elements.
FACTOR = 2.0


def floor(dtype: torch.dtype, steps: int, cancellation: float, conditioning: float) -> float:
    """Error that a correct computation may have beside torch.nn's, relative to the largest value.

    One step rounds its result (1/2 eps) and evaluates functions within 2 ulp, and products over
    k round once per term: about 4 eps where nothing cancels. Errors of successive steps are
    independent and add up like a random walk. In 16 bits values are computed in float32 and
    rounded once per step, which costs torch.nn the same.

    A sum whose terms cancel keeps the rounding of the terms. `cancellation` is how many times larger
    the call's largest gradient is than this one; terms are of that order, and each costs 1 eps.

    Rounding a gate's argument x changes sigmoid(x) by up to eps |x|, relative to it: `conditioning`
    is the size of inputs and states, at least 1.
    """
    return torch.finfo(dtype).eps * conditioning * (4 * steps**0.5 + cancellation)


def magnitude(tensor: torch.Tensor) -> float:
    """The largest finite magnitude, 0 of nothing."""
    finite = tensor[tensor.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference relative to the largest magnitude expected; inf where only one is NaN."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    if expected.numel() == 0:
        return 0.0
    actual, expected = actual.double(), expected.double()
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    difference = torch.where(same, 0.0, (actual - expected).abs())
    if not difference.isfinite().all():
        return float("inf")
    return difference.max().item() / (magnitude(expected) or 1.0)


def assert_accurate(ours, theirs, oracle, dtype, steps, conditioning=1.0):
    """The acceptance rule. Dicts of tensors by name: ours and torch.nn's in dtype, oracle float64.

    Names of gradients begin with d_.
    """
    assert ours.keys() == theirs.keys() == oracle.keys()
    largest = max((magnitude(t) for name, t in oracle.items() if name[:2] == "d_"), default=0.0)
    failures = []
    for name, expected in oracle.items():
        if dtype is torch.float64:
            actual, limit = error(ours[name], theirs[name]), FLOAT64_TO_TORCH
        else:
            gradient = name[:2] == "d_" and magnitude(expected) > 0
            cancellation = largest / magnitude(expected) if gradient else 0.0
            limit = floor(dtype, steps, cancellation, conditioning)
            limit += FACTOR * error(theirs[name], expected)
            actual = error(ours[name], expected)
        if not actual <= limit:
            failures.append(f"{name}: error {actual:.3g} > {limit:.3g}")
    assert not failures, "; ".join(failures)
