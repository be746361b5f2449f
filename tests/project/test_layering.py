"""Imports and includes point one way: the table of docs/design.md, in code."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE, CSRC, TESTS = ROOT / "fastrnn", ROOT / "csrc", ROOT / "tests"

# module -> modules of fastrnn that it may import; "" is the package itself.
IMPORTS = {
    # What a user calls, and what is done to a model.
    "__init__": {
        "_layer.flops",
        "_version",
        "conversion",
        "functional",
        "initialization",
        "modules",
        "onnx",
        "quantization",
        "variants",
    },
    "__main__": {"", "_layer.extension", "_layer.ops"},
    "_version": set(),
    "conversion": {"modules"},
    "functional": {"_stack.beyond", "_stack.checks", "_stack.plain", "_stack.stack"},
    "initialization": {"_layer.cells", "reference"},
    # What other packages must know of us.
    "integrations.__init__": set(),
    "integrations.opacus": {"_layer.cells", "_stack.plain", "modules"},
    "integrations.torch_ao": {"modules", "quantization"},
    "modules": {
        "_layer.cells",
        "_layer.extension",
        "_stack.checks",
        "_stack.packing",
        "_stack.plain",
        "_stack.stack",
        "_stack.tracing",
        "_stack.weights",
        "functional",
    },
    "onnx": {"_layer.cells", "_layer.ops"},
    "quantization": {
        "_layer.cells",
        "_layer.ops",
        "_layer.panels",
        "_layer.transforms",
        "_stack.autocast",
        "_stack.checks",
        "_stack.packing",
        "_stack.stack",
        "_stack.tracing",
        "conversion",
    },
    "reference": set(),
    "variants": {
        "_stack.autocast",
        "_stack.checks",
        "_stack.inside",
        "_stack.tracing",
        "modules",
    },
    "variants_reference": {"reference"},
    # Many layers.
    "_stack.__init__": set(),
    "_stack.autocast": {"_layer.ops", "_stack.checks"},
    "_stack.beyond": {"_layer.autograd", "_layer.ops", "_layer.transforms"},
    "_stack.checkpoint": {
        "_layer.autograd",
        "_layer.backward",
        "_layer.cells",
        "_layer.derivatives",
        "_layer.ops",
        "_layer.transforms",
    },
    "_stack.checks": set(),
    "_stack.inside": {
        "_layer.autograd",
        "_layer.cells",
        "_layer.dropout",
        "_layer.inside",
        "_layer.ops",
        "_stack.autocast",
        "_stack.checkpoint",
        "_stack.checks",
        "_stack.plain",
        "_stack.stack",
        "_stack.weights",
    },
    "_stack.overlap": {"_layer.autograd", "_layer.extension", "_layer.transforms"},
    "_stack.packing": {
        "_layer.cells",
        "_layer.extension",
        "_stack.beyond",
        "_stack.checks",
        "_stack.tracing",
        "_stack.weights",
    },
    "_stack.plain": {
        "_layer.autograd",
        "_layer.cells",
        "_layer.ops",
        "_layer.per_sample",
        "_stack.autocast",
        "_stack.checkpoint",
        "_stack.checks",
        "_stack.overlap",
        "_stack.stack",
    },
    "_stack.stack": {"_stack.beyond"},
    "_stack.tracing": set(),
    "_stack.weights": set(),
    # One layer.
    "_layer.__init__": set(),
    "_layer.autograd": {
        "_layer.backward",
        "_layer.batching",
        "_layer.by_reference",
        "_layer.cells",
        "_layer.derivatives",
        "_layer.ops",
        "_layer.rows",
        "_layer.transforms",
    },
    "_layer.backward": {"_layer.cells", "_layer.ops"},
    "_layer.batching": {
        "_layer.backward",
        "_layer.cells",
        "_layer.ops",
        "_layer.rows",
        "_layer.transforms",
    },
    "_layer.by_reference": {"_layer.cells", "reference", "variants_reference"},
    "_layer.cells": {"_layer.extension"},
    "_layer.derivatives": {
        "_layer.backward",
        "_layer.batching",
        "_layer.by_reference",
        "_layer.cells",
        "_layer.ops",
        "_layer.transforms",
    },
    "_layer.dropout": {"_layer.ops", "_layer.transforms", "variants_reference"},
    "_layer.extension": {"_C"},
    "_layer.flops": {"_layer.cells", "_layer.ops"},
    "_layer.inside": set(),
    "_layer.ops": {"_layer.cells", "_layer.extension"},
    "_layer.panels": {"_layer.cells", "reference"},
    "_layer.per_sample": {
        "_layer.backward",
        "_layer.cells",
        "_layer.ops",
        "_layer.transforms",
    },
    "_layer.rows": set(),
    "_layer.transforms": set(),
}
# Optional packages: imported inside a function, which says what to install.
OPTIONAL = {"onnx": {"onnxscript"}, "integrations.opacus": {"opacus"}}

# folder or file under csrc (the longest that fits counts) -> the beginnings of the paths that it
# may include. Headers of the standard library, of intrinsics and of the system are free for all.
TORCH = ("torch/", "ATen/", "c10/")
INCLUDES = {
    "ops.cpp": ("torch/library.h",),
    "recorded.cpp": TORCH,
    "module.cpp": (
        *TORCH,
        "pybind11/",
        "cpu/dispatch.h",
        "cuda/plan.h",
        "direct.h",
        "host/layer.h",
    ),
    "direct.h": ("Python.h",),
    "direct.cpp": (*TORCH, "cpu/inference.h", "direct.h"),
    "layer_shape.h": (),
    "host": (*TORCH, "cells/list.h", "host/", "layer_shape.h"),
    "cells": ("cells/", "layer_shape.h"),
    "cpu/params.h": ("layer_shape.h",),
    "cpu/quantized_params.h": ("cpu/params.h",),
    "cpu/kernels": (
        "cells/",
        "cpu/kernels/",
        "cpu/params.h",
        "cpu/quantized_params.h",
        "cpu/team.h",
    ),
    "cpu/targets": ("cpu/kernels/", "cpu/params.h"),
    "cpu/dispatch.h": ("cpu/params.h", "cpu/quantized_params.h"),
    "cpu/dispatch.cpp": ("cpu/dispatch.h", "cpu/params.h", "cpu/targets/"),
    "cpu/team.h": ("cpu/params.h",),
    "cpu/team.cpp": ("cpu/team.h", "cpu/params.h"),
    "cpu/memory.h": (),
    "cpu/memory.cpp": ("cpu/memory.h",),
    "cpu/tensors.h": (*TORCH, "cpu/memory.h"),
    "cpu/layer.h": (
        *TORCH,
        "cpu/dispatch.h",
        "cpu/params.h",
        "cpu/team.h",
        "cpu/tensors.h",
        "host/saved.h",
    ),
    "cpu/inference.h": (*TORCH, "host/cells.h"),
    "cpu/host.cpp": (*TORCH, "cpu/inference.h", "cpu/layer.h", "host/operators.h"),
    "cpu/samples.cpp": (*TORCH, "cpu/layer.h"),
    "cpu/second_order.cpp": (*TORCH, "cpu/layer.h"),
    "cpu/quantized.cpp": (*TORCH, "cpu/layer.h"),
    "cpu/drop.cpp": (*TORCH, "cpu/layer.h"),
    "cpu/segments.cpp": (*TORCH, "cpu/team.h", "cpu/tensors.h"),
    "cuda/tiles.h": (),
    "cuda/plan.h": ("cuda/tiles.h", "layer_shape.h"),
    "cuda/plan.cpp": ("cells/list.h", "cuda/plan.h", "cuda/step_costs.h"),
    "cuda/step_costs.h": ("cuda/tiles.h",),
    "cuda/storage.h": (),
    "cuda/params.h": ("layer_shape.h",),
    "cuda/primitives.h": ("cuda/storage.h", "cuda/tiles.h", "cuda_bf16.h", "cuda_fp16.h"),
    "cuda/launch.h": ("cuda_runtime_api.h",),
    "cuda/launchers.h": ("cuda/launch.h", "cuda/params.h", "cuda/tiles.h"),
    "cuda/kernels": (
        "cells/",
        "cuda/kernels/",
        "cuda/params.h",
        "cuda/launchers.h",
        "cuda/primitives.h",
        "cuda/tiles.h",
        "layer_shape.h",
    ),
    "cuda/instances": ("cuda/kernels/", "cuda/launchers.h"),
    "cuda/device.h": (*TORCH, "cuda/launch.h", "cuda/plan.h"),
    # Every other file here is host code.
    "cuda": (
        *TORCH,
        "cuda/calls.h",
        "cuda/device.h",
        "cuda/host.h",
        "cuda/launchers.h",
        "cuda/plan.h",
        "host/",
    ),
}
SYSTEM = re.compile(
    r"[a-z_0-9]+|[a-z]*intrin\.h|(?:omp|pthread|cpuid|dirent|sched|unistd|sys/mman)\.h"
)


def sources():
    """Every C++ and CUDA file, as a path under csrc."""
    paths = (p for p in CSRC.rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".cuh"))
    return sorted(p.relative_to(CSRC).as_posix() for p in paths)


def rule(place):
    """What a source may include."""
    rows = [row for row in INCLUDES if place == row or place.startswith(row + "/")]
    assert rows, f"{place} has no row in INCLUDES, nor perhaps in docs/design.md"
    return INCLUDES[max(rows, key=len)]


def imported(path, ours_is="fastrnn"):
    """Modules of a package of ours that a file imports, and the other top-level names."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            names = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for module, name in names:
            package, _, inner = module.partition(".")
            if package != ours_is:
                others.add(package)
            elif inner and name and (ROOT / module.replace(".", "/")).is_dir():
                ours.add(f"{inner}.{name}")
            else:
                ours.add(inner or name or "")
    return ours, others


def dotted(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=dotted)
def test_imports(path):
    name = dotted(path)
    ours, others = imported(path)
    assert name in IMPORTS, f"{name} has no row in IMPORTS, nor perhaps in docs/design.md"
    assert ours <= IMPORTS[name]
    assert others <= {"torch"} | set(sys.stdlib_module_names) | OPTIONAL.get(name, set())


def test_folders_import_one_way():
    """_layer nothing of _stack, and neither of them what a user calls but the equations."""
    equations = {"_C", "reference", "variants_reference"}
    for name, allowed in IMPORTS.items():
        folder = name.partition(".")[0]
        if folder in (name, "integrations"):
            continue
        folders = ("_layer.",) if folder == "_layer" else ("_layer.", "_stack.")
        assert all(a.startswith(folders) or a in equations for a in allowed), name
    seen = {}
    while len(seen) < len(IMPORTS):  # what can be imported after what was
        ready = {n for n, of in IMPORTS.items() if n not in seen and of <= {*seen, "", "_C"}}
        assert ready, f"a circle among {set(IMPORTS) - set(seen)}"
        seen |= dict.fromkeys(ready)


def test_benchmarks_lib_imports_no_command():
    folder = ROOT / "benchmarks" / "lib"
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                ours = node.level or node.module.split(".")[0] == "benchmarks"
                assert not ours or node.level == 1, f"{path.name} imports {node.module}"


def private_names(path):
    """Private names of other modules of ours that a file uses."""
    modules, found = set(), set()
    nodes = list(ast.walk(ast.parse(path.read_text())))
    for node in nodes:
        if not isinstance(node, ast.ImportFrom):
            continue
        package = node.module or ""  # relative: of the folder itself
        if node.level == 0 and package.split(".")[0] not in OURS:
            continue
        for alias in node.names:
            if not package or (ROOT / package.replace(".", "/")).is_dir():
                modules.add(alias.asname or alias.name)
            elif is_private(alias.name):
                found.add(f"{package}.{alias.name}")
    for node in nodes:
        of = getattr(node, "value", None)
        if isinstance(node, ast.Attribute) and isinstance(of, ast.Name) and of.id in modules:
            found |= {f"{of.id}.{node.attr}"} if is_private(node.attr) else set()
    return found


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


OURS = ("fastrnn", "benchmarks")


def test_private_names_stay_in_their_files():
    files = [path for folder in (*OURS, "examples") for path in (ROOT / folder).rglob("*.py")]
    breaches = {
        f"{path.relative_to(ROOT)}: {name}" for path in files for name in private_names(path)
    }
    assert breaches == set()


def test_no_test_is_imported():
    """What two test modules share is in a module beside them."""
    breaches = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in TESTS.rglob("*.py")
        for module in imported(path, "tests")[0]
        if module.rpartition(".")[2].startswith("test_")
    }
    assert breaches == set()


def test_optional_packages_are_not_imported_at_once():
    code = "import sys, fastrnn; print(*({'onnx', 'onnxscript', 'onnxruntime'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and run.stdout.split() == [], run.stderr


@pytest.mark.parametrize("place", sources())
def test_includes(place):
    allowed = rule(place)
    includes = re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)', (CSRC / place).read_text(), re.M)
    for quote, include in includes:
        # A path relative to the file, where there is such a file, is one relative to csrc.
        beside = (CSRC / place).parent / include
        if quote == '"' and beside.is_file():
            include = beside.resolve().relative_to(CSRC).as_posix()
        free = quote == "<" and SYSTEM.fullmatch(include)
        assert free or include.startswith(allowed), f"{place} includes {include}"


@pytest.mark.parametrize("place", sources())
def test_only_host_code_knows_torch(place):
    if not any(prefix in TORCH for prefix in rule(place)) and place != "ops.cpp":
        assert not re.search(r"\b(?:at|c10|torch)::|\bTORCH_", (CSRC / place).read_text()), place


def test_ops_is_one_schema_a_line():
    text = (CSRC / "ops.cpp").read_text()
    assert text.count("m.def(") == len(re.findall(r"^  m\.def\(.*\);$", text, re.M)) > 0
    assert "m.impl(" not in text
