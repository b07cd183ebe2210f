"""Contest problems become programs that a model must complete, judged by standard output."""

import json
from collections import Counter

import pytest

from codellama_jax.alignment.answers import Request
from codellama_jax.alignment.codex_command import TraceFunctions
from codellama_jax.alignment.codex_s import DATASET, CodexS, make_dataset
from codellama_jax.alignment.commands import SamplingOptions
from codellama_jax.alignment.contests import read_contests
from codellama_jax.alignment.models import Remote, stops_of
from codellama_jax.errors import UserError
from codellama_jax.generation.settings import Sampling
from codellama_jax.sandbox.executor import Executor

ADD = "def add(a, b):\n    return a + b\n\n\nprint(add(*map(int, input().split())))\n"
TESTS = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7"]}
SUM = {"question": 'Add "two" \\ numbers.', "solutions": ["(", ADD], "input_output": TESTS}
WRONG = {**SUM, "question": "Multiply.", "input_output": {"inputs": ["2 3"], "outputs": ["6"]}}
HARD = {**SUM, "question": "A hard way to add."}
# As APPS has them.
NESTED = {**SUM, "question": "Nested.", "solutions": json.dumps([ADD])}
NESTED["input_output"] = json.dumps(TESTS)


def written(folder, *records):
    path = folder / "contests.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return str(path)


def model(requests, at_once):
    """Solves what is not hard; its first samples fail at the second example."""
    for index, request in enumerate(requests):
        is_first = request.name.endswith(" 0")
        yield index, "print(3)\n" if "hard" in request.prompt or is_first else ADD


def test_problems_that_a_sample_solves_are_kept(tmp_path):
    reasons = Counter()
    contests = read_contests([written(tmp_path, SUM, WRONG, HARD, NESTED, SUM)], reasons)
    assert reasons == {"contest: it is a duplicate": 1}
    assert [contest.problem.solution for contest in contests] == [ADD] * 4
    with Executor(workers=2, retry=False) as executor:
        params = CodexS(samples=3, repeats=2, tests=2)
        counts = make_dataset(model, executor, [], params, tmp_path / "out", {}, contests)
    assert (counts.contests, counts.with_tests, counts.stable, counts.kept) == (4, 4, 3, 2)
    assert counts.reasons == {
        "function: alone, its own tests end with failed": 1,
        "model: no sample passes": 1,
        "sample: failed": 5,
    }
    lines = (tmp_path / "out" / DATASET).read_text().splitlines()
    first, second = map(json.loads, lines)
    assert first["prompt"] == '"""\nAdd "two" \\\\ numbers.\n"""\n' and first["completion"] == ADD
    assert first["tests"] == [["1 2\n", "3\n"], ["3 4\n", "7"]] == second["tests"]
    assert eval(first["prompt"]).strip() == SUM["question"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"solutions": ["("]}, "it has no solution that can be used"),
        ({"solutions": ""}, "it has no solution that can be used"),
        ({"input_output": {"inputs": [], "outputs": []}}, "it has no tests"),
        ({"input_output": {**TESTS, "fn_name": "add"}}, "its tests call a function"),
        ({"question": "x" * 7_000}, "its statement is too long"),
    ],
)
def test_a_problem_that_cannot_be_used_has_a_reason(tmp_path, change, reason):
    reasons = Counter()
    assert not read_contests([written(tmp_path, SUM | change)], reasons)
    assert reasons == {f"contest: {reason}": 1}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"question": 1}, "line 2 of .*: question must be a string"),
        ({"solutions": [1]}, "line 2 of .*: solutions must be a list"),
        ({"solutions": "["}, "line 2 of .*: solutions"),
        ({"input_output": {"inputs": ["1"], "outputs": []}}, "has 1 inputs and 0 outputs: each in"),
        ({"input_output": {"inputs": ["1"]}}, "line 2 of .*: input_output has no outputs"),
    ],
)
def test_a_record_of_another_form_is_one_line(tmp_path, change, line):
    with pytest.raises(UserError, match=line) as raised:
        read_contests([written(tmp_path, SUM, SUM | change)], Counter())
    assert "\n" not in str(raised.value)


def test_a_program_may_hold_definitions_and_a_function_may_not():
    program = Request("samples contest-0 0", [], '"""\nAdd.\n"""\n', is_program=True)
    assert stops_of(program) == ('\n"""',)
    assert "\ndef" in stops_of(program._replace(is_program=False))
    body = Remote("http://h/v1", "m")._body(Sampling(0.8, 0, 0.95, 8), program)
    assert body["stop"] == ['\n"""']


def test_the_command_needs_projects_or_contests(tmp_path, capsys):
    with pytest.raises(UserError, match="pass --projects FOLDER or --contests FILE"):
        TraceFunctions(str(tmp_path / "out"), SamplingOptions(), CodexS(samples=0))()
    command = TraceFunctions(
        str(tmp_path / "out"),
        SamplingOptions(),
        CodexS(samples=0, repeats=1),
        contests=(written(tmp_path, SUM, {**SUM, "solutions": []}),),
        workers=1,
    )
    command()
    printed = capsys.readouterr().out
    assert "contest problems     1" in printed and "kept                 1" in printed
    assert "1 x contest: it has no solution that can be used" in printed
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert len(settings["content of --contests"]) == 64
