"""Second derivatives, forward mode and vmap beside torch.nn: ``python -m benchmarks.derivatives``.

Ratios of what a transform costs to what it is made of, each the median over rounds in which all
contestants ran. torch.nn's layers have second derivatives on the CPU only without oneDNN, and no
fast path of theirs has forward mode or vmap, so their columns are double backward alone. A row
whose numbers disagree with torch.nn's is not shown.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, vmap

import fastrnn

from .lib.timing import interleave, round_ratio

SIZES = ((50, 32, 64, 64), (100, 16, 128, 128))
SAMPLES = 64
SAMPLE_SIZES = ((10, 32, 32), (20, 64, 64), (50, 64, 64))
TOLERANCE = 1e-3  # float32, sums over all rows


def _double_backward(module, x, v, u):
    """Calls for one backward and for the backward of that, with respect to everything."""
    sources = [x, *module.parameters()]
    output = module(x)[0]
    first = torch.autograd.grad(output, sources, v, create_graph=True)

    def backward():
        return torch.autograd.grad(output, sources, v, retain_graph=True)

    def double():
        return torch.autograd.grad(first, [*sources, v], u, retain_graph=True)

    return backward, double


def _layer(name, sizes, repeats):
    seq_len, batch, input_size, hidden_size = sizes
    torch.manual_seed(0)
    theirs = getattr(nn, name)(input_size, hidden_size)
    ours = getattr(fastrnn, name)(input_size, hidden_size)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(seq_len, batch, input_size, requires_grad=True)
    v = torch.randn(seq_len, batch, hidden_size, requires_grad=True)
    u = [torch.randn_like(t) for t in (x, *ours.parameters())]
    with torch.backends.mkldnn.flags(enabled=False):
        calls = [_double_backward(module, x, v, u) for module in (theirs, ours)]
        for a, b in zip(*(double() for _, double in calls), strict=True):
            error = ((a - b).abs().max() / a.abs().max()).item()
            assert error < TOLERANCE, f"{name}{sizes}: double backward is off by {error:.1e}"

    names = [n for n, _ in ours.named_parameters()]

    def forward():
        with torch.no_grad():
            return ours(x)

    def tangent(everything):
        with torch.no_grad(), forward_ad.dual_level():
            dual = forward_ad.make_dual(x.detach(), u[0])
            if not everything:
                return ours(dual)
            weights = zip(names, ours.parameters(), u[1:], strict=True)
            duals = {n: forward_ad.make_dual(w.detach(), t) for n, w, t in weights}
            return functional_call(ours, duals, (dual,))

    timings = interleave(
        {
            "backward": calls[1][0], "double": calls[1][1], "forward": forward,
            "tangent of input": lambda: tangent(False), "tangent of all": lambda: tangent(True),
        },
        repeats,
    )  # fmt: skip
    with torch.backends.mkldnn.flags(enabled=False):
        timings |= interleave({"nn backward": calls[0][0], "nn double": calls[0][1]}, repeats)
    t = timings
    print(
        f"{name:5} {sizes!s:20} double backward {t['double'].median * 1e3:7.2f} ms ="
        f" {round_ratio(t['double'], t['backward']):.2f} backward"
        f" (torch.nn {t['nn double'].median * 1e3:7.2f} ms ="
        f" {round_ratio(t['nn double'], t['nn backward']):.2f});  forward mode: of the input"
        f" {round_ratio(t['tangent of input'], t['forward']):.2f} forward, of everything"
        f" {round_ratio(t['tangent of all'], t['forward']):.2f}"
    )


def _vmap(name, sizes, repeats):
    """The mapped dimension against the same rows as one batch."""
    seq_len, batch, input_size, hidden_size = sizes
    module = getattr(fastrnn, name)(input_size, hidden_size).requires_grad_(False)
    xs = torch.randn(8, seq_len, batch // 8, input_size)
    rows = xs.permute(1, 2, 0, 3).flatten(1, 2).contiguous()

    def layer(x):
        return module(x)[0]

    def loss(x):
        return vmap(lambda x: module(x)[0].square().sum())(x).sum()

    expected = layer(rows).unflatten(1, (batch // 8, 8)).permute(2, 0, 1, 3)
    torch.testing.assert_close(vmap(layer)(xs), expected)
    t = interleave(
        {
            "batch": lambda: layer(rows), "vmap": lambda: vmap(layer)(xs),
            "grad of batch": lambda: grad(lambda x: layer(x).square().sum())(rows),
            "grad of vmap": lambda: grad(loss)(xs),
        },
        repeats,
    )  # fmt: skip
    print(
        f"{name:5} {sizes!s:20} vmap over 8 x {batch // 8} rows"
        f" {round_ratio(t['vmap'], t['batch']):.2f} of the batch, gradient through it"
        f" {round_ratio(t['grad of vmap'], t['grad of batch']):.2f}"
    )


def _per_sample(name, sizes, repeats):
    seq_len, input_size, hidden_size = sizes
    module = getattr(fastrnn, name)(input_size, hidden_size)
    params = {n: p.detach() for n, p in module.named_parameters()}
    xs = torch.randn(SAMPLES, seq_len, input_size)

    def loss(params, x):
        return functional_call(module, params, (x,))[0].square().sum()

    def loop():
        leaves = list(module.parameters())
        return [torch.autograd.grad(module(x)[0].square().sum(), leaves) for x in xs]

    calls = {
        "vmap": lambda: vmap(grad(loss), (None, 0))(params, xs),
        "loop": loop,
        "func": lambda: [grad(loss)(params, x) for x in xs],
    }
    for a, b in zip(calls["vmap"]().values(), zip(*loop(), strict=True), strict=True):
        torch.testing.assert_close(a, torch.stack(b), rtol=TOLERANCE, atol=TOLERANCE)
    t = interleave(calls, repeats)
    print(
        f"{name:5} {sizes!s:20} gradients of {SAMPLES} samples: {t['vmap'].median * 1e3:6.2f} ms;"
        f" a loop over torch.func.grad {round_ratio(t['func'], t['vmap']):.1f} times that,"
        f" over torch.autograd.grad {round_ratio(t['loop'], t['vmap']):.1f}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"torch {torch.__version__}, {fastrnn.__version__=}, {arguments.threads} threads, float32"
    )
    for name in ("LSTM", "GRU", "RNN"):
        for sizes in SIZES:
            _layer(name, sizes, arguments.repeats)
        for sizes in ((50, 64, 64, 64), (50, 64, 128, 128)):
            _vmap(name, sizes, arguments.repeats)
        for sizes in SAMPLE_SIZES:
            _per_sample(name, sizes, arguments.repeats)


if __name__ == "__main__":
    main()
