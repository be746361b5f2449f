"""A fixed part of the fuzzing; tests/fuzz.py runs longer."""

import pytest

from tests.fuzz import check


@pytest.mark.parametrize("block", range(10))
def test_seeds(block):
    for seed in range(20 * block, 20 * block + 20):
        check(seed)
