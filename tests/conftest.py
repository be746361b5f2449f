"""What tests run under: NaN in fresh memory, a fixed seed, settings restored; engines."""

import os

import pytest
import torch

from fastrnn import _C
from fastrnn._layer import batching, ops
from fastrnn._stack import packing

# An assertion of a helper that fails shows values, as those of the tests do.
pytest.register_assert_rewrite(
    *(f"tests.{name}" for name in ("cases", "fuzz", "options", "second_order", "tolerances"))
)


def pytest_configure(config):
    # What cuBLAS needs to be deterministic; read when CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Fresh memory is filled with NaN (floats), the largest value (integers) or 0xff (workspaces).
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True


def pytest_report_header(config):
    return f"fastrnn: CPU targets {', '.join(_C.cpu_targets())}; {_C.build_info()}"


@pytest.fixture(autouse=True)
def _same_start():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def cpu_target_names():
    """Not avx512_vnni: it is avx512 in all but quantized layers, whose tests have their own."""
    return [target for target in _C.cpu_targets() if target != "avx512_vnni"]


@pytest.fixture(params=cpu_target_names())
def cpu_target(request):
    """Runs the test on every instruction set of this machine."""
    previous = _C.set_cpu_target(request.param)
    yield request.param
    _C.set_cpu_target(previous)


@pytest.fixture
def each_target():
    """The instruction sets of this machine, each selected in its turn: for tests whose expected
    values, which are those of no target, take longer than the kernels."""

    class Targets:
        def __iter__(self):  # anew for each loop: an iterator used up would check nothing
            for target in cpu_target_names():
                _C.set_cpu_target(target)
                yield target

    previous = _C.cpu_target()
    yield Targets()
    _C.set_cpu_target(previous)


@pytest.fixture
def cuda():
    """The CUDA device; the one reason for which a test may be skipped."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device("cuda")


@pytest.fixture
def through_operators(monkeypatch):
    """Inference calls the operators as everything else does: for tests that look at them."""
    monkeypatch.setattr(packing, "PLAIN", frozenset())


@pytest.fixture(scope="session")
def shim():
    """The CUDA engine's operators on a CPU."""
    from tests import cuda_shim  # what builds extensions takes its time to import

    return cuda_shim.load()


@pytest.fixture(scope="session")
def rules_of_shim(shim):
    """Its operators under vmap, as the engine's are."""
    library = torch.library.Library("fastrnn_cuda_shim", "IMPL")
    for name in ("layer_forward", "gate_gradients"):
        batching.register_by_rows(getattr(shim, name).default, library)
    library.impl("layer_backward", batching.layer_backward, "FuncTorchBatched")
    batching.register(shim.products.default, library)(batching.products)
    yield
    library._destroy()


@pytest.fixture
def engine(shim, rules_of_shim, through_operators, monkeypatch):
    """fastrnn over the shim's operators."""
    from tests.arguments import device_operators  # after the above

    torch.set_num_threads(1)  # small products; threads would only wait for each other
    for name in device_operators():
        monkeypatch.setattr(ops, name, getattr(shim, name).default)
    return monkeypatch
