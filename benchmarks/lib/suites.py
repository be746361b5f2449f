"""The suites. Each function returns jobs (jobs.py); a job yields one row when it is run."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from . import cases, checks, peers, timing
from .cases import Case
from .jobs import (
    Job,
    Options,
    Row,
    add_check,
    inference_call,
    layer_call,
    measure,
    row_of,
    training_call,
)
from .report import REPOSITORY
from .steps import overhead, streaming

# ----------------------------------------------------------------- grid


def grid(options: Options) -> list[Job]:
    """torch.nn, fastrnn, the matrix product and the peers on the grid."""
    jobs = []
    for threads in options.thread_counts(2):
        for dtype in options.dtypes:
            for layer in options.layers:
                for mode in options.modes:
                    for case in options.grid:
                        jobs.append(_grid_job(options, layer, mode, dtype, threads, case))
    return jobs


def _grid_job(options: Options, layer: str, mode: str, dtype: str, threads: int, case: Case) -> Job:
    def run() -> Row:
        torch.set_num_threads(threads)
        row = row_of("grid", layer, mode, dtype, threads, case)
        kind = cases.DTYPES[dtype]
        layers = cases.build_layers(layer, case, kind, mode)
        x, d_output = cases.make_input(case, kind), cases.make_d_output(case, kind)
        check = checks.check_case(layer, case, layers, x, mode, d_output, options.check_flops)
        if not add_check(row, check):
            return row
        contestants = {name: layer_call(m, x, mode, d_output) for name, m in layers.items()}
        if mode == "inference" and dtype == "float32":
            exact = checks.run_layer(layers["torch"], x, mode, d_output)["output"].double()
            for name in options.peers:
                call = peers.build_peer(name, layer, layers["torch"], case, x, threads)
                peer_check = checks.check_peer(call(), exact)
                row.setdefault("peer_checks", {})[name] = dataclasses.asdict(peer_check)
                if peer_check.passed:
                    contestants[name] = call
        width = cases.GATES[layer] * case.hidden_size
        products, product_flops = timing.matrix_products(
            kind, case.seq_len * case.batch, case.input_size + case.hidden_size, width
        )
        times = measure(options, row, {**contestants, **products})
        row["flops"] = cases.flops(layer, case, mode)
        row["ratio"] = timing.round_ratio(times["torch"], times["fastrnn"])
        row["gflops"] = row["flops"] / times["fastrnn"].median / 1e9
        row["torch_gflops"] = row["flops"] / times["torch"].median / 1e9
        row["gemm_gflops"] = max(product_flops[p] / times[p].median for p in products) / 1e9
        row["share"] = row["gflops"] / row["gemm_gflops"]
        row["peer_ratios"] = {
            name: timing.round_ratio(times[name], times["fastrnn"])
            for name in options.peers
            if name in times
        }
        return row

    return Job(f"grid {layer} {mode} {dtype} {threads} threads {case}", run)


# ----------------------------------------------------------------- packed sequences

PACKED_LENGTHS = (125, 500, 1000)
PACKED_SIZES = ((16, 128), (32, 256))


def ragged_lengths(seq_len: int, batch: int) -> torch.Tensor:
    """Unsorted lengths from seq_len / 4 to seq_len, their sum a multiple of batch.

    The sum is such that a padded batch of the same width has exactly as many
    rows: the fair partner of the packed one.
    """
    lengths = torch.linspace(max(1, seq_len // 4), seq_len, batch).round().long()
    missing = -int(lengths.sum()) % batch
    index = 0
    while missing:  # one step more for each of the shortest
        if lengths[index] < seq_len:
            lengths[index] += 1
            missing -= 1
        index = (index + 1) % batch
    generator = torch.Generator().manual_seed(3)
    return lengths[torch.randperm(batch, generator=generator)]


def _check_packed(
    layers: dict[str, nn.Module], case: Case, mode: str, lengths: torch.Tensor
) -> checks.Check:
    """Ours packed against torch.nn padded, float64 and float32, on the valid steps.

    With a zero gradient on the padding both have the same outputs and
    gradients, and torch.nn's padded run is far faster than its packed one.
    """
    x = cases.make_input(case, torch.float32)
    d_output = cases.make_d_output(case, torch.float32)
    valid = (torch.arange(case.seq_len)[:, None] < lengths)[..., None]

    def pack(tensor: torch.Tensor) -> PackedSequence:
        return pack_padded_sequence(tensor, lengths, enforce_sorted=False)

    def gather(module: nn.Module, packed: bool) -> dict[str, torch.Tensor]:
        dtype = next(module.parameters()).dtype
        leaf = x.to(dtype, copy=True).requires_grad_(mode == "training")
        with torch.set_grad_enabled(mode == "training"):
            result = module(pack(leaf) if packed else leaf)[0]
        output = result.data if packed else pack(result).data
        results = {"output": output}
        if mode == "training":
            module.zero_grad(set_to_none=True)
            output.backward(pack((d_output * valid).to(dtype)).data)
            results["d_input"] = pack(leaf.grad).data
            for name, parameter in module.named_parameters():
                results[f"d_{name}"] = parameter.grad
            module.zero_grad(set_to_none=True)
        return results

    exact = gather(cases.exact_copy(layers["torch"]), packed=False)
    reference = gather(layers["torch"], packed=False)
    ours = gather(layers["fastrnn"], packed=True)
    check = checks.worst_of(checks.compare_each(ours, reference, exact, torch.float32))
    check.seq_len = case.seq_len
    return check


def packed(options: Options) -> list[Job]:
    """Ragged sequences: packed against padded with as many rows, and torch.nn's packed."""

    def job(layer: str, mode: str, threads: int, case: Case) -> Job:
        def run() -> Row:
            torch.set_num_threads(threads)
            row = row_of("packed", layer, mode, "float32", threads, case)
            layers = cases.build_layers(layer, case, torch.float32, mode)
            steps = checks.steps_within(layer, case, options.check_flops)
            short = case.with_seq_len(steps)
            check = _check_packed(layers, short, mode, ragged_lengths(steps, case.batch))
            if not add_check(row, check):
                return row
            lengths = ragged_lengths(case.seq_len, case.batch)
            rows = int(lengths.sum())
            same_rows = case.with_seq_len(rows // case.batch)
            x = cases.make_input(case, torch.float32)
            d_output = cases.make_d_output(case, torch.float32)
            packed_x = pack_padded_sequence(x, lengths, enforce_sorted=False)
            d_packed = pack_padded_sequence(d_output, lengths, enforce_sorted=False).data
            part = slice(same_rows.seq_len)
            contestants = {}
            for name, module in layers.items():
                contestants[f"{name}_packed"] = layer_call(module, packed_x, mode, d_packed)
                contestants[f"{name}_padded"] = layer_call(module, x[part], mode, d_output[part])
            full = layer_call(layers["fastrnn"], x, mode, d_output)
            times = measure(options, row, {**contestants, "fastrnn_padded_full": full})
            row["rows"] = rows
            row["ratio"] = timing.round_ratio(times["torch_packed"], times["fastrnn_packed"])
            row["packed_over_padded"] = timing.round_ratio(
                times["fastrnn_packed"], times["fastrnn_padded"]
            )
            row["torch_packed_over_padded"] = timing.round_ratio(
                times["torch_packed"], times["torch_padded"]
            )
            return row

        return Job(f"packed {layer} {mode} {threads} threads {case}", run)

    return [
        job(layer, mode, threads, Case(seq_len, batch, size, size))
        for threads in options.thread_counts(2)
        for layer in options.layers
        for mode in options.modes
        for batch, size in PACKED_SIZES
        for seq_len in PACKED_LENGTHS
    ]


# ----------------------------------------------------------------- low precision

LOWPREC_CASES = (Case(100, 1, 512, 512), Case(100, 1, 1024, 1024))


def lowprec(options: Options) -> list[Job]:
    """Inference of one sequence beside float32: 16-bit layers, and quantized weights."""

    def job(layer: str, dtype: str, threads: int, case: Case) -> Job:
        def run() -> Row:
            torch.set_num_threads(threads)
            row = row_of("lowprec", layer, "inference", dtype, threads, case)
            contestants, found = {}, []
            for kind in ("float32", dtype):
                torch_dtype = cases.DTYPES[kind]
                layers = cases.build_layers(layer, case, torch_dtype, "inference")
                x = cases.make_input(case, torch_dtype)
                d_output = cases.make_d_output(case, torch_dtype)
                found.append(
                    checks.check_case(
                        layer, case, layers, x, "inference", d_output, options.check_flops
                    )
                )
                for name, module in layers.items():
                    contestants[f"{name}_{kind}"] = inference_call(module, x)
            if not add_check(row, checks.worst_of(found)):
                return row
            times = measure(options, row, contestants)
            ours = times[f"fastrnn_{dtype}"]
            row["ratio"] = timing.round_ratio(times[f"torch_{dtype}"], ours)
            row["ratio_to_float32"] = timing.round_ratio(times["fastrnn_float32"], ours)
            return row

        return Job(f"lowprec {layer} {dtype} {threads} threads {case}", run)

    dtypes = [d for d in options.dtypes if d in ("bfloat16", "float16")]
    chosen = itertools.product(options.thread_counts(2), options.layers)
    return [
        one
        for threads, layer in chosen
        for one in [
            *(
                job(layer, dtype, threads, case)
                for dtype in dtypes or ["bfloat16", "float16"]
                for case in LOWPREC_CASES
            ),
            *(
                _quantized_job(options, layer, weights, threads, case)
                for weights in QUANTIZED
                for case in (*LOWPREC_CASES, *(case.with_seq_len(1) for case in LOWPREC_CASES))
            ),
        ]
    ]


#: Weights of fastrnn.quantize, and the error of the output that they may have.
QUANTIZED = {"int8": (torch.int8, 0.05), "packed_bf16": (torch.bfloat16, 0.02)}


def _quantized_job(options: Options, layer: str, weights: str, threads: int, case: Case) -> Job:
    """One sequence with weights kept in int8 or bfloat16; beside it torch's dynamic int8.

    torch has none for nn.RNN, nor for bfloat16: its float32 layer stands there.
    """

    def run() -> Row:
        import fastrnn

        torch.set_num_threads(threads)
        row = row_of("lowprec", layer, "inference", weights, threads, case)
        dtype, bound = QUANTIZED[weights]
        layers = cases.build_layers(layer, case, torch.float32, "inference")
        x = cases.make_input(case, torch.float32)
        modules = {f"{name}_float32": module for name, module in layers.items()}
        ours = fastrnn.quantize(layers["fastrnn"], dtype, inplace=False)
        modules[f"fastrnn_{weights}"] = ours
        theirs = layers["torch"]
        if weights == "int8" and layer != "RNN":
            with warnings.catch_warnings():  # it is deprecated in torch, and all there is
                warnings.simplefilter("ignore")
                theirs = torch.ao.quantization.quantize_dynamic(
                    nn.Sequential(theirs), {type(theirs)}, dtype=torch.qint8
                )
        modules[f"torch_{weights}"] = theirs
        with torch.no_grad():
            exact = cases.exact_copy(layers["torch"])(x.double())[0]
            errors = [checks.relative_error(m(x)[0], exact) for m in (ours, theirs)]
        check = checks.Check(errors[0] <= bound, "output", *errors, bound, case.seq_len)
        if not add_check(row, check):
            return row
        times = measure(options, row, {n: inference_call(m, x) for n, m in modules.items()})
        mine = times[f"fastrnn_{weights}"]
        row["ratio"] = timing.round_ratio(times[f"torch_{weights}"], mine)
        row["ratio_to_float32"] = timing.round_ratio(times["fastrnn_float32"], mine)
        return row

    return Job(f"lowprec {layer} {weights} {threads} threads {case}", run)


# ----------------------------------------------------------------- memory

MEMORY_CASES = (
    Case(1000, 8, 64, 64),
    Case(100, 32, 512, 512),
    Case(365, 256, 32, 128),
    Case(100, 16, 256, 256, num_layers=2, directions=2),
)


def memory(options: Options) -> list[Job]:
    """Growth of the peak resident size in a fresh process for each library."""

    def grow(library: str, row: Row) -> dict:
        keys = ("layer", "mode", "dtype", "threads", "case")
        spec = json.dumps({"library": library, **{key: row[key] for key in keys}})
        command = [sys.executable, "-m", "benchmarks.lib.memory", spec]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"memory of {library} {spec}: {done.stderr.strip()}")
        return json.loads(done.stdout)

    def job(layer: str, mode: str, threads: int, case: Case) -> Job:
        def run() -> Row:
            torch.set_num_threads(threads)
            row = row_of("memory", layer, mode, "float32", threads, case)
            layers = cases.build_layers(layer, case, torch.float32, mode)
            x = cases.make_input(case, torch.float32)
            d_output = cases.make_d_output(case, torch.float32)
            check = checks.check_case(layer, case, layers, x, mode, d_output, options.check_flops)
            if not add_check(row, check):
                return row
            row["memory"] = {library: grow(library, row) for library in layers}
            growth = {name: found["growth_bytes"] for name, found in row["memory"].items()}
            row["ours_over_torch"] = growth["fastrnn"] / max(growth["torch"], 1)
            return row

        return Job(f"memory {layer} {mode} {case}", run)

    return [
        job(layer, mode, threads, case)
        for threads in options.thread_counts(2)[:1]
        for layer in options.layers
        for mode in options.modes
        for case in MEMORY_CASES
    ]


# ----------------------------------------------------------------- denormals

DENORMAL_CASE = Case(365, 256, 32, 128)


def denormal(options: Options) -> list[Job]:
    """A loss on the last step only, whose gradients decay into denormals.

    Both losses give backward a full gradient of the output; the last-step loss
    has zeros in it, so that the two do the same work.
    """

    def job(layer: str, threads: int, case: Case) -> Job:
        def run() -> Row:
            torch.set_num_threads(threads)
            row = row_of("denormal", layer, "training", "float32", threads, case)
            layers = cases.build_layers(layer, case, torch.float32, "training")
            x = cases.make_input(case, torch.float32)
            losses = {"all": cases.make_d_output(case, torch.float32)}
            losses["last"] = torch.zeros_like(losses["all"])
            losses["last"][-1] = losses["all"][-1]
            contestants, found = {}, []
            for loss, d_output in losses.items():
                steps = checks.steps_within(layer, case, options.check_flops)
                found += checks.check_each(layers, x[-steps:], "training", d_output[-steps:])
                for name, module in layers.items():
                    contestants[f"{name}_{loss}"] = training_call(module, x, d_output)
            if not add_check(row, checks.worst_of(found)):
                return row
            times = measure(options, row, contestants)
            row["last_over_all"] = timing.round_ratio(times["fastrnn_last"], times["fastrnn_all"])
            row["torch_last_over_all"] = timing.round_ratio(times["torch_last"], times["torch_all"])
            row["ratio"] = timing.round_ratio(times["torch_last"], times["fastrnn_last"])
            return row

        return Job(f"denormal {layer} {threads} threads {case}", run)

    return [
        job(layer, threads, DENORMAL_CASE)
        for threads in options.thread_counts(2)
        for layer in options.layers
    ]


SUITES: dict[str, Callable[[Options], list[Job]]] = {
    "grid": grid,
    "streaming": streaming,
    "packed": packed,
    "lowprec": lowprec,
    "memory": memory,
    "denormal": denormal,
    "overhead": overhead,
}
