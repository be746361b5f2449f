"""What the options of fastrnn.variants cost: ``python -m benchmarks.variants``.

For each size the plain layer, each option as a ratio to it, and a Python loop over a cell in
torch's operators that computes the same. Ratios are medians over rounds in which all contestants
ran. A row whose loop and layer disagree is not shown.
"""

from __future__ import annotations

import argparse

import torch
from torch.nn.functional import layer_norm

from fastrnn import variants

from .lib.timing import interleave, round_ratio

# seq_len, batch, input_size, hidden_size
SIZES = (
    (50, 32, 64, 64),
    (100, 16, 128, 128),
    (100, 1, 256, 256),
    (100, 32, 256, 256),
    (50, 64, 512, 512),
)
OPTIONS = {
    "layer norm": {"layer_norm": True},
    "zoneout": {"zoneout": 0.1},
    "recurrent dropout": {"recurrent_dropout": 0.2},
    "variational": {"variational_dropout": 0.2},
    "weight drop": {"weight_drop": 0.5},
}
TOLERANCE = 1e-3  # float32, relative to values of size 1
CHECKED_STEPS = 12  # a layer-normalised recurrence carries differences on, over 100 steps 1e-3


def _loop(module, x):
    """The layer-normalised layer as people write it: a Python loop over steps."""
    p = dict(module.named_parameters())
    h = c = x.new_zeros(x.shape[1], module.hidden_size)
    outputs = []
    for x_t in x:
        xs, hs = x_t @ p["weight_ih_l0"].t(), h @ p["weight_hh_l0"].t()
        xs = layer_norm(xs, xs.shape[-1:], p["norm_ih_l0"], p["bias_ih_l0"], module.eps)
        hs = layer_norm(hs, hs.shape[-1:], p["norm_hh_l0"], p["bias_hh_l0"], module.eps)
        if module.mode == "LSTM":
            i, f, g, o = (xs + hs).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            y = layer_norm(c, c.shape[-1:], p["norm_c_l0"], p["norm_c_bias_l0"], module.eps)
            h = o.sigmoid() * y.tanh()
        else:
            (xr, xz, xn), (hr, hz, hn) = xs.chunk(3, -1), hs.chunk(3, -1)
            z = (xz + hz).sigmoid()
            n = (xn + (xr + hr).sigmoid() * hn).tanh()
            h = n + z * (h - n)
        outputs.append(h)
    return torch.stack(outputs)


def _calls(modules, x, training):
    """A call for each module, by name, and one for the loop."""

    def call(run, parameters):
        def forward():
            with torch.no_grad():
                return run()

        def both():
            return torch.autograd.grad(run().sum(), parameters)

        return both if training else forward

    calls = {
        name: call(lambda m=m: m.train(training)(x)[0], [x, *m.parameters()])
        for name, m in modules.items()
    }
    normed = modules["layer norm"]
    calls["loop"] = call(lambda: _loop(normed, x), [x, *normed.parameters()])
    return calls


def _row(name, sizes, training, repeats):
    seq_len, batch, input_size, hidden_size = sizes
    torch.manual_seed(0)
    layer = getattr(variants, name)
    modules = {"plain": layer(input_size, hidden_size)}
    modules |= {option: layer(input_size, hidden_size, **o) for option, o in OPTIONS.items()}
    if name == "GRU":
        modules["dreamer"] = variants.DreamerGRU(input_size, hidden_size)
    x = torch.randn(seq_len, batch, input_size, requires_grad=training)
    with torch.no_grad():
        normed = modules["layer norm"]
        first = x[:CHECKED_STEPS]
        error = (normed(first)[0] - _loop(normed, first)).abs().max().item()
    assert error < TOLERANCE, f"{name}{sizes}: layer norm is off by {error:.1e}"
    timings = interleave(_calls(modules, x, training), repeats)
    plain = timings["plain"]
    ratios = "  ".join(
        f"{option} {round_ratio(timings[option], plain):.2f}"
        for option in modules
        if option != "plain"
    )
    slower = round_ratio(timings["loop"], timings["layer norm"])
    what = "training" if training else "eval"
    print(
        f"{name:5} {sizes!s:20} {what:8} plain {plain.median * 1e3:8.2f} ms;  {ratios};  "
        f"loop with layer norm: {slower:.1f} times the layer"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} threads, torch {torch.__version__}, ratios to the plain layer")
    for name in ("LSTM", "GRU"):
        for sizes in SIZES:
            for training in (True, False):
                _row(name, sizes, training, arguments.repeats)


if __name__ == "__main__":
    main()
