"""What resets, lengths and states cost a layer: ``python -m benchmarks.options``.

Each figure is the time with the option over that of the plain padded layer, the median over rounds
in which both ran; below 1 the option is faster. All calls have hx. A row is shown after outputs and
gradients on its first steps agreed with `fastrnn.reference` in float64.
"""

from __future__ import annotations

import argparse
import math

import torch

import fastrnn
from fastrnn import reference

from .lib import cases
from .lib.timing import geometric_mean, interleave, round_ratio

#: More than the rounding of float32 over a few steps, less than any wrong row.
TOLERANCE = 1e-4
CHECKED_STEPS = 12


def contestants(seq_len: int, batch: int) -> dict[str, dict]:
    """The options of each column: no reset at all, 3 % of the steps, full and ragged lengths."""
    generator = torch.Generator().manual_seed(4)
    ragged = torch.linspace(max(1, seq_len // 4), seq_len, batch).round().long()
    return {
        "no resets": {"resets": torch.zeros(seq_len, batch, dtype=torch.bool)},
        "3 % resets": {"resets": torch.rand(seq_len, batch, generator=generator) < 0.03},
        "full lengths": {"lengths": torch.full((batch,), seq_len)},
        "ragged lengths": {"lengths": ragged[torch.randperm(batch, generator=generator)]},
        "states": {"return_states": True},
    }


def call_of(module, x, hx, options, mode, d_output):
    """One call, in training with gradients of everything."""
    states = hx if isinstance(hx, tuple) else (hx,)
    leaves = [x, *states, *module.parameters()]

    def inference():
        with torch.no_grad():
            return module(x, hx, **options)

    def training():
        for tensor in leaves:
            tensor.grad = None
        module(x, hx, **options)[0].backward(d_output)

    return inference if mode == "inference" else training


def check(layer, module, x, hx, options):
    """The largest relative error of outputs and gradients on the first steps, in float32."""
    x = x.detach()[:CHECKED_STEPS]
    options = {
        name: value[: len(x)] if name == "resets"
        else value.clamp_max(len(x)) if name == "lengths" else value
        for name, value in options.items()
    }  # fmt: skip
    found = []
    for dtype in (torch.float32, torch.float64):
        states = hx if isinstance(hx, tuple) else (hx,)
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, *states, *module.parameters())]
        own = tuple(leaves[1 : 1 + len(states)])
        run = getattr(fastrnn.functional if dtype is torch.float32 else reference, layer.lower())
        sizes = {"num_layers": module.num_layers, "bidirectional": module.bidirectional}
        initial, params = own if layer == "LSTM" else own[0], leaves[1 + len(states) :]
        output = run(leaves[0], initial, params, **sizes, **options)[0]
        weight = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output)
        gradients = torch.autograd.grad(
            (weight.to(dtype) * output).sum(), leaves, allow_unused=True
        )
        found.append([output.detach(), *(g for g in gradients if g is not None)])
    return max(
        ((a.double() - b).abs().max() / b.abs().max().clamp_min(1e-30)).item()
        for a, b in zip(*found, strict=True)
    )


def main():
    """Prints the table and geometric means."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--layers", nargs="+", choices=list(cases.GATES), default=list(cases.GATES))
    parser.add_argument("--grid", nargs="+", default=["full"])
    parser.add_argument("--modes", nargs="+", default=["inference", "training"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--round-ms", type=float, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    columns = list(contestants(4, 2))
    print("| layer | mode | T,B,I,H[,L,D] | plain ms | " + " | ".join(columns) + " |")
    print("|---|---|---|" + "---:|" * (1 + len(columns)))
    for layer in arguments.layers:
        for mode in arguments.modes:
            every: dict[str, list[float]] = {name: [] for name in columns}
            for case in cases.parse_grid(arguments.grid):
                module = cases.build_layers(layer, case, torch.float32, mode)["fastrnn"]
                training = mode == "training"
                x = cases.make_input(case, torch.float32).requires_grad_(training)
                states = [
                    torch.randn(case.num_layers * case.directions, case.batch, case.hidden_size)
                    .mul_(0.1).requires_grad_(training) for _ in range(2)
                ]  # fmt: skip
                hx = tuple(states) if layer == "LSTM" else states[0]
                d_output = cases.make_d_output(case, torch.float32)
                options = contestants(case.seq_len, case.batch)
                errors = [check(layer, module, x, hx, o) for o in options.values()]
                if not max(errors) <= TOLERANCE:
                    raise SystemExit(f"{layer} {case}: error {max(errors):.1e}, no times shown")
                calls = {
                    name: call_of(module, x, hx, o, mode, d_output)
                    for name, o in {"plain": {}, **options}.items()
                }
                times = interleave(calls, arguments.repeats, arguments.round_ms / 1e3)
                ratios = {name: round_ratio(times[name], times["plain"]) for name in columns}
                for name, ratio in ratios.items():
                    every[name].append(ratio)
                cells = " | ".join(f"{ratios[name]:.2f}" for name in columns)
                plain = times["plain"].median * 1e3
                print(f"| {layer} | {mode} | {case} | {plain:.2f} | {cells} |", flush=True)
            means = " | ".join(f"**{geometric_mean(values):.2f}**" for values in every.values())
            worst = max(max(values, default=math.nan) for values in every.values())
            print(
                f"| {layer} | {mode} | geometric mean (worst {worst:.2f}) | | {means} |", flush=True
            )


if __name__ == "__main__":
    main()
