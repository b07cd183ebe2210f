"""Attacks on the pipe between candidate and tests: none passes, the next program is right."""

import hostile
import hostile_objects
import hostile_pipe
import pytest

from codellama_jax.errors import UserError
from codellama_jax.sandbox import Executor, Program

ENDED = ("failed", "error", "crashed", "not_comparable", "timeout", "out_of_memory")


@pytest.fixture(scope="module")
def executor():
    try:
        with Executor(workers=2, memory_mb=400, retry=False) as made:
            yield made
    except UserError as error:
        pytest.skip(str(error))


def judged(executor, candidates, test=hostile.TEST, timeout=5.0):
    """Returns the verdicts in order, and checks that a right program after them passes."""
    names = {"test": test, "entry_point": "add"}
    programs = [Program("add", "python", "", timeout, candidate=c, **names) for c in candidates]
    right = {"candidate": hostile.RIGHT, "test": hostile.TEST, "entry_point": "add"}
    programs.append(Program("add", "python", "", 10.0, **right))
    verdicts = dict(executor.run(programs))
    assert verdicts[len(candidates)].status == "passed"
    return [verdicts[index] for index in range(len(candidates))]


def check_none_passes(executor, named, **options):
    for name, verdict in zip(named, judged(executor, list(named.values()), **options), strict=True):
        assert verdict.status in ENDED, name
        assert "sandbox" not in verdict.detail, (name, verdict.detail)


def test_forged_values_end_the_test(executor):
    made = {name: hostile_pipe.answering(nodes) for name, nodes in hostile_pipe.NODES.items()}
    check_none_passes(executor, made, timeout=1.0)


def test_forged_messages_end_the_test(executor):
    made = {name: hostile_pipe.sending(sent) for name, sent in hostile_pipe.MESSAGES.items()}
    check_none_passes(executor, made)


def test_a_callback_reaches_nothing_of_the_test(executor):
    made = {name: hostile_pipe.reaching(body) for name, body in hostile_pipe.REACHES.items()}
    check_none_passes(executor, made, test=hostile_pipe.CALLBACK_TEST, timeout=1.0)
    right = hostile_pipe.reaching("return fn(1) * 4 * item.value + 2 if apply(abs, -1) else 0")
    [verdict] = judged(executor, [right], test=hostile_pipe.CALLBACK_TEST)
    assert (verdict.status, verdict.detail) == ("passed", "")


def test_pretenders_do_not_pass(executor):
    check_none_passes(executor, hostile_pipe.PRETENDERS)


@pytest.mark.parametrize("name", hostile_pipe.AIMED)
def test_an_attack_on_one_test_does_not_pass(executor, name):
    candidate, test, expected = hostile_pipe.AIMED[name]
    [verdict] = judged(executor, [candidate], test=test)
    assert verdict.status in expected, verdict.detail


@pytest.mark.parametrize("name", hostile_objects.OBJECTS)
def test_an_object_that_knows_nothing_does_not_pass(executor, name):
    candidate, test = hostile_objects.OBJECTS[name]
    exec(compile(candidate + "\n" + test, name, "exec"), {})  # it passes in one process
    [verdict] = judged(executor, [candidate], test=test)
    assert verdict.status in ("failed", "not_comparable"), verdict.detail


def test_functions_that_a_test_prepares_still_work(executor):
    candidate = "def add(function, *args): return function(*args)\n"
    [verdict] = judged(executor, [candidate], test=hostile_pipe.HANDED)
    assert (verdict.status, verdict.detail) == ("passed", "")


def test_endless_values_end_on_time(executor):
    bodies = list(hostile_pipe.ENDLESS.values())
    for verdict in judged(executor, bodies, test=hostile_pipe.ENDLESS_TEST, timeout=0.5):
        assert verdict.status in ("timeout", "out_of_memory")
        assert verdict.seconds < 10


def test_a_flooded_pipe_ends_the_test(executor):
    flood = hostile_pipe.END + "def add(a, b):\n    while True: raw(['answer', 0, [], []])\n"
    calls = (
        hostile_pipe.END + "def add(a, b):\n    while True: raw(['request', 'call', [1], [], []])\n"
    )
    check_none_passes(executor, {"answers": flood, "calls": calls}, timeout=1.0)
