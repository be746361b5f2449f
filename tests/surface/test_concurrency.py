"""Several Python threads, worker processes, fork. What may hang runs as a process with a limit."""

import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import fastrnn
from tests.cases import LAYERS

LIMIT = 60  # seconds; the scripts take one or two


def run_script(text, **environment):
    """Runs a script in a session of its own, all of which ends when the time is over."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        stderr += f"\nkilled after {LIMIT} s"
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def step(module, x):
    """Forward and backward; the loss and one gradient."""
    y, _ = module(x)
    (gradient,) = torch.autograd.grad(y.square().sum(), module.weight_hh_l0)
    return y.detach(), gradient


@pytest.mark.parametrize("name", LAYERS)
def test_python_threads(name):
    """Each thread has its own layer and size; all get what they get alone."""
    work = []
    for i in range(4):
        module = getattr(fastrnn, name)(32, 64 + 16 * i, bidirectional=bool(i % 2))
        work.append((module, torch.randn(30, 1 + 8 * i, 32)))
    expected = [step(*item) for item in work]
    results, barrier = [None] * len(work), threading.Barrier(len(work))

    def run(index):
        barrier.wait()
        results[index] = [step(*work[index]) for _ in range(5)]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()
    for alone, together in zip(expected, results, strict=True):
        for y, gradient in together:
            assert torch.equal(y, alone[0])
            torch.testing.assert_close(gradient, alone[1])


class Rows(Dataset):
    def __init__(self, module):
        self.module = module

    def __len__(self):
        return 4

    def __getitem__(self, index):
        x = torch.full((40, 16, 32), float(index))
        y, gradient = step(self.module, x)
        return y.sum(), gradient.sum()


def test_dataloader_workers():
    data = Rows(fastrnn.LSTM(32, 64))
    step(data.module, torch.randn(40, 64, 32))  # the parent's threads exist before the fork
    expected = [data[i] for i in range(len(data))]
    loader = DataLoader(data, batch_size=None, num_workers=2, timeout=LIMIT)
    for actual, alone in zip(loader, expected, strict=True):
        torch.testing.assert_close(actual, list(alone), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("threads", [1, 2])
def test_fork(threads):
    """A child of a process that has used its threads finishes small and large work."""
    done = run_script(f"""
        import os, torch, fastrnn
        torch.set_num_threads({threads})
        layers = [getattr(fastrnn, n)(64, 128) for n in ("LSTM", "GRU", "RNN")]
        inputs = [torch.randn(2, 1, 64), torch.randn(40, 64, 64)]
        ones = [torch.ones(*x.shape[:2], 128) for x in inputs]

        rows = [torch.randn(1, 4096, 64)], [torch.arange(4096).flip(0)[None]]
        mask, lengths = torch.zeros(40, 64, dtype=torch.bool), torch.arange(64).clamp(max=40)
        mask[7] = True

        def run():  # operators of ours only: torch's own may wait forever after a fork
            results = [*torch.ops.fastrnn.gather_rows(*rows)]
            results += torch.ops.fastrnn.segments(mask, lengths, 40, 64, 2, False)
            for layer in layers:
                for x, d_output in zip(inputs, ones):
                    output, _ = layer(x)
                    results += [output, *torch.autograd.grad(output, layer.parameters(), d_output)]
            return results

        expected = run()
        pid = os.fork()
        actual = run()  # in the child, and in the parent, which goes on
        if pid == 0:
            torch.set_num_threads(1)
        same = all(map(torch.equal, actual, expected))
        if pid == 0:
            os._exit(0 if same else 3)
        child = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        raise SystemExit(child or (0 if same else 4))
    """)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("used", ["fastrnn", "torch"])
@pytest.mark.parametrize("what", ["batch_first", "dropout", "states", "checkpoint", "twice"])
def test_training_in_a_forked_process(used, what):
    """torch's own loops around ours would wait for threads that are gone."""
    done = run_script(f"""
        import os, torch, fastrnn
        torch.set_num_threads(2)
        options = {{"batch_first": {{"batch_first": True}}, "twice": {{"batch_first": True}},
                   "dropout": {{"dropout": 0.3}}}}.get("{what}", {{}})
        layer = fastrnn.GRU(32, 64, num_layers=2, **options)
        x = torch.randn(50, 16, 32)
        if "{used}" == "fastrnn":
            layer(x)
        else:
            torch.randn(400, 400, 8).cos()
        if os.fork() == 0:
            if "{what}" == "checkpoint":
                layer.checkpoint_every = 4
            output, *_ = layer(x, return_states="{what}" == "states")
            (first,) = torch.autograd.grad(
                output.sum(), layer.weight_hh_l0, create_graph="{what}" == "twice"
            )
            if "{what}" == "twice":
                torch.autograd.grad(first.sum(), layer.weight_hh_l1)
            torch.randn(400, 400, 8).cos()
            os._exit(0 if torch.get_num_threads() == 1 else 3)
        raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))
    """)
    assert done.returncode == 0, done.stderr


def test_fork_before_threads():
    """Where no thread was started torch keeps its number."""
    done = run_script("""
        import os, torch, fastrnn
        threads = torch.get_num_threads()  # setting it would start some
        layer, x = fastrnn.GRU(3, 4), torch.randn(2, 1, 3)
        layer(x)
        if os.fork() == 0:
            layer(x)
            os._exit(0 if torch.get_num_threads() == threads else 3)
        raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))
    """)
    assert done.returncode == 0, done.stderr


def test_fewer_openmp_threads_than_asked_for():
    done = run_script(
        """
        import torch, fastrnn
        torch.set_num_threads(8)
        layer, x = fastrnn.LSTM(64, 128), torch.randn(20, 64, 64)
        y = layer(x)[0]
        y.sum().backward()
        torch.set_num_threads(1)
        assert torch.equal(layer(x)[0], y)
        """,
        OMP_THREAD_LIMIT="2",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("target", ["generic", "abacus"])
def test_target_from_environment(target):
    done = run_script("from fastrnn import _C; print(_C.cpu_target())", FASTRNN_CPU_TARGET=target)
    if target == "abacus":
        assert done.returncode != 0 and "abacus" in done.stderr
    else:
        assert done.stdout.strip() == target


def test_report():
    done = run_script("import runpy; runpy.run_module('fastrnn', run_name='__main__')")
    assert done.returncode == 0, done.stderr
    for word in ("fastrnn", "torch", "python", "compiler", "cpu target", "threads", "cuda"):
        assert word in done.stdout, word
