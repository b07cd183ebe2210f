"""A benchmark's file with a fault is one line that names file, line, field, value and type."""

import gzip
import json
import os

import pytest
import small_data as data
from suite_records import MORE, SUITES, use

from codellama_jax.benchmarks.suites import load
from codellama_jax.errors import UserError

VALUES = [
    None,
    True,
    5,
    -1,
    1.5,
    float("nan"),
    10**400,
    "",
    "x",
    "\ud800",
    [],
    [5],
    [None],
    [[]],
    {},
    {"a": 1},
    {"a": None},
]
CASES = [(suite, field) for suite, record in SUITES.items() for field in record]
CASES += [(suite, field) for suite, record in MORE.items() for field in record]


@pytest.mark.parametrize(("suite", "field"), CASES)
def test_a_field_of_a_wrong_type_is_one_line(suite, field, tmp_path):
    """Any value is accepted or refused, and the refusal names the field."""
    original = SUITES[suite] if field in SUITES[suite] else MORE[suite]
    refused = 0
    for value in VALUES:
        path = data.write_lines(tmp_path / "data.jsonl", [{**original, field: value}])
        try:
            use(suite, path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 600
            assert "data.jsonl" in str(error) or "data of" in str(error)
            if "must be" in str(error):
                assert field in str(error) or "task_id" in str(error)
    path = data.write_lines(tmp_path / "data.jsonl", [original])
    use(suite, path)
    assert refused or field in ("name", "original", "declaration", "docstring_tokens")


def test_the_fault_of_a_record_is_named(tmp_path):
    path = data.write_lines(tmp_path / "h.jsonl", [data.DOUBLE, {**data.JOIN, "prompt": [5]}])
    fault = r"line 2 of .*h\.jsonl: prompt must be a string, not the list \[5\]"
    with pytest.raises(UserError, match=fault):
        use("humaneval", path)
    (tmp_path / "h.json").write_text(json.dumps([data.DOUBLE, {**data.JOIN, "entry_point": "a b"}]))
    fault = r"record 2 of .*h\.json: entry_point must be a Python name, not the string 'a b'"
    with pytest.raises(UserError, match=fault):
        use("humaneval", tmp_path / "h.json")
    path = data.write_lines(tmp_path / "m.jsonl", [{**data.mbpp_record(11), "code": "def f(:"}])
    with pytest.raises(UserError, match=r"line 1 of .*m\.jsonl: code must be Python code"):
        use("mbpp", path)
    path = data.write_lines(tmp_path / "g.jsonl", [{"question": "?", "answer": "none"}])
    with pytest.raises(UserError, match=r"line 1 of .*g\.jsonl: answer must hold a number"):
        use("gsm8k", path)
    no_true_answer = {**data.TRUTHFUL[0], "mc1_targets": {"a": 0}}
    with pytest.raises(UserError, match="mc1_targets must be an object of answers with 1"):
        use("truthfulqa", data.write_lines(tmp_path / "t.jsonl", [no_true_answer]))


WHOLE = "".join(json.dumps(record) + "\n" for record in data.HUMANEVAL).encode()
PACKED = gzip.compress(WHOLE, mtime=0)
FILES = {
    "truncated gzip file": PACKED[:-20],
    "damaged gzip file": PACKED[:100] + b"\xff\xff\xff" + PACKED[103:],
    "nested too deeply": b"[" * 100_000,
    "is empty": b"",
    "is a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "is an HTML or XML page": b"<!DOCTYPE html>",
    "is not utf-8 text: byte 0 is 0xfa": b"\xfa\xfb",
    "must be a JSON object, not": b"5\n",
}


@pytest.mark.parametrize("message", FILES)
def test_a_faulty_file_is_described(message, tmp_path):
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(FILES[message])
    with pytest.raises(UserError, match=message):
        use("humaneval", path)


def test_files_in_other_layouts_are_read(tmp_path):
    layouts = {
        "packed.jsonl": PACKED,
        "marked.jsonl": b"\xef\xbb\xbf" + WHOLE,
        "wide.jsonl": WHOLE.decode().encode("utf-16"),
        "dos.jsonl": WHOLE.replace(b"\n", b"\r\n"),
        "array.jsonl": json.dumps(data.HUMANEVAL, indent=1).encode(),
    }
    for name, content in layouts.items():
        (tmp_path / name).write_bytes(content)
        benchmark = load("humaneval", data=str(tmp_path / name))
        assert [task.task_id for task in benchmark.tasks] == ["HumanEval/0", "HumanEval/1"]


def test_a_pipe_is_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UserError, match=r"pipe\.jsonl is not a regular file"):
        use("humaneval", tmp_path / "pipe.jsonl")


@pytest.mark.parametrize("suite", ["humaneval", "lcc", "truthfulqa"])
def test_the_complete_file_system_is_not_searched_for_data(suite, tmp_path):
    (tmp_path / "link").symlink_to("/")
    for path in ("/", str(tmp_path / "link")):
        with pytest.raises(UserError, match=f"--data {path} is the complete file system"):
            load(suite, data=path)


@pytest.mark.parametrize("suite", ["humaneval", "gsm8k", "gsm8k_programs", "apps"])
def test_a_name_that_no_file_can_have(suite):
    for name in ("a" * 5000, "a/" * 3000, "nul\0character", "ftp://host/file", "gs://bucket/file"):
        with pytest.raises(UserError, match=f"{name[:20]}|nul"):
            load(suite, data=name)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("input_output.json", "[]", r"input_output\.json must be a JSON object, not the list"),
        (
            "input_output.json",
            '{"inputs": 5}',
            "inputs must be a list whose items are each a string",
        ),
        (
            "input_output.json",
            '{"fn_name": "f", "inputs": [5]}',
            "inputs must be a list whose items",
        ),
        (
            "input_output.json",
            '{"fn_name": 5}',
            "fn_name must be a Python name or null, not the int 5",
        ),
        (
            "input_output.json",
            '{"inputs": ["1", "2"], "outputs": ["1"]}',
            "input_output.json has 2 inputs and 1 outputs: each input needs its output",
        ),
        ("solutions.json", "[5]", "solutions must be a list whose items are each a string"),
        ("solutions.json", "{", r"solutions\.json is not valid JSON"),
        ("metadata.json", '{"difficulty": 5}', "difficulty must be a string, not the int 5"),
    ],
)
def test_a_fault_of_an_apps_problem_is_named(file, text, message, tmp_path):
    data.write_apps(tmp_path)
    (tmp_path / "test" / "0000" / file).write_text(text)
    with pytest.raises(UserError, match=message):
        load("apps", data=str(tmp_path), shots=0)
