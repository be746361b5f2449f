"""What stands between the products of a step and its states, as operators take it."""

from typing import NamedTuple

from torch import Tensor


class Inside(NamedTuple):
    """The last arguments of the layer's operators; csrc/ops.cpp says what they are."""

    norm: str
    eps: float
    rates: tuple[float, float, float]
    counter: tuple[int, int, int]
    seed: Tensor | None
    h_scale: Tensor | None
