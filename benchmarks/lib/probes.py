"""What one can do with a recurrent layer: one function per capability.

A probe takes a library (torch.nn or fastrnn) and the name of a layer in it. It does the thing on
the installed torch and compares numbers with `fastrnn.reference` in float64 or with the same layer
used plainly; it returns nothing, or raises. Its docstring is the row's title.
"""

from __future__ import annotations

import copy
import io
import os
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.nn.utils.rnn import pack_sequence
from torch.utils.flop_counter import FlopCounterMode

from fastrnn import reference

LAYERS = ("LSTM", "GRU", "RNN")
STEPS, BATCH, INPUT_SIZE, HIDDEN_SIZE = 5, 4, 3, 6

#: (section, title, probe), in the order of the table.
PROBES: list[tuple[str, str, Callable[[Any, str], None]]] = []


def probe(section: str) -> Callable:
    """Adds a probe to the table."""

    def add(function):
        PROBES.append((section, function.__doc__, function))
        return function

    return add


def layer(library: Any, name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return getattr(library, name)(INPUT_SIZE, HIDDEN_SIZE, **options)


def data(batch: int = BATCH, steps: int = STEPS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(steps, batch, INPUT_SIZE, generator=generator)


def loss_of(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return module(x)[0].square().sum()


def oracle(name: str, module: nn.Module) -> tuple[Callable, list[torch.Tensor]]:
    """`(loss(x, *weights), weights)` of the reference in float64."""
    weights = [p.detach().double() for p in module.parameters()]
    run = getattr(reference, name.lower())
    return (lambda x, *w: run(x, None, list(w))[0].square().sum()), weights


def close(actual: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Raises where a tensor is off by more than tolerance of the largest value."""
    for a, e in zip(tensors(actual), tensors(expected), strict=True):
        if a.shape != e.shape:
            raise AssertionError(f"shape {tuple(a.shape)} instead of {tuple(e.shape)}")
        a, e = a.detach().double(), e.detach().double()
        if not (a - e).abs().max() <= tolerance * e.abs().max().clamp(min=1e-6):
            raise AssertionError("wrong numbers")


def tensors(value: Any) -> list[torch.Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(value) if torch.is_tensor(t)]


def gradients(call: Callable, module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    output = call(x)[0]
    return [output, *torch.autograd.grad(output.square().sum(), [x, *module.parameters()])]


# -- torch.compile ---------------------------------------------------------------------------------


def compile_as(backend: str, library: Any, name: str, **options: Any) -> None:
    torch._dynamo.reset()
    module, x = layer(library, name, num_layers=2), data()
    compiled = torch.compile(module, fullgraph=True, backend=backend, **options)
    close(gradients(compiled, module, x), gradients(module, module, x))


@probe("torch.compile")
def compile_aot_eager(library, name):
    """`fullgraph=True`, forward and backward, aot_eager"""
    compile_as("aot_eager", library, name)


@probe("torch.compile")
def compile_inductor(library, name):
    """`fullgraph=True`, forward and backward, inductor"""
    compile_as("inductor", library, name)


@probe("torch.compile")
def compile_dynamic(library, name):
    """`dynamic=True`"""
    compile_as("aot_eager", library, name, dynamic=True)


@probe("torch.compile")
def compile_once(library, name):
    """no compilation after the second length and batch"""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    module, counts = layer(library, name), []
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for steps, batch in ((5, 4), (6, 7), (9, 8), (30, 2)):
        close(compiled(data(batch, steps)), module(data(batch, steps)))
        counts.append(counter.frame_count)
    if counts[1] != counts[-1]:
        raise AssertionError(f"compilations after each size: {counts}")


@probe("torch.compile")
def compile_packed(library, name):
    """a PackedSequence"""
    torch._dynamo.reset()
    packed = pack_sequence([data()[:n, 0] for n in (2, 5, 3)], enforce_sorted=False)
    module = layer(library, name)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    close(compiled(packed)[0].data, module(packed)[0].data)


# -- Programs --------------------------------------------------------------------------------------


def exported(library, name, strict):
    steps, batch = torch.export.Dim("T", min=2, max=999), torch.export.Dim("B", min=2, max=999)
    module = layer(library, name).eval()
    shapes = ({0: steps, 1: batch},)
    return module, torch.export.export(module, (data(),), dynamic_shapes=shapes, strict=strict)


@probe("programs")
def export_strict(library, name):
    """torch.export, strict, any length and batch"""
    module, program = exported(library, name, True)
    close(program.module()(data(7, 9)), module(data(7, 9)))


@probe("programs")
def export_non_strict(library, name):
    """torch.export, non-strict, any length and batch"""
    module, program = exported(library, name, False)
    close(program.module()(data(7, 9)), module(data(7, 9)))


@probe("programs")
def aot_inductor(library, name):
    """AOTInductor package, loaded and run"""
    module, program = exported(library, name, False)
    with tempfile.TemporaryDirectory() as folder:
        path = torch._inductor.aoti_compile_and_package(
            program, package_path=os.path.join(folder, "model.pt2")
        )
        close(torch._inductor.aoti_load_package(path)(data(7, 9)), module(data(7, 9)))


@probe("programs")
def onnx(library, name):
    """torch.onnx.export(dynamo=True) to the standard node"""
    import onnxscript  # noqa: F401  (where it is missing, the cell says so)

    import fastrnn

    table = fastrnn.onnx.translation_table() if library is fastrnn else None
    program = torch.onnx.export(
        layer(library, name).eval(), (data(),), dynamo=True, verbose=False,
        custom_translation_table=table,
    )  # fmt: skip
    kinds = [node.op_type for node in program.model_proto.graph.node]
    if kinds.count(name) != 1:
        raise AssertionError(f"{len(kinds)} nodes, none of them {name}")


class Around(nn.Module):
    """TorchScript compiles the layers of torch.nn inside of another module only."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x)[0]


@probe("programs")
def script(library, name):
    """torch.jit.script"""
    module = Around(layer(library, name))
    close(torch.jit.script(module)(data()), module(data()))


@probe("programs")
def trace(library, name):
    """torch.jit.trace with gradients, other lengths and batches, trained"""
    module = layer(library, name)
    with warnings.catch_warnings(action="ignore"):
        traced = torch.jit.trace(module, data())
    x = data(BATCH + 1, STEPS + 2)
    close(gradients(traced, module, x), gradients(module, module, x))


# -- Derivatives -----------------------------------------------------------------------------------


def second(create: Callable, name: str, module: nn.Module, x: torch.Tensor) -> None:
    loss, weights = oracle(name, module)
    leaves = [x.double().requires_grad_(), *(w.requires_grad_() for w in weights)]
    inner = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
    expected = torch.autograd.grad(sum(g.square().sum() for g in inner), leaves)
    close(create(), expected, 1e-3)


@probe("derivatives")
def double_backward(library, name):
    """second derivatives by `create_graph=True` (a gradient penalty)"""
    module, x = layer(library, name), data()

    def run():
        leaves = [x.clone().requires_grad_(), *module.parameters()]
        inner = torch.autograd.grad(loss_of(module, leaves[0]), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in inner), leaves)

    second(run, name, module, x)


@probe("derivatives")
def forward_mode(library, name):
    """forward mode, torch.autograd.forward_ad"""
    module, x, v = layer(library, name), data(), data().cos()
    loss, weights = oracle(name, module)
    _, expected = jvp(lambda x: loss(x, *weights), (x.double(),), (v.double(),))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, v)
        tangent = torch.autograd.forward_ad.unpack_dual(loss_of(module, dual)).tangent
        if tangent is None:
            raise AssertionError("the tangent is lost")
        close(tangent, expected)


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.detach() for n, p in module.named_parameters()}


@probe("derivatives")
def func_jvp(library, name):
    """torch.func.jvp, of the weights too"""
    module, x = layer(library, name), data()
    loss, weights = oracle(name, module)
    tangents = tuple(w.cos() for w in weights)
    _, expected = jvp(lambda *w: loss(x.double(), *w), tuple(weights), tangents)
    w = weights_of(module)
    moved = dict(zip(w, (t.float() for t in tangents)))
    _, actual = jvp(lambda w: functional_call(module, w, x)[0].square().sum(), (w,), (moved,))
    close(actual, expected)


@probe("derivatives")
def func_jacfwd(library, name):
    """torch.func.jacfwd"""
    module, x = layer(library, name), data(1, 3)
    loss, weights = oracle(name, module)
    expected = jacrev(lambda x: loss(x, *weights))(x.double())
    close(jacfwd(lambda x: loss_of(module, x))(x), expected)


@probe("derivatives")
def func_hessian(library, name):
    """torch.func.hessian, jacfwd(jacrev)"""
    module, x = layer(library, name), data(1, 3)
    loss, weights = oracle(name, module)
    expected = hessian(lambda x: loss(x, *weights))(x.double())
    close(hessian(lambda x: loss_of(module, x))(x), expected, 1e-3)


@probe("derivatives")
def func_grad(library, name):
    """torch.func.grad of the weights"""
    module, x = layer(library, name), data()
    loss, weights = oracle(name, module)
    expected = grad(lambda w: loss(x.double(), *w))(weights)
    actual = grad(lambda w: functional_call(module, w, x)[0].square().sum())(weights_of(module))
    close(actual, expected)


@probe("derivatives")
def batched_gradients(library, name):
    """several gradients at once, `torch.autograd.grad(is_grads_batched=True)`"""
    module, x = layer(library, name), data()
    output, weights = module(x)[0], list(module.parameters())
    several = torch.stack([output.detach().cos(), output.detach().sin()])
    each = [torch.autograd.grad(output, weights, v, retain_graph=True) for v in several]
    expected = [torch.stack(parts).double() for parts in zip(*each)]
    close(torch.autograd.grad(output, weights, several, is_grads_batched=True), tuple(expected))


@probe("derivatives")
def vectorized_jacobians(library, name):
    """torch.autograd.functional.jacobian, `vectorize=True`, reverse and forward mode"""
    module, x = layer(library, name), data(1, 3)
    loss, weights = oracle(name, module)
    expected = jacrev(lambda x: loss(x, *weights))(x.double())
    for strategy in ("reverse-mode", "forward-mode"):
        actual = torch.autograd.functional.jacobian(
            lambda x: loss_of(module, x), x, vectorize=True, strategy=strategy
        )
        close(actual, expected)


# -- vmap ------------------------------------------------------------------------------------------


@probe("vmap")
def vmap_inputs(library, name):
    """vmap over inputs, shared weights"""
    module, xs = layer(library, name), torch.stack([data(), data().cos(), data().sin()])
    close(vmap(lambda x: module(x)[0])(xs), torch.stack([module(x)[0] for x in xs]))


@probe("vmap")
def per_sample(library, name):
    """per-sample gradients, vmap(grad)"""
    module, x = layer(library, name), data()
    loss, weights = oracle(name, module)
    each = [grad(lambda w, b=b: loss(x[:, b : b + 1].double(), *w))(weights) for b in range(BATCH)]

    def one(w, row):
        return functional_call(module, w, row.unsqueeze(1))[0].square().sum()

    actual = vmap(grad(one), in_dims=(None, 1))(weights_of(module), x)
    close(actual, [torch.stack(g) for g in zip(*each)])


@probe("vmap")
def ensemble(library, name):
    """ensembles, vmap over stacked weights"""
    modules = [layer(library, name) for _ in range(3)]
    for i, module in enumerate(modules):
        for p in module.parameters():
            p.data.mul_(1 + i / 4)
    weights, buffers = stack_module_state(modules)
    base, x = copy.deepcopy(modules[0]).to("meta"), data()
    actual = vmap(lambda w, b: functional_call(base, (w, b), x)[0])(weights, buffers)
    close(actual, torch.stack([m(x)[0] for m in modules]))


# -- Training --------------------------------------------------------------------------------------


def under_autocast(library, name, dtype):
    module, x = layer(library, name), data()
    with torch.autocast("cpu", dtype=dtype):
        output = module(x)[0]
        output.float().square().sum().backward()
    close([output, *(p.grad for p in module.parameters())], gradients_of(name, module, x), 0.05)


def gradients_of(name, module, x):
    loss, weights = oracle(name, module)
    run = getattr(reference, name.lower())
    return [run(x.double(), None, weights)[0], *grad(lambda w: loss(x.double(), *w))(weights)]


@probe("training")
def autocast_bfloat16(library, name):
    """CPU autocast, bfloat16, forward and backward"""
    under_autocast(library, name, torch.bfloat16)


@probe("training")
def autocast_float16(library, name):
    """CPU autocast, float16, forward and backward"""
    under_autocast(library, name, torch.float16)


@probe("training")
def change_outputs(library, name):
    """changing outputs in place before backward"""
    module, x = layer(library, name), data()
    expected = gradients_of(name, module, x)[1:]
    output = module(x)[0]
    loss = output.clone().square().sum()
    with torch.no_grad():
        output.zero_()
    loss.backward()
    close([p.grad for p in module.parameters()], expected)


@probe("training")
def checkpoints(library, name):
    """torch.utils.checkpoint, both kinds"""
    module, x = layer(library, name), data().requires_grad_()
    expected = gradients_of(name, module, x)[1:]
    for reentrant in (True, False):
        module.zero_grad()
        checkpoint = torch.utils.checkpoint.checkpoint
        checkpoint(lambda x: module(x)[0], x, use_reentrant=reentrant).square().sum().backward()
        close([p.grad for p in module.parameters()], expected)


@probe("training")
def averages_and_files(library, name):
    """deepcopy (EMA models), torch.save and load of whole modules"""
    module, file = layer(library, name), io.BytesIO()
    average = torch.optim.swa_utils.AveragedModel(module)
    average.update_parameters(module)
    close(average(data()), module(data()))
    torch.save(module, file)
    file.seek(0)
    close(torch.load(file, weights_only=False)(data()), module(data()))


@probe("training")
def processes(library, name):
    """DistributedDataParallel, FSDP2 and shared memory, two processes (gloo)"""
    module = layer(library, name)
    expected = gradients_of(name, module, data())[1:]
    shared = copy.deepcopy(module).share_memory()
    with tempfile.TemporaryDirectory() as folder:
        context = torch.multiprocessing.spawn(
            _process, (folder, library.__name__, name, shared), nprocs=2, join=False
        )
        try:
            for _ in range(24):
                if context.join(timeout=5):
                    break
            else:
                raise TimeoutError("the processes did not end in two minutes")
        finally:
            for process in context.processes:
                process.kill()
        for kind in ("data_parallel", "sharded"):
            close(torch.load(os.path.join(folder, kind)), expected)
    close(list(shared.parameters()), [p + 3 for p in module.parameters()])


def _process(rank, folder, library, name, shared):
    """One of two processes: half of the batch each, gradients of the sum over both."""
    import importlib

    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    mine = data()[:, rank::2]
    library = importlib.import_module(library)
    for kind in ("data_parallel", "sharded"):
        module = layer(library, name)
        if kind == "sharded":
            mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
            fully_shard(module, mesh=mesh)
            wrapped = module
        else:
            wrapped = nn.parallel.DistributedDataParallel(module)
        (2 * loss_of(wrapped, mine)).backward()
        found = [
            p.grad.full_tensor() if kind == "sharded" else p.grad for p in wrapped.parameters()
        ]
        if rank == 0:
            torch.save(found, os.path.join(folder, kind))
    for parameter in shared.parameters():
        parameter.data.add_(1 if rank == 0 else 0)
    distributed.barrier()
    for parameter in shared.parameters():
        parameter.data.add_(2 if rank == 1 else 0)
    distributed.barrier()
    distributed.destroy_process_group()


@probe("tools")
def flop_counter(library, name):
    """torch.utils.flop_counter counts forward and backward"""
    module, x = layer(library, name), data()
    with FlopCounterMode(display=False) as counter:
        output = module(x)[0]
        forward = counter.get_total_flops()
        output.sum().backward()
    products = module.weight_hh_l0.shape[0] * (INPUT_SIZE + HIDDEN_SIZE)
    if forward != 2 * STEPS * BATCH * products:
        raise AssertionError(f"{forward} forward")
    # Of w_ih and w_hh, and through w_hh but at the first step.
    through = products + module.weight_hh_l0.shape[0] * HIDDEN_SIZE * (STEPS - 1) / STEPS
    if counter.get_total_flops() - forward != 2 * STEPS * BATCH * through:
        raise AssertionError(f"{counter.get_total_flops() - forward} backward")
