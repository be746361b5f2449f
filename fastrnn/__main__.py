"""`python -m fastrnn`: what an issue report needs."""

import os
import platform
import sys

import torch

import fastrnn
from fastrnn import _ops


def _cpu_model():
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
    target, targets = _ops.cpu_target(), ", ".join(_ops.cpu_targets())
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
        ("cpu", f"{_cpu_model()}, {os.cpu_count()} logical"),
        *((f"built: {name}", value) for name, value in _ops.build_info().items()),
        ("cpu target", target + (f" (FASTRNN_CPU_TARGET={forced})" if forced else "")),
        ("cpu targets", targets),
        ("threads", ", ".join([f"{torch.get_num_threads()} of torch", *environment])),
        ("devices", ", ".join(sorted(_ops.DEVICE_TYPES - {"meta"}))),
    ]


def main():
    """Prints the report."""
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
