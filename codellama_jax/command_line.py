"""What every command of the project shares: a mistake is one line on stderr and exit code 2. Imports neither JAX nor Flax."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import tyro

from codellama_jax.errors import UserError
from kernels import Refused

INTERRUPTED = 130  # exit codes as shells give them: 128 + signal
BROKEN_PIPE = 141
FULL_MEMORY = "RESOURCE_EXHAUSTED"
ROOM = "take fewer rows at once (in training: more micro_batches, or model.remat full) or more devices; `launch.py compile` says what fits"


def cli(*args: Any, **kwargs: Any) -> Any:
    """Calls `tyro.cli`. Raises UserError with one line, near names included, for a command line that does not parse."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(*args, **kwargs)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise UserError(_one_line(said.getvalue())) from None


def run_command(main: Callable[[], None]) -> None:
    """Calls `main`, then exits: 2 after one line for a UserError, a full disk or full device memory, 130 after Ctrl-C, quietly when a
    pipe's reader is gone."""
    try:
        main()
        sys.stdout.flush()
    except (UserError, Refused) as error:
        print("error:", " ".join(str(error).split("\n")), file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:  # as JAX's own, which is not imported here
        if FULL_MEMORY not in str(error):
            raise
        print(f"error: {_first_line(error)}: {ROOM}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains while it exits
        sys.exit(BROKEN_PIPE)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.ENOENT, errno.EACCES, errno.EROFS, errno.ENOTDIR):
            raise
        print(f"error: {error.strerror}: {error.filename or 'output'}", file=sys.stderr)
        sys.exit(2)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rpartition(f"{FULL_MEMORY}: ")[2].rstrip(".")


def _one_line(box: str) -> str:
    """Takes from tyro's box of several paragraphs what is wrong, the names offered instead, and where the help is."""
    paragraphs: list[list[str]] = [[]]
    for line in box.splitlines()[1:]:  # the first is a title
        row = re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│| ")
        if set(row) <= set("─-╰╯"):
            paragraphs.append([])
        else:
            paragraphs[-1].append(row)
    wrong, *rest = (" ".join(p) for p in paragraphs if p)
    options = re.findall(r"--[\w.-]+", " ".join(p for p in rest if p.startswith("Perhaps")))
    near = [name for name in dict.fromkeys(options) if name != "--help"]
    hints = [f"did you mean {' or '.join(near)}?"] if near else []
    hints += [p for p in rest if p.startswith("Available")]
    hints += [re.sub("For full helptext, (run|see):?", "see", p) for p in rest if p.startswith("For full")]
    wrong = wrong.removeprefix("Error parsing ").rstrip(".")
    return "; ".join([wrong[0].lower() + wrong[1:], *hints])
