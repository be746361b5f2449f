"""Results as JSON lines: one `write` each, so that a line is there as soon as it is known."""

import json
import os


def append(path, row):
    """Adds a line; several processes may do so at once."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, (json.dumps(row) + "\n").encode())
    finally:
        os.close(file)


def read(path):
    """All rows that are whole; a process that was killed may have left half a line."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            found.append(row)
    return found


def close_line(path):
    """Ends a line that a killed process left, so that the next one begins anew."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
