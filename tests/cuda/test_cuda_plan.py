"""The CUDA engine's plan, over a table of devices; needs no GPU."""

import itertools
import json
import subprocess
import sys

import pytest

from benchmarks.tools import step_costs
from fastrnn import _C
from tests.cases import NO_PROJ, gates_of

DEVICES = _C.cuda_devices()
# dtype, tf32 -> bytes of a weight, rows of a block
NUMERICS = {
    ("bfloat16", False): (2, 8),
    ("float16", False): (2, 8),
    ("float32", True): (4, 8),
    ("float32", False): (4, 4),
}
H200 = DEVICES["H200 (sm_90)"]
TEAMS = ("cluster", "grid")


@pytest.fixture(autouse=True)
def _not_forced(monkeypatch):
    monkeypatch.delenv("FASTRNN_CUDA_REGIME", raising=False)


def plan(cell="lstm", backward=False, dtype="bfloat16", tf32=False, hidden_size=128, batch=64,
         directions=1, projected=False, seq_len=512, device=H200):  # fmt: skip
    return _C.cuda_plan(
        cell, backward, dtype, tf32, hidden_size, batch, directions, projected, seq_len, device
    )


def room(blocks, clusters=(0, 0), device=H200):
    """The device with so much room for teams."""
    return (*device[:3], blocks, *clusters)


def test_devices_cover_the_build():
    assert sorted(device[0] for device in DEVICES.values()) == [80, 86, 89, 90, 100, 120]


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_single_fits_the_device(device):
    """Whatever single is planned for holds its weights, and nothing more than the device has."""
    for cell, backward, (dtype, tf32), hidden_size, batch, directions in itertools.product(
        NO_PROJ, (False, True), NUMERICS, (1, 31, 32, 33, 64, 96, 128), (1, 3, 64, 256), (1, 2)
    ):
        p = plan(cell, backward, dtype, tf32, hidden_size, batch, directions, device=device)
        if p["regime"] == "steps":
            assert "bytes of shared memory" in p["text"] or "rounds" in p["text"]
            continue
        size, rows = NUMERICS[dtype, tf32]
        assert p["rows"] == rows
        assert p["hidden"] in (32, 64, 128) and p["hidden"] // 2 < max(hidden_size, 17)
        assert p["hidden"] >= hidden_size
        assert (p["replicas"] - 1) * rows < batch <= p["replicas"] * rows
        assert p["threads"] % 32 == 0 and p["threads"] <= 1024
        assert p["shared_bytes"] <= device[2]
        # Registers (at most half the file for weights) and shared memory together hold w_hh.
        weights = gates_of(cell) * p["hidden"] ** 2 * size
        assert p["shared_bytes"] + 4 * min(32 * 1024, 128 * p["threads"]) >= weights
        assert "bytes shared" in p["text"]


def test_where_the_regimes_end():
    for hidden_size, regimes in (
        (1, ("single",)), (128, ("single",)), (129, TEAMS), (2048, ("steps",)),
    ):  # fmt: skip
        for cell, (dtype, tf32), backward in itertools.product(NO_PROJ, NUMERICS, (False, True)):
            if (dtype, tf32, hidden_size) == ("float32", False, 129):
                continue  # strict fp32 with 64 rows is arithmetic, whoever does it
            p = plan(cell, backward, dtype, tf32, hidden_size)
            assert p["regime"] in regimes, p
    assert "hidden_size above 1024" in plan(hidden_size=1025)["text"]
    assert "float64" in plan(dtype="float64")["text"]
    assert "projection" in plan(projected=True)["text"]
    assert "capability" in plan(device=(75, 72, 64 * 1024, 72, 0, 0))["text"]
    # What shared memory an fp32 w_hh needs is more than sm_86 has and no more than sm_80 has.
    for name, regime in (
        ("A100 (sm_80)", "single"), ("A40 (sm_86)", "steps"), ("L40S (sm_89)", "steps"),
    ):  # fmt: skip
        assert plan(dtype="float32", tf32=True, device=DEVICES[name])["regime"] == regime
        assert plan(dtype="bfloat16", device=DEVICES[name])["regime"] == "single"


def test_huge_batches_go_by_steps():
    blocks = 8 * 132
    assert plan(batch=8 * blocks)["regime"] == "single"
    assert "rounds" in plan(batch=8 * blocks + 1)["text"]
    assert "rounds" in plan(batch=4 * blocks + 1, directions=2)["text"]
    assert plan(batch=0)["replicas"] == 0


def test_forced(monkeypatch):
    monkeypatch.setenv("FASTRNN_CUDA_REGIME", "steps")
    assert plan()["text"] == "steps (FASTRNN_CUDA_REGIME=steps)"
    monkeypatch.setenv("FASTRNN_CUDA_REGIME", "single")
    assert plan()["regime"] == "single"
    assert plan(batch=100_000)["regime"] == "single"
    for impossible in ({"hidden_size": 129}, {"dtype": "float64"}, {"projected": True}):
        with pytest.raises(ValueError, match="FASTRNN_CUDA_REGIME=single is impossible here"):
            plan(**impossible)
    for unknown in ("fast", "S", "STEPS"):
        monkeypatch.setenv("FASTRNN_CUDA_REGIME", unknown)
        message = f'expected steps, single, cluster, grid or nothing, got "{unknown}"'
        with pytest.raises(ValueError, match=message):
            plan()
    monkeypatch.setenv("FASTRNN_CUDA_REGIME", "")
    assert plan(hidden_size=2000)["regime"] == "steps"


def check_team(p, cell, backward, numeric, hidden_size, batch, directions, device):
    """What a plan for cluster or grid promises the kernel, and asks of the device."""
    size, _ = NUMERICS[numeric]
    assert p["hidden"] in (256, 512, 768, 1024) and p["hidden"] >= hidden_size
    assert p["threads"] == 256 and p["rows"] == 8 * p["row_tiles"]
    # Every row has a team, and no team is without rows.
    assert (p["replicas"] - 1) * p["rows"] < batch <= p["replicas"] * p["rows"]
    assert p["shared_bytes"] <= device[2]
    strict = numeric == ("float32", False)
    units = 32 if p["hidden"] * size <= 1024 and not strict else 16
    exact = (p["blocks"] - 1) * units < hidden_size <= p["blocks"] * units
    assert exact or p["regime"] == "cluster"
    # Registers, at most half the file for weights, and shared memory hold a block's.
    weights = gates_of(cell) * units * p["hidden"] * size
    assert p["shared_bytes"] + 4 * 32 * 1024 >= weights
    if p["regime"] == "grid":
        assert p["blocks"] * p["replicas"] * directions <= device[3]
    else:
        assert p["blocks"] in (1, 2, 4, 8, 16) and device[5 if p["blocks"] == 16 else 4] >= 1


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("regime", [None, *TEAMS])
def test_teams_fit_the_device(monkeypatch, device, regime):
    """Chosen or forced, on whole devices and on parts of them."""
    if regime:
        monkeypatch.setenv("FASTRNN_CUDA_REGIME", regime)
    count = 0
    rooms = [device, room(40, (2, 1), device), room(device[3], (0, 0), device)]
    for cell, backward, numeric, hidden_size, batch, directions, part in itertools.product(
        NO_PROJ, (False, True), NUMERICS, (33, 129, 256, 300, 512, 768, 1000), (1, 8, 70, 256),
        (1, 2), rooms,
    ):  # fmt: skip
        try:
            p = plan(cell, backward, *numeric, hidden_size, batch, directions, device=part)
        except ValueError as error:
            assert regime and f"FASTRNN_CUDA_REGIME={regime} is impossible here" in str(error)
            continue
        assert p["regime"] == regime or not regime
        if p["regime"] in TEAMS:
            check_team(p, cell, backward, numeric, hidden_size, batch, directions, part)
            count += 1
        elif p["regime"] == "steps":
            assert p["text"].startswith("steps (cluster: ") and "; grid: " in p["text"]
    # sm_86 and sm_89 have neither clusters nor the shared memory of the largest sizes.
    assert count > 0 or (regime == "cluster" and device[0] < 90)


def test_teams_that_do_not_fit_go_by_steps():
    large = {"hidden_size": 1000, "batch": 16}
    assert plan(**large)["blocks"] == 63
    assert plan(**large, device=room(63))["replicas"] == 1
    assert plan(**large, device=room(126))["replicas"] == 2
    assert "needs 63 blocks at once, the device holds 62" in plan(**large, device=room(62))["text"]
    assert plan(**large, directions=2, device=room(125))["regime"] == "steps"
    assert plan(hidden_size=256, device=room(0, (1, 0)))["regime"] == "cluster"
    no_cluster = plan(hidden_size=256, device=room(0))
    assert no_cluster["regime"] == "steps" and "no cluster of 8" in no_cluster["text"]
    assert plan(hidden_size=512, batch=8, device=room(0, (9, 0)))["regime"] == "steps"


def test_short_sequences_go_by_steps():
    for hidden_size, backward in itertools.product((256, 512, 1024), (False, True)):
        assert plan(hidden_size=hidden_size, backward=backward, seq_len=1)["regime"] == "steps"
        assert plan(hidden_size=hidden_size, backward=backward, seq_len=100)["regime"] in TEAMS


def test_step_costs_are_those_of_the_results():
    """The header that the plan reads is what benchmarks/tools/step_costs.py makes of the JSON."""
    content = json.loads(step_costs.RESULTS.read_text())
    assert step_costs.HEADER.read_text() == step_costs.header(content)
    if "not measured" in content["source"]:
        assert content == step_costs.model()


def test_printed():
    command = [sys.executable, "-m", "fastrnn", "--cuda-plan", "--batch", "32"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert len(text.splitlines()) == len(DEVICES) * 3 * 4 * 9 * 2
    assert "H200 (sm_90) lstm bfloat16 H=128 B=32 forward" in text
