"""100 hostile answers and conversations: nothing crashes, each is counted under a reason."""

import json
from collections import Counter

import pytest

from codellama_jax.alignment import evol_instruct, outcomes, parsing, self_instruct
from codellama_jax.benchmarks import programs
from codellama_jax.data.conversations import conversation_ids, pair_ids
from codellama_jax.sandbox import Verdict
from codellama_jax.sandbox.executor import Executor
from codellama_jax.tokenizers.chat import FORMATS

CODE = "def f(x):\n    return x + 1"
FENCED = f"```python\n{CODE}\n```"
MEGABYTE = 1_000_000
ANSWERS = [
    *("", " ", "\n\n\n", "\0", "\x1b[2J\x1b[H", "\ufeff", "\u200b\u200b", "\ud800", "\udfff\ud800"),
    *(
        "```",
        "``````",
        "```python",
        "```python\n",
        "```\n```",
        "~~~\nx\n~~~",
        "`f(1)`",
        "```py\n\n",
    ),
    *("[PYTHON]", "[/PYTHON]", "[PYTHON][/PYTHON]", "[/PYTHON][PYTHON]", "[PYTHON]" * 300),
    *("[TESTS]", "[TESTS][/TESTS]", "[/TESTS][TESTS]", "[TESTS]assert", "[TESTS]\nassert f(\n"),
    *("[INST]", "[/INST]", "<<SYS>>x<</SYS>>", "<step>", "</s>", "<|im_end|>", "<PRE><SUF><MID>"),
    *("I cannot help with that.", "no code here", "1. x", "1.\n" * 500, "1. a.\n" * 500, "9" * 300),
    *("x" * MEGABYTE, "(" * 100_000, FENCED * 1_000, "\n" * 100_000, "```\n" * 9_000),
    *(
        "```java\nclass A {}\n```",
        "```c++\nint main() {}\n```",
        "```\nSELECT 1;\n```",
        "```js\n1\n```",
    ),
    *("```python\n```python\n" + CODE + "\n```\n```", f"````\n{FENCED}\n````", f"> {FENCED}"),
    *(f"{FENCED}\n{FENCED}", f"```python\nx = (\n```\n{FENCED}", f"{FENCED}\n```python\nf(1)"),
    *(
        f"[PYTHON]{FENCED}",
        f"[PYTHON]\n{CODE}",
        f"{FENCED}[PYTHON]",
        f"[PYTHON] and [/PYTHON]\n{FENCED}",
    ),
    *(
        "def f(:",
        "def f():\n\treturn 1\n  return 2",
        "def f(): return \ud800",
        "def f():\0 pass",
        "f =",
    ),
    *("(" * 5_000, "[" * 90, "lambda: " * 5_000 + "1", "-" * 19_000 + "1", "f" + "(f" * 3_000),
    *("while True:\n    pass", "def f():\n    while True: pass\nf()", "import os\nos._exit(0)"),
    *("class A: pass", "async def f(): pass", "x = 1", "assert f(1)", "assert True", "'" * 9_999),
    *("assert " * 2_000, "[TESTS]\nassert f(1) == '[/TESTS]'\n[/TESTS]", "#Test case 1:\nassert"),
    *("\N{LEFT DOUBLE QUOTATION MARK}f\N{RIGHT DOUBLE QUOTATION MARK}()", "\u202edef f(): pass"),
]
USER, ANSWER = {"role": "user", "content": "Add."}, {"role": "assistant", "content": CODE}


def talk(*messages) -> str:
    return json.dumps({"messages": list(messages)})


def says(role, content) -> dict:
    return {"role": role, "content": content}


CONVERSATIONS = [
    *("", "{}", "[]", "null", "nonsense", '{"messages": [', '{"messages": []}', '{"messages": 3}'),
    *('{"messages": [1]}', '{"messages": [{}]}', '{"messages": [{"role": "user"}]}', "[" * 100_000),
    *(talk(says(role, "x"), ANSWER) for role in ("", "User", "tool", "x" * 9_999, "\0", None, 3)),
    *(talk(USER, says("assistant", content)) for content in ("", " ", "\n", None, 1, [], {}, True)),
    *(talk(USER, says("assistant", f"a {tag} b")) for tag in ("[INST]", "[/INST]", "<step>")),
    *(talk(says("user", f"{tag}"), ANSWER) for tag in ("<<SYS>>", "<</SYS>>", '"""', "\ud800")),
    *(
        talk(USER),
        talk(ANSWER),
        talk(USER, USER, ANSWER),
        talk(ANSWER, USER),
        talk(USER, *[ANSWER] * 2),
    ),
    *(talk(USER, says("system", "s"), ANSWER), talk(*[says("system", "s")] * 2, USER, ANSWER)),
    *(talk(says("system", ""), USER, ANSWER), talk({**USER, "name": "x"}, ANSWER), talk(*[[]] * 3)),
    *(talk(USER, says("assistant", "\x1b[2J\0\x07")), talk(says("user", "x" * 100_000), ANSWER)),
    *(talk(*[USER, ANSWER] * 300), talk(USER, ANSWER, USER), talk(says("assistant", "x"))),
]


class Letters:
    """A tokenizer of one id per character."""

    bos_id, eos_id, adds_bos, pieces, vocab_size = 1, 2, True, 300, 316

    def encode(self, text, *, leading_space=True):
        text.encode()  # as UTF-8, which refuses lone surrogates
        return [3 + ord(letter) % 250 for letter in text]


class NothingPasses:
    """An executor whose programs all fail."""

    def run(self, programs):
        for position, _ in enumerate(programs):
            yield position, Verdict("stub", "failed", "no")


def test_there_are_enough_cases():
    assert len(ANSWERS) + len(CONVERSATIONS) >= 100


@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
def test_an_answer_has_a_result_or_a_reason(answer):
    code, reason = programs.program(answer)
    assert bool(code) != bool(reason)
    assert programs.nearest_program(answer, "f").reason == reason
    statements, no_tests = parsing.tests(answer)
    assert bool(statements) != bool(no_tests)
    assert all(isinstance(question, str) for question in parsing.questions(answer))
    task = evol_instruct.Evolved(answer, "deepen")
    reason, code = evol_instruct.problem_of(task, answer, set(), evol_instruct.Leaks([]))
    assert bool(code) != bool(reason)
    candidate = outcomes.Candidate("c", answer, (answer, "assert f(1) == 2"))
    (graded,) = outcomes.grade(NothingPasses(), [candidate])
    assert graded.detail and graded.outcome != outcomes.Outcome.PASSED
    (graded,) = outcomes.grade(NothingPasses(), [outcomes.Candidate("c", CODE, (answer,))])
    assert graded.outcome != outcomes.Outcome.PASSED


@pytest.mark.parametrize("chat", FORMATS)
def test_conversations_are_trained_on_or_counted_under_a_reason(chat):
    reasons: Counter[str] = Counter()
    trained = 0
    for number, text in enumerate(CONVERSATIONS):
        ids, weights = conversation_ids(Letters(), text, chat, reasons)
        assert len(ids) == len(weights)
        trained += bool(ids)
        assert trained + reasons.total() == number + 1
    assert trained >= 3 and len(reasons) >= 5
    assert max(map(len, reasons)) <= 100


def test_pairs_are_trained_on_or_counted_under_a_reason():
    reasons: Counter[str] = Counter()
    trained, pairs = 0, list(CONVERSATIONS)
    for difference in (0, -1, 1e99, 1e-99, "x", None, [], 10**400, 0.5):
        pair = {"prompt": "a", "chosen": "b", "rejected": "c", "difference": difference}
        pairs += [json.dumps(pair), json.dumps({**pair, "chosen": "[INST]"})]
    for text in pairs:
        trained += bool(pair_ids(Letters(), text, "llama2", reasons))
    assert trained == 1 and reasons.total() == len(pairs) - 1


def test_a_dataset_of_hostile_answers_is_empty_and_counts_all_of_them(tmp_path):
    """Twice: the second call reads every answer from the files, lone surrogates included."""
    params = self_instruct.SelfInstruct(prompts=1, questions=1, solutions=len(ANSWERS), batch=64)

    def answer(requests, at_once):
        fixed = {"questions": "1. Add 1.", "tests": "[TESTS]\nassert f(1) == 2\n[/TESTS]"}
        for index, request in enumerate(requests):
            kind, _, number = request.name.split()
            yield index, fixed.get(kind) or ANSWERS[int(number)]

    def hostile(requests, at_once):
        for index, _ in enumerate(requests):
            yield index, ANSWERS[index % len(ANSWERS)]

    for _ in range(2):
        models = self_instruct.Models(answer, answer, answer)
        folder, executor = tmp_path / "solutions", NothingPasses()
        counts = self_instruct.make_dataset(models, executor, params, folder, {})
        assert counts.kept == 0 and sum(counts.reasons.values()) == len(ANSWERS)
        assert counts.reasons["solution: failed"] >= 9 and len(counts.reasons) >= 6
        seeds = [f"Add {number} to an item." for number, _ in enumerate(ANSWERS)]
        evol = evol_instruct.EvolInstruct(rounds=1, batch=len(ANSWERS))
        folder = tmp_path / "evol"
        report = evol_instruct.make_dataset(hostile, hostile, seeds, [], evol, folder, {})
        assert report.tasks == 2 * len(ANSWERS)
        assert report.kept + sum(report.reasons.values()) == report.tasks


def test_programs_that_never_end_or_end_the_process_are_graded(monkeypatch):
    monkeypatch.setattr(outcomes, "TIMEOUT", 0.3)
    codes = ["def f(x):\n    while True: pass", "import os\ndef f(x):\n    os._exit(0)"]
    candidates = [outcomes.Candidate(code, code, ("assert f(1) == 2",)) for code in codes]
    with Executor(workers=1) as executor:
        graded = outcomes.grade(executor, candidates)
    assert [grade.outcome for grade in graded] == [outcomes.Outcome.RUNTIME_ERROR] * 2
