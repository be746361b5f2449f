"""Two processes: DistributedDataParallel, FSDP2 and Hogwild, each against one process."""

import time

import pytest
import torch
from torch import multiprocessing, nn

import fastrnn
from tests import workers


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """`(results of each rank, the shared model's loss before and after)`, of one pair of processes.

    Spawned, not forked: this process has threads.
    """
    folder = tmp_path_factory.mktemp("distributed")
    torch.manual_seed(0)
    shared = fastrnn.LSTM(3, 4).share_memory()
    x = torch.full((5, 4, 3), 0.5)

    def loss():
        return (shared(x)[0] - 0.3).square().mean().item()

    before, deadline = loss(), time.monotonic() + 240
    context = multiprocessing.spawn(
        workers.main, (folder, shared), nprocs=workers.WORLD, join=False
    )
    try:
        while not context.join(timeout=5):
            assert time.monotonic() < deadline, "the processes did not end"
    finally:
        for process in context.processes:
            process.kill()
    ranks = [torch.load(folder / f"rank{rank}.pt") for rank in range(workers.WORLD)]
    return ranks, (before, loss())


@pytest.fixture(scope="module")
def alone():
    """The same training in one process, with torch.nn's layers."""
    model = workers.network(nn)
    return workers.train(model), model.state_dict()


def same(actual, expected):
    actual = {name.removeprefix("module."): t for name, t in actual.items()}
    torch.testing.assert_close(actual, dict(expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("wrapper", ["data_parallel", "fully_sharded"])
def test_wrapped(two, alone, wrapper):
    """Gradients of the first step and parameters after three, on each rank."""
    for results in two[0]:
        same(results[wrapper]["gradients"], alone[0])
        same(results[wrapper]["state"], alone[1])


def test_sharded_checkpoint(two, alone):
    """Saved in shards, read into a model that is not sharded, and from there into torch.nn."""
    for results in two[0]:
        same(results["fully_sharded"]["loaded"], alone[1])
    workers.network(nn).load_state_dict(two[0][0]["fully_sharded"]["loaded"], strict=True)


def test_hogwild(two):
    """What two processes did to shared memory is seen in this one."""
    ranks, (before, after) = two
    assert all(all(results["hogwild"]["pointers"]) for results in ranks)
    assert after < before / 2
