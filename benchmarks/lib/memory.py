"""Peak memory of one layer: ``python -m benchmarks.lib.memory SPEC``, SPEC in JSON.

Run by the memory suite in a fresh process each time, because a process that
has once grown keeps its memory. Prints one JSON object. Growth is the highest
resident size during CALLS calls less the resident size before them; the layer,
its input and the gradient of its output exist before, and a short run has
loaded the libraries' code and started their threads.
"""

from __future__ import annotations

import json
import resource
import sys

import torch

from . import cases

CALLS = 3
MEBIBYTE = 2**20


def _status(field: str) -> int:
    """A size from /proc/self/status, in bytes."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _start_peak() -> tuple[int, bool]:
    """Resident size now, and whether the peak could be reset to it."""
    try:
        with open("/proc/self/clear_refs", "w") as clear:
            clear.write("5")
        return _status("VmRSS"), True
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, False


def measure(spec: dict) -> dict:
    case = cases.parse_case(spec["case"])
    dtype = cases.DTYPES[spec["dtype"]]
    torch.set_num_threads(spec["threads"])
    training = spec["mode"] == "training"
    layers = cases.build_layers(spec["layer"], case, dtype, spec["mode"])
    module = layers.pop(spec["library"])
    if spec.get("checkpoint_every"):
        module.checkpoint_every = spec["checkpoint_every"]
    layers.clear()
    x = cases.make_input(case, dtype).requires_grad_(training)
    d_output = cases.make_d_output(case, dtype)

    def call(steps: int) -> None:
        with torch.set_grad_enabled(training):
            # A slice of all steps would cost a copy of the input's gradient.
            output, _ = module(x if steps == case.seq_len else x[:steps])
        if training:
            output.backward(d_output[:steps])
            module.zero_grad(set_to_none=True)
            x.grad = None

    call(2)
    before, exact = _start_peak()
    for _ in range(CALLS):
        call(case.seq_len)
    peak = _status("VmHWM") if exact else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "growth_bytes": peak - before,
        "output_bytes": d_output.numel() * d_output.element_size(),
        "peak_was_reset": exact,
    }


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
