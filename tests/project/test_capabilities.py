"""docs/capabilities.md says what is so, and the script that writes it can tell."""

import re

import pytest
import torch
from torch import nn

import fastrnn
from benchmarks import capabilities
from benchmarks.lib import probes, trials
from tests.cases import LAYERS

# Probes that compile with inductor, start processes or need optional packages have tests elsewhere.
SLOW = {"compile_inductor", "aot_inductor", "onnx", "processes"}
QUICK = [function for _, _, function in probes.PROBES if function.__name__ not in SLOW]


def documented():
    """The cells of the file: title -> (torch.nn, fastrnn)."""
    lines = capabilities.DOCUMENT.read_text().splitlines()
    rows = [re.split(r" ?\| ?", line)[1:-1] for line in lines if line.startswith("| ")]
    return {title: (theirs, ours) for _, title, theirs, ours in rows[1:]}


def test_every_probe_is_in_the_document():
    assert list(documented()) == [title for _, title, _ in probes.PROBES]


@pytest.mark.parametrize("function", QUICK, ids=lambda f: f.__name__)
def test_document_is_true_of_fastrnn(function):
    """If this fails because more works now: python -m benchmarks.capabilities."""
    results = {n: trials.attempt(function, fastrnn, n) for n in LAYERS}
    cell = documented()[function.__doc__][1]
    for name, result in results.items():
        mine = next((part for part in cell.split("<br>") if name in part.split(": ")[0]), cell)
        assert (result == "yes") == mine.endswith("yes"), f"{name}: {result}, but it says {mine}"


class Wrong:
    """A library whose layers are off by a tenth."""

    class LSTM(nn.LSTM):
        def forward(self, input, hx=None):
            output, hx = super().forward(input, hx)
            return 1.1 * output, hx

    @staticmethod
    def broken(*_, **__):
        raise RuntimeError("first words | " + 40 * "and more ")

    GRU = RNN = broken


def test_wrong_numbers_and_errors_are_a_no():
    state = torch.get_rng_state()
    results = {n: trials.attempt(probes.func_grad, Wrong, n) for n in LAYERS}
    assert torch.equal(torch.get_rng_state(), state)
    assert results["LSTM"] == "no: AssertionError: wrong numbers"
    assert results["GRU"].startswith("no: RuntimeError: first words / and more")
    assert results["GRU"].endswith("...") and len(results["GRU"]) < 130
    cell = capabilities.cell(results)
    assert cell == f"LSTM: {results['LSTM']}<br>GRU, RNN: {results['GRU']}"
    assert capabilities.cell(dict.fromkeys(LAYERS, "yes")) == "yes"


def test_missing_package_is_not_a_no():
    def missing(library, name):
        raise ImportError("No module named 'onnxscript'")

    assert trials.attempt(missing, nn, "LSTM") == "not tried: No module named 'onnxscript'"


def test_table():
    text = capabilities.document(
        [("a", "b", {"x": "1", "y": "2"}), ("a", "c", {"x": "3", "y": "4"})]
    )
    assert "| a | b | 1 | 2 |\n|  | c | 3 | 4 |\n" in text
