"""What a stack can do beyond torch.nn's: resets, lengths, every step's states.

Padded rows between two resets, or up to a sequence's length, are a sequence of their own: a
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

from fastrnn._layer import ops
from fastrnn._layer.autograd import gather_rows
from fastrnn._layer.transforms import transforms_active


class States(NamedTuple):
    """Every step's states, of every layer and direction: index `layer * D + direction`, as of h_n.

    Steps are in the order of the input, in the second direction too. With batch_first `[L*D, B, T,
    ...]`, without a batch `[L*D, T, ...]`. Where a sequence has ended (lengths), zeros.
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


def of_call(name, batch_sizes, resets, reset_to, lengths, return_states):
    """The Options of a call, None where it asks for nothing."""
    if reset_to != "zeros" and reset_to != "hx":
        raise ValueError(f"{name}: expected reset_to 'zeros' or 'hx', got {reset_to!r}")
    if resets is None and lengths is None and not return_states:
        return None
    if batch_sizes is not None:
        given = (
            "resets" if resets is not None else "return_states" if lengths is None else "lengths"
        )
        raise ValueError(f"{name}: expected padded input with {given}, got packed input")
    resets, lengths = _tensor(name, "resets", resets), _tensor(name, "lengths", lengths)
    return Options(name, resets, reset_to, lengths, return_states)


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
    """The Options with resets `[T, B]`; raises where an option does not fit input `[T, B, I]`."""
    seq_len, batch = input.shape[:2]
    times, sizes = ("seq_len", "batch"), (seq_len, batch)
    if batch_first:
        times, sizes = times[::-1], sizes[::-1]
    name, resets, lengths = options.name, options.resets, options.lengths
    if resets is not None:
        _check(name, "resets", resets, ", ".join(times), sizes, input)
        if resets.dtype is not torch.bool:  # dones, as environments give them
            resets = resets != 0
        if batch_first:
            resets = resets.t()
    if lengths is not None:
        _check(name, "lengths", lengths, "batch,", (batch,), input)
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
    """`(output, final states, States or None)` of a stack on `[T, B, I]`.

    layers: `(run, input, batch_sizes, states, keep)`, as of `fastrnn._stack.stack`, as run is.
    native: whether run takes resets on devices other than the CPU.
    """
    seq_len, batch = input.shape[:2]
    _, resets, reset_to, lengths, keep = options
    if resets is not None and resets.device != input.device:
        resets = resets.to(input.device)
    if lengths is not None and lengths.device != input.device:
        lengths = lengths.to(input.device)
    if batch == 0 or (input.is_meta and not native):  # no row, or no value, to be looked at
        resets = lengths = None
    states, segments, held = initial, None, False
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
        rows, states = segments.packed(input, states, reset_to)
        output, finals, kept = layers(run, rows, segments.batch_sizes, states, keep)
        del rows  # so that padded rows may lie there, in the cache still
        output, finals, kept = segments.padded(output, finals, kept)
        if segments.are_all:
            lengths = None
    if lengths is not None and initial[0] is not None:
        ran = (lengths > 0)[:, None]
        finals = [torch.where(ran, *pair) for pair in zip(finals, initial, strict=True)]
    return output, finals, _states(kept, seq_len, batch, directions, held) if keep else None


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


def _states(kept, seq_len, batch, directions, held):
    """States of the layers' outputs, `T*B` rows of `D*P`, and `[D, T*B, ...]` cells and gates.

    held: whether somebody else has cells and gates too.
    """
    outputs, cells, gates = zip(*kept, strict=True)
    size = outputs[0].shape[-1] // directions
    h = [part for o in outputs for part in o.view(seq_len, batch, directions, size).unbind(2)]

    def stacked(layers):
        if layers[0] is None:
            return None
        parts = [each.view(directions, seq_len, batch, each.shape[-1]) for each in layers]
        return torch.cat(parts) if held or len(parts) > 1 else parts[0]

    return States(torch.stack(h), stacked(cells), stacked(gates))


class _Segments:
    """Padded rows as the packed rows of their segments, and back.

    known: whether values may decide what is run. Then `are_whole` says that there is nothing to
    split or to cut off, in which case there are no rows to move, and `start_anew` that the first
    step has a reset.
    """

    def __init__(self, resets, lengths, seq_len, batch, directions, device, known):
        on_cpu = device.type == "cpu"
        if not on_cpu:
            resets, lengths = (None if t is None else t.cpu() for t in (resets, lengths))
        self.batch_sizes, *indices = ops.segments(
            resets, lengths, seq_len, batch, directions, known
        )
        self.are_whole = known and self.batch_sizes.shape[0] == 0
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

    def packed(self, input, states, reset_to):
        """`[T, B, I]` as packed rows `[N, I]`, and the states `[L*D, B, ...]` that a batch starts
        from as those of its segments."""
        every = states
        if reset_to == "hx" or states[0] is None:
            every = ()
        rows, *started = gather_rows(
            [input], self.order, self.places, every, self.starts, self.started
        )
        if not every and states[0] is not None:
            started = [state.index_select(1, self.owners) for state in states]
        return rows, started or states

    def padded(self, output, finals, kept):
        """Packed rows `[N, C]` and `[D, N, C]` as padded ones `[T, B, C]` and `[D, T, B, C]`, and
        the states that segments end with as the batch's; zeros where a sequence has none."""
        rows = [output, *(t for each in kept for t in each if t is not None and t is not output)]
        moved = gather_rows(rows, self.places, self.order, finals, self.ends, self.ended)
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
            ends = gather_rows(steps[: len(states)], self.last, self.is_last)
            kept = [None if t is None else self._ordered(t, d) for t in steps[1:]] if keep else []
            results.append((self._ordered(output, d), *ends, *kept))
        outputs, *others = zip(*results, strict=True)
        return torch.cat(outputs, -1), *(None if o[0] is None else torch.cat(o) for o in others)

    def _ordered(self, rows, direction):
        order = self.orders[direction]
        return gather_rows([rows], order, order)[0]
