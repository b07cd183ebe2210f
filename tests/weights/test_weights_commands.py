"""`import`, `export` and `check` report a missing folder before JAX is imported."""

import os
import subprocess
import sys

import pytest
from paths import ROOT

from codellama_jax.errors import UserError
from codellama_jax.weights.commands import Export, Import

PROGRAM = """
import sys
from codellama_jax.cli import main
try:
    main()
finally:
    print("JAX" if "jax" in sys.modules else "no JAX")
"""


@pytest.mark.parametrize(
    "arguments",
    [
        "import nowhere run",
        "export nowhere folder --to hf",
        "check nowhere",
        "check . --against nowhere",
        "check nowhere --integrity",
    ],
)
def test_a_missing_folder_is_reported_before_jax_starts(arguments, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stderr == f"error: there is no folder {tmp_path / 'nowhere'}\n"
    assert (done.returncode, done.stdout) == (2, "no JAX\n")
    assert not list(tmp_path.iterdir())


def test_an_unknown_kind_of_weights_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="foo:DIR begins with foo:, which is no kind of weights: "):
        Import("foo:DIR", "run")()
    with pytest.raises(UserError, match=r"there is no folder .*/missing"):
        Import("hf:missing", "run")()


def test_ranks_are_only_for_the_layout_of_meta():
    with pytest.raises(UserError, match="--ranks is 2: only Meta's layout"):
        Export("run", "folder", to="hf", ranks=2)()


def test_orbax_prints_nothing_beside_an_import(folders, tmp_path):
    """In a process of its own: other tests have silenced it already."""
    command = [sys.executable, "-m", "codellama_jax", "import", str(folders / "hf")]
    done = subprocess.run([*command, str(tmp_path / "run")], capture_output=True, text=True)
    assert done.returncode == 0 and "absl" not in done.stderr
