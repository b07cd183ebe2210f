"""A toy experiment with a byte-level tokenizer: trained, killed, resumed, and prompted."""

import os
import signal
import subprocess
import sys

import pytest
from paths import ROOT
from tiny_run import launch, losses

from codellama_jax.tokenizers import files

KIND = ("--tokenizer.kind", "starcoder")  # its vocabulary of 320 pieces includes the sentinels


@pytest.fixture(scope="module")
def run(place):
    """A run that was killed in its second stage and resumed."""
    stop = {"AT": "long:2", "SIGNAL": str(signal.SIGKILL.value)}
    assert launch(place, "bytes", *KIND, **stop)[0] == -signal.SIGKILL
    code, output, errors = launch(place, "bytes", *KIND)
    assert code == 0, errors
    assert "main/code: done before, skipped" in output
    return place / "bytes"


def test_a_killed_run_resumes_with_its_tokenizer(place, run):
    tokenizer = files.load(run)
    assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.pre_id) == ("starcoder", 320, 1)
    assert not (run / "tokenizer.model").exists()
    code, _, errors = launch(place, "undisturbed bytes", *KIND)
    assert code == 0, errors
    for stage in ("code", "long"):
        assert losses(place, "bytes", stage) == losses(place, "undisturbed bytes", stage)


@pytest.mark.parametrize("arguments", [("complete", "def alpha"), ("infill", "-", "--spm")])
def test_the_model_completes_and_infills(run, arguments):
    verb, *others = arguments
    argv = [sys.executable, "-m", "codellama_jax", verb, str(run), *others]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*argv, "--max-new-tokens", "8"],
        cwd=ROOT,
        env=environment,
        input="def <FILL_ME>(x):\n    return x\n",
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("def ")
