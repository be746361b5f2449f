"""What the numbers depend on, as a row; ends with an error unless the extension serves the device.

    python -m benchmarks.gpu.environment --rows rows.jsonl [--device cuda]

torch is imported first: without it there is nothing to write down.
"""

import os
import platform
import subprocess
import sys

import torch

from benchmarks.gpu import measure, rows
from benchmarks.gpu.stages import ROOT


def said(*command):
    """What a command prints; nothing where it cannot run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def facts():
    """Versions and the device."""
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "commit": os.environ.get("FASTRNN_COMMIT") or said("git", "rev-parse", "HEAD"),
        "precision by default": measure.precision(),
        "nvidia_smi": said(
            "nvidia-smi", "--format=csv",
            "--query-gpu=name,driver_version,clocks.sm,clocks.max.sm,power.limit",
        ),
    }  # fmt: skip
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["device"] = properties.name
        found["capability"] = f"{properties.major}.{properties.minor}"
        found["multiprocessors"] = properties.multi_processor_count
    return found


def main(arguments=None):
    """Writes the row; the exit status is 0 where fastrnn has kernels for the device."""
    parser = measure.arguments(__doc__)
    options = parser.parse_args(arguments)
    row = {"stage": "environment", **facts()}
    try:
        from fastrnn._layer import extension, ops

        row["build"] = extension.build_info()
        row["fastrnn"] = ops.__file__
        row["serves"] = options.device in ops.DEVICE_TYPES
        row["serves"] &= options.device == "cpu" or torch.cuda.is_available()
    except ImportError as error:
        row["serves"] = False
        row["import"] = str(error)[:500]
    rows.append(options.rows, row)
    print(row, flush=True)
    return 0 if row["serves"] else 4


if __name__ == "__main__":
    sys.exit(main())
