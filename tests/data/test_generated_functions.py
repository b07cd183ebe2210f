"""The generated functions: right, different, the same everywhere, and some in no corpus."""

import hashlib

import pytest

from codellama_jax.alignment import parsing
from codellama_jax.alignment.outcomes import Candidate, passing
from codellama_jax.benchmarks.programs import program
from codellama_jax.data import generated_functions as generated
from codellama_jax.sandbox.executor import Executor

FAMILY = generated.family()


@pytest.fixture(scope="module")
def corpora():
    return {name: list(texts()) for name, texts in generated.CORPORA.items()}


def test_every_solution_passes_its_tests_in_the_sandbox():
    candidates = []
    for number, function in enumerate(FAMILY[::16]):
        tests = tuple(generated.hidden_tests(function, 3))
        assert len(set(tests)) == 3
        candidates.append(Candidate(f"f{number}", function.solution, tests))
    with Executor(workers=2) as executor:
        statuses = [status for _, status in passing(executor, candidates)]
    assert statuses == ["passed"] * len(candidates)


@pytest.mark.parametrize(
    ("question", "argument", "value"),
    [
        ("Write f of a list: doubles, keeps those above 4, reverses.", [1, 5, 3], [6, 10]),
        ("Write f of a list: sorts, drops the first, sums.", [9, 0, 4], 13),
        ("Write f of a text: removes a, appends x, capitalizes.", "a1b", "1BX"),
        ("Write f of a text: repeats, counts a.", "a1b", 2),
    ],
)
def test_the_words_mean_the_code(question, argument, value):
    assert generated.asked_by(question).call()(argument) == value


@pytest.mark.parametrize(
    "question",
    ["Write f of a list: sums, sorts.", "Write f of a tree: sorts.", "Write f of a list: x.", ""],
)
def test_a_question_in_other_words_asks_for_no_function(question):
    assert generated.asked_by(question) is None
    assert not generated.asks_for_held_out(question)


def test_the_functions_differ_and_are_the_same_everywhere():
    behaviours = {generated.behaviour(function) for function in FAMILY}
    assert len(behaviours) == len(FAMILY) == 781
    assert all(generated.asked_by(function.question) == function for function in FAMILY)
    text = "".join(function.question + function.solution for function in FAMILY)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "3c2d5228a4fec772"


def test_no_corpus_holds_a_held_out_function(corpora):
    held_out = generated.held_out()
    assert len(held_out) == 114
    assert all(generated.asks_for_held_out(function.question) for function in held_out)
    of_held_out = corpora["functions:held_out"]
    assert of_held_out == [generated.document(f.question, f.solution) for f in held_out]
    to_train_on = [texts for name, texts in corpora.items() if name != "functions:held_out"]
    texts = "\n".join("\n".join(documents) for documents in to_train_on)
    assert not any(function.question in texts for function in held_out)
    assert len(corpora["functions:questions"]) == generated.SHOWN
    asked = {function.question for function, _ in generated.tasks()}
    assert asked.isdisjoint({function.question for function in held_out})


def test_the_records_are_what_self_instruct_reads(corpora):
    """A model that writes like the records is understood in every step."""
    kinds = {"questions": 0, "tests": 0, "programs": 0}
    for text in corpora["functions:records"][:1500]:
        prompt, _, answer = text.removeprefix('"""').partition('"""\n')
        if prompt.startswith("List"):
            kinds["questions"] += len(parsing.questions(answer)) == generated.LISTED
        elif prompt.startswith("Tests"):
            kinds["tests"] += len(parsing.tests(answer)[0]) == generated.TESTS
        else:
            kinds["programs"] += program(answer).code == answer
    assert sum(kinds.values()) == 1500
    assert all(kinds.values())
