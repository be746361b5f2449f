"""Children that may hang, crash or print without end, and the folder that keeps what they leave.

Every child is the leader of a session, and so of a process group, of its own, and is killed with
the whole group at its limit. What it prints goes to a file as it comes. Nothing here imports torch:
the process that starts the others must not be able to lose the device.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu import rows

ROOT = Path(__file__).resolve().parent.parent.parent
#: All files of a results folder. run.sh adds bundle.txt; what comes back are at most eight.
FILES = ("log.txt", "rows.jsonl", "output.txt", "tests.txt", "ncu.txt", "clocks.csv")
#: Most bytes of one child's output that are kept, beside its end, and most of one file.
MOST_OF_CHILD, MOST_OF_FILE, END = 1 << 20, 6 << 20, 1 << 16
#: Seconds that remain at the end for the summary, and for killing the last child.
RESERVE = 6.0
PROBE_SECONDS = 15.0


class Stopped(Exception):
    """Nothing more can be measured, and why."""


class Child(NamedTuple):
    """A command to run."""

    name: str
    command: list[str]
    output: str = "output.txt"
    environ: dict[str, str] = {}
    quiet: float | None = None  # killed after so many seconds without a new row
    probed: bool = True  # whether its bad end may mean that the device is lost


class Ended(NamedTuple):
    """How a child ended: "ok", or what else happened."""

    name: str
    status: str
    seconds: float

    @property
    def ok(self):
        """Whether it ended by itself, without an error."""
        return self.status == "ok"


class Stage(NamedTuple):
    """A part of the whole: `run(session, seconds)` gets at most `limit` seconds.

    It is left out where fewer than `minimum` are left.
    """

    name: str
    run: Callable
    limit: float
    minimum: float = 5.0


class Session:
    """The results folder, the clock, and what is known of the regimes."""

    def __init__(self, folder, seconds, device="cuda", probe=None):
        self.folder = Path(folder).resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.begin = time.monotonic()
        self.deadline = self.begin + seconds - min(RESERVE, 0.1 * seconds)
        self.device = device
        self.off = {}  # regime -> why nothing more is asked of it
        self.built_here = False
        rows.close_line(self.path("rows.jsonl"))
        self._rows_before = len(rows.read(self.path("rows.jsonl")))
        self.probe_command = probe or [
            sys.executable, "-c", f"import torch; torch.zeros(8, device={device!r}).sum().item()",
        ]  # fmt: skip

    def path(self, name):
        """Where a file of the results is."""
        assert name in FILES
        return self.folder / name

    def left(self):
        """Seconds until the time is over."""
        return self.deadline - time.monotonic()

    def log(self, text):
        """A line for the person who waits, and for the file."""
        line = f"[{time.monotonic() - self.begin:5.1f} s] {text}\n"
        sys.stdout.write(line)
        sys.stdout.flush()
        with self.path("log.txt").open("a") as file:
            file.write(line)

    def rows(self):
        """This run's rows so far; the folder may have some of another one."""
        return rows.read(self.path("rows.jsonl"))[self._rows_before :]

    def switch_off(self, regime, why):
        """Nothing more is asked of a regime."""
        if regime not in self.off:
            self.off[regime] = why
            self.log(f"regime {regime} is off from here: {why}")
            rows.append(self.path("rows.jsonl"), {"stage": "off", "regime": regime, "why": why})

    def run(self, children, limit):
        """Runs children at once, each for at most `limit` seconds; how each ended.

        Raises Stopped where one ended badly and the device does not answer afterwards.
        """
        ends = self._run(children, limit)
        bad = [end for child, end in zip(children, ends) if child.probed and not end.ok]
        if bad and self.left() > 5:
            self.probe()
        return ends

    def probe(self):
        """Raises Stopped unless a process that uses the device for a moment ends well."""
        child = Child("probe", self.probe_command, probed=False)
        (end,) = self._run([child], PROBE_SECONDS)
        if not end.ok:
            raise Stopped(f"the device does not answer: {end.status}")

    def _run(self, children, limit):
        end_of_all = time.monotonic() + max(0.5, min(limit, self.left()))
        running = []
        try:
            running += (Running(self, child) for child in children)
            while not all(one.is_over() for one in running):
                now = time.monotonic()
                for one in running:
                    if now > end_of_all:
                        one.kill(f"killed after {now - one.begin:.0f} s")
                    elif one.is_quiet(now):
                        one.kill(f"killed: {one.child.quiet:.0f} s without a row")
                time.sleep(0.02)
        finally:
            for one in running:
                one.close()
            with contextlib.suppress(OSError):
                rows.close_line(self.path("rows.jsonl"))
        ends = [one.ended() for one in running]
        for end in ends:
            self.log(f"{end.name}: {end.status}, {end.seconds:.1f} s")
            facts = {"stage": "end", "name": end.name, "status": end.status}
            rows.append(self.path("rows.jsonl"), facts | {"seconds": round(end.seconds, 1)})
        return ends

    @contextlib.contextmanager
    def beside(self, child):
        """A child that runs until the block ends."""
        running = Running(self, child)
        try:
            yield
        finally:
            running.close()


class Running:
    """A child while it runs."""

    def __init__(self, session, child):
        self.session, self.child = session, child
        self.begin = self._row_time = time.monotonic()
        self._row_size = -1
        self.status = self.process = None
        self.over = None  # when it ended
        self._write(f"\n== {child.name}: {' '.join(child.command)[:300]}\n".encode())
        environ = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}
        try:
            self.process = subprocess.Popen(
                child.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=ROOT,
                stderr=subprocess.STDOUT, start_new_session=True, env=environ | child.environ,
            )  # fmt: skip
        except OSError as error:
            self.status, self.over = f"not started: {error}", self.begin
            return
        self._pump = threading.Thread(target=self._copy, daemon=True)
        self._pump.start()

    def is_over(self):
        """Whether its first process has ended. It is not reaped, so that its group's number, which
        is its own, still belongs to it when the group is killed."""
        if self.over is None:
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, self.process.pid, flags) is not None:
                self.over = time.monotonic()
            elif self.status is not None and time.monotonic() - self._killed > 5:
                self.status += ", and does not die"
                self.over = time.monotonic()
        return self.over is not None

    def is_quiet(self, now):
        """Whether no row came for too long."""
        if self.child.quiet is None or self.over is not None:
            return False
        path = self.session.path("rows.jsonl")
        size = path.stat().st_size if path.exists() else 0
        if size != self._row_size:
            self._row_size, self._row_time = size, now
        return now - self._row_time > self.child.quiet

    def kill(self, why):
        """Kills the group, once."""
        if self.status is None and self.over is None:
            self.status, self._killed = why, time.monotonic()
            self._kill_group()

    def _kill_group(self):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self):
        """Kills what is left of the group, and reaps the child."""
        if self.process is None:
            return
        self._kill_group()
        # A process that left the group may hold the pipe open for ever.
        self._pump.join(1.0)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)

    def ended(self):
        """How it ended, after close()."""
        status = self.status
        if status is None:
            code = self.process.returncode
            status = "ok" if code == 0 else f"failed, exit status {code}"
            if code is not None and code < 0:
                status = f"crashed: {signal.strsignal(-code)}"
        return Ended(self.child.name, status, (self.over or time.monotonic()) - self.begin)

    def _write(self, data):
        path = self.session.path(self.child.output)
        with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
            if file.tell() < MOST_OF_FILE:
                file.write(data)

    def _copy(self):
        """From the pipe to the file, whole lines where they come soon; past MOST_OF_CHILD bytes
        the last END alone, at the end."""
        pipe = self.process.stdout.fileno()
        held, written, end = b"", 0, None
        while True:
            ready, _, _ = select.select([pipe], [], [], 0.3)
            piece = os.read(pipe, 1 << 16) if ready else b""
            if end is not None:
                end = (end + piece)[-END:]
            else:
                lines, newline, rest = (held + piece).rpartition(b"\n")
                whole, held = lines + newline, rest
                if not piece:
                    whole, held = whole + held, b""
                if whole:
                    self._write(whole)
                    written += len(whole)
                if written > MOST_OF_CHILD:
                    end = held
            if ready and not piece:
                break
        if end is not None:
            self._write(b"\n[...]\n" + end)


def run_stages(session, stages, only=None):
    """Runs the stages in order, each while there is time; an error in one is in the log alone.

    False where one of them said that nothing more can be measured.
    """
    for stage in stages:
        if only is not None and stage.name not in only:
            continue
        if session.left() < stage.minimum:
            session.log(f"{stage.name}: left out, {session.left():.0f} s are left")
            continue
        try:
            stage.run(session, min(stage.limit, session.left()))
        except Stopped as why:
            session.log(f"{stage.name}: {why}; nothing more is run")
            return False
        except Exception:  # one stage must not cost the others; the log says what it was
            session.log(f"{stage.name}: {traceback.format_exc()}")
    return True
