"""``python -m benchmarks``: fastrnn beside torch.nn, in one process, interleaved.

Exit status: 0 all rows were printed; 1 a check failed and its row was refused;
2 bad arguments; 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path

import torch

from .lib import cases, checks, jobs, peers, report, suites, timing
from .lib.progress import Progress


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Times fastrnn beside torch.nn after checking that the numbers agree.",
    )
    add = parser.add_argument
    add("--suites", nargs="+", choices=list(suites.SUITES), default=["grid"])
    add("--layers", nargs="+", choices=list(cases.GATES), default=list(cases.GATES))
    add("--modes", nargs="+", choices=["inference", "training"], default=["inference", "training"])
    add("--grid", nargs="+", default=["full"], metavar="full|small|T,B,I,H[,layers[,directions]]")
    add("--dtypes", nargs="+", choices=list(cases.DTYPES), default=["float32"])
    add("--threads", nargs="+", type=int, help="default 2; the streaming suite also 1")
    add("--repeats", type=int, default=7, help="rounds; each contestant runs in every round")
    add("--round-ms", type=float, default=timing.ROUND_SECONDS * 1e3,
        help="how long one contestant runs in one round")  # fmt: skip
    add("--check-gflops", type=float, default=checks.CHECK_FLOPS / 1e9,
        help="cells with a costlier forward pass get a shorter float64 check")  # fmt: skip
    add("--peers", nargs="+", choices=peers.NAMES, default=[], help="inference, float32, grid")
    add("--markdown", action="store_true", help="tables as Markdown")
    add("--json", type=Path, help="write environment, rows and summary here")
    add("--plot", type=Path, help="write a PNG of the grid here (needs matplotlib)")
    add("--quiet", action="store_true", help="no progress bar")
    arguments = parser.parse_args(argv)
    try:
        arguments.grid = cases.parse_grid(arguments.grid)
    except ValueError as error:
        parser.error(str(error))
    if arguments.repeats < 1 or arguments.round_ms <= 0 or arguments.check_gflops <= 0:
        parser.error("--repeats, --round-ms and --check-gflops must be positive")
    for threads in arguments.threads or []:
        if not 1 <= threads <= (os.cpu_count() or 1):
            parser.error(f"--threads {threads}: this machine has {os.cpu_count()} CPUs")
    if arguments.plot and "grid" not in arguments.suites:
        parser.error("--plot draws the grid suite, which --suites leaves out")
    return arguments


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    if arguments.plot:
        import matplotlib  # noqa: F401  fails now rather than after the run
    present = []
    for name in arguments.peers:
        reason = peers.missing(name)
        if reason:
            print(reason)
        else:
            present.append(name)
    options = jobs.Options(
        layers=arguments.layers,
        modes=arguments.modes,
        grid=arguments.grid,
        dtypes=arguments.dtypes,
        threads=arguments.threads,
        repeats=arguments.repeats,
        round_seconds=arguments.round_ms / 1e3,
        peers=present,
        check_flops=arguments.check_gflops * 1e9,
    )
    environment = report.environment(present)
    report.print_environment(environment)
    rows: list[report.Row] = []
    refused: list[str] = []
    interrupted = False
    try:
        run_suites(arguments, options, rows, refused)
    except KeyboardInterrupt:
        interrupted = True
        print("\ninterrupted; the summary covers what was measured", file=sys.stderr)
    figures = report.summarize(rows)
    if figures:
        print()
        report.print_summary(figures, arguments.markdown)
    if report.disturbance(rows):
        print(f"\n{report.disturbance(rows)}")
    if arguments.json:
        chosen = {
            key: [str(case) for case in value] if key == "grid" else value
            for key, value in vars(arguments).items()
            if key not in ("json", "plot")
        }
        contents = {
            "environment": environment,
            "load_average_at_end": os.getloadavg(),
            "arguments": chosen,
            "rows": rows,
            "refused": refused,
            "summary": [dataclasses.asdict(figure) for figure in figures],
        }
        report.write_json(arguments.json, contents)
    if arguments.plot and any("times" in row for row in rows):
        from .lib import plot

        cpu = environment["cpu"].get("model", "")
        plot.draw(rows, arguments.plot, f"{cpu}, torch {environment['torch']}")
    if interrupted:
        return 130
    if refused:
        print(f"\n{len(refused)} rows refused: their numbers are wrong", file=sys.stderr)
        return 1
    return 0


def run_suites(
    arguments: argparse.Namespace,
    options: jobs.Options,
    rows: list[report.Row],
    refused: list[str],
) -> None:
    """Runs every job, prints its row, and collects rows and refusals."""
    jobs = {name: suites.SUITES[name](options) for name in arguments.suites}
    progress = Progress(sum(map(len, jobs.values())), enabled=not arguments.quiet)
    threads = torch.get_num_threads()
    try:
        for name, suite_jobs in jobs.items():
            progress.clear()
            print(f"\n{name}: {suites.SUITES[name].__doc__.splitlines()[0]}")
            table = report.Table(report.columns(name, options.peers), arguments.markdown)
            table.header()
            for job in suite_jobs:
                progress.advance(job.label)
                row = job.run()
                rows.append(row)
                progress.clear()
                try:
                    table.row(row)
                except report.CheckFailedError as failure:
                    refused.append(str(failure))
                    print(f"refused: {failure}", file=sys.stderr, flush=True)
    finally:
        progress.clear()
        torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(main())
