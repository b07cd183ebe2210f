"""Pairs of answers: the teacher's ranks above the student's, or the pair is dropped."""

import pytest

from codellama_jax.alignment.rank import STEP, TEACHER_BONUS, Answer, Task, rank
from codellama_jax.sandbox.executor import Executor

TESTS = ("assert f(1) == 2", "assert f(2) == 3", "assert f(-1) == 0")
PASSES = "```python\ndef f(x):\n    return x + 1\n```"
ALSO_PASSES = "```python\ndef f(x):\n    return 1 + x\n```"
PARTIAL = "```python\ndef f(x):\n    return abs(x) + 1\n```"
RAISES = "```python\ndef f(x):\n    return y\n```"
NONE = "I do not know."


@pytest.fixture(scope="module")
def executor():
    with Executor(workers=2) as workers:
        yield workers


def task(name, student, teachers):
    def answers(source, texts):
        return tuple(Answer(source, 0.2 + 0.1 * i, text) for i, text in enumerate(texts))

    return Task(name, "Add one.", TESTS, answers("student", student), answers("big", teachers))


def test_pairs_have_the_differences_of_the_outcomes(executor):
    ranking = rank(executor, [task("t", [PASSES, PARTIAL, RAISES, NONE], [ALSO_PASSES])])
    differences = {
        pair["rejected_outcome"]: pair["chosen_score"] - pair["rejected_score"]
        for pair in ranking.pairs
    }
    assert differences == pytest.approx(
        {
            "passed": TEACHER_BONUS,
            "partial": STEP + TEACHER_BONUS,
            "runtime error": 2 * STEP + TEACHER_BONUS,
            "compile error": 3 * STEP + TEACHER_BONUS,
        }
    )
    assert ranking.pairs[0]["rejected"] == NONE  # the largest difference first
    assert ranking.pairs[0]["chosen"] == "def f(x):\n    return 1 + x\n"
    assert ranking.outcomes["teacher: passed"] == 1
    assert ranking.outcomes["student: runtime error"] == 1


def test_pairs_whose_student_is_better_or_equal_text_are_dropped(executor):
    tasks = [task("a", [PASSES], [PARTIAL]), task("b", [PASSES], [PASSES])]
    tasks.append(task("c", [NONE], [f" {NONE}\n"]))  # equal once a chat format has written them
    ranking = rank(executor, tasks)
    assert ranking.pairs == []
    assert ranking.dropped == {"both wrote the same": 2, "the student's answer is better": 1}


def test_only_the_most_different_pairs_of_a_task_are_kept(executor):
    ranking = rank(executor, [task("t", [PARTIAL, NONE, RAISES], [PASSES])], most_pairs=2)
    outcomes = [pair["rejected_outcome"] for pair in ranking.pairs]
    assert outcomes == ["compile error", "runtime error"]
    assert [pair["sample"] for pair in ranking.pairs] == [0, 1]
    assert sum(ranking.dropped.values()) == 1


def test_answers_that_repeat_make_one_pair(executor):
    """The pairs to keep are different ones, rather than copies of the most different pair."""
    answers = [NONE, f"{NONE}\n", RAISES], [PASSES, PASSES]
    ranking = rank(executor, [task("t", *answers)], most_pairs=2)
    outcomes = [pair["rejected_outcome"] for pair in ranking.pairs]
    assert outcomes == ["compile error", "runtime error"]
    assert ranking.dropped == {"equal to another pair of the task": 4}
    assert ranking.outcomes["teacher: passed"] == 2
