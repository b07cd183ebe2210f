"""Names and paths are printed as they are, in lines, tables and bars."""

import io

import toy
from etils import epath
from paths import ROOT
from rich.console import Console
from rich.table import Table

from codellama_jax.benchmarks import evaluate
from codellama_jax.checkpoints.folder import StageFolder
from codellama_jax.config import Experiment
from codellama_jax.report import plan
from codellama_jax.system import console
from codellama_jax.training import metrics

NAME = "[b]:car:[/b]"
# Bars of fixed names, and an answer of a chat, which is Markdown.
OTHERS = ("system/console.py", "system/progress.py", "generation/chat.py")


def test_a_console_changes_no_text(capsys):
    table = Table(NAME, title=NAME)
    table.add_row(NAME)
    printer = console.plain_console()
    printer.print(table)
    printer.print(NAME)
    console.warn(NAME)
    output = capsys.readouterr()
    assert output.out.count(NAME) == 4 and output.err == f"{NAME}\n"


def test_no_other_console_prints_texts_of_users():
    makers = []
    for file in (ROOT / "codellama_jax").rglob("*.py"):
        if "Console(" in file.read_text():
            makers.append(str(file.relative_to(ROOT / "codellama_jax")))
    assert sorted(makers) == sorted(OTHERS)


def test_a_result_names_its_folder(tmp_path, capsys):
    summary = {"benchmark": "humaneval", "tasks": 1, "samples": 1, "measures": {"pass@1": 50.0}}
    evaluate._report(summary, NAME, None, f"{NAME} differs", tmp_path / NAME)
    text = capsys.readouterr().out
    assert f"results: {tmp_path / NAME}/results.json" in text
    assert text.count(NAME) >= 3


def test_a_plan_names_its_arms(capsys):
    name = "[b]:car:"
    plan.print_plan(Experiment(name, "toy", {name: {"code": toy.stage()}}), f"A {name}")
    assert capsys.readouterr().out.count(name) == 3


def test_a_bar_names_its_stage(tmp_path, monkeypatch):
    output = io.StringIO()

    def terminal(**options):
        return Console(file=output, force_terminal=True, width=200, **options)

    monkeypatch.setattr(console, "Console", terminal)
    stage = toy.stage()
    log = metrics.Metrics(StageFolder(epath.Path(tmp_path)), NAME, stage, 0)
    log.close()
    assert NAME in output.getvalue()
