"""PNG plots of ratio and of throughput against size. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLORS = {"LSTM": "tab:blue", "GRU": "tab:orange", "RNN": "tab:green"}


def draw(rows: list[dict[str, Any]], path: Path, title: str = "") -> None:
    """Draws the grid rows: one column of panels per mode; ratio above, throughput below.

    The horizontal axis is the work of one step, 2 B D G H (I + H) summed over
    the layers: it says more about a recurrent layer than T does. Only float32 is
    drawn, at the first thread count that occurs. Points are not joined: cells of
    the same work differ in batch and width.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    grid = [r for r in rows if r["suite"] == "grid" and "times" in r and r["dtype"] == "float32"]
    if not grid:
        raise ValueError("nothing to plot: no float32 row of the grid suite was measured")
    threads = grid[0]["threads"]
    grid = [row for row in grid if row["threads"] == threads]
    modes = list(dict.fromkeys(row["mode"] for row in grid))
    figure, axes = pyplot.subplots(2, len(modes), figsize=(6 * len(modes), 8), squeeze=False)
    for column, mode in enumerate(modes):
        ratio_axes, rate_axes = axes[0][column], axes[1][column]
        chosen = [row for row in grid if row["mode"] == mode]
        for layer in dict.fromkeys(row["layer"] for row in chosen):
            points = sorted((r for r in chosen if r["layer"] == layer), key=_step_flops)
            size = [_step_flops(row) for row in points]
            color = COLORS.get(layer)
            ours = {"color": color, "marker": "o", "linestyle": "none", "markersize": 6}
            theirs = {"color": color, "marker": "x", "linestyle": "none", "markersize": 6}
            ratio_axes.plot(size, [row["ratio"] for row in points], label=layer, **ours)
            rate_axes.plot(size, [row["gflops"] for row in points], label=layer, **ours)
            torch_rates = [row["torch_gflops"] for row in points]
            rate_axes.plot(size, torch_rates, label=f"{layer}, torch.nn", **theirs)
        peak = max(row["gemm_gflops"] for row in chosen)
        rate_axes.axhline(peak, color="black", linewidth=1, label="matrix product")
        ratio_axes.axhline(1.0, color="black", linewidth=1)
        ratio_axes.set(title=f"{mode}, {threads} thread(s)", ylabel="time of torch.nn / ours")
        rate_axes.set(xlabel="flops of one forward step", ylabel="GFLOP/s")
        for panel in (ratio_axes, rate_axes):
            panel.set_xscale("log")
            panel.set_yscale("log", base=2)
            panel.yaxis.set_major_formatter("{x:g}")
            panel.grid(True, which="both", alpha=0.2)
            panel.legend(fontsize=8)
    if title:
        figure.suptitle(title)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _step_flops(row: dict[str, Any]) -> float:
    forward = row["flops"] / (3 if row["mode"] == "training" else 1)
    return forward / row["seq_len"]
