"""The benchmarks' arithmetic and their refusal of wrong numbers. No test looks at a clock."""

import io
import json
import math
import sys
from pathlib import Path

import pytest
import torch

# benchmarks/ is a package of the repository, not of the installed fastrnn.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import bounds, build_worker, builds
from benchmarks.__main__ import main, parse_arguments
from benchmarks.lib import cases, checks, jobs, peers, report, suites, timing
from benchmarks.lib.cases import Case

PASSED = {
    "passed": True,
    "tensor": "output",
    "error": 1e-7,
    "reference_error": 1e-7,
    "bound": 7e-7,
    "seq_len": 1,
}


def grid_row(layer="LSTM", mode="inference", case="1,1,8,8", ratio=2.0, share=0.5, **more):
    row = jobs.row_of("grid", layer, mode, "float32", 2, cases.parse_case(case))
    timed = timing.Timing([1e-3, 1e-3], 1).as_dict()
    figures = {"ratio": ratio, "share": share, "gflops": 1.0, "gemm_gflops": 2.0, "others": 0.0}
    return {**row, "check": PASSED, "times": {"torch": timed, "fastrnn": timed}, **figures, **more}


@pytest.mark.parametrize(
    ("layer", "case", "expected"),
    [
        ("LSTM", Case(1, 1, 3, 5), 2 * 4 * 5 * (3 + 5)),
        ("GRU", Case(7, 2, 3, 5), 7 * 2 * 2 * 3 * 5 * (3 + 5)),
        ("RNN", Case(1, 1, 3, 5, 2, 2), 2 * 2 * 5 * (3 + 5) + 2 * 2 * 5 * (10 + 5)),
    ],
)
def test_flops(layer, case, expected):
    assert cases.flops(layer, case) == expected
    assert cases.flops(layer, case, "training") == 3 * expected


def test_flops_count_the_weights():
    """Each weight of the matrices takes part in one multiply-add per row and step."""
    case = Case(3, 4, 6, 5, num_layers=2, directions=2)
    for layer in cases.GATES:
        module = cases.build_layers(layer, case, torch.float32, "inference")["torch"]
        weights = sum(p.numel() for n, p in module.named_parameters() if n.startswith("weight"))
        assert cases.flops(layer, case) == 2 * 3 * 4 * weights


def test_parse_case():
    assert cases.parse_case("1,2,3,4") == Case(1, 2, 3, 4)
    assert cases.parse_case("1,2,3,4,2,2") == Case(1, 2, 3, 4, 2, 2)
    for text in ("1,2,3", "1,2,3,x", "0,1,1,1", "1,1,1,1,1,3", ""):
        with pytest.raises(ValueError, match="expected"):
            cases.parse_case(text)


def test_parse_grid_keeps_order_and_drops_repeats():
    grid = cases.parse_grid(["9,9,9,9", "full", "50,32,10,32"])
    assert grid == [Case(9, 9, 9, 9), *cases.FULL_GRID]
    assert len(cases.FULL_GRID) == 14


@pytest.mark.parametrize("arguments", [["--grid", "1,2"], ["--threads", "0"], ["--repeats", "0"]])
def test_bad_arguments_exit_with_2(arguments):
    with pytest.raises(SystemExit) as caught:
        parse_arguments(arguments)
    assert caught.value.code == 2


def test_pair_has_equal_weights():
    layers = cases.build_layers("GRU", Case(1, 1, 3, 4), torch.float32, "inference")
    theirs, ours = layers["torch"].state_dict(), layers["fastrnn"].state_dict()
    assert list(theirs) == list(ours)
    for name, value in theirs.items():
        assert torch.equal(value, ours[name])


def test_geometric_mean():
    assert timing.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert math.isnan(timing.geometric_mean([]))


def test_round_ratio_is_the_median_of_ratios():
    slower, faster = timing.Timing([2.0, 9.0, 4.0], 1), timing.Timing([1.0, 1.0, 1.0], 1)
    assert timing.round_ratio(slower, faster) == 4.0


def test_interleave_runs_every_contestant_in_every_round():
    counts = {"a": 0, "b": 0}

    def count(name):
        counts[name] += 1

    calls = {name: lambda name=name: count(name) for name in counts}
    times = timing.interleave(calls, repeats=3, round_seconds=1e-4)
    assert all(len(one.rounds) == 3 for one in times.values())
    assert all(counts[name] >= 3 * one.calls for name, one in times.items())


def test_relative_error():
    exact = torch.tensor([1.0, -4.0], dtype=torch.float64)
    assert checks.relative_error(torch.tensor([1.0, -4.0]), exact) == 0.0
    assert checks.relative_error(torch.tensor([1.0, -3.0]), exact) == 0.25
    assert checks.relative_error(torch.tensor([1.0, math.nan]), exact) == math.inf
    assert checks.relative_error(torch.tensor([1.0]), exact) == math.inf


def test_compare_holds_ours_to_twice_the_error_of_torch():
    exact = {"output": torch.ones(3, dtype=torch.float64)}
    reference = {"output": torch.full((3,), 1 + 1e-4)}
    for error, passed in ((1.9e-4, True), (2.1e-4, False)):
        ours = {"output": torch.full((3,), 1 + error)}
        (check,) = checks.compare_each(ours, reference, exact, torch.float32)
        assert check.passed is passed
    (check,) = checks.compare_each({}, reference, exact, torch.float32)
    assert not check.passed


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("layer", list(cases.GATES))
def test_check_passes_for_the_real_layers(layer, mode):
    case = Case(6, 3, 5, 17, num_layers=2, directions=2)
    layers = cases.build_layers(layer, case, torch.float32, mode)
    x, d_output = cases.make_input(case, torch.float32), cases.make_d_output(case, torch.float32)
    check = checks.check_case(layer, case, layers, x, mode, d_output)
    assert check.passed, check.describe()
    one_step = cases.flops(layer, case.with_seq_len(1))
    shortened = checks.check_case(layer, case, layers, x, mode, d_output, 2 * one_step)
    assert shortened.passed, shortened.describe()
    assert shortened.seq_len == 2


@pytest.mark.parametrize("parameter", ["weight_hh_l0", "bias_ih_l0"])
@pytest.mark.parametrize("steps", [1, 4])
def test_check_fails_for_a_wrong_layer(parameter, steps):
    """With the float64 check at full length and shortened to one step."""
    case = Case(4, 2, 3, 8)
    layers = cases.build_layers("LSTM", case, torch.float32, "training")
    with torch.no_grad():
        getattr(layers["fastrnn"], parameter).mul_(1.01)
    x, d_output = cases.make_input(case, torch.float32), cases.make_d_output(case, torch.float32)
    budget = steps * cases.flops("LSTM", case.with_seq_len(1))
    check = checks.check_case("LSTM", case, layers, x, "training", d_output, budget)
    assert not check.passed


def test_table_refuses_a_bad_row():
    stream = io.StringIO()
    table = report.Table(report.columns("grid"), stream=stream)
    bad = grid_row(check={**PASSED, "passed": False, "error": 0.5})
    with pytest.raises(report.CheckFailedError, match=r"output has an error of 0\.5"):
        table.row(bad)
    unchecked = grid_row()
    del unchecked["check"]
    with pytest.raises(report.CheckFailedError, match="not checked"):
        table.row(unchecked)
    assert stream.getvalue() == ""
    table.row(grid_row())
    assert "2.00" in stream.getvalue()


def test_wrong_numbers_are_not_printed_and_fail_the_run(monkeypatch, capsys, tmp_path):
    build = cases.build_layers

    def build_wrong(*arguments, **keywords):
        layers = build(*arguments, **keywords)
        with torch.no_grad():
            layers["fastrnn"].weight_ih_l0.add_(0.1)
        return layers

    monkeypatch.setattr(cases, "build_layers", build_wrong)
    path = tmp_path / "out.json"
    quick = ["--grid", "3,2,4,8", "--layers", "GRU", "--modes", "inference", "--threads", "1"]
    status = main([*quick, "--repeats", "1", "--round-ms", "1", "--quiet", "--json", str(path)])
    captured = capsys.readouterr()
    assert status == 1
    assert "3,2,4,8" not in captured.out
    assert "refused: grid GRU inference float32 3,2,4,8" in captured.err
    written = json.loads(path.read_text())
    assert len(written["refused"]) == 1
    assert "times" not in written["rows"][0]
    assert written["summary"] == []


def test_right_numbers_are_printed(capsys, tmp_path):
    path = tmp_path / "out.json"
    quick = ["--grid", "3,2,4,8", "--layers", "GRU", "--modes", "training", "--threads", "1"]
    status = main([*quick, "--repeats", "1", "--round-ms", "1", "--quiet", "--json", str(path)])
    assert status == 0
    assert "3,2,4,8" in capsys.readouterr().out
    written = json.loads(path.read_text())
    assert {"cpu", "torch", "fastrnn_version", "git_commit", "date"} <= written[
        "environment"
    ].keys()
    (row,) = written["rows"]
    assert row["ratio"] > 0 and row["check"]["passed"]


def test_summary_of_the_grid():
    rows = [
        grid_row(case="1,1,8,128", ratio=4.0),
        grid_row(case="1,1,8,256", ratio=1.0),
        grid_row(case="1,32,8,256", ratio=2.0, share=0.9),
        grid_row(case="1,64,8,512", ratio=2.0, share=0.8),
    ]
    values = {v.what.split(": ", 1)[1]: v for v in report.summarize(rows)}
    assert values["geometric mean"].value == pytest.approx(2.0)
    assert values["geometric mean, H <= 128"].value == pytest.approx(4.0)
    assert values["geometric mean, H <= 128"].cells == 1
    assert values["worst cell"].value == 1.0
    assert values["worst cell"].note == "at 1,1,8,256"
    share = next(v for what, v in values.items() if what.startswith("share"))
    assert (share.value, share.cells) == (0.8, 2)


def test_summary_takes_the_fastest_peer_of_each_cell():
    rows = [
        grid_row(case="1,1,8,8", peer_ratios={"onnxruntime": 1.5, "openvino": 3.0}),
        grid_row(case="2,1,8,8", peer_ratios={"onnxruntime": 9.0, "openvino": 0.96}),
    ]
    values = {v.what.split(": ", 1)[1]: v for v in report.summarize(rows)}
    assert values["fastest peer / ours, worst cell"].value == 0.96
    mean = values["fastest peer / ours, geometric mean"].value
    assert mean == pytest.approx(math.sqrt(1.5 * 0.96))


def test_disturbed_rows_are_named():
    assert report.disturbance([grid_row(), grid_row(others=None)]) == ""
    assert "1 of 2 rows" in report.disturbance([grid_row(), grid_row(others=0.5)])
    times = {"fastrnn": timing.Timing([1e-3], 1, disturbed=3).as_dict()}
    assert report.disturbance([grid_row(times=times)]).startswith("3 rounds")


class Machine:
    """Stands in for timing.Machine: what it says of itself, in order."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def is_whole(self):
        return self.answers.pop(0)

    wait = is_whole


def test_rounds_in_which_the_machine_was_not_whole_are_taken_again():
    calls = []
    machine = Machine(True, False, True, True)  # before and after each of two rounds
    seconds, retaken, whole = timing.time_round(lambda: calls.append(0), 3, True, machine)
    assert (retaken, whole, len(calls), machine.answers) == (1, True, 8, [])
    assert seconds > 0
    machine = Machine(*[True, False] * (timing.RETAKES + 1))
    _, retaken, whole = timing.time_round(lambda: None, 1, False, machine)
    assert (retaken, whole, machine.answers) == (timing.RETAKES, False, [])
    # Who waited in vain does not wait again.
    assert timing.time_round(lambda: None, 1, False, Machine(False))[1:] == (0, False)


@pytest.fixture
def rates(monkeypatch):
    """Rates of products by number of threads, for timing.Machine to find."""
    monkeypatch.setattr(timing.Machine, "_gave_up", False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: rates["threads"])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: rates.update(threads=n))
    monkeypatch.setattr(timing, "time_calls", lambda call, calls: 1 / rates[rates["threads"]])
    rates = {"threads": 2, 1: 100.0, 2: 200.0}
    return rates


def test_a_machine_is_whole_when_its_threads_add_up(rates):
    machine = timing.Machine()
    assert machine.is_whole() and rates["threads"] == 2
    rates[2] = 110.0  # both on one core
    assert not machine.is_whole() and rates["threads"] == 2
    rates[1] = 60.0  # slower, but alike
    assert machine.is_whole()
    rates["threads"] = 1
    assert machine.is_whole()


def test_a_machine_that_stays_divided_is_waited_for_once(monkeypatch, rates):
    monkeypatch.setattr(timing, "WAIT_SECONDS", 0.1)
    rates[2] = 110.0
    assert not timing.Machine().wait()
    assert timing.Machine().wait() and timing.Machine().is_whole()


@pytest.mark.parametrize("layer", list(cases.GATES))
@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("case", ["3,4,6,5", "3,4,6,5,2,2"])
def test_bounds_count_all_multiplications(monkeypatch, layer, mode, case):
    row = grid_row(layer, mode, case)
    case = cases.parse_case(case)
    assert bounds.bound(row) * bounds.TILE_RATE > cases.flops(layer, case, mode)
    monkeypatch.setitem(bounds.CELL_SECONDS, layer, (0.0, 0.0))
    counted = bounds.bound(row) * bounds.TILE_RATE
    assert counted == pytest.approx(cases.flops(layer, case, mode))


def test_bounds_of_one_row_read_the_weights():
    row = grid_row(case="100,1,512,512")
    reading = 100 * 4 * 4 * 512 * 512 / 2 / 95e9
    assert reading < bounds.bound(row) < 1.7 * reading


def test_json_has_no_infinities(tmp_path):
    path = tmp_path / "deep" / "out.json"
    report.write_json(path, {"rows": [{"error": math.inf, "value": 1.5}]})
    assert json.loads(path.read_text()) == {"rows": [{"error": "inf", "value": 1.5}]}


@pytest.mark.parametrize(("seq_len", "batch"), [(1, 4), (2, 32), (20, 32), (125, 16), (1000, 32)])
def test_ragged_lengths_fill_a_padded_batch(seq_len, batch):
    lengths = suites.ragged_lengths(seq_len, batch)
    assert lengths.shape == (batch,)
    assert lengths.min() >= 1 and lengths.max() == seq_len
    assert lengths.sum() % batch == 0


@pytest.mark.parametrize("layer", list(cases.GATES))
@pytest.mark.parametrize("directions", [1, 2])
def test_onnx_model_computes_the_layer(layer, directions):
    """The hand-built model, run by ONNX's own reference implementation."""
    pytest.importorskip("onnx", reason="optional: pip install onnx")
    reference = pytest.importorskip("onnx.reference", reason="optional: pip install onnx")
    case = Case(5, 2, 3, 4, num_layers=2 if directions == 1 else 1, directions=directions)
    if directions == 2:
        pytest.importorskip("onnxruntime", reason="onnx.reference has no bidirectional layers")
    module = cases.build_layers(layer, case, torch.float32, "inference")["torch"]
    x = cases.make_input(case, torch.float32)
    if directions == 2:
        actual = peers.build_peer("onnxruntime", layer, module, case, x, threads=1)()
    else:
        model = peers.onnx_model(layer, module, case)
        actual = torch.from_numpy(
            reference.ReferenceEvaluator(model).run(None, {"x": x.numpy()})[0]
        )
    exact = checks.run_layer(cases.exact_copy(module), x, "inference", x)["output"]
    assert checks.check_peer(actual, exact).passed


@pytest.mark.parametrize("weights", suites.QUANTIZED)
@pytest.mark.parametrize("layer", ["LSTM", "RNN"])
def test_quantized_rows(layer, weights, monkeypatch):
    """A row has the columns of its table and a line in the summary; a wrong output is refused."""
    options = jobs.Options([layer], ["inference"], [], [], [1], repeats=1, round_seconds=1e-4)
    made = [job for job in suites.lowprec(options) if f" {weights} " in job.label]
    assert [job.label.split()[-1] for job in made] == [
        "100,1,512,512", "100,1,1024,1024", "1,1,512,512", "1,1,1024,1024",
    ]  # fmt: skip
    row = suites._quantized_job(options, layer, weights, 1, Case(3, 1, 16, 16)).run()
    assert row["check"]["passed"] and row["ratio_to_float32"] > 0
    out = io.StringIO()
    report.Table(report.columns("lowprec", []), stream=out).row(row)
    assert weights in out.getvalue()
    (figure,) = [f for f in report.summarize([row]) if "lowprec" in f.what]
    assert figure.value == row["ratio_to_float32"]
    monkeypatch.setitem(suites.QUANTIZED, weights, (suites.QUANTIZED[weights][0], 1e-9))
    refused = suites._quantized_job(options, layer, weights, 1, Case(3, 1, 16, 16)).run()
    assert not refused["check"]["passed"] and "times" not in refused


def test_a_build_beside_itself(monkeypatch, capsys, tmp_path):
    """Rows come out of two processes, with outputs equal bit by bit."""
    monkeypatch.setattr(report, "environment", dict)  # a process more
    monkeypatch.setattr(report, "print_environment", lambda found: None)
    path = tmp_path / "out.json"
    arguments = ["--noise", "--cells", "3,2,4,8,1,2", "--per-call", "--layers", "LSTM"]
    quick = ["--rounds", "2", "--processes", "1", "--seconds", "0.001", "--threads", "1"]
    assert builds.main([*arguments, *quick, "--quiet", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "3,2,4,8,1,2" in printed and "5 of 5 cells bit-equal" in printed
    written = json.loads(path.read_text())
    assert written["builds"]["old"] == written["builds"]["new"] and written["failures"] == []
    assert [row["mode"] for row in written["rows"]] == [
        "inference", "training", "inference", "graph", "training",
    ]  # fmt: skip
    for row in written["rows"]:
        assert row["difference"] == 0 and row["ratio"] > 0
        assert [len(one["rounds_s"]) for one in row["times"].values()] == [2, 2]


@pytest.mark.parametrize("kind", ["packed", "layer norm", "int8"])
def test_kinds_of_cell_run(kind):
    threads = torch.get_num_threads()
    cell = build_worker.Cell(kind, "LSTM", "inference", "float32", threads, Case(3, 2, 4, 8))
    turn, found, calls = build_worker.prepare(cell, seconds=1e-4)
    assert turn() > 0 and calls >= 1 and found["output"].shape[-1] == 8


def test_quick_cells_have_some_of_everything():
    cells = build_worker.quick_cells(2)
    assert {cell.kind for cell in cells} == {"plain", "packed", "layer norm", "int8"}
    assert {cell.layer for cell in cells} == set(cases.GATES)
    assert {cell.dtype for cell in cells} == {"float32", "bfloat16"}
    assert {1, 64} <= {cell.case.batch for cell in cells}
    assert {1, 2} == {cell.case.directions for cell in cells}


def test_difference_of_builds():
    old = {"output": torch.tensor([1.0, -4.0]), "h_n": torch.tensor([math.nan])}
    assert builds.difference(old, {k: v.clone() for k, v in old.items()}) == (0.0, "")
    assert builds.difference(old, {**old, "output": torch.tensor([1.0, -3.0])}) == (0.25, "output")
    assert builds.difference(old, {**old, "h_n": torch.tensor([1.0])}) == (math.inf, "h_n")
    assert builds.difference(old, {"output": old["output"]})[0] == math.inf


def test_builds_are_summarized():
    rows = [
        {"ratio": ratio, "spread": 0.01, "group": group, "label": f"cell {ratio}", "difference": 0}
        for ratio, group in ((0.5, "LSTM training"), (2.0, "LSTM training"), (0.98, "GRU training"))
    ]
    lines = builds.summarize(rows)
    assert "old/new 1.000  LSTM training (2)" in lines
    assert "1 of 3 cells below 0.97; the lowest:" in lines
    assert "0 of 3 cells with a spread above 10%" in lines
    assert builds.summarize([]) == ["no rows"]


@pytest.mark.parametrize("arguments", [[], ["--noise", "there"], ["nowhere"], ["--rounds", "0"]])
def test_bad_arguments_of_builds_exit_with_2(arguments):
    with pytest.raises(SystemExit) as caught:
        builds.parse_arguments(arguments)
    assert caught.value.code == 2
