"""Builds the extension fastrnn._C with torch.utils.cpp_extension; all else is in pyproject.toml.

Environment:
    FASTRNN_CUDA  0: never build the CUDA kernels; 1: build them or fail with the reason;
                  unset: build them where the sources, a CUDA build of torch and nvcc all exist.
    MAX_JOBS      compilations at once (default: the usable CPUs, at most 8).
    CXX           the compiler (torch's default otherwise).
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent

# Flags for every source. There is no -std (torch's build adds the one that its headers need), no
# -march and no per-file -m: the files in csrc/cpu/targets select their instruction set themselves.
REQUIRED_FLAGS = ["-O3", "-fvisibility=hidden", "-Wall", "-Wextra"]
OPTIONAL_FLAGS = [
    # The compiler may not fuse a*b+c by itself: every accumulator must do the same operations
    # whatever tile holds it, or results would depend on how threads divide the work. Where the
    # kernels want a fused multiply-add they say so.
    "-ffp-contract=off",
    # Kernels never read errno; with it, sqrt and exp would not vectorise.
    "-fno-math-errno",
    # Undo flags that the build of Python itself leaves in the command line: wrapping signed
    # arithmetic defeats loop optimisations, and debug information is most of the file's size.
    "-fno-wrapv",
    "-g0",
    # GCC 12 takes the "undefined" registers of its own AVX-512 intrinsics for a mistake of ours.
    "-Wno-maybe-uninitialized",
    "-Wno-uninitialized",
]
CUDA_FLAGS = ["-O3", "--expt-relaxed-constexpr", "-lineinfo"]


def default_cuda_architectures(release: str) -> str:
    """What kernels are compiled for unless TORCH_CUDA_ARCH_LIST says so, by nvcc's release.

    Machine code for A100, H100, B200 and the RTX cards of their time, and PTX of the newest that
    every later device takes. Not 10.3: nvcc 13.0 is reported to miscompile for it. PTX older than
    9.0 knows no clusters: newer devices that ran it would have to do without them.
    """
    if tuple(map(int, release.split("."))) >= (12, 8):
        return "8.0;9.0a;10.0;12.0+PTX"
    return "8.0;9.0+PTX"


NO_TORCH = """fastrnn: building the extension needs torch, and this environment has none.
Install torch first, then build without an isolated environment:
    pip install torch 'setuptools>=77.0.3' ninja
    pip install --no-build-isolation ."""


def find_sources(*suffixes: str) -> list[str]:
    """Paths under csrc, relative to the root as setuptools wants them, sorted."""
    paths = (p for p in (ROOT / "csrc").rglob("*") if p.suffix in suffixes)
    return sorted(p.relative_to(ROOT).as_posix() for p in paths)


def is_cuda(source: str) -> bool:
    """Whether only a build with CUDA has it; the plan is plain C++, and tests need it anywhere."""
    if source == "csrc/cuda/plan.cpp":
        return False
    return source.startswith("csrc/cuda/") or source.endswith(".cu")


def compiler_accepts(*flags: str) -> bool:
    """Whether the C++ compiler compiles and links an empty program with these flags."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "empty.cpp")
        source.write_text("int main() { return 0; }\n")
        command = [*compiler, "-Werror", *flags, str(source), "-o", str(Path(folder, "empty"))]
        try:
            return subprocess.run(command, capture_output=True).returncode == 0
        except OSError:
            return False


def nvcc_release(cuda_home: str | None) -> str | None:
    """The release of nvcc, such as '13.0', or None where there is no nvcc that runs."""
    if cuda_home is None:
        return None
    try:
        command = [str(Path(cuda_home, "bin", "nvcc")), "--version"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.search(r"release (\d+\.\d+)", printed)
    return found.group(1) if found else None


def plan_cuda(
    torch_version: str, torch_cuda: str | None, cuda_home: str | None, sources: list[str]
) -> tuple[bool, str]:
    """Whether to build the CUDA kernels, and a sentence that says so or why not."""
    wanted = os.environ.get("FASTRNN_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"fastrnn: FASTRNN_CUDA must be 0, 1 or unset, got {wanted!r}")
    if wanted == "0":
        return False, "not built: FASTRNN_CUDA=0"
    release = nvcc_release(cuda_home)
    missing = None
    if not sources:
        missing = "no CUDA sources in this version"
    elif torch_cuda is None:
        missing = f"torch {torch_version} has no CUDA"
    elif release is None:
        missing = "no nvcc found (CUDA_HOME can name the toolkit)"
    elif release.split(".")[0] != torch_cuda.split(".")[0]:
        missing = f"nvcc is of CUDA {release}, torch {torch_version} of CUDA {torch_cuda}"
    if missing is None:
        return True, f"built with nvcc {release} for torch {torch_version} (CUDA {torch_cuda})"
    if wanted == "1":
        raise SystemExit(f"fastrnn: FASTRNN_CUDA=1, but CUDA kernels cannot be built: {missing}")
    return False, f"not built: {missing}"


class BuildWithoutTorch(build_ext):
    """Lets an sdist be made without torch; anything that needs the extension stops here."""

    def run(self) -> None:
        raise SystemExit(NO_TORCH)


def describe_extension():
    """The extension and the command that builds it."""
    cpu_sources = [s for s in find_sources(".cpp") if not is_cuda(s)]
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        return Extension("fastrnn._C", cpu_sources, language="c++"), BuildWithoutTorch

    cuda_sources = [s for s in find_sources(".cpp", ".cu") if is_cuda(s)]
    with_cuda, cuda_fact = plan_cuda(
        torch.__version__, torch.version.cuda, cpp_extension.CUDA_HOME, cuda_sources
    )

    flags = REQUIRED_FLAGS + [f for f in OPTIONAL_FLAGS if compiler_accepts(f)]
    macros = []
    if compiler_accepts("-fopenmp"):
        # torch has loaded its own copy of this runtime by then, under the same name, so the
        # process has one pool of threads.
        threads_flag = "-fopenmp"
    else:
        threads_flag = "-pthread"
        macros.append(("FASTRNN_STD_THREADS", None))
    flags.append(threads_flag)

    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    macros += [
        ("FASTRNN_BUILD_FLAGS", quoted(" ".join(flags))),
        ("FASTRNN_BUILD_CUDA", quoted(cuda_fact)),
    ]
    if with_cuda:
        macros.append(("FASTRNN_WITH_CUDA", None))
        release = nvcc_release(cpp_extension.CUDA_HOME)
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", default_cuda_architectures(release))

    make = cpp_extension.CUDAExtension if with_cuda else cpp_extension.CppExtension
    extension = make(
        "fastrnn._C",
        cpu_sources + (cuda_sources if with_cuda else []),
        define_macros=macros,
        extra_link_args=[threads_flag],
        extra_compile_args={"cxx": flags, "nvcc": CUDA_FLAGS},
    )
    # torch's headers as system headers: -Wall -Wextra is for our code.
    system = []
    for folder in extension.include_dirs:
        system += ["-isystem", folder]
    extension.include_dirs = [str(ROOT / "csrc")]
    extension.extra_compile_args["cxx"] += system
    extension.extra_compile_args["nvcc"] += system

    class Build(cpp_extension.BuildExtension):
        def build_extensions(self) -> None:
            # One folder for the objects, also for an editable install, for which setuptools
            # would take a fresh temporary one: ninja then compiles what changed and nothing
            # else. It knows flags and our headers, but trusts system headers to stay, so
            # another torch or Python gets another folder.
            tag = f"py{sys.version_info.major}{sys.version_info.minor}-torch{torch.__version__}"
            self.build_temp = str(ROOT / "build" / f"objects-{tag}")
            os.makedirs(self.build_temp, exist_ok=True)
            # Always ask ninja: setuptools itself looks at the sources' times only.
            self.force = True
            jobs = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
            os.environ.setdefault("MAX_JOBS", str(min(len(jobs), 8)))
            try:
                super().build_extensions()
            except RuntimeError as error:  # what torch raises when ninja fails
                raise SystemExit(f"fastrnn: {error}; the compiler's words stand above") from error

    return extension, Build


extension, build_command = describe_extension()
setup(ext_modules=[extension], cmdclass={"build_ext": build_command})
