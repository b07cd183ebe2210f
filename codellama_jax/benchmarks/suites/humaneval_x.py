"""HumanEval-X (CodeGeeX, section 4): HumanEval in Python, C++, Java, JavaScript and Go.

The model completes a function, or translates the solution of another language. With `--prompt
codegeex` prompts are exactly the published ones: a comment that names the language before the
prompt, and for a translation line breaks after the declaration and the solution. Otherwise they
have no such comment, and no white space at their ends.

Text is truncated as in the published harness: in Python at the end of the function, in the other
languages at the brace that closes the function. One difference: in Go, functions that follow and
that the text before calls are kept, as in the canonical solution of Go/72, which the published rule
truncates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from codellama_jax.benchmarks.benchmark import (
    Benchmark,
    Check,
    Record,
    Task,
    after_space,
    read_records,
    stripped,
)
from codellama_jax.benchmarks.fields import TEXT, WORD, optional
from codellama_jax.benchmarks.paper import PASS, Paper, crossed
from codellama_jax.benchmarks.settings import (
    PROMPT,
    Options,
    Prompt,
    check_prompt,
    described,
)
from codellama_jax.benchmarks.suite import Suite
from codellama_jax.benchmarks.suites.humaneval import python_check
from codellama_jax.benchmarks.suites.prompts import end_of_function, tagged
from codellama_jax.errors import UserError
from codellama_jax.sandbox import Program
from codellama_jax.sandbox.languages import GO_PACKAGES

# Names of languages in prompts.
NAMES = {"python": "Python", "cpp": "C++", "java": "Java", "js": "JavaScript", "go": "Go"}
# Prefix of a task's id -> language.
LANGUAGES = {"Python": "python", "CPP": "cpp", "Java": "java", "JavaScript": "js", "Go": "go"}
# Seconds of processor time.
TIMEOUTS = {"python": 5.0, "cpp": 20.0, "java": 20.0, "js": 5.0, "go": 30.0}
# A failed console.assert of JavaScript prints, but does not raise.
RULES = {"js": "js"}
PROMPTS = ("code_llama", "codegeex")
# Imports that the published harness adds to every Python program.
PYTHON_IMPORTS = """import math
import re
import sys
import copy
import datetime
import itertools
import collections
import heapq
from typing import *
from collections import *
"""
# Headers that the published harness adds to C++ programs.
CPP_HEADERS = (
    "stdlib.h",
    "algorithm",
    "math.h",
    "stdio.h",
    "vector",
    "string",
    "climits",
    "cstring",
    "iostream",
)
GO_HELPER = re.compile(r"\s*func (\w+)\(")
# The beginning of such a function, as far as the model has written it.
GO_HELPER_BEGUN = re.compile(r"\s*(f(u(n(c( \w*)?)?)?)?)?")
CALL = re.compile(r"^check\((\w+)\)", re.M)
FIELDS = {
    "task_id": WORD,
    "prompt": TEXT,
    "declaration": TEXT,
    "canonical_solution": TEXT,
    "test": TEXT,
    "import": optional(TEXT),
    "test_setup": optional(TEXT),
}
CODEGEN = (
    "CodeGen-Multi 16B 19.22 34.64 55.17 18.05 30.84 50.90 14.95 36.73 60.62 18.40 32.80 56.48"
    " 13.03 25.46 48.77"
)
CODEGEEX = (
    "CodeGeeX 13B 22.89 39.57 60.92 17.06 32.21 51.00 20.04 36.70 58.42 17.59 32.28 56.33"
    " 14.43 25.68 47.14"
)
# CodeGeeX.
PAPER = Paper(
    crossed(("python", "cpp", "java", "js", "go"), PASS),
    f"{CODEGEN}\n{CODEGEEX}",
)


@dataclass(frozen=True)
class TranslationOptions(Options):
    """Options of HumanEval-X."""

    source: Annotated[
        str, described("Translate the solutions of this file instead of generating.")
    ] = ""
    prompt: Annotated[Prompt, described(PROMPT)] = "code_llama"

    def __post_init__(self) -> None:
        check_prompt(self.prompt, PROMPTS)


def load(options: TranslationOptions, tokenizer: object = None) -> Benchmark:
    """Returns the tasks of HumanEval-X: functions to complete, or to translate with `source`."""
    records = [_with_language(record) for record in read_records(options.data, FIELDS)]
    if not options.source:
        tasks = [_task(record, options.prompt) for record in records]
        return Benchmark(
            "humaneval_x",
            tasks,
            max_new_tokens=1024,
            truncate=_truncate,
            finish=_finish,
            checks=_checks,
            paper=PAPER,
        )
    solved = read_records(options.source, FIELDS, "--source")
    sources = {_number(record): _with_language(record) for record in solved}
    missing = [record["task_id"] for record in records if _number(record) not in sources]
    if missing:
        raise UserError(f"{options.source} has no solution to translate for {missing[0]}")
    tasks = []
    for record in records:
        tasks.append(_translation(sources[_number(record)], record, options.prompt))
    return Benchmark(
        "humaneval_x_translation",
        tasks,
        max_new_tokens=1024,
        truncate=_truncate,
        finish=_finish,
        checks=_checks,
    )


def _with_language(record: Record) -> Record:
    """Adds the language.

    Raises UserError for an unknown language, and for a Python test that does not call `check`.
    """
    place = record["place"]
    prefix = record["task_id"].partition("/")[0]
    if prefix not in LANGUAGES or not _number(record):
        known = ", ".join(f"{name}/0" for name in LANGUAGES)
        raise UserError(f"{place}: task_id must be like {known}, not {record['task_id']!r}")
    if prefix == "Python" and not CALL.search(record["test"]):
        raise UserError(f"{place}: test must hold a line `check(NAME)`, which calls the tests")
    return {**record, "language": LANGUAGES[prefix]}


def _number(record: Record) -> str:
    return record["task_id"].partition("/")[2]


def _task(record: Record, form: str) -> Task:
    prompt, space = stripped(record["prompt"])
    if form == "codegeex":
        prompt, space = tagged(record["language"], record["prompt"]), ""
    record = {**record, "space": space}
    return Task(
        record["task_id"],
        prompt,
        reference=space + record["canonical_solution"],
        group=record["language"],
        record=record,
    )


def _translation(source: Record, target: Record, form: str) -> Task:
    """Returns the task to translate the solution of `source` into the language of `target`."""
    source_name = NAMES[source["language"]]
    target_name = NAMES[target["language"]]
    declaration, solution = source["declaration"], source["canonical_solution"]
    if form == "codegeex":
        declaration, solution = f"{declaration}\n", solution.rstrip()
    # The prompt of CodeGeeX.
    prompt = (
        f"code translation\n{source_name}:\n{declaration}{solution}\n"
        f"{target_name}:\n{target['declaration']}"
    )
    prompt, space = (prompt, "") if form == "codegeex" else stripped(prompt)
    record = {**target, "prompt": target["declaration"], "space": space}
    # Results are reported for each pair of languages.
    group = f"{source['language']} to {target['language']}"
    return Task(
        target["task_id"],
        prompt,
        reference=space + target["canonical_solution"],
        group=group,
        record=record,
    )


def _truncate(task: Task, text: str) -> str:
    """Returns the text up to the end of the function, see the module's docstring."""
    language = task.record["language"]
    if language == "python":
        return end_of_function(task, text)
    # The prompt has opened a brace: the function ends at the first one that closes more.
    depth = 0
    for position, character in enumerate(text):
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            function_end = position + 1
            has_helper = language == "go" and _helper_follows(text, function_end)
            if depth < 0 and not has_helper:
                return text[:function_end]
    # Not closed yet: more text may follow.
    return text


def _helper_follows(text: str, end: int) -> bool:
    """Returns whether text[end:] starts with a Go function that text[:end] calls.

    Also returns True while the text is too short to decide: truncation must be monotone.
    """
    helper = GO_HELPER.match(text, end)
    if helper:
        return f"{helper[1]}(" in text[:end]
    return bool(GO_HELPER_BEGUN.fullmatch(text, end))


def _finish(task: Task, text: str) -> str:
    """Returns the completion; in Java it also closes the class, as in the published harness."""
    completion = after_space(task.record["space"], text)
    closes_only_function = text.count("}") == text.count("{") + 1
    if task.record["language"] == "java" and closes_only_function:
        completion += "\n}"
    return completion


def _checks(task: Task, completion: str) -> list[Check]:
    record, language = task.record, task.record["language"]
    solution = record["prompt"] + completion
    if language == "python":
        named = {**record, "entry_point": CALL.findall(record["test"])[-1]}
        # `python_check` calls `check` itself.
        test = re.sub(r"^check\(.*\)$", "", record["test"], flags=re.M)
        prompt = PYTHON_IMPORTS + record["prompt"]
        return python_check(named, prompt, prompt + completion, test, TIMEOUTS[language])
    if language == "go":
        # Go does not compile a program with an unused import. `_preamble` adds those that are used.
        solution = solution.replace(record.get("import", ""), "", 1)
    code = f"{_preamble(language, record, solution)}{solution}\n{record['test']}"
    rule = RULES.get(language, "exit")
    return [Check(Program(task.task_id, language, code, TIMEOUTS[language], rule=rule))]


def _preamble(language: str, record: Record, solution: str) -> str:
    """Returns the code that the published harness puts before a solution.

    These are headers and packages that the solution may use without naming them.
    """
    if language == "cpp":
        compact = solution.replace(" ", "")
        headers = [header for header in CPP_HEADERS if f"#include<{header}>" not in compact]
        return "".join(f"#include<{header}>\n" for header in headers) + "using namespace std;\n"
    if language == "go":
        setup = record.get("test_setup", "")
        imports = []
        for package in GO_PACKAGES:
            # Exported names of Go start with a capital letter.
            is_used = re.search(rf"\b{package.split('/')[-1]}\.[A-Z]", solution)
            if is_used and f'"{package}"' not in setup:
                imports.append(f'import "{package}"\n')
        return setup + "".join(imports)
    return ""


SUITE = Suite(
    load,
    TranslationOptions,
    checksums=(
        "b8f2b5916749f707c12ac8a19647febc186224ba6c45662009ff1d77b4bbed1b",  # Python
        "4f52464e3687e389dab22743809729998d1366ed5ecc12b6dcf1153fa172a564",  # C++
        "fec402e484d81b1fa6d73ac6de52500fc3b6f2c1e72231fa2edad9303623cefc",  # Java
        "507dff0f021caef8ab87fb3f3de096722c9280534ac2a474c332d4d2f317a0a8",  # JavaScript
        "17de98ef1cd5a8e665bac043e9fd3695b494523505ae9b8057f659b056bd7891",  # Go
    ),
)
