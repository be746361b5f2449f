"""What a stack can do beyond torch.nn's: resets, lengths, ragged rows, every step's states.

Padded or ragged rows between two resets, or up to a sequence's end, are a sequence of their own: a
*segment*. Segments are run as packed data, by the kernels for it and with their derivatives of any
kind; short ones run side by side, which is often faster than the plain layer. Rows are moved twice,
before the first layer and after the last. `fastrnn.functional` says what the options mean.

Which segments there are must be known on the host. So on any device but the CPU, padded data stay
padded: kernels take resets as they are, and with lengths each direction runs in an order of rows in
which sequences begin at step 0, so that what is behind a sequence's end takes no part in it.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree

from fastrnn._layer import autograd, ops
from fastrnn._layer.transforms import transforms_active


class States(NamedTuple):
    """Every step's states, of every layer and direction: index `layer * D + direction`, as of h_n.

    Steps are in the order of the input, in the second direction too. With batch_first `[L*D, B, T,
    ...]`, without a batch `[L*D, T, ...]`, of ragged rows `[L*D, N, ...]`. Where a sequence has
    ended (lengths), zeros.
    """

    hidden: Tensor
    """h_t, `[L*D, T, B, P]`: outputs of all layers, before dropout."""
    cells: Tensor | None
    """c_t, `[L*D, T, B, H]`, of an LSTM."""
    gates: Tensor | None
    """Gates after their nonlinearity, `[L*D, T, B, G*H]`: i, f, g, o of an LSTM, r, z, n of a GRU.
    Values alone, without gradients."""


# So that an exported program that returns them can be saved.
_pytree._register_namedtuple(States, serialized_type_name="fastrnn.States")


class Options(NamedTuple):
    """What a call asks for."""

    name: str
    """the caller's, in messages"""
    resets: Tensor | None
    reset_to: str
    lengths: Tensor | None
    return_states: bool
    cu_seqlens: Tensor | None
    """of ragged input `[N, I]`: where each sequence begins and, last, the number of rows"""


def of_call(name, batch_sizes, resets, reset_to, lengths, return_states, cu_seqlens=None):
    """The Options of a call, None where it asks for nothing."""
    if reset_to != "zeros" and reset_to != "hx":
        raise ValueError(f"{name}: expected reset_to 'zeros' or 'hx', got {reset_to!r}")
    asked = {
        "resets": resets is not None,
        "lengths": lengths is not None,
        "cu_seqlens": cu_seqlens is not None,
        "return_states": return_states,
    }
    given = [argument for argument, is_given in asked.items() if is_given]
    if not given:
        return None
    if batch_sizes is not None:
        raise ValueError(f"{name}: expected padded input with {given[0]}, got packed input")
    if lengths is not None and cu_seqlens is not None:
        raise ValueError(f"{name}: expected lengths or cu_seqlens, got both")
    values = {"resets": resets, "lengths": lengths, "cu_seqlens": cu_seqlens}
    tensors = {argument: _tensor(name, argument, value) for argument, value in values.items()}
    if cu_seqlens is not None:
        tensors["cu_seqlens"] = _checked_borders(name, tensors["cu_seqlens"])
    return Options(name, reset_to=reset_to, return_states=return_states, **tensors)


def _checked_borders(name, cu_seqlens):
    """cu_seqlens in int64; the operator looks at values."""
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        raise RuntimeError(
            f"{name}: expected cu_seqlens of shape (batch + 1,) with batch > 0, "
            f"got {tuple(cu_seqlens.shape)}"
        )
    if cu_seqlens.dtype not in _INTEGERS:
        raise RuntimeError(f"{name}: expected cu_seqlens as integers, got {cu_seqlens.dtype}")
    if cu_seqlens.layout is not torch.strided or cu_seqlens.is_meta:
        raise RuntimeError(
            f"{name}: expected cu_seqlens as a dense tensor with values, "
            f"got {cu_seqlens.layout} on {cu_seqlens.device}"
        )
    return cu_seqlens.to(torch.int64)


def _tensor(name, argument, value):
    """A list or an array as a tensor."""
    if value is None or isinstance(value, Tensor):
        return value
    if not isinstance(value, str | bytes):
        try:
            return torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            pass
    raise TypeError(
        f"{name}: expected {argument} to be a Tensor, an array or a list of numbers, "
        f"got {type(value).__name__}"
    )


def check(options, input, batch_first):
    """The Options with resets `[T, B]`, or `[N]`; raises where an option does not fit input
    `[T, B, I]`, or `[N, I]`."""
    ragged, sizes = options.cu_seqlens is not None, tuple(input.shape[:-1])
    layout = "sum of lengths," if ragged else "seq_len, batch"
    if batch_first:
        layout, sizes = "batch, seq_len", sizes[::-1]
    name, resets, lengths = options.name, options.resets, options.lengths
    if resets is not None:
        _check(name, "resets", resets, layout, sizes, input)
        if resets.dtype is not torch.bool:  # dones, as environments give them
            resets = resets != 0
        if batch_first:
            resets = resets.t()
    if ragged:
        return options._replace(resets=resets)
    if lengths is not None:
        _check(name, "lengths", lengths, "batch,", (input.shape[1],), input)
        if lengths.dtype not in _INTEGERS:
            raise RuntimeError(f"{name}: expected lengths as integers, got {lengths.dtype}")
        lengths = lengths.to(torch.int64)
    return options._replace(resets=resets, lengths=lengths)


_INTEGERS = torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8


def _check(name, argument, value, layout, sizes, input):
    if value.layout is not torch.strided or value.is_meta and not input.is_meta:
        raise RuntimeError(
            f"{name}: expected {argument} as a dense tensor with values, "
            f"got {value.layout} on {value.device}"
        )
    if value.shape != sizes:
        raise RuntimeError(
            f"{name}: expected {argument} of shape ({layout}) = {tuple(sizes)}, "
            f"got {tuple(value.shape)}"
        )


def with_batch(options):
    """Options with resets `[T]` and lengths `[]` of unbatched input -> those of a batch of one."""
    changed = {}
    for argument, dim in (("resets", 1), ("lengths", 0)):
        value = getattr(options, argument)
        if value is not None:
            if value.dim() != dim:
                raise RuntimeError(
                    f"{options.name}: expected {argument} of {dim} dimensions for 2-D input, "
                    f"got {tuple(value.shape)}"
                )
            changed[argument] = value.unsqueeze(-1)
    return options._replace(**changed)


# -- Running a stack -----------------------------------------------------------------------------


def apply(options, layers, run, input, initial, directions, native):
    """`(output, final states, States or None)` of a stack on `[T, B, I]` or ragged `[N, I]`.

    layers: `(run, input, batch_sizes, states, keep)`, as of `fastrnn._stack.stack`, as run is.
    native: whether run takes resets on devices other than the CPU.
    """
    _, resets, reset_to, lengths, keep, cu_seqlens = options
    if resets is not None and resets.device != input.device:
        resets = resets.to(input.device)
    if cu_seqlens is not None:
        options = options._replace(resets=resets)
        return _apply_to_ragged(options, layers, run, input, initial, directions)
    states, segments, held = initial, None, False
    seq_len, batch = input.shape[:2]
    if lengths is not None and lengths.device != input.device:
        lengths = lengths.to(input.device)
    if batch == 0 or (input.is_meta and not native):  # no row, or no value, to be looked at
        resets = lengths = None
    padded = native and _stays_padded(input, resets)
    if resets is not None and (padded or seq_len == 1):
        states = _reset_at_start(reset_to, resets[0], lengths, states, directions)
    if seq_len == 1:
        resets = None
    if padded:
        to_hx = reset_to == "hx" and states[0] is not None
        if lengths is not None:
            run = _Masked(run, lengths, resets, to_hx, seq_len, batch)
        elif resets is not None:
            run = partial(run, resets=(resets, to_hx))
    elif resets is not None or lengths is not None:
        known = _is_known(lengths if resets is None else resets)
        segments = _Segments(resets, lengths, seq_len, batch, directions, input.device, known)
        if segments.are_whole:
            if segments.start_anew:
                states = _reset_at_start(reset_to, resets[0], lengths, states, directions)
            segments = lengths = None
    if segments is None:
        output, finals, kept = layers(run, input, None, states, keep)
        # Backward reads what the layers kept, but for the copies that rows in order are.
        held = lengths is None and (output.requires_grad or transforms_active())
    else:
        output, finals, kept = segments.run(layers, run, input, states, reset_to, keep)
        if segments.are_all:
            lengths = None
    finals = _where_run(lengths, finals, initial)
    return output, finals, _states(kept, (seq_len, batch), directions, held) if keep else None


def apply_for_onnx(options, layers, run, input, initial):
    """As `apply`, while torch.onnx.export traces: lengths are an input of ONNX's nodes."""
    is_plain = isinstance(run, partial) and run.func is autograd.layer
    asked = {
        "resets": options.resets is not None,
        "cu_seqlens": options.cu_seqlens is not None,
        "return_states": options.return_states,
        "options inside the recurrence": not is_plain,
    }
    for what, is_asked in asked.items():
        if is_asked:
            raise NotImplementedError(
                f"fastrnn.onnx: {options.name} with {what} cannot be exported: ONNX's nodes have "
                "lengths (sequence_lens) alone"
            )
    (cell,), lengths = run.args, options.lengths

    def node(input, batch_sizes, states, params, bidirectional, keep=False):
        return ops.layer_of_lengths(cell, input, lengths, states, params, bidirectional)

    output, finals, _ = layers(node, input, None, initial, False)
    return output, _where_run(lengths, finals, initial), None


_library = torch.library.Library("fastrnn", "IMPL")  # what it registers lives as long as it


@torch.library.impl(_library, "layer_of_lengths", "CompositeExplicitAutograd")
def _layer_of_lengths(cell, input, lengths, states, params, bidirectional):
    def layers(run, rows, batch_sizes, states, keep):
        output, *finals = ops.layer_forward(
            cell, rows, batch_sizes, states, params, bidirectional, False
        )
        return output, finals, ()

    options = Options("layer_of_lengths", None, "zeros", lengths.to(torch.int64), False, None)
    directions = 2 if bidirectional else 1
    output, finals, _ = apply(options, layers, None, input, states, directions, False)
    return [output, *finals]


def _apply_to_ragged(options, layers, run, input, initial, directions):
    _, resets, reset_to, _, keep, cu_seqlens = options
    if input.is_meta:
        resets = None
    known, sizes = _is_known(cu_seqlens), (input.shape[0], cu_seqlens.shape[0] - 1)
    segments = _Segments(resets, None, *sizes, directions, input.device, known, cu_seqlens)
    output, finals, kept = segments.run(layers, run, input, initial, reset_to, keep)
    if not segments.are_all:
        finals = _where_run(cu_seqlens.diff().to(input.device), finals, initial)
    return output, finals, _states(kept, input.shape[:1], directions, False) if keep else None


def _where_run(lengths, finals, initial):
    """Final states, the initial ones of sequences without a step."""
    if lengths is None or initial[0] is None:
        return finals
    ran = (lengths > 0)[:, None]
    return [torch.where(ran, *pair) for pair in zip(finals, initial, strict=True)]


def _stays_padded(input, resets):
    """Whether what values of resets and lengths say is left to the device: no copy to the host,
    which would wait for it. Resets have no batching rule there."""
    return not input.is_cpu and (resets is None or not transforms_active())


def _is_known(tensor):
    """Whether its values may decide what is run: without waiting for a device, or in a graph that
    holds for other values too."""
    if not tensor.is_cpu or torch.compiler.is_compiling():
        return False
    return not transforms_active()


def _reset_at_start(reset_to, resets, lengths, states, directions):
    """States that the first step starts from: a reset is before a step, so the second direction,
    which gets there from the other side, has none."""
    if reset_to == "hx" or states[0] is None:
        return states
    if lengths is not None:
        resets = resets & (lengths > 0)
    index = torch.arange(states[0].shape[0], device=resets.device)
    mask = (index % directions == 0)[:, None] & resets
    return tuple(state.masked_fill(mask[..., None], 0) for state in states)


def _states(kept, shape, directions, held):
    """States of the layers' outputs, `T*B` rows of `D*P`, and `[D, T*B, ...]` cells and gates, the
    rows in that shape.

    held: whether somebody else has cells and gates too.
    """
    outputs, cells, gates = zip(*kept, strict=True)
    size = outputs[0].shape[-1] // directions
    h = [part for o in outputs for part in o.view(*shape, directions, size).unbind(-2)]

    def stacked(layers):
        if layers[0] is None:
            return None
        parts = [each.view(directions, *shape, each.shape[-1]) for each in layers]
        return torch.cat(parts) if held or len(parts) > 1 else parts[0]

    return States(torch.stack(h), stacked(cells), stacked(gates))


class _Segments:
    """Padded or ragged rows as the packed rows of their segments, and back.

    known: whether values may decide what is run. Then `are_whole` says that there is nothing to
    split or to cut off, in which case there are no rows to move, and `start_anew` that the first
    step has a reset.
    """

    def __init__(self, resets, lengths, seq_len, batch, directions, device, known, cu_seqlens=None):
        on_cpu = device.type == "cpu"
        given = resets, lengths, cu_seqlens
        resets, lengths, cu_seqlens = (None if t is None else t.cpu() for t in given)
        none_if_whole = known and cu_seqlens is None  # ragged rows move in any case
        self.batch_sizes, *indices = ops.segments(
            resets, lengths, seq_len, batch, directions, none_if_whole, cu_seqlens
        )
        self.are_whole = none_if_whole and self.batch_sizes.shape[0] == 0
        if self.are_whole:
            self.start_anew = indices[3].dim() == 2
            return
        if not on_cpu:
            indices = [index.to(device) for index in indices]
        (
            self.order, self.places, self.owners, self.starts, self.started, self.ends, self.ended,
        ) = indices  # fmt: skip
        # Without resets, a segment for each sequence but those of length 0. A batch that has none
        # but those has one all the same, of a row that is not there.
        self.are_all = (
            known
            and resets is None
            and self.owners.shape[0] == batch
            and (batch > 1 or self.order[0, 0].item() >= 0)
        )

    def run(self, layers, run, input, states, reset_to, keep):
        """What layers give, for rows as they came."""
        rows, states = self._packed(input, states, reset_to)
        output, finals, kept = layers(run, rows, self.batch_sizes, states, keep)
        del rows  # so that padded rows may lie there, in the cache still
        return self._in_place(output, finals, kept)

    def _packed(self, input, states, reset_to):
        """`[T, B, I]` or `[N, I]` as packed rows `[N, I]`, and the states `[L*D, B, ...]` that a
        batch starts from as those of its segments."""
        every = states
        if reset_to == "hx" or states[0] is None:
            every = ()
        rows, *started = autograd.gather_rows(
            [input], self.order, self.places, every, self.starts, self.started
        )
        if not every and states[0] is not None:
            started = [state.index_select(1, self.owners) for state in states]
        return rows, started or states

    def _in_place(self, output, finals, kept):
        """Packed rows `[N, C]` and `[D, N, C]` where they came from, `[T, B, C]` and
        `[D, T, B, C]`, and the states that segments end with as the batch's; zeros where a sequence
        has none."""
        rows = [output, *(t for each in kept for t in each if t is not None and t is not output)]
        moved = autograd.gather_rows(rows, self.places, self.order, finals, self.ends, self.ended)
        others = iter(moved[1 : len(rows)])
        kept = [
            [None if t is None else moved[0] if t is output else next(others) for t in each]
            for each in kept
        ]
        return moved[0], list(moved[len(rows) :]), kept


class _Masked:
    """A run on padded input whose sequences have lengths that only the device knows.

    resets: `[T, B]` or None, to_hx: whether to the initial states.
    """

    def __init__(self, run, lengths, resets, to_hx, seq_len, batch):
        self.run, self.sizes = run, (seq_len, batch)
        lengths = lengths.clamp(0, seq_len)
        t = torch.arange(seq_len, device=lengths.device)[:, None]
        b = torch.arange(batch, device=lengths.device)
        # The row at each step of a direction, from its own begin on; the inverse is the same.
        self.orders = [
            torch.where(t < lengths, at * batch + b, -1)[None] for at in (t, lengths - 1 - t)
        ]
        self.resets = [(), ()]
        if resets is not None:
            # In reverse, step s is the input's lengths - 1 - s, and a reset before that input's
            # successor, lengths - s, is one before step s.
            index = (lengths - t).clamp(0, seq_len - 1)
            turned = resets.gather(0, index) & (t > 0) & (t < lengths)
            self.resets = [(mask, to_hx) for mask in (resets & (t < lengths), turned)]
        self.last = torch.where(lengths > 0, (lengths - 1) * batch + b, -1)[None]
        self.is_last = torch.where(t == lengths - 1, b, -1)[None]

    def __call__(self, input, batch_sizes, states, params, bidirectional, keep=False):
        directions = 2 if bidirectional else 1
        each = len(params) // directions
        lstm = len(states) == 2
        results = []
        for d in range(directions):
            own = params[d * each : (d + 1) * each]
            initial = tuple(None if state is None else state[d : d + 1] for state in states)
            x = self._ordered(input, d)
            # The last cell of a sequence is one of every step's.
            output, *finals = self.run(x, None, initial, own, False, keep or lstm, self.resets[d])
            steps = [
                None if t is None else t.view(1, *self.sizes, t.shape[-1])
                for t in (output, *finals[len(states) :])
            ]
            ends = autograd.gather_rows(steps[: len(states)], self.last, self.is_last)
            kept = [None if t is None else self._ordered(t, d) for t in steps[1:]] if keep else []
            results.append((self._ordered(output, d), *ends, *kept))
        outputs, *others = zip(*results, strict=True)
        return torch.cat(outputs, -1), *(None if o[0] is None else torch.cat(o) for o in others)

    def _ordered(self, rows, direction):
        order = self.orders[direction]
        return autograd.gather_rows([rows], order, order)[0]
