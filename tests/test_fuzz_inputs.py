"""A few inputs of every area of the fuzzer: each is taken or refused in one line, within seconds.

`python -m tools.fuzz --help` says how to try thousands.
"""

import subprocess
import sys
from random import Random

import pytest
from paths import ROOT

from tools.fuzz import harness
from tools.fuzz.areas import AREAS

COUNTS = dict.fromkeys(AREAS, 36) | {"overrides": 12, "corpora": 12, "runs": 12}
del COUNTS["processes"]  # seconds each
del COUNTS["checkpoints"]  # compiles; tests/checkpoints has the same damage


@pytest.mark.parametrize("name", list(COUNTS))
def test_inputs_with_faults_are_taken_or_refused_in_one_line(name):
    codes = set()
    for number in range(COUNTS[name]):
        outcome = harness.attempt(name, AREAS[name], seed=0, number=number)
        assert not outcome.fault, f"{name}:0:{number} {outcome.fault}"
        codes.add(outcome.code)
    assert codes == {0, 2}  # else the area tries only one side


def test_a_seed_and_a_number_always_make_the_same_input(tmp_path):
    def config(number):
        folder = tmp_path / str(number)
        folder.mkdir()
        AREAS["configs"](Random("seed"), folder)
        return (folder / "config.json").read_bytes()

    first = config(0)
    for number in range(30):  # inputs before it change nothing
        harness.attempt("configs", AREAS["configs"], 1, number)
    assert config(1) == first


APART = """
import os, signal, sys, threading
from tools.fuzz import harness
from codellama_jax.errors import UserError
harness.LIMIT, harness.END_SECONDS = 0.5, 0.5

def refused(rng, folder):
    raise UserError("no")

def waiting(rng, folder):
    threading.Thread(target=threading.Event().wait).start()
    raise UserError("no")

def crashing(rng, folder):
    os.kill(os.getpid(), signal.SIGSEGV)

for make in (refused, waiting, crashing):
    print(harness.attempt_apart("x", make, 0, 0).fault)
"""


def test_a_process_that_does_not_end_or_crashes_is_a_fault():
    argv = [sys.executable, "-c", APART]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "",
        "the process does not end after exit code 2: error: no",
        "the process ended with -11 before its outcome",
    ], done.stderr


@pytest.mark.parametrize(
    "raised, fault",
    [
        (ValueError("x"), "ValueError"),
        (SystemExit(3), "exit code 3"),
        (SystemExit("text"), "exit code 1"),
        (SystemExit(2), "not one error line"),
    ],
)
def test_the_fuzzer_reports_other_endings_as_faults(raised, fault):
    def make(rng, folder):
        def call():
            raise raised

        return call

    assert fault in harness.attempt("endings", make, 0, 0).fault


def test_the_fuzzer_reports_hangs_and_long_lines(monkeypatch):
    monkeypatch.setattr(harness, "LIMIT", 0.2)

    def wait(rng, folder):
        return harness.signal.pause

    assert "took over" in harness.attempt("hangs", wait, 0, 0).fault
    assert "an error line of" in harness.wrong_ending(2, "error: " + "x" * 3000)
    assert "a traceback" in harness.wrong_ending(2, "Traceback (most recent call last)\nerror: x")
