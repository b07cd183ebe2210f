"""Parsing and exit codes of every command: a mistake is one line on stderr and exit code 2.

Imports neither JAX nor Flax.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import glob
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import tyro

from codellama_jax.checked import (
    SHOWN,
    FieldError,
    check_all,
    choices_problem,
    nearest,
    unchecked,
)
from codellama_jax.errors import UserError
from kernels import UnsupportedError
from kernels.static.chips import ENVIRONMENT

SCRIPT = "codellama-jax"  # the console script that pyproject.toml installs
INTERRUPTED = 130  # exit codes as shells give them: 128 + signal
BROKEN_PIPE = 141
INTERRUPT_AGAIN_SECONDS = 0.05
FULL_MEMORY = "RESOURCE_EXHAUSTED"
ROOM = (
    "use fewer sequences at once (in training: more micro_batches, or model.remat full) or more"
    " devices; the verb `compile` reports which settings fit"
)
# Errors of the operating system that a user can fix: the disk, the name, the permissions.
FIXABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EMFILE,
)
GOOGLE_PCI_VENDOR = "0x1ae0"
TPU_DEVICES = ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
LONGEST = 1_500  # characters of an error line
INT, FLOAT = r"invalid literal for int\(\) with base 10:", "could not convert string to float:"
SIMILAR = ("Perhaps you meant", "Arguments similar to")  # paragraphs of tyro's that offer names
# Messages of Python and tyro about a value that does not parse, and the text that replaces them.
REWORDED = (
    (rf"(--[\w.-]+): {INT} (.*)", "it must be a whole number"),
    (rf"(--[\w.-]+): {FLOAT} (.*)", "it must be a number"),
    (r"(--[\w.-]+): Exceeds the limit \(\d+ digits\).*(has \d+ digits).*", "it is too large"),
    (r"(--[\w.-]+): Could not find valid parse for arguments: (.*)", "see the types in --help"),
)


def program_name() -> str:
    """Returns how the user started the program, for messages and `--help`."""
    name = Path(sys.argv[0]).name
    if name == "__main__.py":
        return "python -m codellama_jax"
    return name if name == "launch.py" else SCRIPT


def cli(*args: Any, **kwargs: Any) -> Any:
    """Calls `tyro.cli`, then checks the ranges and choices of every `Checked` dataclass.

    Raises UserError with one line that names the option, similar names included.
    """
    # tyro prints its errors as boxes on stderr and exits; the box becomes one line.
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output), unchecked():
            parsed = tyro.cli(*args, **kwargs)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        problem = _one_line(output.getvalue())
        if problem.startswith("missing from"):
            problem = _misspelt(args, kwargs) + problem
        raise UserError(problem) from None
    # Checked only now, so that an error names the complete option, as in `checked`.
    options = parsed[0] if kwargs.get("return_unknown_args") else parsed
    if dataclasses.is_dataclass(options):
        try:
            check_all(options)
        except FieldError as error:
            raise error.as_option() from None
    return parsed


def print_error(text: str) -> None:
    """Prints the line of an error on stderr."""
    print(text, file=sys.stderr)


def run_command(main: Callable[[], None], report: Callable[[str], None] = print_error) -> None:
    """Calls `main`, then exits. `report` gets the line of an error.

    The code is 2 after one line for a UserError, a full disk or full device memory, or text that
    the output's encoding lacks; 130 after Ctrl-C; 141, without a line, when the reader of a pipe
    has ended.
    """
    _silence_libtpu()
    try:
        with _interrupts_arrive():
            main()
        # Here rather than at the interpreter's exit, where a full disk would print a traceback.
        sys.stdout.flush()
    except (UserError, UnsupportedError) as error:
        _fail(report, str(error))
    except UnicodeEncodeError as error:
        character = ascii(error.object[error.start])
        fix = "remove it, or set PYTHONIOENCODING=utf-8 if it is a character of your language"
        problem = f"the output or a name holds {character}, which {error.encoding} cannot write"
        _fail(report, f"{problem}: {fix}")
    except RuntimeError as error:  # as JAX's own, which is not imported here
        if FULL_MEMORY not in str(error):
            raise  # a defect, whose traceback is needed
        _fail(report, f"{_first_line(error)}: {ROOM}")
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Without this the interpreter complains while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE)
    except OSError as error:
        if error.errno not in FIXABLE:
            raise  # a defect too
        _fail(report, f"{error.strerror}: {error.filename or 'output'}")


@contextlib.contextmanager
def _interrupts_arrive() -> Iterator[None]:
    """Raises a KeyboardInterrupt again if Python ignored it.

    Ctrl-C arrives in whatever the main thread runs. Python ignores exceptions of callbacks, such as
    JAX's at a garbage collection, and the command would continue as if nothing had been pressed.
    """
    before = sys.unraisablehook

    def interrupt_again(ignored: sys.UnraisableHookArgs) -> None:
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            # Later, because in this function too it would be ignored.
            # A signal, because it also ends a wait, which `_thread.interrupt_main` does not.
            again = [os.getpid(), signal.SIGINT]
            threading.Timer(INTERRUPT_AGAIN_SECONDS, os.kill, again).start()
        else:
            before(ignored)

    sys.unraisablehook = interrupt_again
    try:
        yield
    finally:
        sys.unraisablehook = before


def _fail(report: Callable[[str], None], message: str) -> NoReturn:
    """Reports one line and exits with code 2.

    Control characters, as in a name of a file, are escaped; a line that a long value makes long is
    shortened in its middle.
    """
    text = " ".join(message.split("\n"))
    if len(text) > LONGEST:
        left_out = f" [... {len(text) - LONGEST:,} characters ...] "
        text = f"{text[: LONGEST // 2]}{left_out}{text[-LONGEST // 2 :]}"
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    report(f"error: {line}")
    sys.exit(2)


def _silence_libtpu() -> None:
    """Keeps libtpu from printing errors on a machine without a TPU, where it is only a compiler."""
    if any(glob.glob(pattern) for pattern in TPU_DEVICES):
        return
    # A TPU VM without the device files: libtpu needs its metadata there.
    for path in glob.glob("/sys/bus/pci/devices/*/vendor"):
        with contextlib.suppress(OSError), open(path) as file:
            if file.read().strip() == GOOGLE_PCI_VENDOR:
                return
    for name in ("TPU_SKIP_MDS_QUERY", "TPU_ACCELERATOR_TYPE", "TPU_WORKER_HOSTNAMES"):
        os.environ.setdefault(name, ENVIRONMENT[name])


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rpartition(f"{FULL_MEMORY}: ")[2].rstrip(".")


def _one_line(box: str) -> str:
    """Returns one line from tyro's box: the error, the names offered instead, where the help is."""
    paragraphs: list[list[str]] = [[]]
    for line in box.splitlines()[1:]:  # the first is a title
        text = re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│| ")
        # A rule across the box separates the error, the similar names and the pointer to the help.
        if set(text) <= set("─-╰╯"):
            paragraphs.append([])
        else:
            paragraphs[-1].append(text)
    wrong, *rest = (" ".join(p) for p in paragraphs if p)
    similar = " ".join(p.partition(":")[2] for p in rest if p.startswith(SIMILAR))
    options = re.findall(r"--[\w.-]+", similar)
    near = [name for name in dict.fromkeys(options) if name != "--help"]
    hints = [f"did you mean {' or '.join(near)}?"] if near else []
    hints += [p for p in rest if p.startswith("Available")]
    for paragraph in rest:
        if paragraph.startswith("For full"):
            hints.append(re.sub("For full helptext, (run|see):?", "see", paragraph))
    return "; ".join([_reworded(wrong), *hints])


def _misspelt(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Returns the options that a command line misspells, with the right names, or "".

    tyro does not report them where a required option is missing, which may be the misspelt one.
    """
    helped = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(helped), unchecked():
        tyro.cli(*args, **{**kwargs, "args": ["--help"]})
    known = set(re.findall(r"--[\w.-]+", helped.getvalue()))
    problems = []
    for argument in kwargs.get("args") or sys.argv[1:]:
        name = argument.partition("=")[0]
        # Of other unknown names the line states nothing: they may be values.
        hint = nearest(name, known) if name.startswith("--") and name not in known else ""
        if hint:
            problems.append(f"unrecognized option: {name}{hint} ")
    return "".join(problems)


def _reworded(wrong: str) -> str:
    """Returns tyro's first paragraph in the words of a `FieldError`."""
    wrong = wrong.removeprefix("Error parsing ").rstrip(".")
    choice = r"[Ii]nvalid choice '(.*)' for argument '(--[\w.-]+)'. Expected one of \((.*?),?\)"
    if match := re.fullmatch(choice, wrong):
        value, option, names = match.groups()
        return option + choices_problem(value, [name.strip(" '\"") for name in names.split(",")])
    for pattern, allowed in REWORDED:
        if match := re.fullmatch(pattern, wrong):
            option, value = match.groups()
            text = value if len(value) <= SHOWN else f"{value[:SHOWN]}..."
            verb = "" if text.startswith("has ") else "is "
            return f"{option} {verb}{text}: {allowed}"
    # tyro prints an empty argument as nothing.
    if re.fullmatch(r"[Uu]nrecognized options:\s*", wrong):
        return "an argument is empty ('') and belongs to no option: remove it"
    if match := re.fullmatch(r"[Uu]nrecognized options: (.*)", wrong):
        return _unrecognized(match[1].split(", "))
    return wrong[0].lower() + wrong[1:]


def _unrecognized(arguments: list[str]) -> str:
    """Returns the names among unrecognized arguments, without the values that follow them."""
    names = [argument for argument in arguments if argument.startswith("--")]
    if not names:
        return f"unrecognized arguments: {', '.join(arguments)}"
    return f"unrecognized option{'s' if len(names) > 1 else ''}: {', '.join(names)}"
