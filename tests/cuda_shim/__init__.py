"""Builds the CUDA engine for the shim of this folder and loads its operators."""

import functools
import os
import sys
import time
from pathlib import Path

import torch
from torch.utils import cpp_extension

import fastrnn  # noqa: F401  (its schemas are the shim's)

ROOT = Path(__file__).parent.parent.parent
HERE = ROOT / "tests" / "cuda_shim"
# register.cpp is the one source that only a GPU can have.
HOST = [p for p in sorted((ROOT / "csrc" / "cuda").glob("*.cpp")) if p.stem != "register"]


@functools.cache
def load():
    """The operators' namespace. The first build takes half a minute, later ones a second."""
    folder = ROOT / "build" / f"cuda_shim-torch{torch.__version__}"
    folder.mkdir(parents=True, exist_ok=True)
    # A build that was killed leaves its lock, which torch would wait for without end.
    lock = folder / "lock"
    if lock.exists() and time.time() - lock.stat().st_mtime > 600:
        lock.unlink()
    # ninja of this environment, which need not be an activated one.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ["PATH"], before = path, os.environ.get("PATH", "")
    try:
        build(folder)
    finally:
        os.environ["PATH"] = before
    return torch.ops.fastrnn_cuda_shim


def build(folder):
    """Compiles what changed, and loads the library."""
    cpp_extension.load(
        "fastrnn_cuda_shim",
        # races.cpp is a program (make sanitize).
        [str(p) for p in (*sorted(HERE.glob("*.cpp")), *HOST) if p.stem != "races"],
        # This folder first: its cuda/primitives.h stands in for the real one.
        extra_cflags=["-O1", "-g0", "-Wall", "-Wextra", "-fno-strict-aliasing",
                      "-ffp-contract=off", f"-I{HERE}", f"-I{ROOT / 'csrc'}"],
        build_directory=str(folder),
        is_python_module=False,
    )  # fmt: skip
