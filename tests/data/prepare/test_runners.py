"""Errors of workers arrive as one line, on every runner."""

import pytest

from codellama_jax.data.prepare.runners import Runner, worker_error
from codellama_jax.errors import UserError

DASK = ("--runner=apache_beam.runners.dask.dask_runner.DaskRunner",)


def fail_at_three(number):
    if number == 3:
        raise UserError("the file three is damaged: remove it")


def fill_disk(number):
    raise OSError(28, "No space left on device", "/corpus/part")


def test_a_mistake_that_a_worker_finds_is_one_line():
    with pytest.raises(UserError, match="^the file three is damaged: remove it$"):
        Runner().map(fail_at_three, list(range(5)))


def test_a_full_disk_names_the_file():
    with pytest.raises(UserError, match=r"No space left on device: '?/corpus/part'?$"):
        Runner().map(fill_disk, [1])


def test_no_items_start_no_pipeline():
    Runner(["--runner=Missing"]).map(fill_disk, [])


def test_a_defect_of_a_worker_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="ZeroDivisionError|division by zero"):
        Runner().map((1).__truediv__, [0])


def test_the_last_error_of_a_worker_counts():
    text = (
        "Traceback ...\nOSError: [Errno 5] first [while running 'A']\nDuring handling ...\n"
        "codellama_jax.errors.UserError: the second, in two\nlines [while running 'B-ptransform-3']"
    )
    assert worker_error(RuntimeError(text)) == "the second, in two\nlines"
    assert worker_error(ValueError("a defect")) == ""


def test_an_unknown_runner_is_one_line():
    with pytest.raises(UserError, match="MissingRunner"):
        Runner(["--runner=MissingRunner"]).map(fill_disk, [1])
