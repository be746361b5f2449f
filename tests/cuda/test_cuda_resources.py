"""The judgement of `make cuda-check`, without a compiler; and the table it compares with."""

import json

from tests import cuda_resources

REPORT = """
ptxas info    : Compiling entry function '_ZN7fastrnn4cuda1kE' for 'sm_90a'
ptxas info    : Function properties for _ZN7fastrnn4cuda1kE
    {stack} bytes stack frame, {spill} bytes spill stores, 0 bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, 528 bytes cmem[0]
"""


def parse(**facts):
    (match,) = cuda_resources.FUNCTION.finditer(REPORT.format(**facts))
    return match.groupdict()


def test_report_is_understood():
    facts = parse(stack=8, spill=4, registers=128)
    assert (facts["stack"], facts["stores"], facts["registers"]) == ("8", "4", "128")
    assert list(cuda_resources.plain([facts["name"]])) == ["k"]


def test_compare():
    table = {"sm_80": {"a": 10, "b": 20}, "sm_90a": {"a": 10}}

    def complaints(**found):
        nothing = {name: {} for name in cuda_resources.ARCHITECTURES}
        return list(cuda_resources.compare(nothing | found, table))

    assert complaints(sm_80={"a": 10, "b": 19}, sm_90a={"a": 10}) == []
    (more,) = complaints(sm_80={"a": 11, "b": 20}, sm_90a={"a": 10})
    assert "11 registers > 10" in more
    (gone,) = complaints(sm_80={"a": 10}, sm_90a={"a": 10})
    assert "not in the sources" in gone
    (new,) = complaints(sm_80={"a": 10, "b": 20, "c": 1}, sm_90a={"a": 10})
    assert "not in cuda_resources.json" in new


def test_table_holds_what_the_plan_assumes():
    """A block of regime single has the whole register file: registers times threads fit into it."""
    table = json.loads(cuda_resources.TABLE.read_text())["registers"]
    assert sorted(table) == sorted(cuda_resources.ARCHITECTURES)
    for kernels in table.values():
        single = [k for k in kernels if k.startswith("single_") and "pack" not in k]
        assert len(single) == 4 * 4 * 3 * 2  # cells, number formats, sizes, passes
        for kernel in single:
            numeric, hidden = (int(n) for n in kernel.split("Numeric ")[1].rstrip("> ").split(", "))
            threads = hidden * (4 if numeric == 0 else 2)
            # Registers are given out to warps in units of 8 a thread.
            assert threads * -(-kernels[kernel] // 8) * 8 <= 65536, kernel
        teams = [k for k in kernels if k.startswith("team_") and "pack" not in k]
        # Cells, number formats, passes: four grids, and one or two clusters.
        assert len(teams) == 4 * 2 * (4 * 4 + 2 + 2 * 2)
        for kernel in teams:
            assert 256 * -(-kernels[kernel] // 8) * 8 <= 65536, kernel
