"""Self-instruct keeps the first solution that passes hidden tests; a kill changes nothing."""

import json
import random

import pytest

from codellama_jax.alignment.answers import Failure
from codellama_jax.alignment.self_instruct import DATASET, Models, SelfInstruct, make_dataset
from codellama_jax.sandbox.executor import Executor

PARAMS = SelfInstruct(prompts=3, questions=4, solutions=4, batch=3, seed=1)
TESTS = (
    "[TESTS]\n#Test case 1:\nassert add(1) == {0}\n# Test case 2:\nassert add(2) == {1}\n[/TESTS]"
)


class Killed(Exception):
    """Ends a run as a kill would."""


class FakeModel:
    """Answers from a table that depends on the request alone; may stop after some batches."""

    def __init__(self, calls=1_000):
        self.calls = calls
        self.names = []

    def __call__(self, requests, at_once):
        for index, request in enumerate(requests):
            if index % at_once == 0:
                self.calls -= 1
                if not self.calls:
                    raise Killed
            self.names.append(request.name)
            yield index, self.answer(request)

    def answer(self, request):
        kind, *_ = request.name.split()
        if kind == "questions":
            number = int(request.name.split()[2])
            lines = [f"{i + 1}. Add {i + number} to a number." for i in range(4)]
            return "\n".join(lines)
        question = request.messages[0].content.rpartition("Task: ")[2]
        amount = int(question.split()[1])
        if kind == "tests":
            return "no idea" if amount == 5 else TESTS.format(1 + amount, 2 + amount)
        number = int(request.name.split()[2])
        hint = question.rpartition("add(")[2]
        argument, value = int(hint[0]), int(hint.split("== ")[1])
        bodies = [
            f"return {value}",  # satisfies the test that it was shown
            "return x +",
            f"return x + {amount}",
            f"return {amount} + x",
        ]
        assert value == amount + argument
        return f"[PYTHON]\ndef add(x):\n    {bodies[number]}\n[/PYTHON]"


@pytest.fixture(scope="module")
def executor():
    with Executor(workers=2) as workers:
        yield workers


def make(folder, executor, model):
    return make_dataset(Models(model, model, model), executor, PARAMS, folder, {"model": "fake"})


@pytest.fixture(scope="module")
def complete(executor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("complete")
    model = FakeModel()
    return folder, make(folder, executor, model), model


def dataset(folder):
    return [json.loads(line) for line in (folder / DATASET).read_text().splitlines()]


def files_of(folder):
    """Returns the lines of each file; the order of answers that were drawn does not matter."""
    return {path.name: sorted(path.read_text().splitlines()) for path in folder.iterdir()}


def test_the_counts_of_each_step(complete):
    _, counts, _ = complete
    assert (counts.questions, counts.different, counts.with_tests) == (12, 6, 5)
    assert (counts.solutions, counts.kept) == (20, 5)
    assert counts.reasons == {
        "solution: failed": 5,
        "solution: the code does not parse": 5,
        "tests: no tests": 1,
    }


def test_the_first_solution_that_passes_all_tests_is_kept(complete):
    folder, _, _ = complete
    lines = dataset(folder)
    assert [line["sample"] for line in lines] == [2] * 5
    for amount, line in enumerate(lines):
        question, answer = line["messages"]
        assert question == {"role": "user", "content": f"Add {amount} to a number."}
        code = f"def add(x):\n    return x + {amount}\n"
        assert answer == {"role": "assistant", "content": f"[PYTHON]\n{code}[/PYTHON]"}
        assert line["shown_test"] in line["tests"] and len(line["tests"]) == 2
        assert line["model"] == "fake"


def test_killed_anywhere_it_loses_and_doubles_nothing(complete, executor, tmp_path):
    folder, counts, undisturbed = complete
    rng, names = random.Random(0), []
    for _ in range(5):
        model = FakeModel(calls=rng.randint(2, 4))
        with pytest.raises(Killed):
            make(tmp_path, executor, model)
        names += model.names
        # A kill may also leave the beginning of a line.
        for path in tmp_path.iterdir():
            with path.open("a") as file:
                file.write(json.dumps({"task_id": "q0", "sample": 0})[: rng.randint(1, 20)])
    model = FakeModel()
    assert make(tmp_path, executor, model) == counts
    assert sorted(names + model.names) == sorted(undisturbed.names)
    assert files_of(tmp_path) == files_of(folder)
    assert make(tmp_path, executor, FakeModel(calls=1)) == counts  # nothing is asked again


def test_another_answer_to_the_prompts_is_no_error(executor, tmp_path):
    def silent(requests, at_once):
        return enumerate([""] * len(requests))

    counts = make_dataset(Models(silent, silent, silent), executor, PARAMS, tmp_path, {})
    assert counts.kept == 0
    assert counts.reasons == {"an answer without questions": 3}
    assert dataset(tmp_path) == []


def test_failed_requests_are_counted_and_the_others_kept(executor, tmp_path):
    class Refusing(FakeModel):
        def answer(self, request):
            if request.name in ("questions questions 2", "tests q1 0", "solutions q0 2"):
                return Failure("answers 400 Bad Request")
            return super().answer(request)

    counts = make(tmp_path, executor, Refusing())
    assert (counts.questions, counts.different, counts.with_tests, counts.kept) == (8, 5, 4, 4)
    for step in ("questions", "tests", "solution"):
        assert counts.reasons[f"{step}: the model answers 400 Bad Request"] == 1
    assert dataset(tmp_path)[0]["sample"] == 3  # the next solution of q0 that passes
    assert make(tmp_path, executor, FakeModel(calls=1)) == counts


class MixedModel(FakeModel):
    """Writes its first list with bullets."""

    def answer(self, request):
        if request.name == "questions questions 0":
            return "- Add 9 to a number.\n- Add 1 to a number."
        return super().answer(request)


def test_lists_that_older_versions_did_not_read_rename_no_question(tmp_path, executor):
    models = Models(*[MixedModel()] * 3)
    counts = make_dataset(models, executor, PARAMS, tmp_path, {})
    assert (counts.questions, counts.different) == (10, 6)
    lines = [json.loads(line) for line in (tmp_path / "tests.jsonl").read_text().splitlines()]
    tests = {line["task_id"]: line["text"] for line in lines}
    assert tests["q0"] == TESTS.format(2, 3) and tests["q5"] == TESTS.format(10, 11)
