"""Samples in every format, partial and wrapped ones, and damaged files of an evaluation."""

import gzip
import json
import os

import pytest
import small_data as data

from codellama_jax.benchmarks import evaluate, samples, wrapping
from codellama_jax.benchmarks.sample_forms import check_own, read_samples
from codellama_jax.benchmarks.scoring import FIELDS, score
from codellama_jax.benchmarks.settings import Checking, PromptOptions, Settings
from codellama_jax.benchmarks.suites import load
from codellama_jax.errors import UserError

ONE = Checking(workers=1)
GOOD = [
    {"task_id": record["task_id"], "completion": record["canonical_solution"]}
    for record in data.HUMANEVAL
]
PROGRAMS = [record["prompt"] + record["canonical_solution"] for record in data.HUMANEVAL]
COMPLETE = [
    {"task_id": sample["task_id"], "solution": program} for sample, program in zip(GOOD, PROGRAMS)
]
GENERATED = [
    {"task_id": s["task_id"], "generation": s["completion"] + "\nprint(double(1))\n", "prompt": ""}
    for s in GOOD
]
AS_LINES = "".join(json.dumps(sample) + "\n" for sample in GOOD).encode()
FORMS = {
    "JSON lines: task_id and completion": AS_LINES,
    "gzipped JSON lines: task_id and completion": gzip.compress(AS_LINES),
    "JSON lines: task_id and completion, as": b"\xef\xbb\xbf" + AS_LINES,
    "a JSON array: task_id and completion": json.dumps(GOOD).encode(),
    "a JSON array: task_id and solution": json.dumps(COMPLETE).encode(),
    "JSON lines: task_id and solution, a complete program, as EvalPlus": "".join(
        json.dumps(sample) + "\n" for sample in COMPLETE
    ).encode(),
    "a JSON array: a list of complete programs": json.dumps([[p] for p in PROGRAMS]).encode(),
    "a JSON array: task_id and generation, as CodeGeeX": json.dumps(GENERATED).encode(),
}


@pytest.fixture(scope="module")
def humaneval(files):
    return load("humaneval", data=files["humaneval"])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_recognised_and_scored(form, humaneval, executor, tmp_path):
    path = tmp_path / "samples"
    path.write_bytes(FORMS[form])
    result = read_samples(path, humaneval)
    assert result.form.startswith(form)
    results = score(humaneval, result.by_key, executor, tmp_path)
    assert [result["passed"] for result in results] == [True, True]


def test_a_solution_is_a_complete_program(humaneval, executor, tmp_path):
    """As EvalPlus runs it: definitions of the prompt are missing unless the solution has them."""
    body = [{**sample, "solution": sample["completion"]} for sample in GOOD]
    for sample in body:
        del sample["completion"]
    path = data.write_lines(tmp_path / "s.jsonl", body)
    results = score(humaneval, read_samples(path, humaneval).by_key, executor, tmp_path)
    assert ["IndentationError" in result["result"] for result in results] == [True, True]


@pytest.mark.parametrize("name", [11, "11", "Mbpp/11", "MBPP/11"])
def test_names_of_mbpp_tasks(name, files, tmp_path):
    benchmark = load("mbpp", data=files["mbpp"])
    lines = [{"task_id": name, "solution": "x = 1"}, {"task_id": "12", "completion": "x = 1"}]
    result = read_samples(data.write_lines(tmp_path / "s.jsonl", lines), benchmark)
    assert list(result.by_key) == [("11", 0), ("12", 0)]


FAULTS = [
    ({"task_id": ["HumanEval/0"], "completion": ""}, "task_id is the list"),
    ({"task_id": {"a": 1}, "completion": ""}, "task_id is the object"),
    ({"task_id": None, "completion": ""}, "task_id is null, which is no task"),
    (
        {"task_id": "HumanEval/0", "completion": "", "sample": [1]},
        "sample must be an integer from 0",
    ),
    (
        {"task_id": "HumanEval/0", "completion": "", "sample": {}},
        "sample must be an integer from 0",
    ),
    (
        {"task_id": "HumanEval/0", "completion": "", "sample": -1},
        "sample must be an integer from 0",
    ),
    (
        {"task_id": "HumanEval/0", "completion": "", "sample": 1.5},
        "sample must be an integer from 0",
    ),
    ({"task_id": "HumanEval/0", "completion": ["a"]}, "completion must be a string, not the list"),
    (
        {"task_id": "HumanEval/0", "output": "a"},
        "no completion, solution or generation; known forms",
    ),
    (
        {"task_id": "HumanEval/0", "completion": "", "mean_logprob": "x"},
        "mean_logprob must be a num",
    ),
    (
        {"prompt": "a", "text": "b"},
        "must be an object with task_id, not an object with prompt, text",
    ),
    ("text", "must be an object with task_id, not the string 'text'; known forms"),
    (None, "must be an object with task_id, not null"),
]


@pytest.mark.parametrize(("line", "message"), FAULTS)
def test_a_faulty_sample_is_one_line(line, message, humaneval, tmp_path):
    path = data.write_lines(tmp_path / "s.jsonl", [*GOOD, line])
    with pytest.raises(UserError, match=f"line 3 of .*{message}") as error:
        read_samples(path, humaneval)
    assert "\n" not in str(error.value)


def test_files_that_hold_no_samples(humaneval, files, tmp_path):
    path = tmp_path / "s.jsonl"
    deep = b'{"task_id": ' + b"[" * 100_000 + b"\n" + AS_LINES
    contents = {
        "is empty": b"",
        "holds no samples": b"[]",
        "nested too deeply": deep,
        "truncated gzip": gzip.compress(AS_LINES)[:-9],
        "holds 3 lists of programs for 2 tasks": json.dumps([["a"], ["b"], ["c"]]).encode(),
        "programs must be a list whose items are each a string": b'[["a"], [5]]',
        "must be an object with task_id, not the string": b'["a", "b"]',
    }
    for message, content in contents.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_samples(path, humaneval)
    path.write_text("[[], []]")
    with pytest.raises(UserError, match="holds no samples"):
        read_samples(path, humaneval, partial=True)
    path.write_text(json.dumps([["x = 1"]]))
    infilling = load("humaneval_infilling", data=files["SingleLine"])
    with pytest.raises(UserError, match="humaneval_infilling takes completions only"):
        read_samples(path, infilling)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is not a regular file"):
        read_samples(tmp_path / "pipe", humaneval)
    choices = load("truthfulqa", data=files["truthfulqa"])
    for values in ([1.0], [1.0, 2.0, 3.0, 4.0, None], "x"):
        data.write_lines(path, [{"task_id": "0", "log_likelihoods": values}])
        with pytest.raises(UserError, match="log_likelihoods must be a list of 5 numbers"):
            read_samples(path, choices)


def test_partial_samples_are_scored_only_on_request(files, executor, tmp_path, capsys):
    path = data.write_lines(tmp_path / "s.jsonl", GOOD[:1])
    common = ("humaneval", None, PromptOptions(data=files["humaneval"]), Settings())
    message = "no sample of 1 of 2 tasks: HumanEval/1; --partial scores the others"
    with pytest.raises(UserError, match=message):
        evaluate.evaluate(*common, ONE, tmp_path / "out", str(path))
    partial = Checking(workers=1, partial=True)
    evaluate.evaluate(*common, partial, tmp_path / "out", str(path))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["partial"] == {"tasks": 1, "of": 2}
    assert results["measures"]["pass@1"] == 100
    assert not results["compared with the papers"]
    printed = capsys.readouterr()
    assert "partial: 1 of 2 tasks have samples" in printed.out
    assert "read as JSON lines: task_id and completion" in printed.err


FENCED = "```python\n{}```\n"
WRAPPED = {
    "wrapped in a markdown fence": FENCED,
    "a trailing markdown fence": "{}```\n",
    "code in a markdown fence, between": "Here it is:\n```python\n{}```\nIt doubles.\n",
    "a no-break space": "{}\n    x\N{NO-BREAK SPACE}= 1\n",
    "a byte order mark": "\N{ZERO WIDTH NO-BREAK SPACE}{}",
    "</s>": "{}</s>",
}


@pytest.mark.parametrize("cause", WRAPPED)
def test_wrapped_code_fails_with_its_cause_and_is_extracted(cause, humaneval, executor, tmp_path):
    text = WRAPPED[cause].replace("{}", data.DOUBLE["canonical_solution"])
    sample = {"task_id": "HumanEval/0", "sample": 0, "completion": text}
    by_key = {samples.key(sample): sample}
    [plain] = score(humaneval, by_key, executor, tmp_path)
    assert not plain["passed"] and f"{cause}" in plain["result"], plain
    assert "--extract-code" in plain["result"] and "SyntaxError" in plain["result"]
    [extracted] = score(humaneval, by_key, executor, tmp_path, extract_code=True)
    assert extracted["passed"] and extracted["completion"] == text
    [plain] = score(humaneval, by_key, executor, tmp_path)
    assert not plain["passed"]


def test_extracting_leaves_plain_code_unchanged():
    for text in (*PROGRAMS, "", "x = '```'\n", "s = '''\n    ```x``` \n'''\n"):
        assert wrapping.extract(text) == text
        assert not wrapping.cause(text) or "fence" not in wrapping.cause(text)
    assert wrapping.extract("```\na\n```\n```\nb\n```") == "a\n"
    assert wrapping.extract("```python\na = 1\n") == "a = 1\n"  # a model that ran out of tokens


@pytest.mark.parametrize("line", ["[]", "5", "null", '{"task_id": 5, "sample": 0}', '"x"'])
def test_a_foreign_line_in_our_own_files_is_named(line, humaneval, executor, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(f"{line}\n")
    with pytest.raises(
        UserError, match=r"line 1 of .*results\.jsonl .*did not write it: remove it"
    ):
        samples.continue_file(path, FIELDS)
    with pytest.raises(UserError, match="did not write it"):
        score(humaneval, {}, executor, tmp_path)


def test_our_own_samples_are_checked(humaneval, tmp_path):
    path = tmp_path / "samples.jsonl"
    faults = {
        "completion must be a string, not the int 5": {"completion": 5},
        "has no completion": {},
        "which is no task of humaneval": {"task_id": "HumanEval/9", "completion": ""},
    }
    for message, fields in faults.items():
        lines = [{"task_id": "HumanEval/0", "sample": 0, **fields}]
        with pytest.raises(UserError, match=message):
            check_own(lines, path, humaneval)


def test_a_full_disk_names_the_file():
    with pytest.raises(UserError, match="cannot write /dev/full: No space left on device"):
        samples.append(evaluate.Path("/dev/full"), GOOD)
