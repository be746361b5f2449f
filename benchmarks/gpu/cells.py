"""What is timed: cells in order of importance, and the contestants of each wave.

A wave is a list that every contestant goes through: "core" has the sizes that decide the design,
"more" packed data, stacks, resets, other cells and larger layers.
"""

import importlib.util
import itertools
from typing import NamedTuple

NUMERICS = ("bf16", "fp16", "tf32", "fp32")
#: (H, B) of the core cells.
SIZES = ((64, 32), (128, 32), (256, 64), (512, 64), (768, 16), (1024, 16), (1024, 64))
#: Cell and number format: the 16-bit LSTM first, strict fp32 last.
ORDER = (
    ("LSTM", "bf16"), ("LSTM", "fp16"), ("GRU", "bf16"), ("LSTM", "tf32"),
    ("GRU", "fp16"), ("GRU", "tf32"), ("LSTM", "fp32"), ("GRU", "fp32"),
)  # fmt: skip
#: Options of a layer by variant. Packed lengths are spread evenly from T / 4 to T, resets come
#: with a probability of 3 % a step, and a projection halves h.
VARIANTS = {
    "": {},
    "packed": {},
    "resets": {},
    "bidirectional": {"bidirectional": True},
    "2 layers": {"num_layers": 2},
    "projected": {},
    "relu": {"nonlinearity": "relu"},
}
PASSES = ("forward", "forward+backward")
#: Regimes of the engine, as FASTRNN_CUDA_REGIME has them.
REGIMES = ("single", "cluster", "grid", "steps")
#: Other packages by contestant: the module to import, cells and number formats that it has.
PEERS = {
    "haste": ("haste_pytorch", ("LSTM", "GRU"), ("fp32", "tf32")),
    "flashrnn": ("flashrnn", ("LSTM",), ("bf16", "fp16")),
}


class Cell(NamedTuple):
    """A layer and its data; input_size is hidden_size."""

    cell: str
    numeric: str
    hidden: int
    batch: int
    steps: int = 512
    variant: str = ""

    def options(self):
        """Keywords of the layer beyond its sizes."""
        proj = {"proj_size": self.hidden // 2} if self.variant == "projected" else {}
        return VARIANTS[self.variant] | proj

    def text(self):
        """What a person reads."""
        return " ".join(
            [self.cell, self.numeric, f"H={self.hidden} B={self.batch} T={self.steps}",
             self.variant]
        ).strip()  # fmt: skip


def core():
    """The sizes that decide the design; the published ones have T = 1024."""
    for cell, numeric in ORDER:
        sizes = sorted(SIZES, key=lambda size: size not in ((768, 16), (128, 32), (1024, 64)))
        yield from (Cell(cell, numeric, *size) for size in sizes)
        if cell == "LSTM":
            yield Cell(cell, numeric, 768, 16, 1024)


def more():
    """What else a layer can do, and sizes beyond the register files."""
    middle = ((512, 64), (256, 64), (1024, 64), (128, 32))
    for variant, size, numeric, cell in itertools.product(
        ("packed", "resets"), middle, ("bf16", "tf32"), ("LSTM", "GRU")
    ):
        yield Cell(cell, numeric, *size, variant=variant)
    for variant, size, cell in itertools.product(
        ("bidirectional", "2 layers"), (middle[0], (1024, 16), middle[1]), ("LSTM", "GRU")
    ):
        yield Cell(cell, "bf16", *size, variant=variant)
    for hidden, batch, numeric, cell in itertools.product(
        (1152, 1536, 2048), (64, 16), ("bf16", "tf32"), ("LSTM", "GRU")
    ):
        yield Cell(cell, numeric, hidden, batch)
    for size, numeric, variant in itertools.product(middle, ("bf16", "tf32"), ("", "relu")):
        yield Cell("RNN", numeric, *size, variant=variant)
    for size, numeric in itertools.product(((1024, 64), (512, 64)), ("bf16", "tf32")):
        yield Cell("LSTM", numeric, *size, variant="projected")


def tiny():
    """A few cells of every kind, for a run without a GPU."""
    for variant in VARIANTS:
        yield Cell("RNN" if variant == "relu" else "LSTM", "fp32", 8, 5, 6, variant)
    for numeric in NUMERICS:
        yield Cell("GRU", numeric, 8, 5, 6)


WAVES = {"core": core, "more": more, "tiny": tiny}


def installed_peers():
    """The peers that can be imported."""
    return [who for who, (name, *_) in PEERS.items() if importlib.util.find_spec(name)]


def takes(who, cell):
    """Whether a contestant is asked for a cell."""
    if who in PEERS:
        _, names, numerics = PEERS[who]
        return cell.cell in names and cell.numeric in numerics and not cell.variant
    return who != "apart" or cell.variant == "2 layers"
