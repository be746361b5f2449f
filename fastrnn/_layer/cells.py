"""The table of cells: what csrc/cells/list.h says of each, under the name that operators take."""

from typing import NamedTuple

from torch import nn

from fastrnn._layer import extension


class Cell(NamedTuple):
    """A cell; csrc/cells/cell.h is the contract that these numbers are of."""

    name: str
    products: int  # blocks of hidden_size rows in w_ih and w_hh
    columns: int  # values of a unit before activation; of d_gates, and of the saved gates
    states: int  # h, and c
    vectors: int  # parameters of hidden_size values of the cell's own
    carries_h: bool  # whether h reaches the next h past the product too
    keeps_h: bool  # whether h is all that is saved

    @property
    def has_c(self) -> bool:
        return self.states > 1

    @property
    def saves_gates(self) -> bool:
        return not self.keeps_h

    @property
    def saved(self) -> int:
        """How many tensors a forward pass saves: gates, if at all, and every step's states."""
        return self.saves_gates + self.states

    @property
    def apart(self) -> bool:
        """Whether the last recurrent product has a column of its own, the last."""
        return self.columns > self.products

    @property
    def function(self) -> str:
        """The name of the function and, in capitals, the module: the cell's up to a "_"."""
        return self.name.partition("_")[0]


CELLS = {cell.name: cell for cell in (Cell(*values) for values in extension.cells())}

# What the params of one direction are, in order, by cell, what is normalised, and how many they
# are.
STEMS = {
    (name, norm, len(stems)): stems
    for name, cell in CELLS.items()
    for norm in ("none", "recurrent", "joint")
    for has_biases in (False, True)
    for projected in (False, True)
    for stems in (tuple(extension.params(name, norm, has_biases, projected)),)
    if not projected or (norm == "none" and cell.has_c and not cell.vectors)
}

# The same of weights, all but b_ih and b_hh.
WEIGHT_STEMS = {
    (cell, norm, len(weights)): weights
    for (cell, norm, _), stems in STEMS.items()
    for weights in (tuple(stem for stem in stems if stem[0] != "b"),)
}


def cell_of(module: nn.RNNBase | nn.RNNCellBase) -> Cell:
    """The cell of a layer or cell of torch.nn or ours.

    Raises KeyError for an RNNCell whose nonlinearity there is no cell of.
    """
    if isinstance(module, nn.RNNBase):
        return CELLS[module.mode.lower()]
    products = module.weight_hh.shape[0] // module.hidden_size
    if products == 1:
        return CELLS[f"rnn_{module.nonlinearity}"]
    return {CELLS[name].products: CELLS[name] for name in ("lstm", "gru")}[products]
