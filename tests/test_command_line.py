"""A command line that does not parse is one line; so is any other mistake of the user."""

import io
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
import tyro

from codellama_jax.checked import Checked, Range
from codellama_jax.command_line import cli, run_command
from codellama_jax.errors import UserError
from kernels import UnsupportedError


@dataclass(frozen=True)
class Plan(Checked):
    """Print a plan."""

    experiment: Annotated[str, tyro.conf.Positional]
    scale: str = ""
    steps: Annotated[int, Range(0, 9)] = 3
    rate: float = 0.1
    remat: Literal["none", "full"] = "full"


@dataclass(frozen=True)
class Run(Plan):
    """Train."""


COMMANDS = (
    Annotated[Run, tyro.conf.subcommand("run")] | Annotated[Plan, tyro.conf.subcommand("plan")]
)


def parse(*args: str):
    return cli(COMMANDS, args=args, prog="launch.py")


def test_good_line_parses():
    assert parse("plan", "quickstart", "--steps", "5") == Plan("quickstart", steps=5)


@pytest.mark.parametrize(
    "args, named",
    [
        ((), ["run", "plan", "see launch.py --help"]),
        (("plan",), ["experiment (required)", "see launch.py plan --help"]),
        (("plan", "x", "--scal", "3"), ["--scal", "did you mean --scale?"]),
        (("plan", "x", "--steps", "many"), ["--steps", "'many'"]),
        (("plan", "x", "--steps", "1.5"), ["--steps is '1.5': it must be a whole number"]),
        (("plan", "x", "--steps", "9" * 5000), ["--steps has 5000 digits: it is too large"]),
        (("plan", "x", "--steps", "-5"), ["--steps is -5: it must be at least 0"]),
        (("plan", "x", "--rate", "x"), ["--rate is 'x': it must be a number"]),
        (("plan", "x", "--rate", "nan"), ["--rate is nan: it must be a finite number"]),
        (("plan", "x", "--remat", "ful"), ["--remat is 'ful': it must be one of none, full; did"]),
        (("plan", "x", ""), ["an argument is empty ('') and belongs to no option: remove it"]),
        (("plan", "x", "--steps"), ["--steps"]),
        (("plan", "x", "y"), ["y"]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])  # tyro draws its boxes by it
def test_mistake_is_one_line_that_names_it(args, named, encoding, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    sys.set_int_max_str_digits(sys.int_info.default_max_str_digits)  # loading APPS lifts it
    with pytest.raises(UserError) as raised:
        parse(*args)
    line = str(raised.value)
    assert "\n" not in line and not set(line) & set("│─╭╰\x1b")
    assert all(name in line for name in named), line
    assert capsys.readouterr().err == ""


def test_help_is_printed_whole(capsys):
    with pytest.raises(SystemExit) as raised:
        parse("plan", "--help")
    assert not raised.value.code
    assert "--steps" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error, code, line",
    [
        (UserError("no\nsuch run"), 2, "error: no such run\n"),
        (UnsupportedError("no such head dim"), 2, "error: no such head dim\n"),
        (UserError("no \x1b[31m\udcff"), 2, "error: no \\x1b[31m\\udcff\n"),
        (KeyboardInterrupt(), 130, "\nstopped\n"),
    ],
)
def test_exit_codes(error, code, line, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as raised:
        run_command(main)
    assert raised.value.code == code
    assert capsys.readouterr().err == line


def test_a_long_value_does_not_make_a_long_line(capsys):
    def main():
        raise UserError("value " + "x" * 10**6)

    with pytest.raises(SystemExit):
        run_command(main)
    line = capsys.readouterr().err
    assert len(line) < 2_000 and "characters ...]" in line


def test_text_that_the_output_cannot_write_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    with pytest.raises(SystemExit, match="2"):
        run_command(lambda: print("é"))
    line = capsys.readouterr().err
    assert line.startswith("error: the output or a name holds '\\xe9', which ascii cannot write")


def test_nothing_is_printed_where_the_reader_of_a_pipe_has_left():
    program = """if True:
        from codellama_jax.command_line import run_command
        run_command(lambda: print('x' * 100_000))
    """
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", program], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_full_device_memory_is_one_line():
    program = """if True:
        from codellama_jax.command_line import run_command
        def main():
            import jax.numpy as jnp
            jnp.zeros((1 << 22, 1 << 22)).block_until_ready()
        run_command(main)
    """
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 2
    assert (
        done.stderr.startswith("error: Out of memory allocating 7")
        and "micro_batches" in done.stderr
        and done.stderr.count("\n") == 1
    )


def test_ctrl_c_in_a_callback_that_ignores_exceptions_still_ends_the_command():
    program = """if True:
        import gc, signal, time
        from codellama_jax.command_line import run_command
        def press(phase, info):
            gc.callbacks.remove(press)
            signal.raise_signal(signal.SIGINT)
        def main():
            # A shell starts background jobs with Ctrl-C ignored, and Python keeps it so.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            gc.callbacks.append(press)
            gc.collect()
            time.sleep(20)
            print("finished")
        run_command(main)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\nstopped\n")


def test_other_errors_are_not_hidden():
    def main():
        raise RuntimeError("INTERNAL: a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        run_command(main)


def test_neither_jax_nor_flax_is_imported():
    program = """if True:
        import codellama_jax.command_line, sys
        sys.exit(any(m in sys.modules for m in ('jax', 'flax')))
    """
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
