"""The operators as nodes of ONNX, for `torch.onnx.export(..., dynamo=True)`.

Sources: the operators LSTM, GRU and RNN of the ONNX specification, opset 14 (the rows of their
weights are in another order), and `custom_translation_table` of torch.onnx.export. That exporter
needs onnxscript, which is imported when the table is asked for: fastrnn does not depend on it.
"""

import warnings

from fastrnn._layer import ops
from fastrnn._layer.cells import CELLS, STEMS

__all__ = ["translation_table"]

# Blocks of rows of our weights (i, f, g, o; r, z, n; f, g, o) in the order of ONNX (i, o, f, c; z,
# r, h). ~k: block k with its sign changed, since 1 - sigmoid(a) is sigmoid(-a).
_GATES = {
    "lstm": (0, 3, 1, 2),
    "gru": (1, 0, 2),
    "rnn_tanh": (0,),
    "rnn_relu": (0,),
    "lstm_coupled": (~0, 2, 0, 1),
    "lstm_peephole": (0, 3, 1, 2),
}
_PEEPHOLES = 0, 2, 1  # of i, f, o in the order i, o, f
_ATTRIBUTES = {
    "gru": {"linear_before_reset": 1},
    "rnn_tanh": {"activations": ["Tanh"]},
    "rnn_relu": {"activations": ["Relu"]},
}


def translation_table(*, initial_states: bool = False) -> dict:
    """What `torch.onnx.export` needs to write fastrnn's layers and cells as standard ONNX nodes.

    ::

        torch.onnx.export(model.eval(), (x,), "model.onnx", dynamo=True,
                          custom_translation_table=fastrnn.onnx.translation_table())

    One direction-complete layer becomes one LSTM, GRU (linear_before_reset=1) or RNN node; cells
    one of a single step. `lengths` become the node's sequence_lens (int32), with outputs and final
    states as fastrnn has them; sequences may have no step. The exporter reports a
    NotImplementedError for projections (ONNX's LSTM has none), packed and ragged input (ONNX has no
    such rows: export the layer on padded input, with lengths), `resets` and `return_states`. Of a
    RNN with relu it warns (UserWarning): ONNX Runtime and OpenVINO compute it, tract, MNN and ncnn
    take it for tanh without a word.

    Args:
        initial_states: whether a layer that is called without states gets constants of zeros as
            initial_h and, an LSTM, initial_c: OpenCV takes a GRU only so, nncf an LSTM. Where the
            batch is dynamic they are expanded to it.

    Returns:
        A dict from operator to translation, to be passed on, alone or merged with others.

    Raises:
        ImportError: onnxscript is not installed.
    """
    try:
        from onnxscript import opset18 as op
    except ImportError as error:
        raise ImportError(
            "fastrnn.onnx: exporting to ONNX needs the packages onnx and onnxscript: "
            "pip install onnx onnxscript"
        ) from error

    def layer(cell, input, batch_sizes, states, params, bidirectional, save, lengths=None):
        node = _Node(op, cell, input, batch_sizes, params, bidirectional)
        if node.projected:
            raise NotImplementedError(
                "fastrnn.onnx: an LSTM with proj_size cannot be exported, for ONNX's LSTM has no "
                "projection"
            )
        if save:
            raise NotImplementedError(
                f"fastrnn.onnx: {node.kind} with return_states cannot be exported, for ONNX's "
                "nodes have final states alone"
            )
        if cell == "rnn_relu":
            warnings.warn(
                "fastrnn.onnx: an RNN with relu: ONNX Runtime and OpenVINO compute it; tract, MNN "
                "and ncnn take it for tanh without a word",
                stacklevel=2,
            )
        arguments = node.arguments(states, lengths, initial_states)
        return node.outputs(getattr(op, node.kind)(*arguments, **node.attributes))

    def layer_of_lengths(cell, input, lengths, states, params, bidirectional):
        lengths = op.Cast(lengths, to=_INT32)
        return layer(cell, input, None, states, params, bidirectional, False, lengths)

    def segments(*_):
        raise NotImplementedError(
            "fastrnn.onnx: resets and cu_seqlens cannot be exported: ONNX's nodes have lengths "
            "(sequence_lens) alone"
        )

    return {
        ops.layer_forward: layer,
        ops.layer_of_lengths: layer_of_lengths,
        ops.segments: segments,
    }


_INT32 = 6  # of onnx.TensorProto.DataType


class _Node:
    """The arguments of one ONNX node from those of one operator, and the way back.

    Everything that is done to weights here becomes a node that the exporter or the runtime folds.
    """

    def __init__(self, op, cell, input, batch_sizes, params, bidirectional):
        kind = CELLS[cell].function.upper()
        if batch_sizes is not None:
            raise NotImplementedError(
                f"fastrnn.onnx: {kind} on a PackedSequence cannot be exported, for ONNX has no "
                "packed rows; export it on padded input"
            )
        self.kind, self.gates, self.op, self.input = kind, _GATES[cell], op, input
        self.params, self.directions = params, 2 if bidirectional else 1
        self.stems = STEMS[cell, "none", len(params) // self.directions]
        self.projected = "w_hr" in self.stems
        self.hidden_size = int(params[1].shape[1])
        self.attributes = {
            "hidden_size": self.hidden_size,
            "direction": "bidirectional" if bidirectional else "forward",
        }
        for name, value in _ATTRIBUTES.get(cell, {}).items():  # a list: for each direction
            self.attributes[name] = value * self.directions if name == "activations" else value

    def arguments(self, states, lengths, with_states):
        """X, W `[D, G*H, I]`, R `[D, G*H, H]`, B `[D, 2*G*H]`, sequence_lens, initial states, P
        `[D, 3*H]` of a cell with peepholes."""
        if with_states:
            states = [self._zeros(i) if s is None else s for i, s in enumerate(states)]
        w, r = self._stacked("w_ih"), self._stacked("w_hh")
        b = None
        if "b_ih" in self.stems:
            b = self.op.Concat(self._stacked("b_ih"), self._stacked("b_hh"), axis=1)
        p = [self._stacked("w_ch", _PEEPHOLES)] if "w_ch" in self.stems else []
        return self.input, w, r, b, lengths, *states, *p

    def _zeros(self, index):
        """An initial state `[D, B, H]`: by another operator for each, since the exporter makes one
        of what is computed alike, and engines may write into it."""
        op, batch = self.op, self.op.Shape(self.input, start=1, end=2)
        sizes = self.directions, self.hidden_size
        directions, size = (op.Constant(value_ints=[n]) for n in sizes)
        shape = op.Concat(directions, batch, size, axis=0)
        if index:
            return op.CastLike(op.ConstantOfShape(shape), self.input)
        return op.Expand(op.CastLike(op.Constant(value_float=0.0), self.input), shape)

    def outputs(self, results):
        """Y `[T, D, B, H]` as output `[T, B, D*H]`; the final states as they are."""
        y, *finals = results
        y = self.op.Transpose(y, perm=[0, 2, 1, 3])
        y = self.op.Reshape(y, self.op.Constant(value_ints=[0, 0, -1]))
        return y, *finals

    def _stacked(self, stem, gates=None):
        """One parameter of every direction, its blocks of rows in ONNX's order, `[D, ...]`."""
        op, gates, index, stacked = self.op, gates or self.gates, self.stems.index(stem), []
        per_direction = len(self.params) // self.directions
        axis = op.Constant(value_ints=[0])
        for direction in range(self.directions):
            parameter = self.params[direction * per_direction + index]
            if len(gates) > 1:
                # Not Split: the exporter folds constants through operators of one output only.
                rows = self.hidden_size
                blocks = [self._rows(parameter, max(g, ~g) * rows, rows) for g in gates]
                blocks = [op.Neg(b) if g < 0 else b for g, b in zip(gates, blocks)]
                parameter = op.Concat(*blocks, axis=0)
            stacked.append(op.Unsqueeze(parameter, axis))
        return stacked[0] if len(stacked) == 1 else op.Concat(*stacked, axis=0)

    def _rows(self, parameter, start, count):
        starts, ends, axes = (
            self.op.Constant(value_ints=[value]) for value in (start, start + count, 0)
        )
        return self.op.Slice(parameter, starts, ends, axes)
