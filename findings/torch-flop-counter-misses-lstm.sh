#!/usr/bin/env bash
# torch 2.13.0 (CPU): FlopCounterMode counts nothing of nn.LSTM in float32.
#
# On the CPU a float32 LSTM without projection is one operator of oneDNN, of which the counter has no
# formula, and says nothing of it: 0 floating-point operations, forward and backward. In float64, or
# with oneDNN switched off, the same layer is matrix products, which it counts; GRU and RNN always
# are. A model of LSTM and Linear layers reports its Linear layers alone.
#
# Seen: LSTM(8, 16) on (5, 2, 8): float32 0 forward, 0 with backward; float64 30720 and 77824; with
# oneDNN off 30720 and 77824. GRU(8, 16): 23040 and 58368 in either dtype.
# What it means for fastrnn: our operators have formulas, with the counts of those matrix products
# (fastrnn/_layer/flops.py), in every dtype.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$folder/venv/bin/python" - << 'PYTHON'
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

assert torch.__version__.startswith("2.13.0"), torch.__version__


def counts(layer, dtype, onednn=True):
    """Of forward, and of forward and backward."""
    module, x = layer(8, 16, dtype=dtype), torch.randn(5, 2, 8, dtype=dtype)
    found = []
    for backward in (False, True):
        with torch.backends.mkldnn.flags(enabled=onednn), FlopCounterMode(display=False) as counter:
            output = module(x)[0]
            if backward:
                output.sum().backward()
        found.append(counter.get_total_flops())
    return tuple(found)


seen = {
    "LSTM float32": counts(nn.LSTM, torch.float32),
    "LSTM float64": counts(nn.LSTM, torch.float64),
    "LSTM float32 without oneDNN": counts(nn.LSTM, torch.float32, False),
    "GRU float32": counts(nn.GRU, torch.float32),
    "GRU float64": counts(nn.GRU, torch.float64),
}
for name, count in seen.items():
    print(name, *count)
right = (30720, 77824)
assert seen["LSTM float32"] == (0, 0), "the behaviour has changed"
assert seen["LSTM float64"] == seen["LSTM float32 without oneDNN"] == right, "it has changed"
assert seen["GRU float32"] == seen["GRU float64"] == (23040, 58368), "it has changed"
PYTHON
