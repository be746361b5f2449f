"""benchmarks.gpu without a GPU: stages, and children that hang, crash, or print without end."""

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest

from benchmarks.gpu import (
    __main__,
    calibrate,
    core,
    measure,
    plan,
    profile,
    rows,
    smoke,
    stages,
    training,
)
from benchmarks.gpu.stages import Child, Session, Stage

TRUE = [sys.executable, "-c", ""]


def python(text, name="child", **more):
    """A child that runs a program."""
    return Child(name, [sys.executable, "-c", text], **more)


@pytest.fixture
def session(tmp_path):
    return Session(tmp_path / "out", 60, "cpu", probe=TRUE)


def text_of(session, name="output.txt"):
    return session.path(name).read_text(errors="replace")


def is_alive(pid):
    """Whether a process still runs a while after it may have been killed; a zombie does not."""
    for _ in range(100):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return False
        except (FileNotFoundError, ProcessLookupError):
            return False
        time.sleep(0.02)
    return True


# -- Children --------------------------------------------------------------------------------------


def test_a_child_that_hangs_is_killed_with_its_group(session, tmp_path):
    """The grandchild ignores signals and holds the pipe."""
    pid_file = tmp_path / "pid"
    grandchild = (
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    text = (
        "import subprocess, sys, time; print('before', flush=True);"
        f"subprocess.Popen([sys.executable, '-c', {grandchild!r}]); time.sleep(60)"
    )
    begin = time.monotonic()
    (end,) = session.run([python(text)], 1.5)
    assert end.status.startswith("killed after") and not end.ok
    assert time.monotonic() - begin < 10
    assert "before" in text_of(session)
    assert not is_alive(int(pid_file.read_text()))


def test_a_grandchild_that_outlives_its_parent_is_killed(session, tmp_path):
    pid_file = tmp_path / "pid"
    grandchild = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); "
    text = (
        "import os, subprocess, sys, time;"
        f"subprocess.Popen([sys.executable, '-c', {grandchild + 'time.sleep(60)'!r}])\n"
        f"while not os.path.exists({str(pid_file)!r}) or not open({str(pid_file)!r}).read():\n"
        "    time.sleep(0.01)"
    )
    begin = time.monotonic()
    (end,) = session.run([python(text)], 20)
    assert end.ok and time.monotonic() - begin < 15
    assert not is_alive(int(pid_file.read_text()))


def test_crashes_are_told_from_failures(session):
    ends = session.run(
        [
            python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"),
            python("import sys; sys.exit(3)"),
            python(""),
            Child("missing", ["/no/such/program"]),
        ],
        20,
    )
    crash, failure, fine, missing = (end.status for end in ends)
    assert crash == "crashed: Segmentation fault"
    assert (failure, fine) == ("failed, exit status 3", "ok")
    assert missing.startswith("not started")
    assert [row["status"] for row in session.rows() if row["stage"] == "end"] == [
        crash, failure, fine, missing, "ok",
    ]  # fmt: skip


def test_output_without_end_is_cut_and_its_end_kept(session):
    text = f"for i in range({2 * stages.MOST_OF_CHILD // 10}): print('%09d' % i)\nprint('the end')"
    (end,) = session.run([python(text)], 30)
    kept = text_of(session)
    assert end.ok
    assert "000000000" in kept and kept.rstrip().endswith("the end")
    assert len(kept) < stages.MOST_OF_CHILD + 2 * stages.END + 1000


def test_output_is_there_while_the_child_runs(session):
    """Half lines as well, so that what a child hung in can be read."""
    path = str(session.path("output.txt"))
    text = (
        "import sys, time; print('ha' + 'lf a line', end='', flush=True); time.sleep(1.0)\n"
        f"sys.exit('ha' + 'lf a line' not in open({path!r}).read())"
    )
    (end,) = session.run([python(text)], 20)
    assert end.ok


def test_half_a_row_costs_nothing_else(session):
    path = session.path("rows.jsonl")
    rows.append(path, {"stage": "one"})
    half = f"open({str(path)!r}, 'a').write('{{\"stage\": \"ha'); import os; os.abort()"
    session.run([python(half)], 20)
    rows.append(path, {"stage": "two"})
    found = [row["stage"] for row in session.rows()]
    assert found[0] == "one" and found[-1] == "two" and "ha" not in found


def test_a_worker_without_rows_is_killed(session):
    path = str(session.path("rows.jsonl"))
    text = (
        "import time\n"
        f"for _ in range(4):\n    open({path!r}, 'a').write('{{}}\\n'); time.sleep(0.3)\n"
        "time.sleep(60)"
    )
    (end,) = session.run([python(text, quiet=0.8)], 30)
    assert end.status.startswith("killed:") and 1.5 < end.seconds < 10


def test_the_probe_stops_a_run(tmp_path):
    session = Session(tmp_path, 60, "cpu", probe=[sys.executable, "-c", "raise SystemExit(1)"])
    assert session.run([python("")], 20)[0].ok
    with pytest.raises(stages.Stopped, match="does not answer"):
        session.run([python("import os; os.abort()")], 20)
    assert session.run([python("import os; os.abort()", probed=False)], 20)


# -- Stages ----------------------------------------------------------------------------------------


def test_stages_end_in_time_and_keep_everything(tmp_path):
    begin, order = time.monotonic(), []
    session = Session(tmp_path, 8, "cpu", probe=TRUE)

    def hang(session, seconds):
        session.run([python("print('hung', flush=True); import time; time.sleep(60)")], seconds)

    def error(session, seconds):
        raise KeyError("of a stage")

    def fine(session, seconds):
        order.append(seconds)
        rows.append(session.path("rows.jsonl"), {"stage": "fine"})

    fakes = [
        Stage("hang", hang, 2, 0),
        Stage("error", error, 5, 0),
        Stage("fine", fine, 5, 0),
        Stage("not asked", fine, 5, 0),
        Stage("too long", fine, 50, 30),
        Stage("hang again", hang, 60, 0),
        Stage("late", fine, 5, 1),
    ]
    only = {stage.name for stage in fakes} - {"not asked"}
    assert stages.run_stages(session, fakes, only)
    assert time.monotonic() - begin < 11
    assert len(order) == 1 and order[0] <= 5
    log = text_of(session, "log.txt")
    assert "KeyError: 'of a stage'" in log and "too long: left out" in log and "late: left" in log
    assert log.count("killed after") == 2
    assert text_of(session).count("\nhung\n") == 2
    assert {path.name for path in tmp_path.iterdir()} <= set(stages.FILES)


def test_a_stage_can_stop_the_run(session):
    def stop(session, seconds):
        raise stages.Stopped("nothing here")

    def never(session, seconds):
        raise AssertionError

    assert not stages.run_stages(session, [Stage("a", stop, 5), Stage("b", never, 5)])
    assert "a: nothing here; nothing more is run" in text_of(session, "log.txt")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_parent_leaves(tmp_path, number):
    text = f"""
import sys
from benchmarks.gpu import __main__, plan, rows, stages
def stage(session, seconds):
    rows.append(session.path("rows.jsonl"), {{"stage": "begun"}})
    command = [sys.executable, "-c",
               "import os, time; print('pid', os.getpid(), flush=True); time.sleep(8)"]
    session.run([stages.Child("child", command)], seconds)
plan.STAGES = [stages.Stage("environment", stage, 60)]
sys.exit(__main__.main(["--out", {str(tmp_path)!r}, "--device", "cpu"]))
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, cwd=stages.ROOT, text=True
    )
    output, deadline = tmp_path / "output.txt", time.monotonic() + 20
    while time.monotonic() < deadline and not (
        output.exists() and re.search(r"^pid \d+$", output.read_text(), re.M)
    ):
        time.sleep(0.05)
    parent.send_signal(number)
    said = parent.communicate(timeout=20)[0]
    assert {"stage": "begun"} in rows.read(tmp_path / "rows.jsonl")
    pid = int(re.search(r"^pid (\d+)$", output.read_text(), re.M)[1])
    if number == signal.SIGTERM:
        assert parent.returncode == 128 + number
        assert "1 processes" in said or "0 processes" in said
        assert not is_alive(pid)
    elif is_alive(pid):
        os.kill(pid, signal.SIGKILL)


def test_results_are_at_most_eight_files():
    """run.sh adds bundle.txt."""
    assert len(stages.FILES) + 1 <= 8
    assert len(stages.FILES) * (stages.MOST_OF_FILE + stages.MOST_OF_CHILD) < 8 * (16 << 20)


def test_the_limits_and_the_order():
    names = [stage.name for stage in plan.STAGES]
    assert names == [
        "environment", "smoke", "prims", "tests", "calls", "core", "more", "calibrate", "ncu",
        "training", "names", "memcheck",
    ]  # fmt: skip
    assert all(stage.minimum <= stage.limit for stage in plan.STAGES)
    before_core = plan.STAGES[1 : names.index("core") + 1]
    assert 40 + sum(stage.limit for stage in before_core) < 580


class Recorder(Session):
    """Notes children instead of running them."""

    def __init__(self, folder):
        super().__init__(folder, 580, "cuda", probe=TRUE)
        self.children, self.status = [], {}

    def _run(self, children, limit):
        self.children += children
        return [
            stages.Ended(child.name, self.status.get(child.name, "ok"), 1.0) for child in children
        ]


@pytest.fixture
def recorder(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "tool", lambda name: f"/opt/{name}")
    return Recorder(tmp_path)


def test_what_a_whole_run_starts(recorder):
    assert stages.run_stages(recorder, plan.STAGES)
    names = [child.name for child in recorder.children]
    assert names[:5] == [
        "environment", "smoke single", "smoke cluster", "smoke grid", "smoke steps",
    ]  # fmt: skip
    for who in ("nn", "plan", "single", "cluster", "grid", "steps"):
        assert f"core {who}" in names
    assert "build" not in names and "calls" in names and "memcheck grid" in names
    assert sum(name.startswith("ncu") for name in names) == 4
    for child in recorder.children:
        if child.name.startswith("tests"):
            assert child.environ["FASTRNN_TEST_REGIMES"] == child.name.split()[1]
        if child.name == "calls":
            assert child.environ["FASTRNN_TEST_REGIMES"] == "single cluster grid steps"


def test_a_bad_regime_is_off(recorder):
    recorder.status = {
        "smoke cluster": "killed after 40 s", "smoke grid": "failed, exit status 1",
    }  # fmt: skip
    rows.append(
        recorder.path("rows.jsonl"),
        {"stage": "tests", "who": "tests single", "test": "t.py::test_regimes_agree[LSTM]"},
    )
    assert stages.run_stages(recorder, plan.STAGES)
    assert set(recorder.off) == {"cluster", "grid", "single"}
    names = [child.name for child in recorder.children]
    assert "tests single" in names and "core single" not in names
    assert "calibrate cluster" not in names
    assert "core steps" in names and not any(name.startswith(("ncu", "memcheck")) for name in names)
    (chosen,) = (child for child in recorder.children if child.name == "core plan")
    assert chosen.environ == {"FASTRNN_CUDA_COOPERATIVE": "0"}


def test_an_extension_that_does_not_load_is_built(recorder):
    recorder.status = {"environment": "failed, exit status 4"}
    assert stages.run_stages(recorder, plan.STAGES[:1])
    assert [child.name for child in recorder.children][::2] == ["environment", "build"]
    build = recorder.children[2]
    assert build.environ["FASTRNN_CUDA"] == "1"
    assert build.environ["TORCH_CUDA_ARCH_LIST"] == "9.0a"
    assert stages.run_stages(recorder, plan.STAGES, {"calibrate", "ncu"})
    assert "calibrate" not in recorder.children[-1].name
    recorder.status["environment, built here"] = "failed, exit status 4"
    assert not stages.run_stages(recorder, plan.STAGES[:2])


def test_a_contestant_goes_on_behind_the_cell_it_hung_in(session, monkeypatch):
    def worker(session, module, name, *arguments, **more):
        first = arguments[arguments.index("--first") + 1]
        row = '{"stage": "core", "who": "grid", "begin": %d}'
        text = (
            f"import os\nfor i in range({first}, 9):\n"
            f"    print({row!r} % i, file=open({str(session.path('rows.jsonl'))!r}, 'a'))\n"
            "    if i in (2, 5): os.abort()"
        )
        return python(text, name)

    monkeypatch.setattr(plan, "worker", worker)
    plan.turn(session, "core", "grid", 40)
    begun = [row["begin"] for row in session.rows() if "begin" in row]
    assert begun == list(range(9))


def test_workers_take_the_arguments_of_the_plan(recorder, monkeypatch):
    """Every command of a whole run, on the CPU: ncu's and the sanitizer's too."""
    for name in ("FASTRNN_CUDA_REGIME", "FASTRNN_CUDA_OVERLAP"):  # workers set them
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert stages.run_stages(recorder, plan.STAGES)
    modules, parser = set(), measure.argparse.ArgumentParser
    monkeypatch.setattr(parser, "error", lambda self, message: pytest.fail(message))
    monkeypatch.setattr(measure, "set_precision", mock.Mock(side_effect=InterruptedError))
    monkeypatch.setattr(training, "compare", lambda options, device: {})
    for child in recorder.children:
        if "-m" not in child.command or "pytest" in child.command:
            continue
        at = child.command.index("-m") + 1
        name, arguments = child.command[at], child.command[at + 1 :]
        module = importlib.import_module(name)
        modules.add(name.rpartition(".")[2])
        if module in (core, smoke, calibrate):
            arguments += ["--until", "0"]
        arguments[arguments.index("--device") + 1] = "cpu"
        arguments[arguments.index("--rows") + 1] = str(recorder.path("rows.jsonl"))
        try:
            module.main(arguments)
        except InterruptedError:
            assert module is profile
    assert modules == {
        "environment", "smoke", "core", "calibrate", "profile", "training",
    }  # fmt: skip


def test_arguments():
    parsed = __main__.parse(["--out", "x", "--only", "core", "smoke"])
    assert parsed.seconds == 580 and parsed.only == ["core", "smoke"]
    with pytest.raises(SystemExit):
        __main__.parse(["--out", "x", "--only", "nonsense"])


def test_who_starts_the_others_has_no_torch():
    """So that no child can take its device away."""
    text = "import sys, benchmarks.gpu.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", text], cwd=stages.ROOT).returncode == 0


def test_rows_of_another_run_decide_nothing(session):
    path = session.path("rows.jsonl")
    rows.append(path, {"stage": "core", "who": "grid", "begin": 5})
    path.write_text(path.read_text() + '{"half')
    again = Session(session.folder, 60, "cpu", probe=TRUE)
    rows.append(path, {"stage": "fine"})
    assert again.rows() == [{"stage": "fine"}]
