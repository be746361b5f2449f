"""What is measured: sizes, flop counts, and pairs of layers with equal weights."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import nn

#: Gates per cell: how many rows of w_ih and w_hh belong to one hidden unit.
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One size of a recurrent layer and of its input ``[T, B, I]``."""

    seq_len: int
    batch: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    directions: int = 1

    def __str__(self) -> str:
        text = f"{self.seq_len},{self.batch},{self.input_size},{self.hidden_size}"
        if self.num_layers > 1 or self.directions > 1:
            text += f",{self.num_layers},{self.directions}"
        return text

    def layer_input_sizes(self) -> list[int]:
        """Width of the input of each stacked layer."""
        stacked = self.directions * self.hidden_size
        return [self.input_size] + [stacked] * (self.num_layers - 1)

    def with_seq_len(self, seq_len: int) -> Case:
        return dataclasses.replace(self, seq_len=seq_len)


def parse_case(text: str) -> Case:
    """Case from ``T,B,I,H``, ``T,B,I,H,layers`` or ``T,B,I,H,layers,directions``."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not 4 <= len(numbers) <= 6 or min(numbers) < 1:
        raise ValueError(
            f"expected T,B,I,H[,layers[,directions]] as positive integers, got {text!r}"
        )
    case = Case(*numbers)
    if case.directions > 2:
        raise ValueError(f"expected 1 or 2 directions, got {case.directions} in {text!r}")
    return case


FULL_GRID = [
    Case(50, 32, 10, 32),
    Case(50, 32, 64, 64),
    Case(100, 1, 128, 128),
    Case(100, 1, 256, 256),
    Case(100, 1, 512, 512),
    Case(50, 1, 1024, 1024),
    Case(100, 16, 128, 128),
    Case(100, 32, 256, 256),
    Case(100, 32, 512, 512),
    Case(50, 64, 512, 512),
    Case(50, 64, 1024, 1024),
    Case(1000, 8, 64, 64),
    Case(365, 256, 32, 128),
    Case(100, 16, 256, 256, num_layers=2, directions=2),
]

SMALL_GRID = [
    Case(50, 32, 10, 32),
    Case(100, 1, 128, 128),
    Case(100, 16, 128, 128),
    Case(20, 32, 256, 256),
]

GRIDS = {"full": FULL_GRID, "small": SMALL_GRID}


def parse_grid(words: list[str]) -> list[Case]:
    """Cases named by words: ``full``, ``small`` or explicit sizes, in order, once each."""
    cases: list[Case] = []
    for word in words:
        for case in GRIDS.get(word) or [parse_case(word)]:
            if case not in cases:
                cases.append(case)
    return cases


def flops(layer: str, case: Case, mode: str = "inference") -> int:
    """Floating-point operations of the matrix products of one call.

    Forward, per stacked layer: 2 T B D G H (I + H), a multiply and an add for
    each weight, row and step. Training counts three times that: the backward
    pass has one product for the gradient of each factor. Cell equations and
    biases are left out, as is usual, so a rate is slightly underestimated.
    """
    rows = case.seq_len * case.batch
    units = case.directions * GATES[layer] * case.hidden_size
    forward = sum(2 * rows * units * (i + case.hidden_size) for i in case.layer_input_sizes())
    return 3 * forward if mode == "training" else forward


def library_modules() -> dict[str, Any]:
    """The two contestants: where each finds its layer classes."""
    import fastrnn

    return {"torch": nn, "fastrnn": fastrnn}


def build_layers(
    layer: str, case: Case, dtype: torch.dtype, mode: str, seed: int = 0
) -> dict[str, nn.Module]:
    """One layer of each library with the same weights, in eval mode for inference."""
    built: dict[str, nn.Module] = {}
    torch.manual_seed(seed)
    for name, library in library_modules().items():
        module = getattr(library, layer)(
            case.input_size,
            case.hidden_size,
            num_layers=case.num_layers,
            bidirectional=case.directions == 2,
            dtype=dtype,
        )
        if built:
            module.load_state_dict(built["torch"].state_dict())
        built[name] = module.train(mode == "training")
    return built


def exact_copy(module: nn.Module) -> nn.Module:
    """The same torch.nn layer in float64: the oracle of the checks."""
    return copy.deepcopy(module).double()


def make_input(case: Case, dtype: torch.dtype, seed: int = 1) -> torch.Tensor:
    """Normal random input ``[T, B, I]``."""
    generator = torch.Generator().manual_seed(seed)
    shape = (case.seq_len, case.batch, case.input_size)
    return torch.randn(shape, generator=generator).to(dtype)


def make_d_output(case: Case, dtype: torch.dtype, seed: int = 2) -> torch.Tensor:
    """Normal random gradient of the output ``[T, B, D*H]``."""
    generator = torch.Generator().manual_seed(seed)
    shape = (case.seq_len, case.batch, case.directions * case.hidden_size)
    return torch.randn(shape, generator=generator).to(dtype)
