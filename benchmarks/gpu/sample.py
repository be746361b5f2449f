"""A pytest plugin: the telling tests first, then every seventh of the others.

    pytest -p benchmarks.gpu.sample tests/cuda/test_cuda.py

There are thousands of tests, and minutes. Every process of pytest-xdist loads the plugin and makes
the same choice.
"""

#: Parts of the names of tests that are all run, in this order.
TELLING = ("regimes_agree", "larger", "graph", "stream", "repeatable", "overlapped", "beside")
#: Left out: needs most of the memory, which four processes share.
LEFT_OUT = ("beyond_32_bits",)
#: Of the others every so many-th is run. It has no divisor in common with the number of regimes
#: and number formats that a test is run in, so that all of them are met.
EVERY = 7


def rank(name):
    """Where a test's name comes in TELLING, or its length."""
    return next((i for i, part in enumerate(TELLING) if part in name), len(TELLING))


def chosen(items, name_of):
    """The items that are run, in order."""
    items = [item for item in items if not any(part in name_of(item) for part in LEFT_OUT)]
    telling = [item for item in items if rank(name_of(item)) < len(TELLING)]
    others = [item for item in items if rank(name_of(item)) == len(TELLING)]
    return [*sorted(telling, key=lambda item: rank(name_of(item))), *others[::EVERY]]


def pytest_collection_modifyitems(config, items):
    """Takes the sample."""
    keep = chosen(items, lambda item: item.name)
    kept = set(keep)
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = keep
