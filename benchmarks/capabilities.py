"""`python -m benchmarks.capabilities`: tries every probe and writes docs/capabilities.md.

A cell says yes where the probe ran for LSTM, GRU and RNN and its numbers were right, else for which
layer it did not and the first words of the error. Nothing in the table is written by hand.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

import fastrnn
from fastrnn.__main__ import cpu_model

from .lib import probes
from .lib.report import REPOSITORY

DOCUMENT = REPOSITORY / "docs" / "capabilities.md"
LIBRARIES = {"torch.nn": nn, "fastrnn": fastrnn}
LONGEST = 90  # characters of an error that a cell shows


def attempt(function: Any, library: Any, name: str) -> str:
    """`yes`, or what the error began with."""
    state = torch.get_rng_state()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(library, name)
    except ImportError as error:
        return f"not tried: {error}"
    except Exception as error:
        return f"no: {summary(error)}"
    finally:
        torch.set_rng_state(state)
    return "yes"


def summary(error: BaseException) -> str:
    """Type and first words of the innermost cause, in one line that a table can hold."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(re.sub(r"\x1b\[\d*m", "", str(error)).split())
    text = re.sub(r"0x[0-9a-f]+", "0x", text).replace("|", "/").replace("`", "'")
    if len(text) > LONGEST:
        text = text[:LONGEST].rsplit(" ", 1)[0] + " ..."
    return f"{type(error).__name__}: {text}"


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


def main() -> None:
    """Tries everything and writes the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capabilities", description=__doc__)
    parser.add_argument("--print", action="store_true", help="print the table, write nothing")
    arguments = parser.parse_args()
    text = document(list(rows()))
    if arguments.print:
        print(text)
    else:
        DOCUMENT.write_text(text)
        print(f"wrote {DOCUMENT}")


if __name__ == "__main__":
    main()
