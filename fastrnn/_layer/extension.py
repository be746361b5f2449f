"""Loads the compiled extension, which registers the operators of csrc/ops.cpp."""

import importlib.machinery
import os

import torch

try:
    from fastrnn import _C
except ImportError as error:
    if "FASTRNN_" in str(error):  # a variable that has no such value: building helps nothing
        raise
    folder = os.path.dirname(os.path.abspath(__file__))
    if importlib.machinery.PathFinder.find_spec("_C", [folder]) is None:
        raise ImportError(
            f"fastrnn: there is no compiled extension in {folder}. If these are its sources, build "
            "it in place (`pip install --no-build-isolation -e .`), or run Python in another "
            "folder to import an installed fastrnn"
        ) from None
    raise ImportError(
        "fastrnn: the compiled extension fastrnn._C cannot be loaded; build it again with "
        f"`pip install --no-build-isolation -e .` against this torch ({torch.__version__}): {error}"
    ) from error

cells = _C.cells
params = _C.params
direct_layer = _C.direct_layer
direct_cell = _C.direct_cell
cpu_targets = _C.cpu_targets
cpu_target = _C.cpu_target
build_info = _C.build_info
cuda_plan = _C.cuda_plan
cuda_devices = _C.cuda_devices
