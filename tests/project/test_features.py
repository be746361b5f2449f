"""docs/features.md says what is so, and the script that writes it can tell."""

import re

import pytest
import torch

import fastrnn
from benchmarks import features


def documented():
    """Rows of the table: name -> title -> cell, a number with the text of its note."""
    text = features.DOCUMENT.read_text()
    notes = dict(re.findall(r"^(\d+)\. (.*)$", text, re.M))
    table = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| ")
    ]
    titles = table[0][1:]
    return {
        name: {t: notes.get(c, c) for t, c in zip(titles, cells, strict=True)}
        for name, *cells in table[1:]
    }


def test_every_field_is_in_the_document():
    table = documented()
    assert list(table) == list(features.KINDS)
    assert all(list(row) == list(features.FEATURES) for row in table.values())


@pytest.mark.parametrize("name", features.KINDS)
def test_document_is_true(name):
    """If this fails because more works now: python -m benchmarks.features."""
    row = documented()[name]
    for title, probe in features.FEATURES.items():
        result = features.tried(features.KINDS[name], probe)
        assert result.startswith("not tried") or (result == "yes") == (row[title] == "yes"), (
            f"{title}: {result}, but it says {row[title]}"
        )


class Broken(fastrnn.LSTM):
    """Off by a little, in the way that `how` says."""

    how = "output"

    def forward(self, *arguments, **options):
        output, final, *each = super().forward(*arguments, **options)
        if self.how == "final":
            return output, tuple(s + 1e-6 for s in final), *each
        if self.how == "states":
            each = [e._replace(cells=e.cells + 1e-6) for e in each]
            return output, final, *each
        if isinstance(output, torch.Tensor):
            output = output + 1e-6
        return output, final, *each


@pytest.mark.parametrize(
    ("how", "titles"),
    [
        ("output", ["padded", "layers"]),
        ("final", ["return_states"]),
        ("states", ["return_states"]),
    ],
)
def test_wrong_numbers_are_a_no(monkeypatch, how, titles):
    monkeypatch.setattr(Broken, "how", how)
    kind = features.kind_of(Broken)
    for title in titles:
        assert features.tried(kind, features.FEATURES[title]) == "no: AssertionError: wrong numbers"


def test_notes():
    cells = {"a": {"x": "yes", "y": "no: b"}, "c": {"x": "no: b", "y": "not tried: d"}}
    text = features.document(cells)
    assert "| a | yes | 1 |\n| c | 1 | 2 |" in text
    assert "\n1. no: b\n2. not tried: d\n" in text
