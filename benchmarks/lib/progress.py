"""A progress bar on stderr; without a terminal, one line per tenth of the work."""

from __future__ import annotations

import sys
import time


class Progress:
    """Counts `total` units of work; `advance` names the one that starts now."""

    def __init__(self, total: int, stream=None, enabled: bool = True) -> None:
        self.total = max(total, 1)
        self.done = -1
        self.stream = stream or sys.stderr
        self.enabled = enabled
        self.terminal = self.stream.isatty()
        self.started = time.monotonic()
        self.tenth = -1

    def advance(self, label: str) -> None:
        self.done += 1
        if not self.enabled:
            return
        share = min(self.done / self.total, 1.0)
        elapsed = time.monotonic() - self.started
        clock = f"{int(elapsed) // 60}:{int(elapsed) % 60:02d}"
        count = f"{self.done}/{self.total} {clock} {label}"
        if self.terminal:
            filled = int(share * 24)
            line = f"[{'#' * filled}{'.' * (24 - filled)}] {count}"
            self.stream.write(f"\r\x1b[K{line[:110]}")
            self.stream.flush()
        elif int(share * 10) != self.tenth:
            self.tenth = int(share * 10)
            self.stream.write(f"{count}\n")
            self.stream.flush()

    def clear(self) -> None:
        """Wipes the bar, so that a table row can be printed in its place."""
        if self.enabled and self.terminal:
            self.stream.write("\r\x1b[K")
            self.stream.flush()
