"""The CUDA engine's plan, over a table of devices; needs no GPU."""

import itertools
import subprocess
import sys

import pytest

from fastrnn import _C

DEVICES = _C.cuda_devices()
CELLS = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
# dtype, tf32 -> bytes of a weight, rows of a block
NUMERICS = {
    ("bfloat16", False): (2, 8),
    ("float16", False): (2, 8),
    ("float32", True): (4, 8),
    ("float32", False): (4, 4),
}
H200 = DEVICES["H200 (sm_90)"]


@pytest.fixture(autouse=True)
def _not_forced(monkeypatch):
    monkeypatch.delenv("FASTRNN_CUDA_REGIME", raising=False)


def plan(cell="lstm", backward=False, dtype="bfloat16", tf32=False, hidden_size=128, batch=64,
         directions=1, projected=False, device=H200):  # fmt: skip
    return _C.cuda_plan(
        cell, backward, dtype, tf32, hidden_size, batch, directions, projected, *device
    )


def test_devices_cover_the_build():
    assert sorted(device[0] for device in DEVICES.values()) == [80, 86, 89, 90]


@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_single_fits_the_device(device):
    """Whatever S is planned for holds its weights, and nothing more than the device has."""
    for cell, backward, (dtype, tf32), hidden_size, batch, directions in itertools.product(
        CELLS, (False, True), NUMERICS, (1, 31, 32, 33, 64, 96, 128), (1, 3, 64, 256), (1, 2)
    ):
        p = plan(cell, backward, dtype, tf32, hidden_size, batch, directions, device=device)
        if p["regime"] == "P":
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
        weights = CELLS[cell] * p["hidden"] ** 2 * size
        assert p["shared_bytes"] + 4 * min(32 * 1024, 128 * p["threads"]) >= weights
        assert "bytes shared" in p["text"]


def test_where_the_regimes_end():
    for hidden_size, regime in ((1, "S"), (128, "S"), (129, "P"), (2048, "P")):
        for cell, (dtype, tf32), backward in itertools.product(CELLS, NUMERICS, (False, True)):
            p = plan(cell, backward, dtype, tf32, hidden_size)
            assert p["regime"] == regime, p
    assert "hidden_size" in plan(hidden_size=129)["text"]
    assert "float64" in plan(dtype="float64")["text"]
    assert "projection" in plan(projected=True)["text"]
    assert "capability" in plan(device=(75, 72, 64 * 1024))["text"]
    # What shared memory an fp32 w_hh needs is more than sm_86 has and no more than sm_80 has.
    for name, regime in (("A100 (sm_80)", "S"), ("A40 (sm_86)", "P"), ("L40S (sm_89)", "P")):
        assert plan(dtype="float32", tf32=True, device=DEVICES[name])["regime"] == regime
        assert plan(dtype="bfloat16", device=DEVICES[name])["regime"] == "S"


def test_huge_batches_go_by_steps():
    blocks = 8 * 132
    assert plan(batch=8 * blocks)["regime"] == "S"
    assert "rounds" in plan(batch=8 * blocks + 1)["text"]
    assert "rounds" in plan(batch=4 * blocks + 1, directions=2)["text"]
    assert plan(batch=0)["replicas"] == 0


def test_forced(monkeypatch):
    monkeypatch.setenv("FASTRNN_CUDA_REGIME", "P")
    assert plan()["text"] == "P (FASTRNN_CUDA_REGIME=P)"
    monkeypatch.setenv("FASTRNN_CUDA_REGIME", "S")
    assert plan()["regime"] == "S"
    assert plan(batch=100_000)["regime"] == "S"
    for impossible in ({"hidden_size": 129}, {"dtype": "float64"}, {"projected": True}):
        with pytest.raises(ValueError, match="FASTRNN_CUDA_REGIME=S is impossible here"):
            plan(**impossible)
    monkeypatch.setenv("FASTRNN_CUDA_REGIME", "fast")
    with pytest.raises(ValueError, match='expected P, S or nothing, got "fast"'):
        plan()
    monkeypatch.setenv("FASTRNN_CUDA_REGIME", "")
    assert plan(hidden_size=500)["regime"] == "P"


def test_printed():
    command = [sys.executable, "-m", "fastrnn", "--cuda-plan", "--batch", "32"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert len(text.splitlines()) == len(DEVICES) * 3 * 4 * 5 * 2
    assert "H200 (sm_90) lstm bfloat16 H=128 B=32 forward" in text
