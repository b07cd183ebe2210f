"""A toy StarCoder: its tokenizer, packed infilling, language tags and dropout.

It is trained, killed, resumed, and prompted.
"""

import os
import signal
import subprocess
import sys

import pytest
from paths import ROOT
from tiny_run import launch, losses

from codellama_jax.tokenizers import files

pytestmark = pytest.mark.slow
KIND = ("--tokenizer.kind", "starcoder")  # its vocabulary of 320 pieces includes the sentinels
LLAMA = "LlamaConfig(336, 32, 2, 4, 2, 8, 64,"
GPT = "GPTConfig(320, 32, 2, 4, 1, 8, 64, n_positions=128, dropout=0.1, embedding_dropout=0.1,"
DATA = "InfillingConfig(0.9)"
STARCODER_DATA = "InfillingConfig(0.5, form='starcoder'), language_tags=True"


@pytest.fixture(scope="module")
def starcoder(place):
    """The folder of the tiny experiment, whose model and data are StarCoder's."""
    file = place / "tiny.py"
    text = file.read_text()
    assert LLAMA in text and DATA in text
    text = text.replace("llama.config import LlamaConfig", "gpt.config import GPTConfig")
    file.write_text(text.replace(LLAMA, GPT).replace(DATA, STARCODER_DATA))
    return place


@pytest.fixture(scope="module")
def run(starcoder):
    """A run that was killed in its second stage and resumed."""
    stop = {"AT": "long:2", "SIGNAL": str(signal.SIGKILL.value)}
    assert launch(starcoder, "bytes", *KIND, **stop)[0] == -signal.SIGKILL
    code, output, errors = launch(starcoder, "bytes", *KIND)
    assert code == 0, errors
    assert "main/code: done before, skipped" in output
    return starcoder / "bytes"


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
