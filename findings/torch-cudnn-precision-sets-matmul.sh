#!/usr/bin/env bash
# torch 2.13.0 (CPU build; the switches are the same object in a CUDA build): setting the float32
# precision of cuDNN sets that of matrix products too.
#
# torch.backends has a tree of switches: fp32_precision of everything, of a backend, of an operator.
# By its name torch.backends.cudnn.fp32_precision is the parent of cudnn.conv and cudnn.rnn. It is
# also the parent of torch.backends.cuda.matmul, which cuBLAS computes: whoever asks cuDNN for TF32
# gets it in torch.matmul as well, unless matmul has a value of its own.
#
# Seen: cuda.matmul.fp32_precision "none" before, "tf32" after; with a value of its own it keeps it.
# What fastrnn does: its products follow cuda.matmul, as torch.matmul does, whoever set it
# (tests/cuda/test_cuda_shim.py, test_precision_switches).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$folder/venv/bin/python" - << 'PYTHON'
import torch

assert torch.__version__.startswith("2.13.0"), torch.__version__
matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
before = matmul.fp32_precision
cudnn.fp32_precision = "tf32"
after = matmul.fp32_precision
print("matmul before:", before, "- after cudnn.fp32_precision = 'tf32':", after)
assert (before, after) == ("none", "tf32"), "the behaviour has changed"
matmul.fp32_precision = "ieee"
cudnn.fp32_precision = "none"
cudnn.fp32_precision = "tf32"
print("with a value of its own:", matmul.fp32_precision)
assert matmul.fp32_precision == "ieee", "the behaviour has changed"
PYTHON
