"""What a step costs in each regime of the CUDA engine: makes csrc/cuda/step_costs.h.

    python -m benchmarks.tools.step_costs              # the header from results/step_costs.json
    python -m benchmarks.tools.step_costs --model      # that JSON from the model below; the header
    python -m benchmarks.tools.step_costs --rows FILE  # that JSON from a GPU's measurements (the
                                                       # stage calibrate of benchmarks.gpu); ...

A cost is (base, for each row tile, for starting) in microseconds: a call of T steps takes
start + T * (base + row tile * n). n counts the row tiles of 8 batch rows that a team (regimes
cluster and grid) or the whole batch (steps) has. The plan compares these (csrc/cuda/plan.cpp).

The model is of an H200 at 1.75 GHz: exchange through distributed shared memory 500 cycles and 13
bytes a cycle, through L2 1300 cycles and 26 bytes a cycle; the steps regime 8 us a step without a
CUDA graph, its product at half of the peak. It is a guess until measured.
"""

import argparse
import json
from pathlib import Path

from benchmarks.gpu import rows as gpu_rows

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "step_costs.json"
HEADER = ROOT / "csrc" / "cuda" / "step_costs.h"

CELLS = {"lstm": 4, "gru": 3, "rnn": 1}
PASSES = ("forward", "backward")
# In the order of csrc/cuda/tiles.h (Numeric): bytes of a value, flop/us of the product.
NUMERICS = {"fp32": (4, 67e6), "tf32": (4, 494e6), "bf16": (2, 989e6), "fp16": (2, 989e6)}
HIDDEN = (256, 512, 768, 1024)
REGIMES = ("steps", "cluster", "grid")
CYCLES = 1750  # in a microsecond


def modelled(cell, way, numeric, hidden):
    """Costs by regime, as the module's docstring says."""
    gates, (size, peak) = CELLS[cell], NUMERICS[numeric]
    forward = way == "forward"
    words = (1 if forward else gates) * hidden * size // 4
    units = 32 if hidden * size <= 1024 and numeric != "fp32" else 16
    tiles = max(1, (gates if forward else 1) * units // 16)
    chunks = words // 128
    # Two warps share the pipes: 2 matrix instructions of 8 cycles, or 64 of FMA, a chunk and tile.
    multiply = 2 * chunks * tiles * (64 if numeric == "fp32" else 16)
    spare = max(0, chunks * tiles - 16) * 8 * 4 * 256 / 128
    own = multiply + spare + 300
    weights = gates * hidden * hidden * size
    start = 15 + 2 * weights / 3e6
    product = 2 * 8 * gates * hidden * hidden / (0.5 * peak)
    blocks = hidden // units
    published = (1 if forward else gates) * 8 * units * size
    costs = {
        "steps": (8 + weights / 5e6, product, 0.0),
        "cluster": (500 / CYCLES, (own + blocks * published / 13) / CYCLES, start),
        "grid": (1300 / CYCLES, (own + words * 32 / 26) / CYCLES, start),
    }
    return {name: [round(value, 3) for value in cost] for name, cost in costs.items()}


def model():
    """The content of the JSON, from the model."""
    costs = {
        f"{cell} {way} {numeric} {hidden}": modelled(cell, way, numeric, hidden)
        for cell in CELLS
        for way in PASSES
        for numeric in NUMERICS
        for hidden in HIDDEN
    }
    return {"source": "model of benchmarks/tools/step_costs.py, not measured", "costs": costs}


def measured(rows):
    """The content of the JSON from rows of benchmarks.gpu: costs that were not measured, listed
    under "modelled", stay the model's."""
    content = model()
    content["source"] = "rows without an environment"
    for row in rows:
        if row.get("stage") == "environment":
            where = row.get("device", "a machine without a GPU")
            content["source"] = f"measured on {where}, torch {row['torch']}, {row['commit'][:12]}"
        elif row.get("stage") == "calibrate" and row.get("cost") is not None:
            content["costs"][row["key"]][row["regime"]] = row["cost"]
    known = {(r["key"], r["regime"]) for r in rows if r.get("cost") is not None}
    content["modelled"] = [
        f"{key} {regime}"
        for key in content["costs"]
        for regime in REGIMES
        if (key, regime) not in known
    ]
    return content


def header(content):
    """The text of csrc/cuda/step_costs.h."""
    lines = [
        "// Made by benchmarks/tools/step_costs.py, which says what the numbers are: edit that.",
        f"// Source: {content['source']}",
        "#pragma once",
        '#include "cuda/tiles.h"',
        "",
        "namespace fastrnn::cuda {",
        "",
        "struct RegimeCost {",
        "  double base_us, row_tile_us, start_us;",
        "};",
        "struct StepCosts {",
        "  RegimeCost steps, cluster, grid;",
        "};",
        "",
        "// By cell (LSTM, GRU, RNN), Pass, Numeric, and index in kTeamHidden.",
        f"inline constexpr StepCosts kStepCosts[{len(CELLS)}][{len(PASSES)}][{len(NUMERICS)}]"
        f"[{len(HIDDEN)}] = {{",
    ]
    for cell in CELLS:
        lines.append(f"    {{  // {cell}")
        for way in PASSES:
            lines.append(f"        {{  // {way}")
            for numeric in NUMERICS:
                lines.append(f"            {{  // {numeric}")
                for hidden in HIDDEN:
                    costs = content["costs"][f"{cell} {way} {numeric} {hidden}"]
                    row = ", ".join(
                        "{" + ", ".join(f"{v:g}" for v in costs[r]) + "}" for r in REGIMES
                    )
                    lines.append(f"                {{{row}}},")
                lines.append("            },")
            lines.append("        },")
        lines.append("    },")
    lines += [
        "};",
        "",
        "inline const StepCosts& step_costs(int gates, Pass pass, Numeric numeric, int hidden) {",
        "  int column = 0;",
        "  while (kTeamHidden[column] != hidden) ++column;",
        "  return kStepCosts[gates == 4 ? 0 : gates == 3 ? 1 : 2][static_cast<int>(pass)]",
        "                   [static_cast<int>(numeric)][column];",
        "}",
        "",
        "}  // namespace fastrnn::cuda",
    ]
    return "\n".join(["// clang-format off", *lines, ""])


def write(content):
    """Puts both files in their places."""
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    HEADER.write_text(header(content))


def main():
    """Writes the header, and the JSON that it was made from."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", action="store_true", help="discard measurements for the model")
    source.add_argument("--rows", type=Path, help="rows.jsonl of benchmarks.gpu")
    arguments = parser.parse_args()
    if arguments.model:
        content = model()
    elif arguments.rows:
        content = measured(gpu_rows.read(arguments.rows))
    else:
        content = json.loads(RESULTS.read_text())
    write(content)


if __name__ == "__main__":
    main()
