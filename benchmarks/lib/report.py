"""Tables, summary, environment and JSON. Figures come in as rows (suites.py)."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from . import peers
from .timing import geometric_mean

Row = dict[str, Any]

REPOSITORY = Path(__file__).resolve().parents[2]


class CheckFailedError(Exception):
    """A row was refused because its numerical check failed or never ran."""


# ----------------------------------------------------------------- tables


@dataclasses.dataclass(frozen=True)
class Column:
    title: str
    width: int
    value: Callable[[Row], str]


def _milliseconds(name: str) -> Column:
    def value(row: Row) -> str:
        return f"{row['times'][name]['median_s'] * 1e3:.3f}"

    return Column(f"{name.replace('_', ' ')} ms", 0, value)


def _microseconds(name: str) -> Column:
    def value(row: Row) -> str:
        return f"{row['times'][name]['median_s'] * 1e6:.1f}"

    return Column(f"{name.replace('_', ' ')} us", 0, value)


def _spread(name: str) -> Column:
    return Column("IQR %", 6, lambda row: f"{row['times'][name]['spread'] * 100:.1f}")


def _figure(title: str, key: str, digits: int = 2) -> Column:
    return Column(title, 7, lambda row: f"{row[key]:.{digits}f}")


def _mebibytes(title: str, library: str, key: str) -> Column:
    return Column(title, 9, lambda row: f"{row['memory'][library][key] / 2**20:.1f}")


def _peer(name: str) -> Column:
    def value(row: Row) -> str:
        check = row.get("peer_checks", {}).get(name)
        if check is None:
            return "-"
        return f"{row['peer_ratios'][name]:.2f}" if check["passed"] else "wrong"

    return Column(f"{name} / ours", 0, value)


LAYER = Column("layer", 5, lambda row: row["layer"])
MODE = Column("mode", 9, lambda row: row["mode"])
DTYPE = Column("dtype", 8, lambda row: row["dtype"])
THREADS = Column("thr", 3, lambda row: str(row["threads"]))
CASE = Column("T,B,I,H[,L,D]", 18, lambda row: row["case"])
HIDDEN = Column("H", 5, lambda row: str(row["hidden_size"]))
RATIO = _figure("torch/ours", "ratio")
#: Share of the machine that other processes took while the row was measured.
OTHERS = Column(
    "others %", 8, lambda row: "-" if row["others"] is None else f"{row['others'] * 100:.0f}"
)

_STEP_COLUMNS = [
    LAYER, MODE, THREADS, HIDDEN,
    _microseconds("torch_layer"), _spread("torch_layer"),
    _microseconds("torch_cell"),
    _microseconds("fastrnn_layer"), _spread("fastrnn_layer"),
    _microseconds("fastrnn_cell"),
    _figure("layer/our layer", "ratio"),
    _figure("cell/our layer", "ratio_to_cell"),
    _figure("cell/our cell", "cell_ratio"),
    OTHERS,
]  # fmt: skip


def columns(suite: str, peer_names: Iterable[str] = ()) -> list[Column]:
    """The columns of a suite's table."""
    if suite == "grid":
        return [
            LAYER, MODE, DTYPE, THREADS, CASE,
            _milliseconds("torch"), _spread("torch"),
            _milliseconds("fastrnn"), _spread("fastrnn"), RATIO,
            _figure("GFLOP/s", "gflops", 1), _figure("gemm", "gemm_gflops", 1),
            Column("share %", 7, lambda row: f"{row['share'] * 100:.0f}"),
            OTHERS,
            *(_peer(name) for name in peer_names),
        ]  # fmt: skip
    if suite in ("streaming", "overhead"):
        return _STEP_COLUMNS
    if suite == "packed":
        return [
            LAYER, MODE, THREADS, CASE, _milliseconds("torch_packed"),
            _milliseconds("torch_padded"), _milliseconds("fastrnn_packed"),
            _spread("fastrnn_packed"), _milliseconds("fastrnn_padded"),
            _milliseconds("fastrnn_padded_full"), RATIO,
            _figure("ours packed/padded", "packed_over_padded"),
            _figure("torch packed/padded", "torch_packed_over_padded"), OTHERS,
        ]  # fmt: skip
    if suite == "lowprec":

        def low(library: str) -> Column:
            def value(row: Row) -> str:
                return f"{row['times'][library + '_' + row['dtype']]['median_s'] * 1e3:.3f}"

            return Column(f"{library} low ms", 0, value)

        return [
            LAYER, DTYPE, THREADS, CASE, _milliseconds("torch_float32"), low("torch"),
            _milliseconds("fastrnn_float32"), low("fastrnn"), RATIO,
            _figure("ours fp32/low", "ratio_to_float32"), OTHERS,
        ]  # fmt: skip
    if suite == "memory":
        return [
            LAYER, MODE, CASE, _mebibytes("torch MiB", "torch", "growth_bytes"),
            _mebibytes("ours MiB", "fastrnn", "growth_bytes"),
            _mebibytes("output MiB", "fastrnn", "output_bytes"),
            _figure("ours/torch", "ours_over_torch"),
        ]  # fmt: skip
    if suite == "denormal":
        return [
            LAYER, THREADS, CASE, _milliseconds("torch_all"), _milliseconds("torch_last"),
            _milliseconds("fastrnn_all"), _milliseconds("fastrnn_last"), RATIO,
            _figure("ours last/all", "last_over_all"),
            _figure("torch last/all", "torch_last_over_all"), OTHERS,
        ]  # fmt: skip
    raise ValueError(f"unknown suite {suite!r}")


class Table:
    """Prints rows as they come, as aligned text or as Markdown."""

    def __init__(self, table_columns: list[Column], markdown: bool = False, stream=None) -> None:
        self.columns = table_columns
        self.widths = [max(len(c.title), c.width) for c in table_columns]
        self.markdown = markdown
        self.stream = stream or sys.stdout

    def _line(self, cells: list[str]) -> None:
        padded = [c.rjust(w) for c, w in zip(cells, self.widths, strict=True)]
        text = "| " + " | ".join(padded) + " |" if self.markdown else "  ".join(padded)
        print(text.rstrip(), file=self.stream, flush=True)

    def header(self) -> None:
        self._line([c.title for c in self.columns])
        if self.markdown:
            self._line(["-" * (w - 1) + ":" for w in self.widths])

    def row(self, row: Row) -> None:
        """Prints one row; CheckFailedError when its numbers were not shown to be right."""
        require_check(row)
        self._line([c.value(row) for c in self.columns])


def require_check(row: Row) -> None:
    """Raises CheckFailedError unless the row carries a check that passed."""
    label = " ".join(str(row.get(k, "?")) for k in ("suite", "layer", "mode", "dtype", "case"))
    check = row.get("check")
    if check is None:
        raise CheckFailedError(f"{label}: numbers were not checked")
    if check["passed"] is not True:
        raise CheckFailedError(
            f"{label}: {check['tensor']} has an error of {check['error']:.3g} over a bound of "
            f"{check['bound']:.3g} (torch.nn's error is {check['reference_error']:.3g})"
        )


# ----------------------------------------------------------------- summary

SMALL_HIDDEN = 128
SHARE_BATCH, SHARE_HIDDEN = 32, 256
STREAMING_HIDDEN = 512
#: Above this share of the machine in others' hands, a row is called disturbed.
BUSY_SHARE = 0.05


@dataclasses.dataclass
class Figure:
    """One line of the summary."""

    what: str
    value: float
    cells: int
    note: str = ""


def _groups(rows: Iterable[Row], *keys: str) -> dict[tuple, list[Row]]:
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return groups


def _mean(what: str, rows: list[Row], key: str) -> Figure:
    return Figure(what, geometric_mean([row[key] for row in rows]), len(rows))


def _least(what: str, rows: list[Row], key: str) -> Figure:
    worst = min(rows, key=lambda row: row[key])
    return Figure(what, worst[key], len(rows), f"at {worst['case']}")


def _most(what: str, rows: list[Row], key: str) -> Figure:
    worst = max(rows, key=lambda row: row[key])
    return Figure(what, worst[key], len(rows), f"at {worst['case']}")


def summarize(rows: list[Row]) -> list[Figure]:
    """Geometric means and worst cells of all rows that were timed."""
    timed = [row for row in rows if "times" in row]
    by_suite = {suite: group for (suite,), group in _groups(timed, "suite").items()}
    figures = _summarize_grid(by_suite.get("grid", []))
    figures += _summarize_streaming(by_suite.get("streaming", []))
    for suite, key, text, extreme in (
        ("packed", "packed_over_padded", "ours packed / padded", _most),
        ("lowprec", "ratio_to_float32", "ours float32 / low", _least),
        ("denormal", "last_over_all", "ours last step / all steps", _most),
    ):
        grouped = _groups(by_suite.get(suite, []), "layer", "mode", "dtype", "threads")
        for (layer, mode, dtype, threads), group in grouped.items():
            what = f"{suite} {layer} {mode} {dtype} {threads} thr: {text}, worst"
            figures.append(extreme(what, group, key))
    memory = _groups([row for row in rows if "memory" in row], "layer", "mode")
    for (layer, mode), group in memory.items():
        what = f"memory {layer} {mode}: ours / torch.nn, worst"
        figures.append(_most(what, group, "ours_over_torch"))
    return figures


def _summarize_grid(rows: list[Row]) -> list[Figure]:
    figures = []
    for (layer, mode, dtype, threads), group in _groups(
        rows, "layer", "mode", "dtype", "threads"
    ).items():
        label = f"{layer} {mode} {dtype} {threads} thr"
        figures.append(_mean(f"{label}: geometric mean", group, "ratio"))
        small = [row for row in group if row["hidden_size"] <= SMALL_HIDDEN]
        if small:
            what = f"{label}: geometric mean, H <= {SMALL_HIDDEN}"
            figures.append(_mean(what, small, "ratio"))
        figures.append(_least(f"{label}: worst cell", group, "ratio"))
        large = [
            row
            for row in group
            if row["batch"] >= SHARE_BATCH and row["hidden_size"] >= SHARE_HIDDEN
        ]
        if large:
            what = f"{label}: share of the gemm rate, B >= {SHARE_BATCH}, H >= {SHARE_HIDDEN}"
            figures.append(_least(what + ", worst", large, "share"))
        with_peers = [row for row in group if row.get("peer_ratios")]
        if with_peers:
            fastest = [{**r, "fastest": min(r["peer_ratios"].values())} for r in with_peers]
            what = f"{label}: fastest peer / ours"
            figures.append(_mean(f"{what}, geometric mean", fastest, "fastest"))
            figures.append(_least(f"{what}, worst cell", fastest, "fastest"))
    return figures


def _summarize_streaming(rows: list[Row]) -> list[Figure]:
    figures = []
    for (layer, threads), group in _groups(rows, "layer", "threads").items():
        label = f"streaming {layer} {threads} thr"
        figures.append(_least(f"{label}: torch.nn cell / our layer, worst", group, "ratio_to_cell"))
        large = [row for row in group if row["hidden_size"] == STREAMING_HIDDEN]
        if large:
            what = f"{label}: torch.nn layer / our layer, H = {STREAMING_HIDDEN}"
            figures.append(_least(what, large, "ratio"))
    return figures


def print_summary(figures: list[Figure], markdown: bool = False, stream=None) -> None:
    width = max((len(figure.what) for figure in figures), default=10)
    summary_columns = [
        Column("summary", width, lambda row: row["what"].ljust(width)),
        Column("value", 7, lambda row: f"{row['value']:.2f}"),
        Column("cells", 5, lambda row: str(row["cells"])),
        Column("note", 4, lambda row: row["note"]),
    ]
    table = Table(summary_columns, markdown, stream)
    table.header()
    for figure in figures:
        table.row({**dataclasses.asdict(figure), "check": {"passed": True}})


def disturbance(rows: list[Row]) -> str:
    """A warning when the machine was not all ours while rows were measured, else empty."""
    measured = [row for row in rows if "times" in row]
    busy = sum((row["others"] or 0) > BUSY_SHARE for row in measured)
    rounds = sum(times.get("disturbed", 0) for row in measured for times in row["times"].values())
    parts = []
    if busy:
        parts.append(
            f"{busy} of {len(measured)} rows were measured while other processes took over "
            f"{BUSY_SHARE:.0%} of the machine (column 'others %'): take them again"
        )
    if rounds:
        parts.append(
            f"{rounds} rounds count although two threads had less than two cores then "
            "(benchmarks/lib/timing.py, Machine)"
        )
    return "\n".join(parts)


# ----------------------------------------------------------------- environment


def _output_of(*command: str) -> str:
    """Standard output of a command, empty when it is missing or fails."""
    try:
        done = subprocess.run(
            command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _lscpu() -> dict[str, str]:
    wanted = {
        "Model name": "model",
        "CPU(s)": "cpus",
        "Core(s) per socket": "cores_per_socket",
        "Thread(s) per core": "threads_per_core",
        "Socket(s)": "sockets",
        "L1d cache": "L1d",
        "L2 cache": "L2",
        "L3 cache": "L3",
        "Hypervisor vendor": "hypervisor",
    }
    found = {}
    for line in _output_of("lscpu").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in wanted:
            found[wanted[key.strip()]] = value.strip()
    return found or {"model": platform.processor() or platform.machine()}


def _cpu_target() -> str:
    """The instruction set of our kernels; unknown where there is no extension."""
    try:
        from fastrnn import _C
    except ImportError:
        return "unknown"
    return f"{_C.cpu_target()} of {', '.join(_C.cpu_targets())}"


def environment(peer_names: Iterable[str] = ()) -> dict[str, Any]:
    """Where the figures were taken. `fastrnn` holds what `python -m fastrnn` prints."""
    import fastrnn

    facts = _output_of(sys.executable, "-m", "fastrnn").splitlines()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _lscpu(),
        "load_average": os.getloadavg(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "fastrnn_version": getattr(fastrnn, "__version__", "unknown"),
        "fastrnn": facts,
        "cpu_target": _cpu_target(),
        "cpu_target_forced": os.environ.get("FASTRNN_CPU_TARGET"),
        "git_commit": _output_of("git", "rev-parse", "HEAD") or "unknown",
        "git_dirty": bool(_output_of("git", "status", "--porcelain")),
        "peers": peers.versions() if list(peer_names) else {},
    }


def print_environment(found: dict[str, Any], stream=None) -> None:
    cpu = found["cpu"]
    caches = " ".join(f"{k} {cpu[k]}" for k in ("L1d", "L2", "L3") if k in cpu)
    lines = [
        f"CPU      {cpu.get('model', 'unknown')}, {os.cpu_count()} CPUs; {caches}",
        f"target   {found['cpu_target']}",
        f"versions torch {found['torch']} ({found['torch_cpu_capability']}), "
        f"fastrnn {found['fastrnn_version']}, Python {found['python']}"
        + "".join(f", {name} {version}" for name, version in found["peers"].items()),
        f"commit   {found['git_commit'][:12]}{' with changes' if found['git_dirty'] else ''}, "
        f"{found['date']}, load {found['load_average'][0]:.2f}",
    ]
    for line in lines:
        print(line, file=stream or sys.stdout, flush=True)


def _without_infinities(value: Any) -> Any:
    """JSON has no infinity and no NaN: the error of a refused row becomes a string."""
    if isinstance(value, dict):
        return {key: _without_infinities(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def write_json(path: Path, contents: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_without_infinities(contents), indent=1, allow_nan=False) + "\n")
