"""The stages of a run on a GPU, in order: what decides most comes first, what may hang alone.

A regime that hangs, crashes or is mostly wrong on small layers is off for the rest. What each stage
may take is in STAGES at the end. Nothing here imports torch.
"""

import importlib.util
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu import cells
from benchmarks.gpu.stages import ROOT, Child, Stage, Stopped

PRIMS = Path(__file__).with_name("prims")
#: Seconds of one test, and of the build.
TEST_TIMEOUT, BUILD = 20, 240
#: A worker without a new row for so long is killed.
QUIET = 20.0
#: What a worker needs to start, and, when its time is over, to end what it has begun.
START, FINISH = 8.0, 3.0
#: A contestant's part of the time; the others have 1.
PARTS = {"nn": 1.5, "plan": 1.5}
#: What ncu watches: regime, hidden, batch, pass, the kernel's name.
WATCHED = (
    ("single", 128, 32, "forward", "single_forward"),
    ("cluster", 256, 64, "forward", "team_forward"),
    ("grid", 1024, 64, "forward", "team_forward"),
    ("grid", 1024, 64, "backward", "team_backward"),
)
SECTIONS = (
    "SpeedOfLight", "LaunchStats", "Occupancy", "SchedulerStats", "WarpStateStats",
    "InstructionStats", "MemoryWorkloadAnalysis", "MemoryWorkloadAnalysis_Tables",
)  # fmt: skip


def worker(session, module, name, *arguments, seconds=None, **more):
    """A child that runs a module of this folder; after `seconds` it begins nothing more."""
    command = [
        sys.executable, "-m", f"benchmarks.gpu.{module}", "--rows", str(session.path("rows.jsonl")),
        "--device", session.device, *map(str, arguments),
    ]  # fmt: skip
    if seconds is not None:
        command += ["--until", f"{time.time() + seconds:.1f}"]
    if session.device == "cpu":
        command.append("--tiny")
    return Child(name, command, **more)


def regimes(session):
    """Those that are not off."""
    return [regime for regime in cells.REGIMES if regime not in session.off]


def tool(name):
    """Path of one of CUDA's programs, or None."""
    nsight = sorted(Path("/opt/nvidia/nsight-compute").glob("*"))
    folders = (Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin", *nsight)
    return shutil.which(name) or next(
        (str(folder / name) for folder in folders if (folder / name).exists()), None
    )


def environment(session, seconds):
    """Versions; builds the extension where it does not load."""
    (end,) = session.run([worker(session, "environment", "environment")], min(40, seconds))
    if end.ok:
        return
    session.log("the extension does not load or does not serve the device: building here")
    session.built_here = True
    known = [row for row in session.rows() if row.get("stage") == "environment"]
    capability = known[-1].get("capability") if known else None
    architecture = {None: "9.0a", "9.0": "9.0a"}.get(capability, capability)
    environ = {
        "FASTRNN_CUDA": "1", "TORCH_CUDA_ARCH_LIST": architecture,
        "MAX_JOBS": str(os.cpu_count() or 1),
        "CUDA_HOME": os.environ.get("CUDA_HOME", "/usr/local/cuda"),
        # torch looks for ninja there; without it, it compiles one file after the other.
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
    }  # fmt: skip
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    session.run(
        [Child("build", command, environ=environ, probed=False)], min(BUILD, session.left() - 60)
    )
    (end,) = session.run([worker(session, "environment", "environment, built here")], 40)
    if not end.ok:
        raise Stopped("the extension cannot be built here; output.txt says why")


def smoke(session, seconds):
    """Small layers in every regime, four processes at once."""
    asked = regimes(session)
    ends = session.run(
        [
            worker(
                session, "smoke", f"smoke {regime}", "--regime", regime, seconds=seconds - FINISH
            )
            for regime in asked
        ],
        seconds,
    )
    for regime, end in zip(asked, ends):
        if not end.ok:
            session.switch_off(regime, f"smoke: {end.status}")


def prims(session, seconds):
    """Exchanges and fences of the GPU alone."""
    if session.device == "cpu":
        session.log("prims: needs a GPU")
        return
    with tempfile.TemporaryDirectory() as folder:
        program = PRIMS
        if not program.exists():
            program = Path(folder) / "prims"
            source = str(PRIMS.with_suffix(".cu"))
            command = [tool("nvcc") or "nvcc", "-std=c++17", "-O3", "-arch=native", "-o"]
            compile_it = Child("prims, nvcc", [*command, str(program), source], probed=False)
            session.run([compile_it], seconds - 5)
        session.run([Child("prims", [str(program)])], min(15, seconds))


def pytest_child(session, name, asked, jobs, *arguments):
    """A child that runs pytest, side by side and with a limit for each test where it can.

    asked: the regimes whose tests are run, which tests/cuda/test_cuda.py obeys.
    """
    command = [sys.executable, "-m", "pytest", "-v", "--no-header", "--tb=short", "--maxfail", "20",
               "-p", "no:cacheprovider", "-p", "benchmarks.gpu.outcomes", *arguments]  # fmt: skip
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(jobs)]
    if importlib.util.find_spec("pytest_timeout"):
        # The signal method cannot interrupt a call that waits for the device.
        command += ["--timeout", str(TEST_TIMEOUT), "--timeout-method=thread"]
    environ = {"FASTRNN_TEST_ROWS": str(session.path("rows.jsonl")), "FASTRNN_TEST_NAME": name,
               "FASTRNN_TEST_REGIMES": asked}  # fmt: skip
    return Child(name, command, output="tests.txt", environ=environ)


def tests(session, seconds):
    """tests/cuda/test_cuda.py, a process for each regime at once, the telling tests first."""
    session.run(
        [
            pytest_child(session, f"tests {regime}", regime, 3, "-p", "benchmarks.gpu.sample",
                         "tests/cuda/test_cuda.py")
            for regime in regimes(session)
        ],
        seconds,
    )  # fmt: skip
    for row in session.rows():
        if row.get("stage") == "tests" and "regimes_agree" in row.get("test", ""):
            session.switch_off(row["who"].removeprefix("tests "), f"{row['test']} failed")


def calls(session, seconds):
    """What a user calls."""
    path = "tests/cuda/test_cuda_calls.py"
    if not (ROOT / path).exists():
        session.log(f"calls: there is no {path}")
        return
    asked = " ".join(regimes(session))
    session.run([pytest_child(session, "calls", asked, 6, "-m", "cuda", path)], seconds)


def turn(session, wave, who, seconds):
    """One contestant through a wave; after a hang or a crash it goes on behind that cell."""
    end_of_turn, first = time.monotonic() + seconds, 0
    environ = {"FASTRNN_CUDA_COOPERATIVE": "0"} if "grid" in session.off else {}
    while (left := end_of_turn - time.monotonic()) >= START:
        child = worker(session, "core", f"{wave} {who}", "--who", who, "--wave", wave,
                       "--first", first, seconds=left - FINISH, quiet=QUIET,
                       environ=environ)  # fmt: skip
        (end,) = session.run([child], left)
        begun = [
            row["begin"]
            for row in session.rows()
            if row.get("stage") == wave and row.get("who") == who and "begin" in row
        ]
        if end.ok or not begun:
            return
        first = begun[-1] + 1


def turns(session, wave, contestants, seconds):
    """All contestants one after the other; each has its part of the time that is left."""
    end_of_all = time.monotonic() + seconds
    for index, who in enumerate(contestants):
        left = end_of_all - time.monotonic()
        parts = [PARTS.get(other, 1.0) for other in contestants[index:]]
        turn(session, wave, who, left * parts[0] / sum(parts))


def core(session, seconds):
    """Times at the sizes that decide the design, every regime forced."""
    turns(session, "core", ["nn", "plan", *regimes(session), *cells.installed_peers()], seconds)


def more(session, seconds):
    """Times of what else a layer can do."""
    turns(session, "more", ["nn", "plan", "apart"], seconds)


def calibrate(session, seconds):
    """Step costs: rows for benchmarks/tools/step_costs.py."""
    if session.built_here:
        session.log("calibrate: left out, the build took its time")
        return
    end_of_all = time.monotonic() + seconds
    asked = [regime for regime in regimes(session) if regime != "single"]
    for index, regime in enumerate(asked):
        left = (end_of_all - time.monotonic()) / (len(asked) - index)
        child = worker(session, "calibrate", f"calibrate {regime}", "--regime", regime,
                       seconds=left - FINISH, quiet=QUIET)  # fmt: skip
        session.run([child], left)


def ncu(session, seconds):
    """Stall reasons, shared-memory wavefronts and L2 traffic of one kernel of each regime."""
    program = tool("ncu")
    if session.built_here or program is None or session.device == "cpu":
        session.log("ncu: left out, " + ("the build took its time" if program else "not here"))
        return
    end_of_all = time.monotonic() + seconds
    sections = [argument for name in SECTIONS for argument in ("--section", name)]
    for regime, hidden, batch, way, kernel in WATCHED:
        left = end_of_all - time.monotonic()
        if left < START or regime in session.off:
            continue
        child = worker(session, "profile", f"ncu {regime} H={hidden} B={batch} {way}", "--regime",
                       regime, "--hidden", hidden, "--batch", batch, output="ncu.txt")  # fmt: skip
        watched = [program, "--clock-control", "none", "--kernel-name", f"regex:{kernel}",
                   "--launch-skip", "1", "--launch-count", "1", *sections]  # fmt: skip
        backward = ["--backward"] if way == "backward" else []
        session.run([child._replace(command=[*watched, *child.command, *backward])], min(25, left))


def names(session, seconds):
    """Which kernels run, cuDNN's and ours."""
    session.run([worker(session, "profile", "names", "--names")], seconds)


def training(session, seconds):
    """The demo's language model."""
    end_of_all = time.monotonic() + seconds
    for index, hidden in enumerate((16, 8) if session.device == "cpu" else (1024, 512)):
        left = (end_of_all - time.monotonic()) / (2 - index)
        child = worker(session, "training", f"training LSTM {hidden}", "--hidden", hidden,
                       seconds=left - FINISH)  # fmt: skip
        session.run([child], left)


def memcheck(session, seconds):
    """compute-sanitizer on the smallest layers of regimes single and grid."""
    program = tool("compute-sanitizer")
    if program is None or session.device == "cpu":
        session.log("memcheck: left out, no compute-sanitizer here")
        return
    end_of_all = time.monotonic() + seconds
    asked = [regime for regime in ("single", "grid") if regime not in session.off]
    for index, regime in enumerate(asked):
        left = (end_of_all - time.monotonic()) / (len(asked) - index)
        child = worker(session, "smoke", f"memcheck {regime}", "--regime", regime, "--tiny",
                       seconds=left - START,  # everything takes longer there
                       environ={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})  # fmt: skip
        watched = [program, "--tool", "memcheck", "--error-exitcode", "9",
                   "--kernel-name-exclude", "kernel_substring=at::"]  # fmt: skip
        session.run([child._replace(command=[*watched, *child.command])], left)


#: In order, with limits in seconds; together more than a run has, since few reach theirs. What
#: decides the design is there after `core`.
STAGES = (
    Stage("environment", environment, 300, 5),
    Stage("smoke", smoke, 40, 15),
    Stage("prims", prims, 30, 8),
    Stage("tests", tests, 90, 20),
    Stage("calls", calls, 90, 20),
    Stage("core", core, 180, 30),
    Stage("more", more, 60, 20),
    Stage("calibrate", calibrate, 75, 30),
    Stage("ncu", ncu, 60, 15),
    Stage("training", training, 40, 20),
    Stage("names", names, 20, 15),
    Stage("memcheck", memcheck, 70, 30),
)
