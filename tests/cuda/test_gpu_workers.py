"""benchmarks.gpu without a GPU: what is timed, the summary, and every worker on the CPU.

What will run on a machine that is lent for minutes has run here before, but for the calls of
torch.cuda, which are only checked for their names and arguments.
"""

import json
import os
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

import fastrnn
from benchmarks.gpu import (
    calibrate,
    cells,
    core,
    environment,
    measure,
    profile,
    rows,
    sample,
    smoke,
    stages,
    table,
    training,
)
from benchmarks.gpu.cells import Cell
from benchmarks.tools import step_costs
from fastrnn._stack import overlap

# -- Cells and rows --------------------------------------------------------------------------------


def test_core_cells():
    core_cells = list(cells.core())
    sizes = {(64, 32), (128, 32), (256, 64), (512, 64), (768, 16), (1024, 16), (1024, 64)}
    for name in ("LSTM", "GRU"):
        for numeric in ("fp16", "bf16", "tf32", "fp32"):
            found = {
                (c.hidden, c.batch)
                for c in core_cells
                if (c.cell, c.numeric, c.steps) == (name, numeric, 512)
            }
            assert found == sizes
            if name == "LSTM":
                assert Cell(name, numeric, 768, 16, 1024) in core_cells
    assert {(c.cell, c.numeric) for c in core_cells[:14]} == {("LSTM", "bf16"), ("LSTM", "fp16")}
    assert len(core_cells) == len(set(core_cells))


def test_other_cells():
    more = list(cells.more())
    assert {c.variant for c in more} == set(cells.VARIANTS)
    assert {c.hidden for c in more} >= {1152, 1536, 2048}
    for variant in ("", "relu"):
        sizes = {(c.hidden, c.batch) for c in more if (c.cell, c.variant) == ("RNN", variant)}
        assert len(sizes) == 4
    assert {c.options().get("proj_size") for c in more if c.variant == "projected"} == {512, 256}
    assert len(more) == len(set(more)) and not set(more) & set(cells.core())
    assert cells.takes("apart", Cell("LSTM", "bf16", 8, 8, variant="2 layers"))
    assert not cells.takes("haste", Cell("LSTM", "bf16", 8, 8))
    assert cells.installed_peers() == []


def synthetic():
    """Rows of a whole run: fastrnn is 4 times as fast, single twice as fast again, one is wrong."""
    for wave in ("core", "more"):
        for cell in cells.WAVES[wave]():
            for way in cells.PASSES:
                for how in ("eager", "graph"):
                    for who, factor in (("nn", 1.0), ("plan", 0.25), ("single", 0.125)):
                        ms = factor * cell.hidden * cell.steps / 1000
                        yield {
                            "stage": wave, "who": who, **cell._asdict(), "pass": way, "how": how,
                            "ms": ms, "us_step": 1e3 * ms / cell.steps, "error": 1e-3,
                            "wrong": who == "single" and cell.hidden == 64,
                            "peak_bytes": 1000 * factor, "plan": "single 4 blocks",
                        }  # fmt: skip
    yield {"stage": "core", "who": "steps", "cell": "LSTM", "failed": "x"}
    yield {"stage": "smoke", "who": "grid", "wrong": True}
    yield {"stage": "off", "regime": "grid", "why": "smoke: killed"}
    yield {"stage": "end", "name": "smoke grid", "status": "killed after 40 s", "seconds": 40.0}
    tests = {"stage": "tests", "who": "tests single"}
    yield {**tests, "counts": {"passed": 5}, "exit": 1}
    yield {**tests, "test": "tests/cuda/test_cuda.py::test_larger", "failed": "x"}
    differences = {"first_difference": 0.0, "late_difference": 0.0}
    yield {"stage": "training", "cell": "LSTM", "hidden": 512, "ratio": 2.0,
           "characters_per_second": {}, **differences}  # fmt: skip


def test_summary():
    text = table.summary(list(synthetic()))
    assert len(text) <= 12_000
    assert "1 processes, 1 ended badly: smoke grid: killed after 40 s" in text
    assert (
        "tests single: {'passed': 5}" in text and "  tests/cuda/test_cuda.py::test_larger" in text
    )
    assert "regime grid is off" in text and "smoke grid: 0 right, 1 wrong" in text
    for name in (group.name for group in table.GROUPS):
        assert f"  {name}: eager " in text
    # LSTM at 5 sizes and T = 1024 in bf16 and tf32; GRU in three number formats.
    assert "fwd: eager 27: 4.00, 4.00 at" in text
    # 98.304 ms: 0.25 us a unit and step.
    assert f"graph {4.87 / 196.608:.2f}" in text
    assert "largest 0.25 at" in text and "0 of" in text
    assert "WRONG, 16:" in text
    assert "2.00 single" in text
    slow = [{**row, "ms": row["ms"] * 9} if row.get("who") == "plan" else row
            for row in synthetic()]  # fmt: skip
    assert "0.44" in table.summary(slow)


def test_summary_of_little():
    assert table.summary([]).startswith("0 processes")
    assert "LSTM" in table.summary([row for row in synthetic() if row["stage"] == "core"][:1])


def test_step_costs_from_rows(tmp_path, monkeypatch):
    key = "gru backward tf32 768"
    found = [
        {"stage": "environment", "device": "A GPU", "torch": "2.11", "commit": "c" * 40},
        {"stage": "calibrate", "key": key, "regime": "grid", "cost": [1.5, 0.25, 20.0]},
        {"stage": "calibrate", "key": key, "regime": "cluster", "cost": None},
    ]
    content = step_costs.measured(found)
    assert content["costs"][key]["grid"] == [1.5, 0.25, 20.0]
    assert content["costs"][key]["cluster"] == step_costs.model()["costs"][key]["cluster"]
    assert f"{key} grid" not in content["modelled"] and f"{key} cluster" in content["modelled"]
    for row in found:
        rows.append(tmp_path / "rows.jsonl", row)
    monkeypatch.setattr(step_costs, "RESULTS", tmp_path / "costs.json")
    monkeypatch.setattr(step_costs, "HEADER", tmp_path / "costs.h")
    monkeypatch.setattr(sys, "argv", ["step_costs", "--rows", str(tmp_path / "rows.jsonl")])
    step_costs.main()
    header = step_costs.HEADER.read_text()
    assert "measured on A GPU, torch 2.11, cccccccccccc\n" in header
    assert "{1.5, 0.25, 20}" in header
    assert json.loads(step_costs.RESULTS.read_text()) == content
    monkeypatch.setattr(sys, "argv", ["step_costs"])
    step_costs.main()
    assert step_costs.HEADER.read_text() == header


def test_the_sample_begins_with_the_telling_tests():
    names = [f"test_shapes[{i}]" for i in range(70)]
    names += ["test_beyond_32_bits[single]", "test_graph[single]", "test_regimes_agree[LSTM]"]
    chosen = sample.chosen(names, lambda name: name)
    assert chosen[:2] == ["test_regimes_agree[LSTM]", "test_graph[single]"]
    assert len(chosen) == 12


def test_sample_and_outcomes_are_plugins(tmp_path):
    """Failures and counts are rows."""
    (tmp_path / "test_it.py").write_text(
        "import pytest\n@pytest.mark.parametrize('i', range(14))\ndef test_a(i): assert i\n"
        "def test_graph(): pass\n"
    )
    environ = os.environ | {
        "FASTRNN_TEST_ROWS": str(tmp_path / "rows.jsonl"), "FASTRNN_TEST_NAME": "tests cluster",
        "PYTHONPATH": str(stages.ROOT),
    }  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.gpu.sample", "-p",
         "benchmarks.gpu.outcomes", "test_it.py"],
        cwd=tmp_path, env=environ, capture_output=True,
    )  # fmt: skip
    failure, counts = rows.read(tmp_path / "rows.jsonl")
    assert failure["test"] == "test_it.py::test_a[0]" and failure["who"] == "tests cluster"
    assert counts["counts"] == {"passed": 2, "failed": 1, "error": 0, "skipped": 0}


# -- Workers on the CPU ----------------------------------------------------------------------------


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Runs a worker in this process: its exit status, and the rows."""
    for name in ("FASTRNN_CUDA_REGIME", "FASTRNN_CUDA_OVERLAP"):
        monkeypatch.setenv(name, "steps")
        monkeypatch.delenv(name)
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    path = tmp_path / "rows.jsonl"
    torch.set_num_threads(1)  # others may use the cores

    def run(module, *arguments):
        common = ["--rows", str(path), "--device", "cpu", "--tiny"]
        return module.main([*common, *arguments]), rows.read(path)

    yield run
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.parametrize("who", ["nn", "plan", "single"])
def test_core_worker(worker, who):
    status, found = worker(core, "--who", who, "--wave", "core")
    assert status == 0
    tiny = list(cells.tiny())
    assert [row["begin"] for row in found if "begin" in row] == list(range(len(tiny)))
    assert [row for row in found if "failed" in row or "impossible" in row] == []
    assert found[-1]["stopped"] == len(tiny)
    times = [row for row in found if "ms" in row]
    assert len(times) == 4 * len(tiny)
    for row in times:
        assert row["ms"] > 0 and row["tflops"] > 0 and row["sequences_s"] > 0
        assert row["error"] >= 0 and not row["wrong"], row
        assert row["precision"]["matmul"] == row["precision"]["cudnn"] or row["numeric"] != "tf32"
        if row["how"] == "eager":
            assert "peak_bytes" in row
    assert len({json.dumps([row[n] for n in table.Key._fields[:-1]]) for row in times}) == 11
    assert f"{who} " in table.summary(found)


def test_core_worker_stops_and_goes_on(worker, monkeypatch):
    status, found = worker(core, "--who", "nn", "--wave", "more", "--until", "0")
    assert status == 0 and found[-1]["stopped"] == 0 and found[-1]["stage"] == "more"

    def broken(self):
        raise RuntimeError("FASTRNN_CUDA_REGIME=single is impossible here: too large\nmore")

    monkeypatch.setattr(core.Turn, "run", broken)
    status, found = worker(core, "--who", "single", "--wave", "core", "--first", "9")
    assert status == 0
    assert [row["begin"] for row in found if "begin" in row] == [9, 10]
    assert "impossible here" in found[-2]["impossible"]
    monkeypatch.setattr(measure, "usable", lambda device: False)
    assert worker(core, "--who", "single", "--wave", "core", "--first", "9")[0] == 3


def test_what_cannot_be_captured_is_timed_eagerly(worker, monkeypatch):
    def replay_of(self, call):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(measure.CpuDevice, "replay_of", replay_of)
    status, found = worker(core, "--who", "plan", "--wave", "core", "--first", "10")
    assert status == 0
    assert [row["how"] for row in found if "ms" in row] == ["eager", "eager"]
    failed = [row for row in found if "failed" in row]
    assert [(row["how"], row["pass"]) for row in failed] == [("graph", p) for p in cells.PASSES]
    monkeypatch.setattr(measure, "usable", lambda device: False)
    assert worker(core, "--who", "plan", "--wave", "core", "--first", "10")[0] == 3


def test_a_wrong_row_is_timed_and_flagged(worker, monkeypatch):
    monkeypatch.setattr(measure.Check, "gradient_error", lambda self: float("nan"))
    _, found = worker(core, "--who", "plan", "--wave", "core", "--first", "10")
    assert [row["wrong"] for row in found if "ms" in row] == [False, False, True, True]


def test_the_check_finds_a_wrong_gradient():
    """Of every tensor, by a share that float32 has not."""
    device, cell = measure.CpuDevice(), Cell("LSTM", "fp32", 6, 7, 5, "packed")
    torch.manual_seed(0)
    data = measure.Data(cell, device)
    work = measure.Work(measure.layer(fastrnn, cell, device), data)
    check = measure.Check(work, data, cell, device)
    assert check.output_error(work.forward()) < 1e-6 and check.gradient_error() < 1e-6
    both = work.both
    for wrong in range(5):

        def changed(wrong=wrong):
            output, gradients = both()
            return output, [g * (1.01 if i == wrong else 1) for i, g in enumerate(gradients)]

        work.both = changed
        assert check.gradient_error() > 1e-3


def test_smoke_worker(worker):
    status, found = worker(smoke, "--regime", "grid")
    assert status == 0 and len(found) == len(smoke.KINDS) * len(cells.NUMERICS)
    assert not any(row["wrong"] for row in found)
    assert {row["variant"] for row in found} == {"", "packed", "bidirectional"}


def test_smoke_worker_says_what_is_wrong(worker, monkeypatch):
    monkeypatch.setattr(smoke, "errors", lambda cell, device: (1.0, 0.0))
    assert worker(smoke, "--regime", "single")[0] == 1


def test_calibrate_worker(worker):
    status, found = worker(calibrate, "--regime", "steps")
    assert status == 0
    (row,) = found
    assert row["key"] in step_costs.model()["costs"] and len(row["cost"]) == 3
    every = {" ".join(map(str, key)) for key in calibrate.keys(False)}
    assert every == set(step_costs.model()["costs"])
    assert calibrate.keys(False)[0][2] == "bf16"


def test_solved_costs():
    times = {(s, b): 20 + t * (1.5 + 0.25 * n)
             for s, t in enumerate((64, 512)) for b, n in enumerate((1, 4))}  # fmt: skip
    assert calibrate.solved(times, (64, 512), (1, 4)) == pytest.approx([1.5, 0.25, 20.0])


def test_training_worker(worker):
    status, found = worker(training, "--hidden", "8", "--until", "0")
    assert status == 0
    (row,) = found
    assert row["ratio"] > 0 and row["first_difference"] < 0.01
    assert len(row["losses"]["fastrnn"]) == len(row["losses"]["torch.nn"]) >= 20


def test_profile_and_environment_workers(worker):
    for cell in ("LSTM", "GRU"):
        arguments = ("--regime", "single", "--cell", cell, "--hidden", "8", "--batch", "4")
        assert worker(profile, *arguments, "--backward")[0] == 0
    assert worker(profile, "--names")[0] == 0
    status, found = worker(environment)
    assert status == 0
    assert found[-1]["torch"] == torch.__version__ and found[-1]["serves"]
    assert found[0]["stage"] == "names" and found[0]["kernels"]


def test_cuda_device_calls_what_torch_has(monkeypatch):
    """torch.cuda without a device: the names and arguments of what CudaDevice calls."""
    fake = mock.create_autospec(torch.cuda)
    monkeypatch.setattr(measure.torch, "randn", lambda *size, device: None)
    fake.Event.return_value.elapsed_time.return_value = 2.0
    fake.memory_allocated.return_value = 100
    fake.max_memory_allocated.return_value = 300
    fake.stream.return_value = fake.graph.return_value = mock.MagicMock()
    monkeypatch.setattr(measure.torch, "cuda", fake)
    device, calls = measure.DEVICES["cuda"](), []
    found = measure.median_ms(device, lambda: calls.append(0), 0.0)
    assert (found["ms"], found["calls"], len(calls)) == (2.0, 3, 4)
    assert device.peak_bytes(lambda: None) == (200, 300)
    replay = device.replay_of(lambda: calls.append(0))
    assert len(calls) == 6 and replay is fake.CUDAGraph.return_value.replay
    assert measure.usable(device)
    fake.synchronize.side_effect = RuntimeError
    assert not measure.usable(device)


def test_the_plan_of_a_cell_is_text(monkeypatch):
    """On a device that is only described."""
    monkeypatch.setattr(overlap, "limits", lambda index: (90, 132, 232448, 132, 16, 8))
    for cell in [*cells.core(), *cells.more()]:
        for way in ("forward", "backward"):
            assert core.plan_text(cell, way)
    device = SimpleNamespace(name="cuda")
    for regime, cell in (
        ("cluster", Cell("LSTM", "bf16", 256, 8)), ("grid", Cell("RNN", "tf32", 512, 8)),
    ):  # fmt: skip
        monkeypatch.setenv("FASTRNN_CUDA_REGIME", regime)
        assert calibrate.row_tiles_of(cell, "backward", regime, device) >= 1


def test_precision_follows_both_switches():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        measure.set_precision("tf32")
        assert measure.precision() == {"matmul": "tf32", "cudnn": "tf32"}
        measure.set_precision("fp32")
        assert "tf32" not in measure.precision().values()
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
