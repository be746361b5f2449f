"""What the forward of a module takes: padded, packed, ragged or unbatched input."""

import torch
from torch import Tensor
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from fastrnn._layer import extension
from fastrnn._layer.cells import CELLS
from fastrnn._stack import beyond, checks
from fastrnn._stack.beyond import States
from fastrnn._stack.tracing import recorded
from fastrnn._stack.weights import is_ours

#: Classes whose calls in inference go to the extension, which knows their attributes.
PLAIN: set[type] = set()


def forward(
    self,
    input,
    hx=None,
    *,
    resets=None,
    reset_to="zeros",
    lengths=None,
    return_states=False,
    cu_seqlens=None,
):
    """Runs the layers; see the class."""
    # The method of every module with layers: what its `_run` makes of input, in input's form.
    # _run: `(input, hx, batch_first, batch_sizes, options) -> (output, hx)` or `(output, hx,
    # States)` as `fastrnn.functional` documents them, options of `beyond.of_call`.
    batch_sizes = options = nested = None
    asks = (
        resets is not None
        or lengths is not None
        or return_states
        or reset_to != "zeros"
        or cu_seqlens is not None
    )
    if type(input) is not Tensor and isinstance(input, Tensor) and input.is_nested:
        nested, asks = input, True
        input, cu_seqlens = _rows_of(self, nested, cu_seqlens)
    elif not asks and type(self) in PLAIN and not torch.compiler.is_compiling():
        attributes = self.__dict__
        results = extension.direct_layer(attributes, attributes["mode"].lower(), input, hx)
        if results is not None:
            return results
    if nested is None and not isinstance(input, Tensor):
        if isinstance(input, PackedSequence):
            input, batch_sizes, sorted_indices, unsorted_indices = input
        elif isinstance(input, Proxy):
            asked = (resets, reset_to, lengths, return_states, cu_seqlens) if asks else ()
            return recorded(self, input, hx, **dict(zip(beyond.Options._fields[1:], asked)))
    if asks:
        name = self._get_name().lower()
        asked = resets, reset_to, lengths, return_states, cu_seqlens
        options = beyond.of_call(name, batch_sizes, *asked)
    if batch_sizes is not None:
        if hx is not None:
            hx = self.permute_hidden(hx, sorted_indices)
        output, hx = self._run(input, hx, False, batch_sizes, None)
        output = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
        return output, self.permute_hidden(hx, unsorted_indices)
    run = _padded if cu_seqlens is None else _ragged
    if nested is None and is_ours(self):
        return run(self, input, hx, options)
    # torch.nn calls it with None too: a subclass may do something there.
    hx = hx if hx is None else self.permute_hidden(hx, None)
    output, hx, *each = run(self, input, hx, options)
    if nested is not None:
        output = torch.nested.nested_tensor_from_jagged(output, nested.offsets())
    return output, self.permute_hidden(hx, None), *each


def _ragged(module, input, hx, options):
    return module._run(input, hx, False, None, options)


def _rows_of(module, nested, cu_seqlens):
    """The rows of a NestedTensor, and where its sequences begin."""
    name = module._get_name().lower()
    if cu_seqlens is not None:
        raise ValueError(f"{name}: expected cu_seqlens=None with a NestedTensor, got a value")
    if nested.dim() != 3 or nested._ragged_idx != 1 or nested.lengths() is not None:
        raise RuntimeError(
            f"{name}: expected a contiguous NestedTensor of shape (batch, lengths, input_size), "
            f"got {tuple(nested.shape)}"
        )
    return nested.values(), nested.offsets()


def _padded(module, input, hx, options):
    if not isinstance(input, Tensor) or input.dim() == 3:
        return module._run(input, hx, module.batch_first, None, options)
    _check_unbatched(module, input)
    pair = CELLS[module.mode.lower()].has_c
    if hx is not None:
        hx = _with_batch(module, input, hx, pair)
    if options is not None:
        options = beyond.with_batch(options)
    output, hx, *each = module._run(input.unsqueeze(1), hx, False, None, options)
    hx = (hx[0].squeeze(1), hx[1].squeeze(1)) if pair else hx.squeeze(1)
    each = [States(*(None if t is None else t.squeeze(2) for t in s)) for s in each]
    return output.squeeze(1), hx, *each


def _check_unbatched(module, input):
    """Raises where input `[T, I]` does not fit the module, naming the caller's shapes."""
    name, shape = module._get_name().lower(), tuple(input.shape)
    if len(shape) != 2:
        layout = "batch, seq_len" if module.batch_first else "seq_len, batch"
        raise ValueError(
            f"{name}: expected input of shape ({layout}, input_size), or (seq_len, input_size) "
            f"without a batch, got {shape}"
        )
    if shape[0] == 0:
        raise RuntimeError(f"{name}: expected seq_len > 0, got input of shape {shape}")
    if shape[1] != module.input_size:
        raise RuntimeError(
            f"{name}: expected input of shape (seq_len, input_size) = "
            f"({shape[0]}, {module.input_size}), got {shape}"
        )


def _with_batch(module, input, hx, pair):
    """States `[L*D, H]` of unbatched input as `[L*D, 1, H]`."""
    name = module._get_name().lower()
    states = checks.lstm_states(hx, 3, False) if pair else (hx,)
    checks.check_tensors(name, input, states, ())
    for state in states:
        if state.dim() != 2:
            raise RuntimeError(
                f"{name}: expected hx of 2 dimensions "
                f"(num_layers*directions, hidden_size) for 2-D input, got {tuple(state.shape)}"
            )
    indices = module.num_layers * (2 if module.bidirectional else 1)
    for state, size in zip(states, (module.proj_size or module.hidden_size, module.hidden_size)):
        if state.shape != (indices, size):
            raise RuntimeError(
                f"{name}: expected hx of shape (num_layers*directions, hidden_size) = "
                f"{(indices, size)}, got {tuple(state.shape)}"
            )
    states = tuple(state.unsqueeze(1) for state in states)
    return states if pair else states[0]
