"""The summary of a run, from its rows: `python -m benchmarks.gpu.table FOLDER`.

Ratios are times of torch.nn (cuDNN) over fastrnn's; "eager" calls the layers, "graph" replays the
calls from a CUDA graph. Both sides take the input product and are told the same about TF32.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu import cells, rows

#: The last lines of a run are read in 12,000 characters.
MOST = 11_000
FORWARD, BOTH = cells.PASSES
HOW = ("eager", "graph")
#: FlashRNN's published times on an H100, without the input product, LSTM H=768 B=16 T=1024 bf16.
FLASHRNN_MS = {FORWARD: 4.87, BOTH: 13.61}


class Key(NamedTuple):
    """What two rows must have in common to be compared."""

    cell: str
    numeric: str
    hidden: int
    batch: int
    steps: int
    variant: str
    way: str

    def text(self):
        """What a person reads."""
        way = "fwd" if self.way == FORWARD else "fwd+bwd"
        steps = "" if self.steps == 512 else f"T={self.steps}"
        parts = (self.cell, self.numeric, f"({self.hidden},{self.batch})", steps, self.variant, way)
        return " ".join(part for part in parts if part)


class Group(NamedTuple):
    """Rows that are told in one line."""

    name: str
    takes: Callable


def _large(key):
    fast = ("bf16", "tf32") if key.cell == "LSTM" else ("bf16", "fp16", "tf32")
    return _plain(key) and key.numeric in fast and 128 < key.hidden <= 1024 and key.batch <= 64


def _plain(key):
    return not key.variant and key.cell != "RNN"


GROUPS = (
    Group("LSTM bf16 tf32, GRU 16-bit tf32, 128 < H <= 1024, fwd",
          lambda k: _large(k) and k.way == FORWARD),
    Group("the same, fwd+bwd", lambda k: _large(k) and k.way == BOTH),
    Group("H <= 128, all number formats", lambda k: _plain(k) and k.hidden <= 128),
    Group("LSTM fp16 (768,16)", lambda k: _plain(k) and (k[:4] == ("LSTM", "fp16", 768, 16))),
    Group("LSTM fp16, other H > 128",
          lambda k: _plain(k) and k[:2] == ("LSTM", "fp16") and 128 < k.hidden != 768),
    Group("fp32, 128 < H <= 512",
          lambda k: _plain(k) and k.numeric == "fp32" and 128 < k.hidden <= 512),
    Group("fp32, 512 < H <= 1024",
          lambda k: _plain(k) and k.numeric == "fp32" and 512 < k.hidden <= 1024),
    Group("H > 1024", lambda k: _plain(k) and k.hidden > 1024),
    Group("packed", lambda k: k.variant == "packed"),
    Group("resets 3 % (torch.nn without)", lambda k: k.variant == "resets"),
    Group("bidirectional", lambda k: k.variant == "bidirectional"),
    Group("2 layers", lambda k: k.variant == "2 layers"),
    Group("projected", lambda k: k.variant == "projected"),
    Group("RNN", lambda k: k.cell == "RNN"),
)  # fmt: skip


def timed(found):
    """Rows with times by key, contestant and way of calling; the last of each counts."""
    by_key = {}
    for row in found:
        if row.get("stage") in cells.WAVES and "ms" in row:
            key = Key(*(row[name] for name in Key._fields[:-1]), row["pass"])
            by_key.setdefault(key, {})[row["who"], row["how"]] = row
    return by_key


def ratios(by_key, group, how, ours="plan"):
    """`(ratio, key)` of a group, the smallest first."""
    return sorted(
        (row["nn", how]["ms"] / row[ours, how]["ms"], key)
        for key, row in by_key.items()
        if group.takes(key) and ("nn", how) in row and (ours, how) in row
    )


def geometric_mean(values):
    """Of positive numbers."""
    return math.exp(sum(map(math.log, values)) / len(values))


def group_lines(by_key):
    """A line for each group."""
    yield "torch.nn / fastrnn: geometric mean and worst"
    for group in GROUPS:
        parts = []
        for how in HOW:
            found = ratios(by_key, group, how)
            if found:
                mean, (worst, where) = geometric_mean([r for r, _ in found]), found[0]
                parts.append(f"{how} {len(found)}: {mean:.2f}, {worst:.2f} at {where.text()}")
        if parts:
            yield f"  {group.name}: {'; '.join(parts)}"


def other_lines(by_key):
    """FlashRNN's figures, memory, wrong rows, the plan's choices."""
    for way, published in FLASHRNN_MS.items():
        row = by_key.get(Key("LSTM", "bf16", 768, 16, 1024, "", way), {})
        times = [
            f"{how} {published / row['plan', how]['ms']:.2f}" for how in HOW if ("plan", how) in row
        ]
        if times:
            yield (f"FlashRNN's published {published} ms {way} / ours with the input product: "
                   f"{', '.join(times)}")  # fmt: skip
    memory = sorted(
        (row["plan", "eager"]["peak_bytes"] / row["nn", "eager"]["peak_bytes"], key)
        for key, row in by_key.items()
        if key.way == BOTH
        and ("plan", "eager") in row
        and row.get(("nn", "eager"), {}).get("peak_bytes")
    )
    if memory:
        over = sum(ratio > 1 for ratio, _ in memory)
        yield (f"memory of training, fastrnn / torch.nn: median {memory[len(memory) // 2][0]:.2f}, "
               f"largest {memory[-1][0]:.2f} at {memory[-1][1].text()}, "
               f"{over} of {len(memory)} above 1")  # fmt: skip
    slower = sorted(
        (row["plan", how]["ms"] / row[who, how]["ms"], who, how, key)
        for key, row in by_key.items()
        for who, how in row
        if who in cells.REGIMES and ("plan", how) in row
    )[::-1]
    slower = [one for one in slower if one[0] > 1.05]
    if slower:
        yield f"{len(slower)} rows where a forced regime is faster than the plan's choice:"
    for ratio, who, how, key in slower[:8]:
        plan = by_key[key]["plan", how].get("plan", "")[:60]
        yield f"  {ratio:.2f} {who} {how} {key.text()}; plan: {plan}"


def accuracy_lines(by_key):
    """Rows beyond the tolerance, and errors beside torch.nn's."""
    every = [(key, who, row) for key, r in by_key.items() for (who, how), row in r.items()
             if how == "eager"]  # fmt: skip
    wrong = [f"{who} {key.text()} {row['error']:.1e}" for key, who, row in every if row["wrong"]]
    if wrong:
        yield f"WRONG, {len(wrong)}: " + "; ".join(wrong[:6])
    factors = [
        (row["error"] / max(by_key[key]["nn", "eager"]["error"], 1e-12), who, key)
        for key, who, row in every
        if who != "nn" and ("nn", "eager") in by_key[key] and row["error"] is not None
    ]
    if factors:
        worst, who, key = max(factors)
        over = sum(factor > 2 for factor, *_ in factors)
        yield (f"error against float64, fastrnn / torch.nn: largest {worst:.2f} ({who} "
               f"{key.text()}), {over} of {len(factors)} above 2")  # fmt: skip


def cell_lines(by_key):
    """Microseconds a step of every contestant, from graphs where there are any."""
    yield "us a step from a graph (e: eager), fwd | fwd+bwd; * beyond the tolerance"
    pairs = {}
    for key, row in by_key.items():
        pairs.setdefault(key._replace(way=""), {})[key.way] = row
    contestants = ("nn", "plan", *cells.REGIMES, *cells.PEERS)
    for key, passes in pairs.items():
        parts = []
        for who in contestants:
            times = [_step_time(passes.get(way, {}), who) for way in cells.PASSES]
            if any(times):
                parts.append(f"{who} {times[0] or '-'}|{times[1] or '-'}")
        name = key.text().removesuffix(" fwd+bwd")
        yield f"  {name}: {'  '.join(parts)}"


def _step_time(row, who):
    for how in reversed(HOW):
        if (who, how) in row:
            one = row[who, how]
            mark = ("" if how == "graph" else "e") + ("*" if one["wrong"] else "")
            return f"{one['us_step']:.2f}{mark}"
    return ""


def stage_lines(found):
    """What ended badly, what is off, smoke, tests, training."""
    ends = [row for row in found if row.get("stage") == "end"]
    bad = [f"{row['name']}: {row['status']} ({row['seconds']:.0f} s)" for row in ends
           if row["status"] != "ok"]  # fmt: skip
    yield f"{len(ends)} processes, {len(bad)} ended badly{': ' if bad else ''}{'; '.join(bad)}"
    for row in found:
        if row.get("stage") == "off":
            yield f"regime {row['regime']} is off: {row['why'][:150]}"
    for regime in cells.REGIMES:
        smoke = [r for r in found if r.get("stage") == "smoke" and r["who"] == regime]
        if smoke:
            names = ("wrong", "failed", "impossible")
            count = [sum(bool(row.get(name)) for row in smoke) for name in names]
            others = ", ".join(f"{n} {name}" for n, name in zip(count, names))
            yield f"smoke {regime}: {len(smoke) - sum(count)} right, {others}"
    for row in found:
        if row.get("stage") == "tests" and "counts" in row:
            yield f"{row['who']}: {row['counts']}"
    failed = [row["test"] for row in found if row.get("stage") == "tests" and "test" in row]
    for name in failed[:8]:
        yield f"  {name[-150:]}"
    for row in found:
        if row.get("stage") == "training":
            yield (f"training {row['cell']} {row['hidden']}: {row['ratio']:.2f} times torch.nn, "
                   f"{row['characters_per_second']}, losses differ by {row['first_difference']:.1e}"
                   f" at first, {row['late_difference']:.1e} late")  # fmt: skip
    costs = sum(row.get("cost") is not None for row in found if row.get("stage") == "calibrate")
    if costs:
        yield f"calibrate: {costs} costs"


def summary(found):
    """The text, no longer than MOST."""
    by_key = timed(found)
    lines = list(stage_lines(found))
    if by_key:
        lines += group_lines(by_key)
        lines += other_lines(by_key)
        lines += accuracy_lines(by_key)
        lines += cell_lines(by_key)
    text = "\n".join(lines)
    if len(text) > MOST:
        text = text[:MOST].rpartition("\n")[0] + "\n(more in rows.jsonl)"
    return text


def main():
    """Prints it."""
    print(summary(rows.read(Path(sys.argv[1]) / "rows.jsonl")))


if __name__ == "__main__":
    main()
