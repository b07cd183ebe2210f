"""HumanEval-X (CodeGeeX, section 4).

HumanEval by hand in Python, C++, Java, JavaScript and Go; generation, or translation of a solution.

A language's text ends as in the published harness: Python with its function, the others with the
brace that closes theirs. In Go functions that it calls and that follow it belong to it, as in the
solution of Go/72, which the published rule cuts in two.
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
from codellama_jax.benchmarks.settings import Options, described
from codellama_jax.benchmarks.suite import Suite
from codellama_jax.benchmarks.suites.humaneval import python_check
from codellama_jax.errors import UserError
from codellama_jax.sandbox import Program
from codellama_jax.sandbox.languages import GO_PACKAGES

# As prompts spell them
NAMES = {"python": "Python", "cpp": "C++", "java": "Java", "js": "JavaScript", "go": "Go"}
# By the prefix of a task's id
LANGUAGES = {"Python": "python", "CPP": "cpp", "Java": "java", "JavaScript": "js", "Go": "go"}
TIMEOUTS = {"python": 5.0, "cpp": 20.0, "java": 20.0, "js": 5.0, "go": 30.0}
RULES = {"js": "js"}  # console.assert only prints
PYTHON_END = re.compile(r"\n(?=\S)")
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
# CodeGeeX.
PAPER = Paper(
    crossed(("python", "cpp", "java", "js", "go"), PASS),
    """
        CodeGen-Multi 16B 19.22 34.64 55.17 18.05 30.84 50.90 14.95 36.73 60.62 18.40 32.80 56.48 13.03 25.46 48.77
        CodeGeeX 13B 22.89 39.57 60.92 17.06 32.21 51.00 20.04 36.70 58.42 17.59 32.28 56.33 14.43 25.68 47.14""",
)


@dataclass(frozen=True)
class TranslationOptions(Options):
    """Options of HumanEval-X."""

    source: Annotated[
        str, described("Translate the solutions of this file instead of generating.")
    ] = ""


def load(options: TranslationOptions, tokenizer: object = None) -> Benchmark:
    """Returns HumanEval-X (Zheng et al. 2023): functions to complete, or to translate."""
    records = [_with_language(record) for record in read_records(options.data, FIELDS)]
    if not options.source:
        tasks = [_task(record) for record in records]
        return Benchmark(
            "humaneval_x",
            tasks,
            max_new_tokens=1024,
            cut=_cut,
            finish=_finish,
            checks=_checks,
            paper=PAPER,
        )
    solved = read_records(options.source, FIELDS)
    sources = {_number(record): _with_language(record) for record in solved}
    lacking = [record["task_id"] for record in records if _number(record) not in sources]
    if lacking:
        raise UserError(f"{options.source} has no solution to translate for {lacking[0]}")
    tasks = [_translation(sources[_number(record)], record) for record in records]
    return Benchmark(
        "humaneval_x_translation",
        tasks,
        max_new_tokens=1024,
        cut=_cut,
        finish=_finish,
        checks=_checks,
    )


def _with_language(record: Record) -> Record:
    """Adds the language. Raises UserError for one that is not known, and for a test without a
    call.
    """
    place, prefix = record["place"], record["task_id"].partition("/")[0]
    if prefix not in LANGUAGES or not _number(record):
        known = ", ".join(f"{name}/0" for name in LANGUAGES)
        raise UserError(f"{place}: task_id must be like {known}, not {record['task_id']!r}")
    if prefix == "Python" and not CALL.search(record["test"]):
        raise UserError(f"{place}: test must hold a line `check(NAME)`, which calls the tests")
    return {**record, "language": LANGUAGES[prefix]}


def _number(record: Record) -> str:
    return record["task_id"].partition("/")[2]


def _task(record: Record) -> Task:
    prompt, space = stripped(record["prompt"])
    record = {**record, "space": space}
    return Task(
        record["task_id"],
        prompt,
        reference=space + record["canonical_solution"],
        group=record["language"],
        record=record,
    )


def _translation(source: Record, target: Record) -> Task:
    names = NAMES[source["language"]], NAMES[target["language"]]
    solved = source["declaration"] + source["canonical_solution"]
    prompt, space = stripped(
        f"code translation\n{names[0]}:\n{solved}\n{names[1]}:\n{target['declaration']}"
    )
    record = {**target, "prompt": target["declaration"], "space": space}
    group = f"{source['language']} to {target['language']}"
    return Task(
        target["task_id"],
        prompt,
        reference=space + target["canonical_solution"],
        group=group,
        record=record,
    )


def _cut(task: Task, text: str) -> str:
    if task.record["language"] == "python":
        end = PYTHON_END.search(text)
        return text[: end.start() + 1] if end else text
    depth = 0
    for place, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if (
            character == "}"
            and depth < 0
            and not (task.record["language"] == "go" and _helper_follows(text, place + 1))
        ):
            return text[: place + 1]
    return text


def _helper_follows(text: str, end: int) -> bool:
    """Whether text[end:] begins, or may yet begin, with a Go function that the text before
    calls.
    """
    helper = GO_HELPER.match(text, end)
    return f"{helper[1]}(" in text[:end] if helper else bool(GO_HELPER_BEGUN.fullmatch(text, end))


def _finish(task: Task, text: str) -> str:
    closes_class = task.record["language"] == "java" and text.count("}") == text.count("{") + 1
    return after_space(task.record["space"], text) + ("\n}" if closes_class else "")


def _checks(task: Task, completion: str) -> list[Check]:
    record, language = task.record, task.record["language"]
    solution = record["prompt"] + completion
    if language == "python":
        named = {**record, "entry_point": CALL.findall(record["test"])[-1]}
        test = re.sub(r"^check\(.*\)$", "", record["test"], flags=re.M)
        prompt = PYTHON_IMPORTS + record["prompt"]
        return python_check(named, prompt, prompt + completion, test, TIMEOUTS[language])
    # An import that is not used does not compile: `_before` names those that are
    if language == "go":
        solution = solution.replace(record.get("import", ""), "", 1)
    code = f"{_before(language, record, solution)}{solution}\n{record['test']}"
    return [
        Check(
            Program(
                task.task_id, language, code, TIMEOUTS[language], rule=RULES.get(language, "exit")
            )
        )
    ]


def _before(language: str, record: Record, solution: str) -> str:
    """Returns what the published harness adds.

    Headers and packages that a solution uses without naming them.
    """
    if language == "cpp":
        lacking = [
            header
            for header in CPP_HEADERS
            if f"#include<{header}>" not in solution.replace(" ", "")
        ]
        return "".join(f"#include<{header}>\n" for header in lacking) + "using namespace std;\n"
    if language == "go":
        setup = record.get("test_setup", "")
        uses = lambda package: re.search(rf"\b{package.split('/')[-1]}\.[A-Z]", solution)
        used = [package for package in GO_PACKAGES if f'"{package}"' not in setup and uses(package)]
        return setup + "".join(f'import "{package}"\n' for package in used)
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
