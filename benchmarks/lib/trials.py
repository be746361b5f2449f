"""Tables of what was tried: one trial, and the file that holds all of them."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LONGEST = 90  # characters of an error that a cell shows


def attempt(function: Callable, *arguments: Any) -> str:
    """`yes`, or what the error began with."""
    state = torch.get_rng_state()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(*arguments)
    except ImportError as error:
        return f"not tried: {error}"
    except Exception as error:
        return f"no: {summary(error)}"
    finally:
        torch.set_rng_state(state)
    return "yes"


def summary(error: BaseException) -> str:
    """Type and first words of the innermost cause, in one line that a table can hold."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(re.sub(r"\x1b\[\d*m", "", str(error)).split())
    text = re.sub(r"0x[0-9a-f]+", "0x", text).replace("|", "/").replace("`", "'")
    if len(text) > LONGEST:
        text = text[:LONGEST].rsplit(" ", 1)[0] + " ..."
    return f"{type(error).__name__}: {text}"


def publish(program: str, description: str, path: Path, make: Callable[[], str]) -> None:
    """The command that writes such a file, or prints it."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=description)
    parser.add_argument("--print", action="store_true", help="print the table, write nothing")
    arguments = parser.parse_args()
    text = make()
    if arguments.print:
        print(text)
    else:
        path.write_text(text)
        print(f"wrote {path}")
