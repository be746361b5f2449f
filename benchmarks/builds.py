"""Two builds of fastrnn side by side in one run: ``python -m benchmarks.builds OLD``.

New is the build of this working tree, old that of the checkout at OLD, a folder with a package
`fastrnn` and its compiled extension; ``--noise`` puts this tree in OLD's place and so tells what a
ratio means. Both register the same operators, so each has processes of its own (build_worker.py),
several because where one's memory lies can favour a cell for as long as it lives. A round is one
turn of each build, in an order that flips; whoever has no turn sleeps in a pipe.

A turn's time is the median over batches of calls, a ratio old / new (above 1 the new build is
faster) the median over rounds, its spread the interquartile range over that. Outputs and, in
training, gradients of both builds are compared before the first turn.

Exit status: 0 all rows were printed; 1 a build or a cell could not be run, or not compared; 2 bad
arguments; 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import io
import math
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from .build_worker import QUICK, Cell, call_cells, quick_cells, work
from .lib import cases, checks, report, timing
from .lib.progress import Progress

Row = dict[str, Any]

#: Cells whose ratio is below this are counted.
SLOWER = 0.97
WORST = 5

#: Cells whose spread is above this say little: the machine was not quiet.
NOISY = 0.1


class BuildError(Exception):
    """One build could not do what it was asked."""


class DiedError(Exception):
    """A build's process ended before its time."""


class Build:
    """A build in a process of its own."""

    def __init__(self, name: str, root: Path, seconds: float) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, other_end = context.Pipe()
        arguments = (other_end, str(root.resolve()), seconds)
        self._process = context.Process(target=work, args=arguments, daemon=True)
        self._process.start()
        other_end.close()

    def receive(self) -> Any:
        try:
            succeeded, value = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise DiedError(f"{self.name} died with {self._process.exitcode}") from None
        if not succeeded:
            raise BuildError(f"{self.name}: {value}")
        return value

    def ask(self, cell: Cell | None) -> Any:
        """What the worker answers to a cell, or to None, which asks for a turn."""
        with contextlib.suppress(OSError):  # who is dead does not answer either
            self._connection.send(cell)
        return self.receive()

    def close(self) -> None:
        self._connection.close()
        self._process.join()


def describe(root: Path) -> str:
    """Where a build is; equal digests say that only Python differs."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    commit = subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"
    digest = hashlib.sha256(b"".join(f.read_bytes() for f in root.glob("fastrnn/_C*.so")))
    return f"{root.resolve()}, commit {commit}, extension {digest.hexdigest()[:12]}"


def difference(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> tuple[float, str]:
    """The largest relative difference and its tensor; 0 and nothing where all bits are equal."""
    if old.keys() != new.keys():
        return math.inf, f"names {sorted(old.keys() ^ new.keys())}"
    worst = (0.0, "")
    for name, value in new.items():
        bits = [t.contiguous().view(torch.uint8) for t in (old[name], value)]
        if old[name].dtype != value.dtype or not torch.equal(*bits):
            error = checks.relative_error(value, old[name].double())
            worst = max(worst, (error if math.isfinite(error) else math.inf, name))
    return worst


def measure(pairs: list[list[Build]], cell: Cell, rounds: int) -> Row:
    """One row; BuildError where a build fails or what they return cannot be compared."""
    error, tensor, times = 0.0, "", {}
    for pair in pairs:
        answers = [build.ask(cell) for build in pair]
        tensors = [torch.load(io.BytesIO(saved), weights_only=True) for saved, _ in answers]
        error, tensor = max((error, tensor), difference(*tensors))
        if not math.isfinite(error):
            raise BuildError(f"{tensor} of old and new cannot be compared")
        times = {b.name: timing.Timing([], calls) for b, (_, calls) in zip(pair, answers)}
    for index in range(rounds):
        turn, which = divmod(index, len(pairs))
        for build in pairs[which] if turn % 2 == 0 else reversed(pairs[which]):
            times[build.name].rounds.append(build.ask(None))
    old, new = times.values()
    ratio = timing.round_ratio(old, new)
    ratios = [a / b for a, b in zip(old.rounds, new.rounds)]
    return {
        **dataclasses.asdict(cell), "case": str(cell.case), "suite": "builds",
        "group": cell.group(), "label": str(cell), "difference": error, "tensor": tensor,
        "check": dataclasses.asdict(checks.Check(True, tensor, error, 0.0, math.inf)),
        "times": {name: one.as_dict() for name, one in times.items()},
        "ratio": ratio, "spread": timing.interquartile_range(ratios) / ratio,
    }  # fmt: skip


def microseconds(name: str) -> report.Column:
    def value(row: Row) -> str:
        return f"{row['times'][name]['median_s'] * 1e6:.1f}"

    return report.Column(f"{name} us", 10, value)


def agreement(row: Row) -> str:
    return f"{row['difference']:.1e} {row['tensor']}" if row["difference"] else "bit-equal"


COLUMNS = [
    report.Column("kind", 10, lambda row: row["kind"]),
    report.LAYER, report.MODE, report.DTYPE, report.THREADS, report.CASE,
    microseconds("old"), microseconds("new"),
    report.Column("old/new", 7, lambda row: f"{row['ratio']:.3f}"),
    report.Column("IQR %", 6, lambda row: f"{row['spread'] * 100:.1f}"),
    report.Column("difference", 22, agreement),
]  # fmt: skip


def summarize(rows: list[Row]) -> list[str]:
    """Geometric means over all cells and by group, the worst cells, how many are slower."""
    if not rows:
        return ["no rows"]
    groups: dict[str, list[float]] = {"all cells": [row["ratio"] for row in rows]}
    for row in rows:
        groups.setdefault(row["group"], []).append(row["ratio"])
    lines = [
        f"old/new {timing.geometric_mean(ratios):.3f}  {name} ({len(ratios)})"
        for name, ratios in groups.items()
    ]
    slower = sum(row["ratio"] < SLOWER for row in rows)
    lines.append(f"{slower} of {len(rows)} cells below {SLOWER}; the lowest:")
    for row in sorted(rows, key=lambda row: row["ratio"])[:WORST]:
        lines.append(f"  {row['ratio']:.3f} (IQR {row['spread'] * 100:.1f} %)  {row['label']}")
    noisy = sum(row["spread"] > NOISY for row in rows)
    lines.append(f"{noisy} of {len(rows)} cells with a spread above {NOISY:.0%}")
    equal = sum(not row["difference"] for row in rows)
    return [*lines, f"{equal} of {len(rows)} cells bit-equal"]


# ----------------------------------------------------------------- the command line


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.builds", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    add("old", nargs="?", type=Path, metavar="OLD", help="a folder with fastrnn, built")
    add("--noise", action="store_true", help="compare this working tree with itself")
    add("--cells", nargs="+", metavar="full|small|T,B,I,H[,layers[,directions]]",
        help="default: full, where neither --quick nor --per-call is given")  # fmt: skip
    add("--layers", nargs="+", choices=list(cases.GATES), default=list(cases.GATES))
    add("--modes", nargs="+", choices=["inference", "training"], default=["inference", "training"])
    add("--dtypes", nargs="+", choices=list(cases.DTYPES), default=["float32"])
    add("--quick", action="store_true", help=f"{len(QUICK)} cells with some of everything")
    add("--per-call", action="store_true", help="calls of one step, T = B = 1, H = 4")
    add("--threads", type=int, default=min(2, os.cpu_count() or 1))
    add("--rounds", type=int, default=12, help="turns of each build")
    add("--processes", type=int, default=2, help="processes of each build, in turn")
    add("--seconds", type=float, default=0.04, help="how long a turn lasts, of several calls")
    add("--json", type=Path, help="write environment, rows and summary here")
    add("--quiet", action="store_true", help="no progress bar")
    arguments = parser.parse_args(argv)
    if arguments.noise == (arguments.old is not None):
        parser.error("either OLD or --noise")
    if not (arguments.old or report.REPOSITORY).joinpath("fastrnn").is_dir():
        parser.error(f"there is no folder fastrnn in {arguments.old}")
    if min(arguments.rounds, arguments.processes, arguments.threads, arguments.seconds) <= 0:
        parser.error("--rounds, --processes, --threads and --seconds must be positive")
    if not (arguments.cells or arguments.quick or arguments.per_call):
        arguments.cells = ["full"]
    try:
        arguments.cells = cases.parse_grid(arguments.cells or [])
    except ValueError as error:
        parser.error(str(error))
    return arguments


def chosen_cells(arguments: argparse.Namespace) -> list[Cell]:
    threads = arguments.threads
    cells = quick_cells(threads) if arguments.quick else []
    for dtype in arguments.dtypes:
        for layer in arguments.layers:
            for mode in arguments.modes:
                for case in arguments.cells:
                    cells.append(Cell("plain", layer, mode, dtype, threads, case))
    cells += call_cells(arguments.layers, threads) if arguments.per_call else []
    return list(dict.fromkeys(cells))


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    cells = chosen_cells(arguments)
    roots = {"old": arguments.old or report.REPOSITORY, "new": report.REPOSITORY}
    pairs = [
        [Build(name, root, arguments.seconds) for name, root in roots.items()]
        for _ in range(min(arguments.processes, arguments.rounds))
    ]
    builds = sum(pairs, [])
    environment = report.environment()
    report.print_environment(environment)
    described = {name: describe(root) for name, root in roots.items()}
    print(*(f"{name:8} {text}" for name, text in described.items()), "", sep="\n", flush=True)
    rows: list[Row] = []
    failures: list[str] = []
    progress = Progress(len(cells), enabled=not arguments.quiet)
    interrupted = False
    try:
        for build in builds:
            build.receive()
        table = report.Table(COLUMNS)
        table.header()
        for cell in cells:
            progress.advance(str(cell))
            try:
                rows.append(measure(pairs, cell, arguments.rounds))
            except BuildError as error:
                failures.append(f"{cell}: {error}")
                print(f"no row: {failures[-1]}", file=sys.stderr, flush=True)
                continue
            progress.clear()
            table.row(rows[-1])
    except (BuildError, DiedError) as error:  # one that cannot be loaded, or died
        failures.append(str(error))
        print(error, file=sys.stderr)
    except KeyboardInterrupt:
        interrupted = True
        print("\ninterrupted; the summary covers what was measured", file=sys.stderr)
    finally:
        progress.clear()
        for build in builds:
            build.close()
    summary = summarize(rows)
    print("", *summary, sep="\n")
    if arguments.json:
        contents = {
            "environment": environment,
            "builds": described,
            "rounds": arguments.rounds, "turn_seconds": arguments.seconds,
            "rows": rows, "failures": failures, "summary": summary,
        }  # fmt: skip
        report.write_json(arguments.json, contents)
    if interrupted:
        return 130
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
