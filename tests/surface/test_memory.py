"""Tensors in memory from the cache of blocks: nobody else's while alive, and ordinary ones."""

import copy
import gc
import pickle
import threading

import pytest
import torch

import fastrnn

# Rows of 128 float32: outputs in malloc's memory, in small blocks, in large ones.
ROWS = {"malloc": 20, "small": 2_000, "large": 12_000}


def layer():
    return fastrnn.GRU(8, 128)


@pytest.fixture(params=ROWS)
def rows(request):
    return ROWS[request.param]


def test_living_tensors_are_left_alone(rows):
    """Results of all calls, some of them let go in between."""
    module = layer()
    alive = []
    for i in range(8):
        output, _ = module(torch.randn(rows + 10 * i, 1, 8))
        gradients = torch.autograd.grad(output.square().sum(), list(module.parameters()))
        for tensor in (output.detach(), *gradients):
            alive.append((tensor, tensor.clone()))
        del alive[::3], output, gradients, tensor
    assert all(torch.equal(tensor, expected) for tensor, expected in alive)
    assert len({tensor.data_ptr() for tensor, _ in alive}) == len(alive)


def test_living_tensors_of_threads_are_left_alone(rows):
    module, failures = layer(), []
    x = torch.randn(rows, 1, 8)
    expected = module(x)[0].detach()

    def run():
        with torch.no_grad():
            for i in range(6):
                shorter = rows - i * rows // 12
                kept = [module(x[:shorter])[0] for _ in range(3)]
                if not all(torch.equal(output, expected[:shorter]) for output in kept):
                    failures.append(i)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_memory_is_used_again():
    module, x = layer(), torch.randn(ROWS["large"], 1, 8)
    with torch.no_grad():
        places = set()
        for _ in range(10):
            places.add(module(x)[0].data_ptr())
            gc.collect()
    assert len(places) <= 2


def test_results_are_ordinary_tensors(rows):
    with torch.no_grad():
        output, _ = layer()(torch.randn(rows, 1, 8))
    expected = output.clone()
    assert pickle.loads(pickle.dumps(output)).equal(expected)
    assert copy.deepcopy(output).equal(expected)
    grown = output.detach().resize_(2 * rows, 1, 128)
    assert grown[:rows].equal(expected) and output.equal(expected)
    array = output.numpy()
    del output, grown
    gc.collect()
    layer()(torch.randn(rows, 1, 8))
    assert torch.from_numpy(array).equal(expected)
    with torch.inference_mode():
        inference, _ = layer()(torch.randn(rows, 1, 8))
    assert inference.is_inference()
    expected = inference.clone()
    inference.share_memory_()
    assert inference.is_shared() and inference.equal(expected)


def test_more_than_there_is(rows):
    with torch.no_grad():
        output, _ = layer()(torch.randn(rows, 1, 8))
    expected = output.clone()
    with pytest.raises(RuntimeError, match="allocate"):
        output.untyped_storage().resize_(1 << 60)
    assert output.equal(expected)
