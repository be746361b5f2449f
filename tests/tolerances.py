"""Every tolerance of the tests, and how it follows from dtype and length.

Errors are largest absolute differences of a tensor, relative to the largest magnitude in it.
"""

import torch

# float64 against torch.nn: what the README says. Errors seen are near 1e-15 times the steps.
FLOAT64_TO_TORCH = 1e-10

# Operands of TF32 products keep 11 bits; what torch.nn's error in float32 says nothing about.
TF32_EPS = 2.0**-10


def floor(
    dtype: torch.dtype, steps: int, cancellation: float, conditioning: float, tf32: bool = False
) -> float:
    """Error that a correct computation may have beside torch.nn's, relative to the largest value.

    torch.nn's own may be small or zero by luck where a tensor has few elements.

    One step rounds products, function values (2.5 units in the last place at most, test_accuracy)
    and its result: about 2.5 eps where nothing cancels.
    Errors of successive steps are independent and add up like a random walk. In 16 bits, values
    are computed in float32, and rounding the result (1/2 eps) and what is saved is all there is.

    A sum whose terms cancel keeps the rounding of the terms. `cancellation` is how many times the
    call's largest gradient is larger than this one; terms are of that order, each costs 1 eps.

    Rounding a gate's argument x changes sigmoid(x) by up to eps |x|, relative to it: `conditioning`
    is the size of inputs and states, at least 1.
    """
    own = 1.0 if dtype.itemsize == 2 else 2.5 * steps**0.5
    eps = TF32_EPS if tf32 else torch.finfo(dtype).eps
    return eps * conditioning * (own + cancellation)


def magnitude(tensor: torch.Tensor) -> float:
    """The largest finite magnitude, 0 of nothing."""
    finite = tensor[tensor.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0


def error(actual: torch.Tensor, expected: torch.Tensor, size: float = 0.0) -> float:
    """Largest difference relative to the largest magnitude expected (or size, if that is larger).

    inf where only one is NaN.
    """
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    if expected.numel() == 0:
        return 0.0
    actual, expected = actual.double(), expected.double()
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    difference = torch.where(same, 0.0, (actual - expected).abs())
    if not difference.isfinite().all():
        return float("inf")
    return difference.max().item() / (max(magnitude(expected), size) or 1.0)


def assert_accurate(ours, theirs, oracle, dtype, steps, incoming, conditioning=1.0, tf32=False):
    """The acceptance rule. Dicts of tensors by name: ours and torch.nn's in dtype, oracle float64.

    Names of gradients begin with d_. `incoming` are the gradients that came in: where
    states are near 1, slopes 1 - h*h keep the rounding error of 1, whatever is left of the
    gradients. `tf32`: ours rounds the operands of its products to TF32, torch.nn does not.
    """
    assert ours.keys() == theirs.keys() == oracle.keys()
    gradients = {name: magnitude(t) for name, t in oracle.items() if name[:2] == "d_"}
    largest = max(gradients.values(), default=0.0)
    came_in = max(map(magnitude, incoming))
    failures = []
    for name, expected in oracle.items():
        # h_n is one step of the output: a sum of the same terms, whatever is left of it there.
        scale = magnitude(oracle["output"]) if name == "h_n" else 0.0
        size = gradients.get(name, 0.0)
        # The terms of a weight's gradient have a state or an input as a factor besides.
        lost = came_in * (conditioning if "weight" in name else 1.0)
        margin = floor(dtype, steps, max(largest, lost) / size if size else 0.0, conditioning, tf32)
        if dtype is torch.float64:
            actual = error(ours[name], theirs[name], scale)
            limit = FLOAT64_TO_TORCH * conditioning + (margin if conditioning > 1.0 else 0.0)
        else:
            actual = error(ours[name], expected, scale)
            limit = error(theirs[name], expected, scale) + margin
        if not actual <= limit:
            failures.append(f"{name}: error {actual:.3g} > {limit:.3g}")
    assert not failures, "; ".join(failures)


def quantized_floor(module, dtype, x, states) -> float:
    """Error that one step of a quantized layer may have beside tests/quantized_reference.py.

    Relative to 1 or the largest value. Sums of int8 are exact; becoming a float, two scales, the
    bias and the cell cost ten roundings of the largest gate. In bfloat16 the sum of K products
    rounds like a random walk in float32. What enters a projection is rounded to int8 on both sides
    and may fall on either side of a tie: two units of it are allowed.
    """
    eps = torch.finfo(torch.float32).eps
    weights = dict(module.named_parameters())
    w_ih, w_hh = weights["weight_ih_l0"].detach(), weights["weight_hh_l0"].detach()
    gates = (
        1.0
        + magnitude(x) * magnitude(w_ih.norm(dim=1))
        + magnitude(states[0]) * magnitude(w_hh.norm(dim=1))
    )
    terms = w_ih.shape[1] + w_hh.shape[1] if dtype is torch.bfloat16 else 0
    margin = eps * (10.0 + terms**0.5)
    # Beyond the domain of sigmoid and tanh only a ReLU keeps the size of a gate.
    margin *= min(gates, 100.0)
    if "weight_hr_l0" in weights:
        unit = 1 / 127 if dtype is torch.int8 else 0.0
        margin += 2 * unit * magnitude(weights["weight_hr_l0"].detach())
    return margin
