"""Evol-Instruct: rounds of methods, cleaning, and no text of a benchmark in the dataset."""

import json
from collections import Counter

import pytest

from codellama_jax.alignment import evol_prompts
from codellama_jax.alignment.evol_instruct import (
    RULES,
    EvolInstruct,
    Evolved,
    make_dataset,
    problem_of,
)
from codellama_jax.data.prepare.contamination.index import BenchmarkText, Index

SOLUTION = """def greatest_divisor(first, second):
    while second:
        first, second = second, first % second
    return abs(first)
"""
PROMPT = "Write a function that returns the greatest number which divides both arguments evenly."
BENCHMARKS = [
    BenchmarkText("mbpp", "7", "prompt", PROMPT),
    BenchmarkText("mbpp", "7", "solution", SOLUTION),
]
SEEDS = [f"Add {i} to every item of a list." for i in range(6)]
PARAMS = EvolInstruct(rounds=3, batch=4)


class Writer:
    """Appends the method to the task; counts the requests."""

    def __init__(self):
        self.requests = []

    def __call__(self, requests, at_once):
        self.requests += requests
        # The last one ends first.
        return reversed([(i, self.answer(request)) for i, request in enumerate(requests)])

    def answer(self, request):
        text = request.messages[0].content
        method = next(name for name, words in evol_prompts.METHODS.items() if words in text)
        return f"{text.rpartition('Task:')[2].strip()} Then {method}."


class Solver(Writer):
    """Answers every task with a function."""

    def answer(self, request):
        return f"Sure.\n```python\ndef f(items):\n    return items  # {len(request.name)}\n```"


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_round_changes_the_task_of_the_round_before(tmp_path):
    report = make_dataset(Writer(), Solver(), SEEDS, BENCHMARKS, PARAMS, tmp_path, {"by": "fake"})
    assert (report.tasks, report.kept, report.reasons) == (24, 24, {})
    lines = lines_of(tmp_path / "dataset.jsonl")
    by_key = {(line["task_id"], line["sample"]): line for line in lines}
    methods = Counter()
    for (name, number), line in by_key.items():
        task = line["messages"][0]["content"]
        if number:
            before = by_key[name, number - 1]["messages"][0]["content"]
            assert task == f"{before} Then {line['method']}."
            methods[line["method"]] += 1
        assert line["by"] == "fake"
    assert set(methods) == set(evol_prompts.METHODS)


def test_what_was_answered_is_not_answered_again(tmp_path):
    writer, solver = Writer(), Solver()
    make_dataset(writer, solver, SEEDS, BENCHMARKS, PARAMS, tmp_path, {})
    (tmp_path / "answers.jsonl").write_bytes(
        (tmp_path / "answers.jsonl").read_bytes()[:-5]  # as after a kill
    )
    before = (tmp_path / "dataset.jsonl").read_bytes()
    writer, solver = Writer(), Solver()
    make_dataset(writer, solver, SEEDS, BENCHMARKS, PARAMS, tmp_path, {})
    assert (len(writer.requests), len(solver.requests)) == (0, 1)
    assert (tmp_path / "dataset.jsonl").read_bytes() == before


def test_in_breadth_is_an_option(tmp_path):
    def writer(requests, at_once):
        assert all("rarer topic" in request.messages[0].content for request in requests)
        return enumerate(f"A new task, {request.name}." for request in requests)

    params = EvolInstruct(rounds=1, breadth=1.0)
    report = make_dataset(writer, Solver(), SEEDS, [], params, tmp_path, {})
    assert report.kept == 12


CODE = "```python\ndef f(x):\n    return x\n```"
TASK = "Return the argument of the function."


@pytest.mark.parametrize(
    ("text", "method", "answer", "reason"),
    [
        (TASK, "constraint", CODE, ""),
        ("Short.", "", CODE, "the task is too short or too long"),
        ("x" * 5_000, "", CODE, "the task is too short or too long"),
        (f"Here is the new task: {TASK}", "constraint", CODE, "the task repeats the prompt"),
        (f"Here is the new task: {TASK}", "", CODE, ""),  # a seed may use these words
        ("return  THE identity of a number", "", CODE, "the task is a duplicate"),
        (TASK, "", "I cannot.", "answer with no code"),
        (TASK, "", "```python\nx = 1\n```", "answer with no function"),
        (TASK, "", f"```python\ndef f():\n    return '{'x' * 9_000}'\n```", "the code is too long"),
        (PROMPT, "", CODE, "leak by substring: mbpp 7"),
        (TASK, "", f"```python\n{SOLUTION}```", "leak by substring: mbpp 7"),
        (
            TASK,
            "",
            "```python\n" + SOLUTION.replace("    ", "\t") + "```",
            "leak by similarity: mbpp 7",
        ),
    ],
)
def test_the_rules_of_cleaning(text, method, answer, reason):
    earlier = {"return the identity of a number"}
    index = Index.build(BENCHMARKS, RULES)
    assert problem_of(Evolved(text, method), answer, earlier, index)[0] == reason
