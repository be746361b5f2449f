"""A character language model, trained with fastrnn and with torch.nn side by side.

    python examples/char_lm.py                     # the standard library's own sources
    python examples/char_lm.py --file book.txt --cell GRU

Embedding, recurrent layers, linear head; Adam, gradient clipping, truncated
backpropagation through time: the state is carried from window to window and
detached. Both models start from the same weights and see the same batches. They
train in turns of a few steps, so that whatever else the machine does hits both.
At the end the fastrnn model writes text, one step at a time.

How closely the losses agree. Both compute in float32 but add in another order,
so that a step on the same weights differs by rounding: at most
SAME_WEIGHTS_DIFFERENCE, tested after every turn by loading the fastrnn weights
into torch.nn. The two runs themselves drift apart, because training amplifies
rounding: Adam divides by the size of the gradient, and a recurrent network is a
long chain of products. Two correct implementations (torch.nn with and without
oneDNN, the default settings) differed by less than 1e-6 for 90 steps, by 1e-5
after 110 and by 1e-3 after 140; from there on they were two runs that share only
their data. `allowed_difference` has that shape and tests every step.

Exit status: 0 done; 1 the losses disagree; 2 bad arguments or unusable text;
130 interrupted.
"""

from __future__ import annotations

import argparse
import collections
import copy
import dataclasses
import math
import statistics
import sys
import sysconfig
import time
import unicodedata
from pathlib import Path

import torch
from torch import nn

#: Stands for every character outside the vocabulary and for undecodable bytes.
UNKNOWN = "\ufffd"
MAX_VOCABULARY = 1024
EMBEDDING_SIZE = 64
CLIP_NORM = 1.0
#: Larger than the usual 1e-8, which lets a weight whose gradient is all rounding move as far
#: as any other. Learning is as fast, and the two runs stay together for longer.
ADAM_EPS = 1e-5
HELD_OUT_SHARE = 0.05
HELD_OUT_WINDOWS = 10
#: Losses of about 2 to 5 nats have a rounding unit of 2e-7 to 5e-7 in float32.
SAME_WEIGHTS_DIFFERENCE = 1e-5
TEMPERATURE = 0.7
PROMPT_LENGTH = 32


class UsageError(Exception):
    """Something the user can put right; shown without a traceback."""


def allowed_difference(step: int) -> float:
    """Largest difference of the two runs' losses, in nats, at a step counted from 0.

    Rounding for 60 steps, then ten times more every 20 steps, up to about what
    two runs with different weights show on one batch.
    """
    return min(1e-5 * 10 ** max(0.0, (step - 60) / 20), 0.3)


# ----------------------------------------------------------------- text


def standard_library_text(limit: int) -> str:
    """The first `limit` characters of the standard library's modules, by name."""
    folder = Path(sysconfig.get_path("stdlib"))
    parts: list[str] = []
    length = 0
    for path in sorted(folder.glob("*.py")):
        parts.append(path.read_text(encoding="utf-8", errors="replace"))
        length += len(parts[-1])
        if length >= limit:
            break
    if not parts:
        raise UsageError(f"no Python sources in {folder}; name a text with --file")
    return "".join(parts)[:limit]


def file_text(path: Path, limit: int) -> str:
    """At most `limit` characters of a file in UTF-8; bytes that are not become UNKNOWN."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return file.read(limit)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def make_vocabulary(text: str) -> list[str]:
    """UNKNOWN, then the most frequent characters in the order of their code points."""
    counts = collections.Counter(text)
    counts.pop(UNKNOWN, None)
    ranked = sorted(counts, key=lambda c: (-counts[c], c))
    return [UNKNOWN, *sorted(ranked[: MAX_VOCABULARY - 1])]


def encode(text: str, vocabulary: list[str]) -> torch.Tensor:
    index = {character: i for i, character in enumerate(vocabulary)}
    return torch.tensor([index.get(character, 0) for character in text])


def as_streams(ids: torch.Tensor, batch: int) -> torch.Tensor:
    """The text cut into `batch` parts that are read side by side: ``[steps, B]``."""
    steps = ids.numel() // batch
    return ids[: steps * batch].view(batch, steps).t().contiguous()


def window(streams: torch.Tensor, index: int, seq_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Input and target ``[T, B]`` of a window; the target is the next character."""
    start = index * seq_len
    stop = min(start + seq_len, streams.shape[0] - 1)
    return streams[start:stop], streams[start + 1 : stop + 1]


# ----------------------------------------------------------------- model


class CharacterModel(nn.Module):
    """Next-character logits ``[T, B, V]`` from character numbers ``[T, B]``."""

    def __init__(self, recurrent: nn.Module, vocabulary_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, recurrent.input_size)
        self.recurrent = recurrent
        self.head = nn.Linear(recurrent.hidden_size, vocabulary_size)

    def forward(self, ids, state=None):
        output, state = self.recurrent(self.embedding(ids), state)
        return self.head(output), state


def detach(state):
    return tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()


def next_character_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy in nats per character."""
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


@dataclasses.dataclass
class Trainer:
    """One of the two models with its optimizer, carried state, losses and time."""

    name: str
    model: CharacterModel
    learning_rate: float
    seq_len: int

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(
            self.model.parameters(), lr=self.learning_rate, eps=ADAM_EPS
        )
        self.state = None
        self.losses: list[float] = []
        self.block_rates: list[float] = []  # characters a second, one a block

    def step(self, streams: torch.Tensor) -> None:
        windows = (streams.shape[0] - 1) // self.seq_len
        index = len(self.losses) % windows
        if index == 0:  # the text starts again
            self.state = None
        inputs, targets = window(streams, index, self.seq_len)
        self.optimizer.zero_grad(set_to_none=True)
        logits, state = self.model(inputs, self.state)
        loss = next_character_loss(logits, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
        self.optimizer.step()
        self.state = detach(state)
        self.losses.append(loss.item())

    @torch.no_grad()
    def loss_now(self, streams: torch.Tensor, model: CharacterModel | None = None) -> float:
        """Loss on the window that comes next, by another model if one is given."""
        index = len(self.losses) % ((streams.shape[0] - 1) // self.seq_len)
        inputs, targets = window(streams, index, self.seq_len)
        logits, _ = (model or self.model)(inputs, self.state if index else None)
        return next_character_loss(logits, targets).item()

    def warm_up(self, streams: torch.Tensor) -> None:
        """One step of a copy: code is loaded and threads are started, nothing is learnt."""
        inputs, targets = window(streams, 0, self.seq_len)
        next_character_loss(copy.deepcopy(self.model)(inputs)[0], targets).backward()

    def rate(self) -> float:
        """Median over the blocks of characters a second."""
        return statistics.median(self.block_rates)


@torch.no_grad()
def held_out_loss(model: CharacterModel, streams: torch.Tensor, seq_len: int) -> float:
    total, count, state = 0.0, 0, None
    windows = min(HELD_OUT_WINDOWS, math.ceil((streams.shape[0] - 1) / seq_len))
    for index in range(windows):
        inputs, targets = window(streams, index, seq_len)
        logits, state = model(inputs, state)
        total += next_character_loss(logits, targets).item() * targets.numel()
        count += targets.numel()
    return total / count


def print_quantized(quantize, model: CharacterModel, streams: torch.Tensor, seq_len: int) -> None:
    """Perplexity on held-out text with weights in float32, bfloat16 and int8."""
    print("\nweights of the recurrent layers: perplexity on held-out text, change")
    exact = math.exp(held_out_loss(model, streams, seq_len))
    print(f"  float32   {exact:9.4f}")
    for name, dtype in (("bfloat16", torch.bfloat16), ("int8", torch.int8)):
        small = quantize(model, dtype, inplace=False)
        found = math.exp(held_out_loss(small, streams, seq_len))
        print(f"  {name:9} {found:9.4f}  {100 * (found / exact - 1):+.3f} %")


# ----------------------------------------------------------------- progress


class Progress:
    """One line on stderr that redraws itself; silent without a terminal."""

    def __init__(self, total: int) -> None:
        self.total, self.terminal = total, sys.stderr.isatty()
        self.started = time.monotonic()

    def show(self, done: int, text: str) -> None:
        if self.terminal:
            filled = 24 * done // self.total
            seconds = int(time.monotonic() - self.started)
            bar = f"[{'#' * filled}{'.' * (24 - filled)}] {seconds // 60}:{seconds % 60:02d} {text}"
            sys.stderr.write(f"\r\x1b[K{bar[:118]}")
            sys.stderr.flush()

    def clear(self) -> None:
        if self.terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


# ----------------------------------------------------------------- the job


def train(
    trainers: list[Trainer], streams: torch.Tensor, steps: int, block: int, deadline: float
) -> bool:
    """Trains both in turns of `block` steps. False when the losses came apart."""
    progress = Progress(2 * steps)
    theirs, ours = (trainer.losses for trainer in trainers)
    judge = copy.deepcopy(trainers[0].model)  # torch.nn, for the fastrnn weights
    print(
        "on the same weights: the difference of both libraries' losses with the weights of the\n"
        f"fastrnn model, {SAME_WEIGHTS_DIFFERENCE:.0e} allowed. The two runs drift apart, since "
        "training\namplifies rounding; 'allowed' is what two correct runs may drift.\n"
        "        loss of                               drift  on the same    characters a second\n"
        "  step   torch.nn    fastrnn       drift    allowed      weights    torch.nn     fastrnn"
    )
    done = 0
    while done < steps:
        count = min(block, steps - done)
        turn = trainers if (done // block) % 2 == 0 else trainers[::-1]
        for trainer in turn:
            started = time.perf_counter()
            characters = 0
            for _ in range(count):
                trainer.step(streams)
                characters += trainer.seq_len * streams.shape[1]
                finished = sum(len(t.losses) for t in trainers)
                losses = "  ".join(f"{t.name} {t.losses[-1]:.4f}" for t in trainers if t.losses)
                progress.show(finished, f"step {len(trainer.losses)}/{steps}  loss {losses}")
            trainer.block_rates.append(characters / (time.perf_counter() - started))
        done += count
        judge.load_state_dict(trainers[1].model.state_dict())
        losses_now = [trainers[1].loss_now(streams), trainers[1].loss_now(streams, judge)]
        same_weights = abs(losses_now[0] - losses_now[1])
        progress.clear()
        print(
            f"{done:6d} {theirs[-1]:10.5f} {ours[-1]:10.5f} {abs(theirs[-1] - ours[-1]):11.1e} "
            f"{allowed_difference(done - 1):11.1e} {same_weights:10.1e} "
            f"{trainers[0].block_rates[-1]:11,.0f} {trainers[1].block_rates[-1]:11,.0f}",
            flush=True,
        )
        if not same_weights <= SAME_WEIGHTS_DIFFERENCE:
            print(
                f"the layers disagree on the same weights after step {done}: fastrnn "
                f"{losses_now[0]:.7f}, torch.nn {losses_now[1]:.7f}, allowed difference "
                f"{SAME_WEIGHTS_DIFFERENCE:.0e}",
                file=sys.stderr,
            )
            return False
        for step in range(done - count, done):
            difference = abs(theirs[step] - ours[step])
            if not difference <= allowed_difference(step):
                print(
                    f"the losses disagree at step {step + 1}: torch.nn {theirs[step]:.6f}, fastrnn "
                    f"{ours[step]:.6f}, difference {difference:.2e}, "
                    f"allowed {allowed_difference(step):.2e}; on the same weights they agree to "
                    f"{same_weights:.0e}, so the runs drifted faster than the default settings do",
                    file=sys.stderr,
                )
                return False
        if time.monotonic() > deadline and done < steps:
            print(f"stopped after {done} of {steps} steps: the time of --minutes is spent")
            break
    return True


def printable(character: str) -> str:
    """The character, unless it would steer the terminal."""
    if character in "\n\t" or unicodedata.category(character)[0] != "C":
        return character
    return UNKNOWN


@torch.inference_mode()
def write_text(
    model: CharacterModel, vocabulary: list[str], prompt: torch.Tensor, length: int, seed: int
) -> torch.Tensor:
    """Prints the prompt and `length` sampled characters as they come; returns their numbers."""
    generator = torch.Generator().manual_seed(seed)
    ids = prompt.tolist()
    print("".join(printable(vocabulary[i]) for i in ids), end="", flush=True)
    logits, state = model(prompt[:, None])
    for _ in range(length):
        scores = logits[-1, 0] / TEMPERATURE
        scores[0] = -math.inf  # never UNKNOWN
        chosen = torch.multinomial(scores.softmax(0), 1, generator=generator)
        ids.append(int(chosen))
        print(printable(vocabulary[ids[-1]]), end="", flush=True)
        logits, state = model(chosen[None], state)  # [T=1, B=1], state carried
    print()
    return torch.tensor(ids)


@torch.inference_mode()
def streaming_seconds(model: CharacterModel, ids: torch.Tensor) -> float:
    """Median seconds of one step (T = 1, B = 1) over a text, state carried."""
    state, times = None, []
    for character in ids:
        started = time.perf_counter()
        _, state = model(character.view(1, 1), state)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add(
        "--file",
        type=Path,
        default=argparse.SUPPRESS,
        help="text to learn (default: the sources of Python's standard library)",
    )
    add("--max-chars", type=int, default=1_000_000, help="use at most this much of the text")
    add("--cell", choices=["LSTM", "GRU"], type=str.upper, default="LSTM", help="recurrent layer")
    add("--steps", type=int, default=400, help="training steps of each model")
    add("--hidden", type=int, default=256, help="hidden_size")
    add("--layers", type=int, default=2, help="recurrent layers")
    add("--seq-len", type=int, default=64, help="characters of a window")
    add("--batch", type=int, default=32, help="windows side by side")
    add("--learning-rate", type=float, default=2e-3, help="of Adam")
    add("--seed", type=int, default=0, help="of the weights and of the written text")
    add("--block", type=int, default=10, help="steps one model trains before the other's turn")
    add("--generate", type=int, default=600, help="characters to write at the end")
    add("--threads", type=int, default=argparse.SUPPRESS, help="(default: torch's own choice)")
    add(
        "--quantize", action="store_true", help="try bfloat16 and int8 weights on the held-out text"
    )
    add("--minutes", type=float, default=2.0, help="stop training after this time")
    arguments = parser.parse_args(argv, argparse.Namespace(file=None, threads=None))
    for name in ("max_chars", "steps", "hidden", "layers", "seq_len", "batch", "block"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if arguments.generate < 0 or (arguments.threads is not None and arguments.threads < 1):
        parser.error("--generate must not be negative and --threads must be at least 1")
    if not arguments.learning_rate > 0:
        parser.error("--learning-rate must be positive")
    return arguments


def run(arguments: argparse.Namespace) -> int:
    try:
        import fastrnn
    except ImportError as error:
        raise UsageError(f"fastrnn cannot be imported ({error}); `make demo` builds it") from error
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.file:
        text, source = file_text(arguments.file, arguments.max_chars), str(arguments.file)
    else:
        text, source = standard_library_text(arguments.max_chars), "Python's standard library"
    held_out_size = max(int(len(text) * HELD_OUT_SHARE), 2 * arguments.batch)
    needed = arguments.batch * (arguments.seq_len + 1) + held_out_size
    if len(text) < needed:
        raise UsageError(
            f"{source} has {len(text):,} characters; --batch {arguments.batch} times (--seq-len "
            f"{arguments.seq_len} + 1), and {held_out_size:,} to test on, need {needed:,}: give a "
            "longer text or smaller values"
        )
    vocabulary = make_vocabulary(text)
    ids = encode(text, vocabulary)
    streams = as_streams(ids[:-held_out_size], arguments.batch)
    held_out = as_streams(ids[-held_out_size:], arguments.batch)

    trainers: list[Trainer] = []
    for name, library in (("torch.nn", nn), ("fastrnn", fastrnn)):
        torch.manual_seed(arguments.seed)
        layer = getattr(library, arguments.cell)
        recurrent = layer(EMBEDDING_SIZE, arguments.hidden, arguments.layers)
        model = CharacterModel(recurrent, len(vocabulary))
        if trainers:
            model.load_state_dict(trainers[0].model.state_dict())
        trainers.append(Trainer(name, model, arguments.learning_rate, arguments.seq_len))
    theirs, ours = trainers
    size = sum(p.numel() for p in ours.model.parameters())
    print(
        f"{source}: {len(text):,} characters, {len(vocabulary)} different; "
        f"{arguments.layers}-layer {arguments.cell}, {size:,} parameters, "
        f"{torch.get_num_threads()} threads"
    )
    for trainer in trainers:
        trainer.warm_up(streams)
    deadline = time.monotonic() + 60 * arguments.minutes
    if not train(trainers, streams, arguments.steps, arguments.block, deadline):
        return 1

    pairs = zip(theirs.block_rates, ours.block_rates, strict=True)
    ratios = [our_rate / their_rate for their_rate, our_rate in pairs]
    largest = max(abs(a - b) for a, b in zip(theirs.losses, ours.losses, strict=True))
    print(
        f"\ncharacters a second in training: torch.nn {theirs.rate():,.0f}, fastrnn "
        f"{ours.rate():,.0f}, ratio {statistics.median(ratios):.2f}"
    )
    print(f"largest difference of the losses over {len(ours.losses)} steps: {largest:.1e} nats")

    trained = [held_out_loss(t.model, held_out, arguments.seq_len) for t in trainers]
    print(
        f"loss on held-out text: torch.nn {trained[0]:.4f}, fastrnn {trained[1]:.4f} nats a "
        f"character ({trained[1] / math.log(2):.2f} bits)"
    )

    if arguments.quantize:
        print_quantized(fastrnn.quantize, ours.model, held_out, arguments.seq_len)

    if arguments.generate:
        print(
            f"\n--- {PROMPT_LENGTH} characters of the held-out text, then {arguments.generate} by "
            "fastrnn, one step at a time ---"
        )
        prompt = ids[-held_out_size:][:PROMPT_LENGTH]
        written = write_text(ours.model, vocabulary, prompt, arguments.generate, arguments.seed)
        print("---")
        seconds = [streaming_seconds(t.model, written) for t in trainers]
        print(
            f"one step of the whole model: torch.nn {seconds[0] * 1e6:.0f} us, fastrnn "
            f"{seconds[1] * 1e6:.0f} us, ratio {seconds[0] / seconds[1]:.2f}"
        )
    return 0


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    sys.stdout.reconfigure(errors="replace")
    try:
        return run(arguments)
    except UsageError as error:
        print(f"char_lm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
