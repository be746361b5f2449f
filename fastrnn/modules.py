"""Drop-in replacements of torch.nn's recurrent layers and cells.

Constructor arguments, parameters, state_dict, repr and results are torch.nn's. Its base classes are
inherited from, its layers are not: torch.compile refuses instances of nn.LSTM. Equations, shapes
and dtypes stand in `fastrnn.functional`; here is what modules add: weights read by name at each
call, input without a batch, PackedSequence.

Weights are read afresh by attribute at every call, so a parameter may be reassigned, resampled by a
property or a parametrization, shared, pruned, deleted with a plain tensor in its place, or have its
storage replaced (`param.data = ...`).
"""

import inspect
from typing import get_overloads, overload

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from fastrnn import functional
from fastrnn._layer import extension
from fastrnn._layer.cells import CELLS
from fastrnn._stack import checks, packing, plain, stack
from fastrnn._stack.plain import PLAIN
from fastrnn._stack.tracing import recorded, refuse_script
from fastrnn._stack.weights import note_assignment, weights

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]


# What nn.RNNBase makes parameters of so many blocks of rows for.
_TORCH_MODES = {4: "LSTM", 3: "GRU", 1: "RNN_TANH"}


class _Layer(nn.RNNBase):
    """What LSTM, GRU and RNN share."""

    checkpoint_every: int | None = None
    forward = packing.forward
    __prepare_scriptable__ = refuse_script

    def __init__(self, mode, *args, **kwargs):
        super().__init__(_TORCH_MODES[CELLS[mode.lower()].products], *args, **kwargs)
        self.mode = mode

    def flatten_parameters(self) -> None:
        """As torch.nn's, which is for cuDNN; nothing for cells that cuDNN has not."""
        if self.mode in _TORCH_MODES.values() or self.mode == "RNN_RELU":
            super().flatten_parameters()

    def _run_cell(self, cell, input, states, batch_first, batch_sizes, options):
        """The results of a layer of fastrnn.functional with the module's weights and settings;
        cell: a `fastrnn._stack.plain.Cell`."""
        before = stack.dropout(self.dropout, self.num_layers) if self.training else None
        call = stack.Call(
            self.num_layers,
            self.bias,
            self.bidirectional,
            before,
            batch_first,
            batch_sizes,
            self.checkpoint_every,
            options,
        )
        params = weights(self, self._flat_weights_names)
        return stack.results(*plain.run(cell, input, states, params, call))

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "_flat_weights":
            note_assignment(self)


class LSTM(_Layer):
    """A stack of long short-term memory layers: `torch.nn.LSTM`, faster.

    Args:
        input_size, hidden_size: features of the input and of the hidden state.
        num_layers: layers, each but the first taking the output of the one before. Default: 1
        bias: whether the layers have `b_ih` and `b_hh`. Default: True
        batch_first: whether input and output are `(batch, seq_len, features)` instead of `(seq_len,
            batch, features)`. States never are. Default: False
        dropout: probability of a zero in the output of each layer but the last, in training.
            Default: 0
        bidirectional: whether each layer has a second direction, from the end. Default: False
        proj_size: if > 0, h is projected to this size. Default: 0
        device, dtype: of the parameters.
        checkpoint_every: k, to keep the states at every k-th step alone in training and recompute
            the rest in backward; see `fastrnn.functional.lstm`. It is an attribute too, which may
            be changed at any time. Default: None

    Call: `output, (h_n, c_n) = lstm(input, (h_0, c_0))`; without states, zeros.
        input: `(seq_len, batch, input_size)`, see batch_first; `(seq_len, input_size)` without a
            batch; or a PackedSequence, and output is one too.
        h_0, h_n: `(num_layers*directions, batch, proj_size or hidden_size)`.
        c_0, c_n: `(num_layers*directions, batch, hidden_size)`.
        output: like input, with `directions*(proj_size or hidden_size)` features.

    Keywords of the call beyond torch.nn's, as of `fastrnn.functional`: `resets` `(seq_len, batch)`,
    see batch_first, or `(seq_len)` without a batch; `reset_to`; `lengths` `(batch)`, or `()`;
    `return_states`: then `output, (h_n, c_n), states`; `cu_seqlens` `(batch + 1)`, for ragged input
    `(sum of lengths, input_size)`. Not with a PackedSequence (ValueError). A NestedTensor `(batch,
    lengths, input_size)` of layout torch.jagged is ragged input too, and output is one.

    Raises what torch.nn.LSTM raises, for the same mistakes. Dtypes, devices, errors and equations:
    see `fastrnn.functional` and `fastrnn.functional.lstm`.

    Attributes: `weight_ih_l[k]`, `weight_hh_l[k]`, `bias_ih_l[k]`, `bias_hh_l[k]` and
    `weight_hr_l[k]`, with `_reverse` appended for the second direction; rows in the order
    i, f, g, o.
    """

    _mode = "LSTM"

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device=None,
        dtype=None,
        *,
        checkpoint_every: int | None = None,
    ) -> None: ...

    @overload
    def __init__(self, *args, **kwargs) -> None: ...

    def __init__(self, *args, **kwargs):
        checkpoint_every = kwargs.pop("checkpoint_every", None)
        super().__init__(self._mode, *args, **kwargs)
        _set_checkpoint_every(self, checkpoint_every)

    # The next three are part of torch.nn.LSTM's surface: subclasses call and override them.

    def get_expected_cell_size(
        self, input: Tensor, batch_sizes: Tensor | None
    ) -> tuple[int, int, int]:
        """The shape of c_0."""
        indices, batch, _ = self.get_expected_hidden_size(input, batch_sizes)
        return indices, batch, self.hidden_size

    def check_forward_args(
        self, input: Tensor, hidden: tuple[Tensor, Tensor], batch_sizes: Tensor | None
    ) -> None:
        """Raises where input or states do not fit; input and states as functional takes them."""
        self.check_input(input, batch_sizes)
        expected = self.get_expected_hidden_size(input, batch_sizes)
        self.check_hidden_size(hidden[0], expected, "Expected hidden[0] size {}, got {}")
        expected = self.get_expected_cell_size(input, batch_sizes)
        self.check_hidden_size(hidden[1], expected, "Expected hidden[1] size {}, got {}")

    def permute_hidden(
        self, hx: tuple[Tensor, Tensor], permutation: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Both states with their batch rearranged."""
        if permutation is None:
            return hx
        return hx[0].index_select(1, permutation), hx[1].index_select(1, permutation)

    def _run(self, input, hx, batch_first, batch_sizes, options):
        states = checks.lstm_states(hx, 3, batch_sizes is not None)
        return self._run_cell(PLAIN["lstm"], input, states, batch_first, batch_sizes, options)


class GRU(_Layer):
    """A stack of gated recurrent unit layers: `torch.nn.GRU`, faster.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device,
            dtype, checkpoint_every: as of `LSTM`.

    Call: `output, h_n = gru(input, h_0)`; without h_0, zeros. Shapes and keywords as of `LSTM`.

    Raises what torch.nn.GRU raises, for the same mistakes. Dtypes, devices, errors and equations:
    see `fastrnn.functional` and `fastrnn.functional.gru`.

    Attributes: as of `LSTM`; rows in the order r, z, n.
    """

    _mode = "GRU"

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device=None,
        dtype=None,
        *,
        checkpoint_every: int | None = None,
    ) -> None: ...

    @overload
    def __init__(self, *args, **kwargs) -> None: ...

    def __init__(self, *args, **kwargs):
        _refuse_proj_size(kwargs)
        checkpoint_every = kwargs.pop("checkpoint_every", None)
        super().__init__(self._mode, *args, **kwargs)
        _set_checkpoint_every(self, checkpoint_every)

    def _run(self, input, hx, batch_first, batch_sizes, options):
        return self._run_cell(PLAIN["gru"], input, (hx,), batch_first, batch_sizes, options)


class RNN(_Layer):
    """A stack of Elman layers with tanh or ReLU: `torch.nn.RNN`, faster.

    Args:
        input_size, hidden_size, num_layers: as of `LSTM`.
        nonlinearity: 'tanh' or 'relu'; by position it comes after num_layers. Default: 'tanh'
        bias, batch_first, dropout, bidirectional, device, dtype, checkpoint_every: as of `LSTM`.

    Call: `output, h_n = rnn(input, h_0)`; without h_0, zeros. Shapes and keywords as of `LSTM`.

    Raises what torch.nn.RNN raises, for the same mistakes. Dtypes, devices, errors and equations:
    see `fastrnn.functional` and `fastrnn.functional.rnn`.

    Attributes: as of `LSTM`.
    """

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device=None,
        dtype=None,
        *,
        checkpoint_every: int | None = None,
    ) -> None: ...

    @overload
    def __init__(self, *args, **kwargs) -> None: ...

    def __init__(self, *args, **kwargs):
        _refuse_proj_size(kwargs)
        if len(args) > 3:
            self.nonlinearity = args[3]
            args = args[:3] + args[4:]
        else:
            self.nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"rnn: expected nonlinearity 'tanh' or 'relu', got {self.nonlinearity!r}"
            )
        checkpoint_every = kwargs.pop("checkpoint_every", None)
        super().__init__(f"RNN_{self.nonlinearity.upper()}", *args, **kwargs)
        _set_checkpoint_every(self, checkpoint_every)

    def _run(self, input, hx, batch_first, batch_sizes, options):
        cell = PLAIN["rnn_relu" if self.mode == "RNN_RELU" else "rnn_tanh"]
        return self._run_cell(cell, input, (hx,), batch_first, batch_sizes, options)


for _cls in (LSTM, GRU, RNN):  # what help and inspect show of (*args, **kwargs)
    _cls.__init__.__signature__ = inspect.signature(get_overloads(_cls.__init__)[0])


def _set_checkpoint_every(module, every):
    checks.check_checkpoint_every(module._get_name().lower(), every)
    if every is not None:  # else the class has it: instances have the attributes of torch.nn's
        module.checkpoint_every = every


def _refuse_proj_size(kwargs):
    if "proj_size" in kwargs:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


_CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _direct(module, cell, input, hx):
    """What a cell gives in inference; None where it must go the long way."""
    if type(module) not in packing.PLAIN or torch.compiler.is_compiling():
        return None
    return extension.direct_cell(module.__dict__, cell, _CELL_WEIGHTS, input, hx)


class LSTMCell(nn.RNNCellBase):
    """One step of an LSTM: `torch.nn.LSTMCell`, faster.

    Args:
        input_size, hidden_size, bias, device, dtype: as of `LSTM`.

    Call: `h, c = cell(input, (h, c))`; without states, zeros.
        input: `(batch, input_size)`, or `(input_size)` without a batch.
        h, c: `(batch, hidden_size)`, or `(hidden_size)`.

    Raises what torch.nn.LSTMCell raises. See `fastrnn.functional.lstm_cell`.

    Attributes: `weight_ih`, `weight_hh`, `bias_ih`, `bias_hh`; rows in the order i, f, g, o.
    """

    __prepare_scriptable__ = refuse_script

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Runs the step; see the class."""
        states = _direct(self, "lstm", input, hx)
        if states is not None:
            return states
        if isinstance(input, Proxy):
            return recorded(self, input, hx)
        return functional.lstm_cell(input, hx, *weights(self, _CELL_WEIGHTS))


class GRUCell(nn.RNNCellBase):
    """One step of a GRU: `torch.nn.GRUCell`, faster.

    Args:
        input_size, hidden_size, bias, device, dtype: as of `LSTM`.

    Call: `h = cell(input, h)`; without h, zeros. Shapes as of `LSTMCell`.

    Raises what torch.nn.GRUCell raises. See `fastrnn.functional.gru_cell`.

    Attributes: as of `LSTMCell`; rows in the order r, z, n.
    """

    __prepare_scriptable__ = refuse_script

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device=None, dtype=None
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Runs the step; see the class."""
        h = _direct(self, "gru", input, hx)
        if h is not None:
            return h
        if isinstance(input, Proxy):
            return recorded(self, input, hx)
        return functional.gru_cell(input, hx, *weights(self, _CELL_WEIGHTS))


class RNNCell(nn.RNNCellBase):
    """One step of an Elman RNN with tanh or ReLU: `torch.nn.RNNCell`, faster.

    Args:
        input_size, hidden_size, bias: as of `LSTM`.
        nonlinearity: 'tanh' or 'relu'. Default: 'tanh'
        device, dtype: as of `LSTM`.

    Call: `h = cell(input, h)`; without h, zeros. Shapes as of `LSTMCell`.

    Raises what torch.nn.RNNCell raises (an unknown nonlinearity raises in the call). See
    `fastrnn.functional.rnn_cell`.

    Attributes: as of `LSTMCell`.
    """

    __prepare_scriptable__ = refuse_script
    __constants__ = ["input_size", "hidden_size", "bias", "nonlinearity"]
    nonlinearity: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device=None,
        dtype=None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Runs the step; see the class."""
        h = _direct(self, f"rnn_{self.nonlinearity}", input, hx)
        if h is not None:
            return h
        if isinstance(input, Proxy):
            return recorded(self, input, hx)
        params = weights(self, _CELL_WEIGHTS)
        return functional.rnn_cell(input, hx, *params, nonlinearity=self.nonlinearity)


packing.PLAIN.update((LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell))
