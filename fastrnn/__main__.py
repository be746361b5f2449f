"""`python -m fastrnn`: what an issue report needs; --cuda-plan: what the CUDA engine would do."""

import argparse
import os
import platform
import sys

import torch

import fastrnn
from fastrnn._layer import extension, ops


def cpu_model():
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def report():
    """Pairs of a name and what it is here."""
    target, targets = extension.cpu_target(), ", ".join(extension.cpu_targets())
    forced = os.environ.get("FASTRNN_CPU_TARGET")
    environment = [
        f"{name}={os.environ[name]}"
        for name in ("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_WAIT_POLICY", "MKL_NUM_THREADS")
        if name in os.environ
    ]
    return [
        ("fastrnn", f"{fastrnn.__version__} ({os.path.dirname(fastrnn.__file__)})"),
        ("torch", f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})"),
        ("python", f"{platform.python_version()} ({platform.python_implementation()})"),
        ("platform", platform.platform()),
        ("cpu", f"{cpu_model()}, {os.cpu_count()} logical"),
        *((f"built: {name}", value) for name, value in extension.build_info().items()),
        ("cpu target", target + (f" (FASTRNN_CPU_TARGET={forced})" if forced else "")),
        ("cpu targets", targets),
        ("threads", ", ".join([f"{torch.get_num_threads()} of torch", *environment])),
        ("devices", ", ".join(sorted(ops.DEVICE_TYPES - {"meta"}))),
    ]


# dtype, and whether products may be TF32.
_NUMERICS = ("bfloat16", False), ("float16", False), ("float32", True), ("float32", False)


def plans(batch, directions, seq_len):
    """Pairs of a layer and its regime and tiles, forward and backward, on every known device."""
    for device, limits in extension.cuda_devices().items():
        for cell in ("lstm", "gru", "rnn_tanh"):
            for dtype, tf32 in _NUMERICS:
                for hidden_size in (32, 64, 96, 128, 256, 512, 768, 1024, 2048):
                    for backward in (False, True):
                        sizes = hidden_size, batch, directions, False, seq_len
                        plan = extension.cuda_plan(cell, backward, dtype, tf32, *sizes, limits)
                        name = f"{dtype}{'/tf32' if tf32 else ''} H={hidden_size} B={batch}"
                        way = "backward" if backward else "forward"
                        yield f"{device} {cell} {name} {way}", plan["text"]


def main():
    """Prints the report, or the plans."""
    parser = argparse.ArgumentParser(prog="python -m fastrnn", description=__doc__)
    parser.add_argument("--cuda-plan", action="store_true", help="print the CUDA engine's plans")
    parser.add_argument("--batch", type=int, default=64, help="of --cuda-plan")
    parser.add_argument("--directions", type=int, choices=(1, 2), default=1, help="of --cuda-plan")
    parser.add_argument("--seq-len", type=int, default=512, help="of --cuda-plan")
    arguments = parser.parse_args()
    if arguments.cuda_plan:
        rows = list(plans(arguments.batch, arguments.directions, arguments.seq_len))
    else:
        rows = report()
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}")


if __name__ == "__main__":
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
