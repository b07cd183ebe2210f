"""Reads programs.txt: small programs and the verdicts that plain `exec` in one process gives."""

from pathlib import Path
from typing import NamedTuple

from codellama_jax.sandbox import Program

_FILE = Path(__file__).with_name("programs.txt")


class Case(NamedTuple):
    """A program, its verdict in one process, and its verdict in isolated mode."""

    program: Program
    expected: str
    isolated: str


def cases() -> list[Case]:
    """Returns every program of the file."""
    return [_case(*part.split("\n", 1)) for part in _FILE.read_text().split("\n== ")[1:]]


def _case(header: str, body: str) -> Case:
    candidate, test = body.split("\n--\n")
    header, _, isolated = header.partition(" ! ")
    name, _, expected = header.partition(" = ")
    expected = expected or "passed"
    code = f"{candidate}\n{test}"
    program = Program(name, "python", code, 10.0, candidate=candidate, test=test)
    return Case(program, expected, isolated or expected)
