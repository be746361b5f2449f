"""A pytest plugin: failures as rows, as they come, and how many tests there were.

    FASTRNN_TEST_ROWS=rows.jsonl pytest -p benchmarks.gpu.outcomes tests/cuda/test_cuda.py

`who` in the rows is the variable FASTRNN_TEST_NAME.
"""

import os
from pathlib import Path

from benchmarks.gpu import rows


def _write(row):
    # Processes of pytest-xdist leave it to the one that hears of all.
    if "PYTEST_XDIST_WORKER" not in os.environ:
        who = os.environ.get("FASTRNN_TEST_NAME", "")
        path = Path(os.environ.get("FASTRNN_TEST_ROWS", "rows.jsonl"))
        rows.append(path, {"stage": "tests", "who": who, **row})


def pytest_runtest_logreport(report):
    """A row for each failure; pytest-xdist reports a crash in the same way."""
    if report.failed:
        _write({"test": report.nodeid, "failed": str(report.longrepr)[-600:]})


def pytest_terminal_summary(terminalreporter, exitstatus):
    """A row of how many there were."""
    counts = {
        name: len(terminalreporter.stats.get(name, ()))
        for name in ("passed", "failed", "error", "skipped")
    }
    _write({"counts": counts, "exit": int(exitstatus)})
