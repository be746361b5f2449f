"""The demo's language model (examples/char_lm.py), trained by torch.nn and by fastrnn.

    python -m benchmarks.gpu.training --cell LSTM --hidden 1024 --rows rows.jsonl

bf16 autocast, float32 weights; both start from the same weights and see the same windows, in turns
of a few steps. Losses are float32 means over a window, so that curves that agree at first and then
drift slowly are two correct runs: `first_difference` is of the first step, where the weights are
the same, `late_difference` between the means of the last quarter.
"""

import itertools
import statistics
import sys
import time

import torch
from torch import nn

from benchmarks.gpu import measure, rows
from examples import char_lm

LAYERS, BLOCK = 2, 5


class Job:
    """One of the two models, its optimizer, losses and rates."""

    def __init__(self, library, options, vocabulary, device, weights=None):
        torch.manual_seed(0)
        layer = getattr(library, options.cell)(char_lm.EMBEDDING_SIZE, options.hidden, LAYERS)
        self.model = char_lm.CharacterModel(layer, vocabulary).to(device.name)
        if weights is not None:
            self.model.load_state_dict(weights)
        self.optimizer = torch.optim.Adam(self.model.parameters(), eps=char_lm.ADAM_EPS)
        self.device, self.state, self.losses, self.rates = device, None, [], []

    def step(self, inputs, targets):
        """One window; nothing here waits for the device."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.name, torch.bfloat16):
            logits, state = self.model(inputs, self.state)
        loss = char_lm.next_character_loss(logits.float(), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), char_lm.CLIP_NORM)
        self.optimizer.step()
        self.state = char_lm.detach(state)
        self.losses.append(loss.detach())

    def block(self, windows):
        """Several windows, timed together."""
        self.device.synchronize()
        begin = time.perf_counter()
        for inputs, targets in windows:
            self.step(inputs, targets)
        self.device.synchronize()
        characters = sum(inputs.numel() for inputs, _ in windows)
        self.rates.append(characters / (time.perf_counter() - begin))


def compare(options, device):
    """Facts of both trainings: loss curves, characters a second, their ratio."""
    import fastrnn

    seq_len, batch, length = (8, 4, 2000) if options.tiny else (256, 64, 4_000_000)
    text = char_lm.standard_library_text(length)
    vocabulary = char_lm.make_vocabulary(text)
    streams = char_lm.as_streams(char_lm.encode(text, vocabulary), batch).to(device.name)
    theirs = Job(nn, options, len(vocabulary), device)
    weights = {name: value.clone() for name, value in theirs.model.state_dict().items()}
    ours = Job(fastrnn, options, len(vocabulary), device, weights)
    count = (streams.shape[0] - 1) // seq_len
    for first in itertools.count(step=BLOCK):
        windows = [char_lm.window(streams, (first + i) % count, seq_len) for i in range(BLOCK)]
        for job in (theirs, ours) if first % (2 * BLOCK) == 0 else (ours, theirs):
            job.block(windows)
        if time.time() > options.until and len(theirs.rates) > 3:
            break
    curves = [torch.stack(job.losses).tolist() for job in (theirs, ours)]
    quarter = max(1, len(curves[0]) // 4)
    late = [statistics.mean(curve[-quarter:]) for curve in curves]
    # The first block of each loads code and tunes.
    rates = [statistics.median(job.rates[1:]) for job in (theirs, ours)]
    return {
        "windows": f"T={seq_len} B={batch} layers={LAYERS} bf16 autocast",
        "characters_per_second": dict(zip(("torch.nn", "fastrnn"), map(round, rates))),
        "ratio": rates[1] / rates[0],
        "first_difference": abs(curves[0][0] - curves[1][0]),
        "late_difference": abs(late[0] - late[1]),
        "losses": dict(zip(("torch.nn", "fastrnn"), curves)),
    }


def main(arguments=None):
    """Trains, and writes one row."""
    parser = measure.arguments(__doc__)
    parser.add_argument("--cell", choices=("LSTM", "GRU", "RNN"), default="LSTM")
    parser.add_argument("--hidden", type=int, default=1024)
    options = parser.parse_args(arguments)
    facts = compare(options, measure.DEVICES[options.device]())
    row = {"stage": "training", "cell": options.cell, "hidden": options.hidden, **facts}
    rows.append(options.rows, row)
    print({name: value for name, value in row.items() if name != "losses"}, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
