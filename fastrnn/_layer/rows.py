"""Rows of all steps together: the state each one had before, and mapped dimensions among them.

Every tensor of the operators has its rows in the dimension before the last: `[D, N, ...]` and
`[N, ...]` of all steps, `[T, B, ...]` of one step, `[D, B, ...]` of a state. A dimension of size V
that vmap maps goes right behind the rows: a row becomes V rows side by side, at every step and in
every state, so that the steps of packed data stay what they are, with V times as many rows.
"""

import torch


def fold(tensor, dim, size):
    """`[..., R, C]`, mapped over dim or, with None, the same for all: `[..., R*V, C]`."""
    if dim is None:
        tensor = tensor.unsqueeze(-2).expand(*tensor.shape[:-1], size, tensor.shape[-1])
    else:
        tensor = tensor.movedim(dim, -2)
    return tensor.flatten(-3, -2)


def unfold(tensor, size):
    """`(tensor, dim)` of a result `[..., R*V, C]`."""
    return tensor.unflatten(-2, (tensor.shape[-2] // size, size)), tensor.dim() - 1


def previous(sequence, initial, batch, batch_sizes, direction):
    """The state before each row `[..., N, P]`, from those after each and the initial `[..., B, P]`.

    initial is None for zeros, batch_sizes of padded data.
    """
    if initial is None:
        initial = sequence.new_zeros(batch, sequence.shape[-1])
    leading = torch.broadcast_shapes(sequence.shape[:-2], initial.shape[:-2])
    sequence = sequence.expand(*leading, *sequence.shape[-2:])
    initial = initial.expand(*leading, *initial.shape[-2:])
    if batch_sizes is None:
        others = sequence.shape[-2] - batch
        if direction == 0:
            return torch.cat([initial, sequence.narrow(-2, 0, others)], -2)
        return torch.cat([sequence.narrow(-2, batch, others), initial], -2)
    index = _previous_index(batch_sizes.tolist(), direction).to(sequence.device)
    return torch.cat([initial, sequence], -2).index_select(-2, index)


def _previous_index(counts, direction):
    """Of each row, where its previous state is among the B initial states and then all rows."""
    starts, start = [], counts[0]
    for count in counts:
        starts.append(start)
        start += count
    steps = []
    for t, count in enumerate(counts):
        earlier = t - 1 if direction == 0 else t + 1
        has = min(count, counts[earlier]) if 0 <= earlier < len(counts) else 0
        if has:
            steps.append(torch.arange(starts[earlier], starts[earlier] + has))
        if has < count:
            steps.append(torch.arange(has, count))
    return torch.cat(steps)
