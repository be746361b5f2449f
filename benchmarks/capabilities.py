"""`python -m benchmarks.capabilities`: tries every probe and writes docs/capabilities.md.

A cell says yes where the probe ran for LSTM, GRU and RNN and its numbers were right, else for which
layer it did not and the first words of the error. Nothing in the table is written by hand.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

import fastrnn
from fastrnn.__main__ import cpu_model

from .lib import probes
from .lib.report import REPOSITORY
from .lib.trials import attempt, publish

DOCUMENT = REPOSITORY / "docs" / "capabilities.md"
LIBRARIES = {"torch.nn": nn, "fastrnn": fastrnn}


def cell(results: dict[str, str]) -> str:
    """The results of the three layers as one cell; equal ones together."""
    groups: dict[str, list[str]] = {}
    for name, result in results.items():
        groups.setdefault(result, []).append(name)
    if len(groups) == 1:
        return next(iter(groups))
    return "<br>".join(f"{', '.join(names)}: {result}" for result, names in groups.items())


def rows(selected: Iterable[str] | None = None) -> Iterable[tuple[str, str, dict[str, str]]]:
    """`(section, title, cell by library)` of every probe, or of those with these titles."""
    for section, title, function in probes.PROBES:
        if selected is None or title in selected:
            cells = {}
            for label, library in LIBRARIES.items():
                names = probes.LAYERS
                cells[label] = cell({n: attempt(function, library, n) for n in names})
                print(f"{section}: {title}: {label}: {cells[label]}", flush=True)
            yield section, title, cells


def document(lines: Iterable[tuple[str, str, dict[str, str]]]) -> str:
    """The Markdown file."""
    text = [
        "# What the layers can do",
        "",
        "Each cell was tried on LSTM, GRU and RNN by `python -m benchmarks.capabilities`, which",
        "wrote this file: float32 on the CPU (CUDA was not tried), numbers compared with",
        "`fastrnn.reference` in float64 or with the layer used plainly; `benchmarks/lib/probes.py`",
        f"has the probes. torch {torch.__version__}, fastrnn {fastrnn.__version__}, {cpu_model()}.",
        "",
        "| | | " + " | ".join(LIBRARIES) + " |",
        "|---|---|" + "---|" * len(LIBRARIES),
    ]
    before = None
    for section, title, cells in lines:
        name = section if section != before else ""
        text.append(f"| {name} | {title} | " + " | ".join(cells.values()) + " |")
        before = section
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    publish("benchmarks.capabilities", __doc__, DOCUMENT, lambda: document(rows()))
