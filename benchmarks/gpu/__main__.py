"""Measures fastrnn on a GPU, in stages that cannot take each other down.

    python -m benchmarks.gpu --out FOLDER [--seconds 580] [--only STAGE ...]

docs/gpu.md says what each stage does and what the files of the folder mean. `--device cpu` is a dry
run of tiny sizes without a GPU.
"""

import argparse
import signal
import sys
from pathlib import Path

from benchmarks.gpu import plan, rows, stages, table


def parse(arguments=None):
    """The arguments."""
    names = [stage.name for stage in plan.STAGES]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=580.0, help="of all stages together")
    parser.add_argument("--only", nargs="+", choices=names, help="stages; environment always runs")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    return parser.parse_args(arguments)


def stop(number, frame):
    """A signal ends the run as its time would: children are killed, the summary is printed."""
    raise SystemExit(128 + number)


def main(arguments=None):
    """Runs the stages; the exit status is 1 where nothing more could be measured."""
    options = parse(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    session = stages.Session(options.out, options.seconds, options.device)
    only = None if options.only is None else {"environment", *options.only}
    clocks = stages.Child(
        "clocks",
        ["nvidia-smi", "--query-gpu=timestamp,clocks.sm,power.draw,utilization.gpu",
         "--format=csv", "--loop=1"],
        output="clocks.csv", probed=False,
    )  # fmt: skip
    try:
        with session.beside(clocks):
            whole = stages.run_stages(session, plan.STAGES, only)
    finally:
        session.log(f"done, {session.left():.0f} s are left")
        print(table.summary(rows.read(session.path("rows.jsonl"))), flush=True)
    return 0 if whole else 1


if __name__ == "__main__":
    sys.exit(main())
