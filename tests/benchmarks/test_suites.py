"""A new suite is one file and a line in the registry; earlier folders of an evaluation continue."""

import ast
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import pytest
from paths import ROOT

from codellama_jax.benchmarks import evaluate, out_folder, suites
from codellama_jax.benchmarks.benchmark import Benchmark, Task, read_records
from codellama_jax.benchmarks.fields import TEXT
from codellama_jax.benchmarks.options import all_options, options_of
from codellama_jax.benchmarks.paper import Paper
from codellama_jax.benchmarks.settings import Checking, Options, Settings, described
from codellama_jax.benchmarks.suite import Suite
from codellama_jax.errors import UserError


@dataclass(frozen=True)
class EchoOptions(Options):
    """Options of a suite that a user adds."""

    shout: Annotated[bool, described("Ask for capital letters.")] = False


def load(options: EchoOptions, tokenizer: object = None) -> Benchmark:
    tasks = []
    for number, record in enumerate(read_records(options.data, {"word": TEXT})):
        word = record["word"].upper() if options.shout else record["word"]
        tasks.append(Task(str(number), record["word"], reference=word, record={"word": word}))
    paper = Paper(("echoed", "length"), "A model 12.5 50")
    return Benchmark("echo", tasks, judge=judge, paper=paper)


def judge(task: Task, sample: dict) -> dict[str, float]:
    word, text = task.record["word"], sample["completion"]
    return {"echoed": float(text == word), "length": float(len(text) == len(word))}


@pytest.fixture
def words(tmp_path, monkeypatch) -> str:
    monkeypatch.setitem(suites.SUITES, "echo", Suite(load, EchoOptions))
    path = tmp_path / "words.jsonl"
    path.write_text('{"word": "ab"}\n{"word": "c"}\n')
    return str(path)


def test_a_new_suite_has_its_options_measures_and_papers_numbers(words, tmp_path, capsys):
    samples = tmp_path / "samples.jsonl"
    samples.write_text(
        '{"task_id": "0", "completion": "AB"}\n{"task_id": "1", "completion": "X"}\n'
    )
    options = options_of("echo", all_options()(data=words, shout=True))
    assert options == EchoOptions(words, shout=True)
    common = (options, Settings(), Checking(), tmp_path / "out")
    evaluate.evaluate("echo", None, *common, samples_file=str(samples))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["measures"] == {"echoed": 50.0, "length": 100.0}
    printed = " ".join(capsys.readouterr().out.split())
    assert "no checksum of the published data of echo is known" in printed
    evaluate.evaluate("echo", None, *common[:-1], tmp_path / "reference", reference=True)
    results = json.loads((tmp_path / "reference" / "results.json").read_text())
    assert results["measures"]["echoed"] == 100.0


def test_options_of_another_suite_are_refused(words, tmp_path):
    with pytest.raises(UserError, match="the options of echo must be EchoOptions, not Options"):
        evaluate.evaluate("echo", None, Options(words), Settings(), Checking(), tmp_path, "x")


def test_a_folder_with_the_options_of_all_suites_continues(tmp_path):
    """As earlier versions wrote settings.json."""
    options = {"data": "x", "shots": -1, "source": "", "all_tasks": False, "lengths": [8000]}
    request = {"benchmark": "humaneval", "model": "m", "settings": asdict(Settings())}
    stored = {**request, "settings": asdict(Settings()), "options": options}
    for name in ("beams", "length_penalty"):
        del stored["settings"][name]
    (tmp_path / "settings.json").write_text(json.dumps(stored))
    out_folder.check_same(tmp_path, {**request, "options": asdict(Options("x"))})
    with pytest.raises(UserError, match=r"drawn in another way \(options.data: x -> y\)"):
        out_folder.check_same(tmp_path, {**request, "options": asdict(Options("y"))})
    beams = {**request, "settings": asdict(Settings(beams=2)), "options": asdict(Options("x"))}
    with pytest.raises(UserError, match=r"\(settings.beams: 1 -> 2\)"):
        out_folder.check_same(tmp_path, beams)


def test_samples_belong_to_the_tasks_wherever_their_file_is(tmp_path):
    def request(path, prompt):
        tasks = Benchmark("echo", [Task("0", prompt)]).fingerprint()
        return {"model": "m", "options": asdict(Options(path)), "tasks": tasks}

    out_folder.open_folder(tmp_path, request("x", "a"))
    out_folder.check_same(tmp_path, request("moved/x", "a"))
    with pytest.raises(UserError, match=r"in another way \(the tasks are not the same\): choose"):
        out_folder.check_same(tmp_path, request("x", "b"))


@pytest.mark.parametrize("package", ["benchmarks", "probes", "generation"])
def test_evaluation_imports_nothing_of_the_trainer(package):
    for file in sorted(Path(ROOT, "codellama_jax", package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or "").startswith("codellama_jax.training"), file
