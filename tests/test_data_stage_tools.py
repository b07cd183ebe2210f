"""The tools that kill data stages and run their solutions again: when they kill, and exit codes."""

import random
import sys

import pytest

from codellama_jax.alignment.pairs import PAIRS
from codellama_jax.errors import UserError
from tools import rerun_dataset
from tools.kill_data_stage import end_at, kill_moments, lines_of

# Writes a batch of two answers after a while, and then nothing.
WRITER = """
import pathlib, sys, time
time.sleep(0.3)
with open(pathlib.Path(sys.argv[1]) / "answers.jsonl", "a") as file:
    file.write("{}\\n{}\\n")
time.sleep(60)
"""


@pytest.fixture
def data(tmp_path):
    (tmp_path / "answers.jsonl").write_text("{}\n" * 8)
    return tmp_path


def test_each_start_writes_before_it_is_killed(data):
    """A batch of the start before brought the data beyond the moment."""
    end_at([sys.executable, "-c", WRITER, data], data, moment=3, delay=0)
    assert lines_of(data) == 10


def test_a_command_that_fails_ends_the_tool(data):
    with pytest.raises(SystemExit, match="the command failed"):
        end_at([sys.executable, "-c", "raise SystemExit(2)"], data, moment=3, delay=0)


def test_files_that_are_written_at_once_are_no_answers(data):
    for name in ("dataset.jsonl", PAIRS):
        (data / name).write_text("{}\n" * 5)
    assert lines_of(data) == 8


def test_the_moments_are_different_lines_before_the_last(data):
    assert kill_moments(data, 7, random.Random(0)) == [1, 2, 3, 4, 5, 6, 7]
    for kills in (8, -1):
        with pytest.raises(UserError, match=f"--kills is {kills}: .* the 8 lines of answers"):
            kill_moments(data, kills, random.Random(0))


def test_no_dataset_is_no_success(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rerun_dataset"])
    with pytest.raises(SystemExit) as exit_info:
        rerun_dataset.main()
    assert exit_info.value.code == 2 and "datasets" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"task_id": "a", "tests": [], "mess', "the last line was not written to its end"),
        ('{"task_id": "a", "tests": [], "messages": []}\n', "line 1 of .*messages"),
        ("[]\n", "line 1 of "),
    ],
)
def test_a_damaged_dataset_is_refused(tmp_path, monkeypatch, text, message):
    """A dataset that ends within a line would otherwise be reported as correct."""
    path = tmp_path / "dataset.jsonl"
    path.write_text(text)
    monkeypatch.setattr(sys, "argv", ["rerun_dataset", str(path)])
    with pytest.raises(UserError, match=message):
        rerun_dataset.main()
