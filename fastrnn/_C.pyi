"""The compiled extension. Importing it registers the operators of csrc/ops.cpp."""

def cells() -> list[tuple[str, int, int, int, int, bool, bool]]:
    """Every cell: (name, products, columns, states, vectors, carries_h, keeps_h), see
    csrc/cells/cell.h."""

def direct_layer(attributes: dict[str, object], cell: str, input: object, hx: object) -> object:
    """What a plain layer of these attributes (a module's __dict__) gives in inference, or None
    where only the long way knows."""

def direct_cell(
    attributes: dict[str, object], cell: str, names: tuple[str, ...], input: object, hx: object
) -> object:
    """The same of a cell, whose weights have these names."""

def params(cell: str, norm: str, biases: bool, projected: bool) -> list[str]:
    """What the params of one direction of a layer are, in order."""

def cpu_targets() -> list[str]:
    """Instruction sets this machine can run, worst first."""

def cpu_target() -> str:
    """The instruction set in use."""

def set_cpu_target(name: str) -> str:
    """Uses another instruction set from now on and returns the one used so far. For tests."""

def build_info() -> dict[str, str]:
    """What the extension was built with and from: compiler, flags, torch, cuda."""

def cuda_plan(
    cell: str,
    backward: bool,
    dtype: str,
    tf32: bool,
    hidden_size: int,
    batch: int,
    directions: int,
    projected: bool,
    seq_len: int,
    limits: tuple[int, int, int, int, int, int],
) -> dict[str, str | int | float]:
    """The CUDA engine's regime and tiles for a layer on a device of these limits."""

def cuda_devices() -> dict[str, tuple[int, int, int, int, int, int]]:
    """Devices to plan for, name to limits: (capability, multiprocessors, bytes of shared memory a
    block may have, blocks of a cooperative grid, clusters of 8, clusters of 16 blocks)."""
