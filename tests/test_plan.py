"""A plan never truncates its numbers, however narrow the terminal."""

import io
import json
import subprocess
import sys
from pathlib import Path

import prepared_corpora
import pytest
from paths import ROOT
from rich.console import Console

from codellama_jax.cli import main
from codellama_jax.report import plan
from codellama_jax.runs.commands import PlanOptions, load_experiment
from codellama_jax.tokenizers import sentencepiece as tokenizers

CELLS = ("1,024 x 4,096", "119,209", "0.0003 -> 1e-05", "6.74B", "2.14e+22", "80.9GB", "500B")


@pytest.mark.parametrize("width", [250, 120, 80, 60, 40])
def test_numbers_are_complete_at_every_width(width, monkeypatch):
    output = io.StringIO()
    console = Console(file=output, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(plan, "plain_console", lambda **kwargs: console)
    experiment, _ = load_experiment(PlanOptions("long_context_cost", "7b"))
    plan.print_plan(experiment, "Claim")
    text = output.getvalue()
    assert "…" not in text
    for cell in CELLS:
        assert cell in text, (width, cell)
    assert max(map(len, text.splitlines())) <= max(width, 80)


@pytest.mark.parametrize(
    "number, text",
    [(0, "0"), (999, "999"), (1000, "1k"), (6.74e9, "6.74B"), (5e11, "500B"), (2.1e12, "2.1T")],
)
def test_short(number, text):
    assert plan.short(number) == text


def test_a_number_beyond_the_units_keeps_its_size():
    assert plan.short(10**18) == "1e+18" and plan.short(10**300) == "1e+300"


SPLITS = {"train": prepared_corpora.texts(50), "validation": prepared_corpora.texts(5, "v")}


def planned(monkeypatch, capsys, *arguments):
    """Returns the lines that `plan code_llama` prints, and its exit code."""
    command = ["launch.py", "plan", "code_llama", "--scale", "7b", *arguments]
    monkeypatch.setattr(sys, "argv", command)
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    output = capsys.readouterr()
    return (output.out + output.err).splitlines(), code


def test_epochs_of_prepared_sources(tmp_path, monkeypatch, capsys):
    """859 GB of code at 4 characters per token: the 1.98 epochs that Table 1's shares give."""
    code = prepared_corpora.write(tmp_path / "code", SPLITS)
    manifest = Path(tmp_path / "code" / "manifest.json")
    values = json.loads(manifest.read_text())
    values["splits"]["train"]["characters"] = 859 * 10**9
    manifest.write_text(json.dumps(values))
    paths = ["--corpus.code", code, "--corpus.others", "java", code]
    lines, status = planned(
        monkeypatch, capsys, *paths, "--long-context.data.mixture.others", "java", "0.25"
    )
    cells = [line.split() for line in lines]
    assert status == 0
    assert ["code", "code", "0.85", "425B", "about", "215B", "1.98"] in cells
    assert ["code", "discussions", "0.08", "40B", "not", "prepared"] in cells
    assert ["long_context", "java", "0.2", "1.26B", "about", "215B", "0.00586"] in cells
    assert lines[-1].endswith(
        "about: tokens estimated from characters (4 per token), as they were not counted with the"
        " tokenizer"
    )


PLAN = """
import sys
from codellama_jax.cli import main

sys.argv = ["launch.py", "plan", "code_llama", "--scale", "7b", "--corpus.code", sys.argv[1]]
main()
slow = {"jax", "grain", "tensorflow_datasets", "array_record", "numpy", "sentencepiece"}
print(slow & set(sys.modules))
"""


def test_a_plan_of_a_prepared_corpus_imports_no_reader(tmp_path):
    code = prepared_corpora.write(tmp_path / "code", SPLITS)
    command = [sys.executable, "-c", PLAN, code]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "tokens estimated" in output and output.splitlines()[-1] == "set()"


def test_tokens_that_were_counted_with_the_tokenizer(tmp_path, monkeypatch, capsys):
    tokenizer = tokenizers.train(SPLITS["train"].values(), 320, tmp_path)
    path = tmp_path / "tokenizer.model"
    tokenizer.save(path)
    counts = {tokenizer.fingerprint: {"train": 10**11, "validation": 5}}
    code = prepared_corpora.write(tmp_path / "code", SPLITS, tokens=counts)
    arguments = ["--corpus.code", code, "--tokenizer.path", str(path)]
    lines, _ = planned(monkeypatch, capsys, *arguments)
    assert ["code", "code", "0.85", "425B", "100B", "4.25"] in [line.split() for line in lines]
    assert lines[-1] == "tokens trained include padding"


def test_one_line_for_a_corpus_that_cannot_be_planned(tmp_path, monkeypatch, capsys):
    for arguments in (
        ["--corpus.code", f"prepared:{tmp_path}/absent"],
        ["--corpus.code", f"prepared:{tmp_path}"],
        ["--corpus.others", "java", "x", "--corpus.max-files", "-1"],
    ):
        lines, status = planned(monkeypatch, capsys, *arguments)
        assert status == 2 and len(lines) == 1 and lines[0].startswith("error: ")
