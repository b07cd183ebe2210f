"""The texts of every benchmark that a corpus should not hold."""

import collections
import inspect
import json
import re

import pytest
import small_data as data
from paths import DATA

from codellama_jax.benchmarks.suites import SUITES
from codellama_jax.benchmarks.texts import TEXTS, benchmark_texts
from codellama_jax.data.prepare.contamination.index import (
    BenchmarkText,
    Decontamination,
    Index,
    find,
)
from codellama_jax.errors import UserError

RECORDS = {
    "humaneval": data.HUMANEVAL,
    "humaneval_plus": data.PLUS,
    "mbpp": data.MBPP,
    "multipl_e": data.MULTIPL_E,
    "humaneval_x": [data.X_PYTHON, data.X_GO],
    "humaneval_infilling": data.infilling("SingleLine") + data.infilling("MultiLine"),
    "single_line": data.SINGLE_LINE,
    "docstring": data.DOCSTRINGS,
    "gsm8k": data.GSM8K,
    "gsm8k_programs": data.GSM8K,
    "lcc": data.LCC,
    "truthfulqa": data.TRUTHFUL,
}


@pytest.fixture
def texts_of(tmp_path):
    """Returns a function that writes the small file of a benchmark and reads its texts."""

    def read(name):
        if name == "apps":
            data.write_apps(tmp_path)
            return benchmark_texts({name: str(tmp_path)})
        if name == "gsm8k_programs":
            (tmp_path / "pal.json").write_text(json.dumps(data.PAL))
        path = data.write_lines(tmp_path / f"{name}.jsonl", RECORDS[name])
        return benchmark_texts({name: str(path)})

    return read


@pytest.mark.parametrize("name", TEXTS)
def test_every_benchmark_with_records_has_texts(texts_of, name):
    texts = texts_of(name)
    assert texts and {text.benchmark for text in texts} == {name}
    assert all(text.text.strip() for text in texts)
    assert {text.kind for text in texts} <= {"prompt", "docstring", "solution"}


def test_a_suite_is_listed_or_has_no_published_texts():
    made_here = {"key_retrieval", "perplexity", "false_refusal"}
    of_natural_language = {"bold", "toxigen"}
    assert set(SUITES) - set(TEXTS) == made_here | of_natural_language
    with pytest.raises(UserError, match="perplexity has no published texts to find: name one of h"):
        benchmark_texts({"perplexity": "x"})
    with pytest.raises(UserError, match="no benchmark humanevil: there are"):
        benchmark_texts({"humanevil": "x"})


def test_a_function_has_its_prompt_its_solution_and_its_docstring(texts_of):
    texts = texts_of("humaneval")
    task = data.DOUBLE
    assert texts[:3] == [
        BenchmarkText("humaneval", "HumanEval/0", "prompt", task["prompt"]),
        BenchmarkText("humaneval", "HumanEval/0", "solution", task["canonical_solution"]),
        BenchmarkText(
            "humaneval", "HumanEval/0", "docstring", "Twice x.\n    >>> double(2)\n    4\n    "
        ),
    ]


def test_examples_and_instructions_of_prompts_are_left_out(texts_of):
    assert [text.text for text in texts_of("gsm8k")] == [task["question"] for task in data.GSM8K]
    assert [text.text for text in texts_of("truthfulqa")] == [
        task["question"] for task in data.TRUTHFUL
    ]
    # The test split: tasks 11 to 510.
    mbpp = texts_of("mbpp")
    assert [text.task for text in mbpp] == ["11", "11", "12", "12"]
    assert mbpp[2].text == "Write a function to add 12."


def test_apps_has_the_question_and_the_first_solution(texts_of):
    texts = texts_of("apps")
    assert [(text.task, text.kind) for text in texts] == [
        ("0000", "prompt"),
        ("0000", "solution"),
        ("0001", "prompt"),
        ("0001", "solution"),
    ]
    assert texts[1].text == "n = int(input())\nprint(2 * n)\n"


def test_one_program_of_many_infilling_tasks_is_one_text(texts_of):
    program = data.DOUBLE["prompt"] + data.DOUBLE["canonical_solution"]
    assert texts_of("humaneval_infilling") == [
        BenchmarkText("humaneval_infilling", "HumanEval/0", "solution", program)
    ]


@pytest.mark.skipif(not DATA.exists(), reason="needs the published files")
def test_texts_of_the_published_files():
    paths = {
        "humaneval": DATA / "humaneval" / "HumanEval.jsonl.gz",
        "mbpp": DATA / "mbpp" / "mbpp.jsonl",
        "gsm8k": DATA / "gsm8k" / "test.jsonl",
    }
    texts = benchmark_texts({name: str(path) for name, path in paths.items()})
    kinds = [(text.benchmark, text.kind) for text in texts]
    assert kinds.count(("humaneval", "docstring")) == kinds.count(("humaneval", "solution")) == 164
    assert kinds.count(("mbpp", "prompt")) == kinds.count(("mbpp", "solution")) == 500
    assert kinds.count(("gsm8k", "prompt")) == 1319


@pytest.mark.skipif(not DATA.exists(), reason="needs the published files")
def test_published_solutions_are_found_inside_a_larger_file():
    texts = benchmark_texts({"humaneval": str(DATA / "humaneval" / "HumanEval.jsonl.gz")})
    index = Index.build(texts, Decontamination(substring=True, ngrams=True))
    host = inspect.getsource(inspect)
    assert not find(host, index)
    rules = collections.Counter()
    solutions = [text.text for text in texts if text.kind == "solution"]
    for solution in solutions:
        spans = find(f"{host[:5000]}\n{solution}\n{host[5000:9000]}", index)
        rules.update({span.rule for span in spans})
    # BigCode's four exceptions and seven others are too short.
    assert rules["substring"] == 164 - 11
    assert rules["ngrams"] == sum(len(re.findall(r"\w+", text)) >= 13 for text in solutions) > 120


def test_codereval_is_searched_for_though_it_has_no_suite(tmp_path):
    record = {"_id": "62e6", "name": "f", "code": "def f():\n    return 1\n"}
    records = [{**record, "docstring": "Returns one.", "human_label": "Give back one."}]
    records.append({**record, "_id": "62e7", "code": "def g(): pass", "human_label": None})
    path = tmp_path / "CoderEval4Python.json"
    path.write_text(json.dumps({"RECORDS": records}))
    assert benchmark_texts({"codereval": str(path)}) == [
        BenchmarkText("codereval", "62e6", "solution", record["code"]),
        BenchmarkText("codereval", "62e6", "prompt", "Returns one."),
        BenchmarkText("codereval", "62e6", "prompt", "Give back one."),
        BenchmarkText("codereval", "62e7", "solution", "def g(): pass"),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", "has no RECORDS: name CoderEval4Python.json"),
        ('{"RECORDS": []}', "has no RECORDS"),
        ('{"RECORDS": [{"_id": "1"}]}', "record 1 of .* has no code"),
    ],
)
def test_another_file_than_codereval_is_one_line(tmp_path, text, problem):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(UserError, match=problem):
        benchmark_texts({"codereval": str(tmp_path / "other.json")})
