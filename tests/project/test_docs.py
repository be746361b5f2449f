"""The examples of the pages in docs/ run, each page from top to bottom."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {
    page: blocks
    for page in sorted(DOCS.glob("*.md"))
    if (blocks := re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S))
}


def test_there_are_pages():
    assert {"beyond", "quantization", "variants"} <= {page.stem for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.stem}
    for number, block in enumerate(PAGES[page], 1):
        exec(compile(block, f"{page.name}, example {number}", "exec"), names)
