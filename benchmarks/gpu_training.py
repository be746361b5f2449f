"""The demo's language model (examples/char_lm.py) trained on a GPU by torch.nn and by fastrnn.

bf16 autocast, float32 weights; both start from the same weights and see the same windows, in turns
of a few steps. Losses are float32 means over a window, so that curves that agree at first and then
drift slowly are two correct runs: `first_difference` is of the first step, where the weights are
the same, `late_difference` between the means of the last quarter.
"""

import itertools
import statistics
import time

import torch
from torch import nn

from examples import char_lm

SEQ_LEN, BATCH, LAYERS, BLOCK = 256, 64, 2, 5


class Job:
    """One of the two models, its optimizer, losses and rates."""

    def __init__(self, library, cell, hidden, vocabulary, weights=None):
        torch.manual_seed(0)
        layer = getattr(library, cell)(char_lm.EMBEDDING_SIZE, hidden, LAYERS)
        self.model = char_lm.CharacterModel(layer, vocabulary).cuda()
        if weights is not None:
            self.model.load_state_dict(weights)
        self.optimizer = torch.optim.Adam(self.model.parameters(), eps=char_lm.ADAM_EPS)
        self.state, self.losses, self.rates = None, [], []

    def step(self, inputs, targets):
        """One window; nothing here waits for the device."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            logits, state = self.model(inputs, self.state)
        loss = char_lm.next_character_loss(logits.float(), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), char_lm.CLIP_NORM)
        self.optimizer.step()
        self.state = char_lm.detach(state)
        self.losses.append(loss.detach())

    def block(self, windows):
        """Several windows, timed together."""
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for inputs, targets in windows:
            self.step(inputs, targets)
        torch.cuda.synchronize()
        characters = sum(inputs.numel() for inputs, _ in windows)
        self.rates.append(characters / (time.perf_counter() - begin))


def compare(cell, hidden, seconds):
    """Facts of both trainings: loss curves, characters a second, their ratio."""
    import fastrnn

    text = char_lm.standard_library_text(4_000_000)
    vocabulary = char_lm.make_vocabulary(text)
    streams = char_lm.as_streams(char_lm.encode(text, vocabulary), BATCH).cuda()
    theirs = Job(nn, cell, hidden, len(vocabulary))
    ours = Job(fastrnn, cell, hidden, len(vocabulary), theirs.model.state_dict())
    count = (streams.shape[0] - 1) // SEQ_LEN
    begin = time.monotonic()
    for first in itertools.count(step=BLOCK):
        windows = [char_lm.window(streams, (first + i) % count, SEQ_LEN) for i in range(BLOCK)]
        for job in (theirs, ours) if first % (2 * BLOCK) == 0 else (ours, theirs):
            job.block(windows)
        if time.monotonic() - begin > seconds and len(theirs.rates) > 3:
            break
    curves = [torch.stack(job.losses).tolist() for job in (theirs, ours)]
    quarter = max(1, len(curves[0]) // 4)
    # The first block of each loads code and tunes.
    rates = [statistics.median(job.rates[1:]) for job in (theirs, ours)]
    return {
        "status": 0,
        "windows": f"T={SEQ_LEN} B={BATCH} layers={LAYERS} bf16 autocast",
        "characters_per_second": dict(zip(("torch.nn", "fastrnn"), map(round, rates))),
        "ratio": rates[1] / rates[0],
        "losses": dict(zip(("torch.nn", "fastrnn"), curves)),
        "first_difference": abs(curves[0][0] - curves[1][0]),
        "late_difference": abs(statistics.mean(curves[0][-quarter:])
                               - statistics.mean(curves[1][-quarter:])),
    }  # fmt: skip
