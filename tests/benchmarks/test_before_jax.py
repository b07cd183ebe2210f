"""A mistake that no model is needed for is reported before JAX is imported.

Scoring never imports JAX.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import small_data as data
from paths import ROOT

PROGRAM = """
import atexit, sys
atexit.register(lambda: print("JAX" if "jax" in sys.modules else "no JAX", flush=True))
from codellama_jax.cli import main
main()
"""


def evaluate(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", PROGRAM, "evaluate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("humaneval --run RUN --temperature nan", "--temperature is nan: it must be 0, or a"),
        ("humaneval --run RUN --data {humaneval} --temperature 1e-5", "--temperature is 1e-05"),
        ("humaneval --run RUN --data {humaneval} --max-new-tokens 200000", "is 200000: it must be"),
        ("humaneval --run RUN", "pass --data"),
        ("humaneval --run RUN --data {folder}/missing", "no file or folder"),
        ("humaneval --run RUN --data {mbpp}", "has no prompt, entry_point"),
        ("human_eval --run RUN", "no benchmark human_eval"),
        ("humaneval --run {folder}/missing --data {humaneval}", "there is no run"),
        ("humaneval --run RUN --data {humaneval} --mode fast", "fast"),
        ("humaneval --samples-file {mbpp} --data {humaneval}", "which is no task of humaneval"),
        ("humaneval --reference --samples-file x", "exclude each other"),
        ("humaneval --run RUN --data {humaneval} --quantize int8,int9", "--quantize is 'int9'"),
        ("humaneval --reference --data {humaneval} --kv-cache int8", "need a model"),
        (
            "truthfulqa --run RUN --data {truthfulqa} --kv-cache int8",
            "--kv-cache int8 has no effect on truthfulqa, which scores given texts",
        ),
        ("perplexity --run RUN --data {filler} --kv-cache int8", "no effect on perplexity"),
        (
            "humaneval --run RUN --data {humaneval} --samples 3 --temperature 0",
            "--samples 3 at temperature 0 are all the same answer",
        ),
        ("humaneval --reference --run RUN", "--run and --reference exclude each other"),
        ("mbpp --run RUN --data {mbpp} --prompt codex", "must be one of code_llama, starcoder"),
        ("humaneval --run RUN --data {humaneval} --prompt alphacode", "alphacode"),
        ("gsm8k --run RUN --data x --prompt codex", "--prompt is no option of gsm8k"),
        ("humaneval --run RUN --data {humaneval} --rank median", "median"),
        (
            "humaneval --run RUN --data {humaneval} --samples 4 --rank mean back-translation",
            "--rank back-translation needs a model of docstrings: pass --docstring-run RUN",
        ),
        (
            "humaneval --run RUN --data {humaneval} --samples 4 --rank back-translation"
            " --docstring-run {folder}/missing",
            "pass the folder of a run with --docstring-run",
        ),
        ("humaneval --run RUN --data {humaneval} --rank mean", "not among --samples 1"),
        ("humaneval --run RUN --data {humaneval} --beams 4 --samples 9", "more than --beams 4"),
        ("humaneval --run RUN --data {humaneval} --beams 4 --temperature 0.2", "exclude each"),
        ("humanevl", "no benchmark humanevl"),
        (
            "humaneval --reference --data {humaneval} --beams 4",
            "--beams 4 has no effect with",
        ),
        ("humaneval --reference --data {humaneval} --arm x", "--arm has no effect without --run"),
        ("humaneval --run RUN --data {humaneval} --top-p 0.9", "--top-p 0.9 has no effect at temp"),
        ("humaneval --run RUN --data {humaneval} --jars a.jar", "--jars a.jar has no effect"),
        ("truthfulqa --run RUN --data {truthfulqa} --samples 4", "which scores given answers"),
        ("lcc --run RUN --data {lcc} --extract-code", "--extract-code has no effect on lcc"),
        ("perplexity --run RUN --data {filler} --seed 3", "--seed 3 has no effect on perplexity"),
        (
            "humaneval --run RUN --data {humaneval} --chat-format llama3",
            "--chat-format is 'llama3': it must be one of auto, none, llama2",
        ),
        ("key_retrieval --run RUN --data {folder}/missing", "no file or folder"),
        ("perplexity --run RUN --data {folder}/missing", "no file or folder"),
    ],
)
def test_a_mistake_is_reported_before_jax_starts(arguments, message, files, tmp_path):
    out = str(tmp_path / "out")
    words = arguments.replace("RUN", str(tmp_path)).format(folder=tmp_path, **files).split()
    done = evaluate(*words, "--out", out)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr
    assert done.stdout == "no JAX\n"
    assert not Path(out).exists()


def test_scoring_never_imports_jax_and_shows_progress(files, executor, tmp_path):
    lines = [{"task_id": r["task_id"], "completion": "    return 1\n"} for r in data.HUMANEVAL]
    path = data.write_lines(tmp_path / "s.jsonl", lines)
    options = ["--data", files["humaneval"], "--samples-file", str(path), "--workers", "1"]
    done = evaluate("humaneval", *options, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("no JAX\n")
    assert "2 samples, read as JSON lines: task_id and completion" in done.stderr
    assert "scored: 0 of 2" in done.stderr and "scored: 2 of 2" in done.stderr
