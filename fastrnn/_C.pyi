"""The compiled extension. Importing it registers the operators of csrc/ops.cpp."""

def cpu_targets() -> list[str]:
    """Instruction sets this machine can run, worst first."""

def cpu_target() -> str:
    """The instruction set in use."""

def set_cpu_target(name: str) -> str:
    """Uses another instruction set from now on and returns the one used so far. For tests."""

def build_info() -> dict[str, str]:
    """What the extension was built with and from: compiler, flags, torch, cuda."""
