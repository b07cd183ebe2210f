"""Errors of workers arrive as one line, on every runner."""

import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from paths import ROOT

from codellama_jax.data.prepare import runners
from codellama_jax.data.prepare.runners import Runner, worker_error
from codellama_jax.errors import UserError


def fail_at_three(number):
    if number == 3:
        raise UserError("the file three is damaged: remove it")


def fill_disk(number):
    raise OSError(28, "No space left on device", "/corpus/part")


def divide(number):
    return 1 / number


def test_a_mistake_that_a_worker_finds_is_one_line():
    with pytest.raises(UserError, match=r"^the file three is damaged: remove it$"):
        Runner().map(fail_at_three, list(range(5)))


def test_a_full_disk_names_the_file():
    with pytest.raises(UserError, match=r"No space left on device: '?/corpus/part'?$"):
        Runner().map(fill_disk, [1])


def press_ctrl_c(number):
    raise KeyboardInterrupt


def test_ctrl_c_in_a_step_is_ctrl_c():
    with pytest.raises(KeyboardInterrupt):
        Runner().map(press_ctrl_c, [1, 2])


def test_a_killed_worker_ends_the_command_with_one_line():
    program = """if True:
        import os
        from codellama_jax.data.prepare.runners import Runner
        Runner(processes=2).map(os._exit, [137, 137])
    """
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: a worker process ended with exit code 137, as")
    assert done.stderr.count("\n") == 1


def test_workers_that_end_at_once_are_reported_once(monkeypatch, capsys):
    # The threads of both workers report before the program has ended.
    monkeypatch.setattr(runners.os, "_exit", lambda code: None)
    monkeypatch.setattr(runners, "_descendants", lambda process: [])
    end = SimpleNamespace(exc_value=RuntimeError("subprocess exited with return code 137"))
    with runners._watched_workers():
        threading.excepthook(end)
        threading.excepthook(end)
    assert capsys.readouterr().err.count("\n") == 1


def test_no_items_start_no_pipeline():
    Runner("Missing").map(fill_disk, [])


def test_a_defect_of_a_worker_keeps_its_type():
    with pytest.raises(ZeroDivisionError):
        Runner().map(divide, [0])


def test_the_last_error_of_a_worker_counts():
    text = (
        "Traceback ...\nOSError: [Errno 5] first [while running 'A']\nDuring handling ...\n"
        "codellama_jax.errors.UserError: the second, in two\nlines [while running 'B-ptransform-3']"
    )
    assert worker_error(RuntimeError(text)) == "the second, in two\nlines"
    assert worker_error(ValueError("a defect")) == ""


@pytest.mark.parametrize(
    "name, options, problem",
    [
        ("DaskRuner", (), "^--runner is 'DaskRuner': it must be one of .*did you mean DaskRunner"),
        ("no.module.Runner", (), "^--runner is 'no.module.Runner': No module named 'no'"),
        ("", ("--job_endpont=a",), "^--job_endpont is no option .*did you mean job_endpoint"),
    ],
)
def test_a_misspelt_runner_or_option_is_one_line(name, options, problem):
    with pytest.raises(UserError, match=problem):
        Runner(name, options).check()


def test_known_runners_and_options_are_accepted():
    Runner("DaskRunner", ["--dask_client_address=localhost:1"]).check()
    Runner("PortableRunner", ["--job_endpoint=a:1", "--environment_type=LOOPBACK"]).check()
    Runner("FlinkRunner", ["--flink_master=a:1"]).check()
    Runner(processes=2).check()
