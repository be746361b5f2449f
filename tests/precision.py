"""Whether float32 products of CUDA tensors may be TF32, for a while: torch.nn's and ours."""

import contextlib

import torch


@contextlib.contextmanager
def tf32_products(allowed):
    """Sets torch.backends' switches of matrix products, which fastrnn follows, and of cuDNN's RNNs.

    By the newer one of the two ways there are: once it was used, reading the older one may raise.
    """
    switches = torch.backends.cuda.matmul, torch.backends.cudnn.rnn
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        for switch, value in zip(switches, before):
            switch.fp32_precision = value
