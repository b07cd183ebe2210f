"""The prompts and ends of text of each paper, as the papers and their published code give them."""

import dataclasses

import pytest
import small_data as data

from codellama_jax.benchmarks import answers
from codellama_jax.benchmarks.settings import PromptOptions, Settings
from codellama_jax.benchmarks.suites import load
from codellama_jax.benchmarks.suites.humaneval_x import TranslationOptions
from codellama_jax.benchmarks.suites.mbpp import MbppOptions
from codellama_jax.data.functions import example_ids
from codellama_jax.errors import UserError
from codellama_jax.generation import text as texts
from codellama_jax.tokenizers import byte_bpe

BEFORE = "def half(x):\n    return x / 2\n\n\ndef double(x):\n"
DOCSTRING = '    """Twice x.\n    >>> double(2)\n    4\n    """'
PROMPTS = {
    "code_llama": BEFORE + DOCSTRING,
    "starcoder": BEFORE + DOCSTRING,
    "codex": BEFORE + DOCSTRING + "\n",
    "codegeex": "# language: Python\n" + BEFORE + DOCSTRING + "\n",
    "pangu_coder2": '"""Twice x.\n>>> double(2)\n4"""\n' + BEFORE.rstrip(),
}
BODY = "    return x + x\n"
# The text that follows the body, and the papers whose rules end the function before it.
BIGCODE = {"code_llama", "starcoder", "pangu_coder2"}
NEXT = {
    "class A:": BIGCODE | {"codex", "codegeex"},
    "def f(x):": BIGCODE | {"codex", "codegeex"},
    "# A comment": BIGCODE | {"codex", "codegeex"},
    "if x:": BIGCODE | {"codex", "codegeex"},
    "print(1)": BIGCODE | {"codex", "codegeex"},
    "@decorator": BIGCODE | {"codegeex"},
    "```": BIGCODE | {"codegeex"},
    "assert x": {"codegeex"},
    "x = 1": {"codegeex"},
    "    # indented": set(),
    "": set(),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_of_humaneval(files, executor, name):
    benchmark = load("humaneval", data=files["humaneval"], prompt=name)
    task = benchmark.tasks[0]
    assert task.prompt == PROMPTS[name]
    # The model continues its own prompt, and the completion that of the data.
    space = "" if name in ("codex", "codegeex") else "\n"
    assert benchmark.finish(task, space + BODY) == BODY
    [check] = benchmark.checks(task, BODY)
    assert next(executor.run([check.program]))[1].status == "passed"


@pytest.mark.parametrize("name", PROMPTS)
def test_ends_of_a_function(files, name):
    benchmark = load("humaneval", data=files["humaneval"], prompt=name)
    for following, papers in NEXT.items():
        text = f"{BODY}{following}\n    y = 2\n"
        expected = BODY if name in papers else text
        assert benchmark.truncate(benchmark.tasks[0], text).rstrip("\n") == expected.rstrip("\n")


def test_the_default_is_code_llama(files):
    for suite in ("humaneval", "mbpp", "x_python"):
        name = "humaneval_x" if suite == "x_python" else suite
        default = load(name, data=files[suite])
        named = load(name, data=files[suite], prompt="code_llama")
        assert default.tasks == named.tasks and default.name == named.name


def test_a_docstring_after_an_import_is_separated(tmp_path):
    """As in HumanEval/115."""
    prompt = 'import os\n\ndef f(x):\n    import math\n    """\n    First\n      second.\n    """\n'
    path = data.write_lines(tmp_path / "h.jsonl", [{**data.DOUBLE, "prompt": prompt}])
    benchmark = load("humaneval", data=str(path), prompt="pangu_coder2")
    expected = '"""First\n  second."""\nimport os\n\ndef f(x):\n    import math'
    assert benchmark.tasks[0].prompt == expected
    function = benchmark.documented(benchmark.tasks[0], "\n    return 1\n\n\n")
    assert benchmark.documented(benchmark.tasks[0], "").body == ""
    assert function.signature == "def f(x):\n    import math\n"
    assert (function.docstring, function.body) == ("First\n  second.", "    return 1\n")


@pytest.mark.parametrize(
    "prompt", ["def f(:\n", "x = 1\n", "def f(): 'doc'\n", "def f():\n    1\n", ""]
)
def test_a_prompt_without_a_docstring_is_named(tmp_path, prompt):
    path = data.write_lines(tmp_path / "h.jsonl", [data.JOIN, {**data.DOUBLE, "prompt": prompt}])
    with pytest.raises(UserError, match=r"line 2 of .*h.jsonl: prompt must end with a function"):
        load("humaneval", data=str(path), prompt="pangu_coder2")
    load("humaneval", data=str(path), prompt="codex")


def test_the_prompt_of_pangu_coder_begins_its_training_example(files):
    benchmark = load("humaneval", data=files["humaneval"], prompt="pangu_coder2")
    task = benchmark.tasks[1]
    pieces = []

    class Pieces:
        bos_id, eos_id, adds_bos = 1, 2, True

        def encode(self, text, leading_space=True):
            pieces.append(text)
            return [3]

    solution = task.record["canonical_solution"]
    example_ids(Pieces(), benchmark.documented(task, solution), "docstring_to_code")
    assert "".join(pieces) == f"{task.prompt}\n{solution}"


def test_mbpp_of_starcoder(files, executor):
    benchmark = load("mbpp", data=files["mbpp"], prompt="starcoder", all_tasks=True)
    task = benchmark.tasks[0]
    assert task.prompt == '"""\nWrite a function to add 1.\nassert add_1(1) == 2\n"""\n'
    for following in ("class A:", "assert x", '"""', "print(1)", "if x:", "<|/end", "```"):
        assert benchmark.truncate(task, f"{task.reference}\n{following}\n") == task.reference
    for following in ("def g():\n    pass", "# more", "x = 1"):
        assert benchmark.truncate(task, f"{task.reference}\n{following}").endswith(following)
    [check] = benchmark.checks(task, task.reference)
    assert next(executor.run([check.program]))[1].status == "passed"
    assert len(benchmark.tasks) == len(data.MBPP) and benchmark.paper is None


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("x_python", "# language: Python"),
        ("x_cpp", "// language: C++"),
        ("x_java", "// language: Java"),
        ("x_js", "// language: JavaScript"),
        ("x_go", "// language: Go"),
    ],
)
def test_codegeex_names_the_language(files, name, tag):
    [task] = load("humaneval_x", data=files[name], prompt="codegeex").tasks
    assert task.prompt == f"{tag}\n{task.record['prompt']}"
    assert task.reference == task.record["canonical_solution"]


def test_a_missing_file_of_solutions_names_its_option(files, tmp_path):
    missing = str(tmp_path / "missing")
    with pytest.raises(UserError, match=r"--source: no file or folder .*missing"):
        load("humaneval_x", data=files["x_cpp"], source=missing)


def test_codegeex_translates(files):
    options = {"data": files["x_cpp"], "source": files["x_python"], "prompt": "codegeex"}
    [task] = load("humaneval_x", **options).tasks
    assert task.prompt == (
        "code translation\n"
        "Python:\ndef double(x):\n\n    return 2 * x\n"
        "C++:\n#include<vector>\nusing namespace std;\nint twice(int x){\n"
    )
    options = {"data": files["x_python"], "source": files["x_js"], "prompt": "codegeex"}
    [task] = load("humaneval_x", **options).tasks
    assert task.prompt == (
        "code translation\n"
        "JavaScript:\nconst twice = (x) => {\n\n  return 2 * x;\n}\n"
        "Python:\ndef double(x):\n"
    )
    assert task.group == "js to python" and task.reference == "    return 2 * x\n\n\n"


@pytest.mark.parametrize(
    ("options", "values", "message"),
    [
        (
            PromptOptions,
            {"prompt": "alphacode"},
            "one of code_llama, codex, codegeex, pangu_coder2",
        ),
        (MbppOptions, {"prompt": "codex"}, "must be one of code_llama, starcoder, not 'codex'"),
        (TranslationOptions, {"prompt": "codex"}, "one of code_llama, codegeex, not 'codex'"),
        (
            MbppOptions,
            {"prompt": "starcoder", "shots": 3},
            "--shots 3 and --prompt starcoder exclude each other",
        ),
    ],
)
def test_a_wrong_prompt_names_the_allowed_ones(options, values, message):
    with pytest.raises(UserError, match=message):
        options(**values)


def test_a_vocabulary_without_bos_answers_tasks(model, files, tmp_path, monkeypatch):
    """Prompts have no BOS, neither for the samples nor for their log-probabilities."""
    lines = [f"def name_{i}(x):\n    return x + {i}\n" for i in range(300)]
    tokenizer = byte_bpe.train(lines, 360, "gpt2", tmp_path)
    assert tokenizer.bos_id == tokenizer.eos_id
    unmarked = dataclasses.replace(model, tokenizer=tokenizer)
    assert tokenizer.vocab_size == model.config.vocab_size
    read = []
    generate_each = texts.generate_each

    def recorded(model, prompts, *args, **kwargs):
        read.extend(prompts)
        return generate_each(model, prompts, *args, **kwargs)

    monkeypatch.setattr(texts, "generate_each", recorded)
    scored = []
    losses = answers.document_losses

    def recorded_losses(model, documents):
        scored.extend(documents)
        return losses(model, documents)

    monkeypatch.setattr(answers, "document_losses", recorded_losses)
    benchmark = load("humaneval", data=files["humaneval"], prompt="codex")
    settings = Settings(samples=2, max_new_tokens=4)
    [samples] = answers.answers(unmarked, benchmark, settings, set())
    assert len(samples) == 4
    for ids, document in zip(read, scored):
        assert tokenizer.decode(ids) in PROMPTS["codex"] + data.JOIN["prompt"]
        assert tokenizer.bos_id not in ids and document[: len(ids)] == ids
