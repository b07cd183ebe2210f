"""A tiny Llama folder is taught to infill, resumed and exported to GGUF, in real processes."""

import dataclasses
import json
import os
import subprocess
import sys

import published
import pytest
from etils import epath
from paths import ROOT

from codellama_jax.weights import huggingface

GENERAL = dataclasses.replace(published.MODEL, vocab_size=published.PIECES)


def codellama(place, *arguments: str) -> str:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "codellama_jax", *arguments]
    done = subprocess.run(
        argv, cwd=place, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_folder_of_llama_is_taught_to_infill_resumed_and_exported(place):
    source = published.source_of(published.random_params(GENERAL), GENERAL)
    huggingface.write(source, published.tokenizer(), epath.Path(place / "hf"))
    sources = str(place / "sources")
    options: list[str] = []
    for name in ("code", "discussions", "language", "held-out"):
        options += [f"--corpus.{name}", sources]
    options += ["--infill.optimizer.warmup-steps", "1", "--infill.data.batch-size", "2"]
    options += ["--probes.infilling-kinds.examples", "4"]
    options += ["--probes.infilling-kinds.max-new-tokens", "96"]
    command = ("run", "infill_any", "--general.init", "hf:hf", "--out", "taught", *options)
    codellama(place, *command, "--infill.steps", "4", "--cache", "cache")
    assert "done before, skipped" in codellama(
        place, *command, "--infill.steps", "4", "--cache", "cache"
    )
    for stage in ("general", "infill"):
        answers = json.loads((place / "taught" / "main" / stage / "probes.json").read_text())
        assert set(answers["infilling_kinds"]) == {"single-line", "multi-line", "random-span"}
        assert answers["config"]["documents"][-1] == sources
    report = (place / "taught" / "report.md").read_text()
    assert "more single lines filled in exactly in PSM order than before" in report
    assert "| single-line | PSM | general |" in report
    codellama(place, "export", "taught", "exported", "--to", "gguf", "--type", "f32")
    (place / "hole.py").write_text("def f(x):\n    <FILL_ME>\n")
    filled = ("infill", "taught", "hole.py", "--max-new-tokens", "4")
    assert codellama(place, *filled).startswith("def f(x):")
    assert (place / "exported" / "model.gguf").exists()
