"""Layers of a stack side by side on a CUDA device: a wavefront of chunks of time.

A layer of few rows fills few multiprocessors. Time is cut into chunks, and layer l runs chunk k
while layer l + 1 runs chunk k - 1 (Appleyard et al., "Optimizing Performance of Recurrent Neural
Networks on GPUs", arXiv:1604.01946), each layer on a stream of its own.

Invariants
* A chunk of a layer comes after the layer's chunk before (same stream) and after the same chunk of
  the layer below (an event); everything comes after what the caller's stream held at the call, and
  that stream goes on after everything.
* What a stream reads and another one allocated is recorded there, so that its memory is not given
  away before it was read: outputs of a layer below are freed in backward, too.
* autograd runs the backward of a node on the stream of its forward and orders the streams.
"""

import functools
import os

import torch

from fastrnn._layer import autograd, extension
from fastrnn._layer.transforms import in_forward_mode, transforms_active

_CHUNKS = (2, 4, 8)
# What the host needs to launch a layer, with a graph of derivatives and without: a guess until
# benchmarks/gpu has measured it (its contestant "apart"). Nothing, where a CUDA graph is captured.
_HOST_US = {True: 150.0, False: 60.0}


def chunk_count(cell, input, states, params, call):
    """Into how many chunks to cut the time of a padded stack on a CUDA device; 1: do not.

    cell: the name of one. input `[T, B, I]`, params of all layers, call: a `stack.Call`. A second
    direction begins at the end, so nothing overlaps there; transforms and tracing see the plain
    stack.
    """
    num_layers = call.num_layers
    if (
        num_layers == 1
        or call.bidirectional
        or input.shape[0] < _CHUNKS[0]
        or os.environ.get("FASTRNN_CUDA_OVERLAP") == "0"
        or torch.compiler.is_compiling()
        or transforms_active()
        or in_forward_mode()
        or len(params) not in (2 * num_layers, 4 * num_layers)  # projected: only by steps
    ):
        return 1
    tf32 = input.dtype == torch.float32 and _products_are_tf32()
    records = autograd.records(input, *states, *params)
    return chunks_that_pay(
        cell,
        str(input.dtype).removeprefix("torch."),
        tf32,
        params[1].shape[-1],
        *input.shape[:2],
        num_layers,
        records,
        0.0 if torch.cuda.is_current_stream_capturing() else _HOST_US[records],
        limits(input.device.index),
    )


def _products_are_tf32():
    """What torch.backends.cuda.matmul says. Its older switch raises once the newer one, or one that
    the newer one inherits from, was used."""
    matmul = torch.backends.cuda.matmul
    precision = getattr(matmul, "fp32_precision", None)  # not in torch 2.6
    return matmul.allow_tf32 if precision is None else precision == "tf32"


@functools.cache
def limits(index):
    """The device's limits, as of fastrnn._C.cuda_devices."""
    device = torch.cuda.get_device_properties(index)
    blocks = device.multi_processor_count
    clusters = (blocks // 8, blocks // 16) if device.major >= 9 else (0, 0)
    capability = 10 * device.major + device.minor
    # A torch that does not tell gets no overlap.
    shared_bytes = getattr(device, "shared_memory_per_block_optin", 0)
    return capability, blocks, shared_bytes, blocks, *clusters


@functools.lru_cache(1024)
def chunks_that_pay(
    cell, dtype, tf32, hidden_size, seq_len, batch, num_layers, training, host_us, limits
):
    """`chunk_count` as a function of numbers alone, by the plan's costs of a step.

    Only where all layers fit on the device side by side, in each pass, and their steps are costed
    (regimes cluster and grid): steps fills the device, and single takes so little time that the
    host is slower. Kept for a process's life: the engine's environment variables are read once for
    a shape.
    """
    if dtype == "float64":
        return 1

    def pass_us(backward, chunks):
        """Time of a pass, infinite where it does not overlap."""
        plan = extension.cuda_plan(
            cell, backward, dtype, tf32, hidden_size, batch, 1, False, seq_len // chunks, limits
        )
        blocks = plan["blocks"] * plan["replicas"] * (num_layers if chunks > 1 else 1)
        if plan["regime"] not in ("cluster", "grid") or blocks > limits[1]:
            return float("inf")
        layer = plan["start_us"] + plan["step_us"] * -(-seq_len // chunks)
        if chunks == 1:
            return num_layers * max(layer, host_us)
        return (num_layers + chunks - 1) * max(layer, num_layers * host_us)

    def total_us(chunks):
        return sum(pass_us(backward, chunks) for backward in ((False, True)[: 1 + training]))

    best = min((1, *(c for c in _CHUNKS if c <= seq_len)), key=total_us)
    # Chunks cost copies that the plan knows nothing of.
    return best if total_us(best) < 0.9 * total_us(1) else 1


def layers(chunks, params, call, run, input, batch_sizes, states):
    """`stack.layers` in a wavefront, of one direction, of padded input, keeping nothing.

    chunks: at most T.
    """
    module = torch.get_device_module(input.device)
    home = module.current_stream(input.device)
    num_layers, before = call.num_layers, call.before
    lanes = _lanes(module, input.device, num_layers)
    parts = list(input.tensor_split(chunks))
    current = [tuple(s if s is None else s[i : i + 1] for s in states) for i in range(num_layers)]
    for index, lane in enumerate(lanes):
        lane.wait_stream(home)
        _record(lane, *params[index], *current[index])
    _record(lanes[0], *parts)
    ready = [None] * chunks  # by the layer that had the chunk last
    for wave in range(num_layers + chunks - 1):
        for index in range(max(0, wave - chunks + 1), min(num_layers, wave + 1)):
            chunk, lane = wave - index, lanes[index]
            with module.stream(lane):
                if index > 0:
                    lane.wait_event(ready[chunk])
                    _record(lane, parts[chunk])
                if before is not None:
                    parts[chunk] = before(index, parts[chunk], None)
                parts[chunk], *current[index] = run(
                    parts[chunk], None, tuple(current[index]), params[index], False
                )
                ready[chunk] = lane.record_event()
    for lane, final in zip(lanes, current):
        home.wait_stream(lane)
        _record(home, *final)
    _record(home, *parts)
    return torch.cat(parts), [torch.cat(state) for state in zip(*current)], ()


@functools.cache
def _lanes(module, device, count):
    """A stream for each layer. Calls on several streams share them, which costs time alone."""
    return [module.Stream(device) for _ in range(count)]


def _record(stream, *tensors):
    for tensor in tensors:
        if tensor is not None and tensor.is_cuda:
            tensor.record_stream(stream)
