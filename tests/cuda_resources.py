"""Compiles every CUDA source and holds each kernel to what the committed table allows it.

    python -m tests.cuda_resources [--write] [--jobs 2] [--architectures sm_90a ...]

needs nvcc and the headers of any torch, but no GPU and no built extension. A kernel that spills,
has a stack frame or static shared memory, or takes more registers than tests/cuda_resources.json
says, fails; so does one that the table lacks, or has and the sources do not. --write makes the
table anew (it refuses to write down a spill).
"""

import argparse
import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "tests" / "cuda_resources.json"
# Those that setup.py builds for by default.
ARCHITECTURES = {"sm_80": "80", "sm_90a": "90a", "sm_100": "100", "sm_120": "120"}
# A CPU build of torch ships the CUDA headers but not the one that its CUDA build generates.
MACROS = ["-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE"]
FUNCTION = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.S,
)


def find_nvcc():
    """The compiler of NVCC, CUDA_HOME, the path or the usual folder."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    for candidate in (os.environ.get("NVCC"), "nvcc", f"{home}/bin/nvcc"):
        if candidate and shutil.which(candidate):
            return shutil.which(candidate)
    raise SystemExit("cuda-check: no nvcc found; set NVCC or CUDA_HOME")


def includes(nvcc):
    """The flags for torch's, Python's and CUDA's headers."""
    from torch.utils.cpp_extension import include_paths

    # nvcc may be a wrapper; it knows where it is.
    dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
    cuda = Path(re.search(r"^#\$ TOP=(.*)$", dry.stderr, re.M).group(1), "include")
    folders = [*include_paths(), sysconfig.get_path("include"), str(cuda.resolve())]
    return [f"-I{ROOT / 'csrc'}", *(f for path in folders for f in ("-isystem", path))]


def jobs(nvcc, architectures):
    """Pairs of a name and a command: kernels once an architecture, host code once."""
    folder = ROOT / "build" / "cuda"
    for source in sorted((ROOT / "csrc").rglob("*.cu")):
        for name in architectures:
            number = ARCHITECTURES[name]
            target = folder / name / f"{source.stem}.o"
            target.parent.mkdir(parents=True, exist_ok=True)
            yield f"{name} {source.relative_to(ROOT)}", [
                nvcc, "-std=c++17", "-O3", "--expt-relaxed-constexpr", f"-I{ROOT / 'csrc'}",
                f"-gencode=arch=compute_{number},code={name}", "-Xptxas", "-v,-warn-spills",
                "-Xcompiler", "-fPIC,-Wall,-Wextra", "-c", str(source), "-o", str(target),
            ]  # fmt: skip
    for source in sorted((ROOT / "csrc" / "cuda").glob("*.cpp")):
        yield f"host {source.relative_to(ROOT)}", [
            os.environ.get("CXX") or "c++", "-std=c++20", "-Wall", "-Wextra", "-Werror",
            "-fsyntax-only", *MACROS, *includes(nvcc), str(source),
        ]  # fmt: skip


def run(job):
    """The name, what the compiler said, and how long it took."""
    name, command = job
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"cuda-check: {name} does not compile\n{done.stdout}{done.stderr}")
    return name, done.stdout + done.stderr, time.monotonic() - begin


def plain(names):
    """Mangled names as people write them, without namespaces and arguments."""
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    for name in done.stdout.splitlines():
        name = re.sub(r"\(anonymous namespace\)::|_GLOBAL__N__\w+::", "", name)
        name = re.sub(r"fastrnn::(?:cuda::|cells::)?", "", name)
        name = re.sub(r"^void |\([A-Z]\w+\)$", "", name)
        yield re.sub(r"\((\w+)\)(\d+)", r"\1 \2", name)


def measure(number_of_jobs, architectures):
    """Registers by architecture and kernel, and complaints."""
    found, complaints = {name: {} for name in architectures}, []
    nvcc = find_nvcc()
    with concurrent.futures.ThreadPoolExecutor(number_of_jobs) as pool:
        for name, text, seconds in pool.map(run, jobs(nvcc, architectures)):
            print(f"cuda-check: {seconds:5.1f} s  {name}", flush=True)
            architecture = name.split()[0]
            if architecture == "host":
                continue
            functions, said = [m.groupdict() for m in FUNCTION.finditer(text)], len(complaints)
            if not functions:
                complaints.append(f"{name}: no kernel in the report of ptxas")
            for f, kernel in zip(functions, plain(f["name"] for f in functions)):
                if kernel in found[architecture]:
                    complaints.append(f"{name}: {kernel} is compiled twice")
                found[architecture][kernel] = int(f["registers"])
                for what in ("stack", "stores", "loads"):
                    if f[what] != "0":
                        complaints.append(f"{name}: {kernel}: {f[what]} bytes of {what}")
                if "smem" in f["rest"] or "lmem" in f["rest"]:
                    complaints.append(f"{name}: {kernel}: {f['rest'].strip(' ,')}")
            print(*complaints[said:], sep="\n", end="\n" if complaints[said:] else "", flush=True)
    return found, complaints


def compare(found, allowed):
    """What the table does not allow."""
    for architecture, ours in found.items():
        table = allowed.get(architecture, {})
        for kernel in sorted(ours.keys() - table.keys()):
            yield f"{architecture} {kernel}: not in {TABLE.name}"
        for kernel in sorted(table.keys() - ours.keys()):
            yield f"{architecture} {kernel}: in {TABLE.name}, but not in the sources"
        for kernel in sorted(ours.keys() & table.keys()):
            if ours[kernel] > table[kernel]:
                yield f"{architecture} {kernel}: {ours[kernel]} registers > {table[kernel]}"


def main():
    """Compiles, then compares or writes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="make the table anew")
    parser.add_argument("--jobs", type=int, default=2, help="compilations at once")
    parser.add_argument(
        "--architectures",
        nargs="+",
        choices=ARCHITECTURES,
        metavar="SM",
        default=list(ARCHITECTURES),
        help="of %(choices)s; all by default",
    )
    arguments = parser.parse_args()
    if arguments.write and len(arguments.architectures) < len(ARCHITECTURES):
        parser.error("--write makes the whole table: leave --architectures out")
    begin = time.monotonic()
    found, complaints = measure(arguments.jobs, arguments.architectures)
    if not arguments.write:
        allowed = json.loads(TABLE.read_text())["registers"]
        complaints += compare(found, allowed)
    if complaints:
        print(*complaints, sep="\n")
        sys.exit(f"cuda-check: {len(complaints)} complaints")
    if arguments.write:
        release = subprocess.run([find_nvcc(), "--version"], capture_output=True, text=True).stdout
        table = {
            "nvcc": re.search(r"V[\d.]+", release).group(),
            "registers": {name: dict(sorted(k.items())) for name, k in found.items()},
        }
        TABLE.write_text(json.dumps(table, indent=1) + "\n")
    count = sum(map(len, found.values()))
    print(f"cuda-check: {count} kernels as the table says, {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
