"""MBPP (Austin et al. 2021): a Python function from a sentence and three assertions.

The prompt is 3-shot, or 0-shot for Instruct models. As its authors define, tasks 2, 3 and 4 are the
examples, and tasks 11 to 510 the test split. Code Llama's examples are not published.

With `--prompt starcoder` it is that of BigCode's harness, after InCoder: the sentence and the first
assertion as a docstring, without examples.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from codellama_jax.benchmarks.benchmark import (
    Benchmark,
    ChatForm,
    Check,
    Record,
    Task,
    read_records,
    until,
)
from codellama_jax.benchmarks.chat import solution
from codellama_jax.benchmarks.fields import INTEGER, TEXT, WORD, list_of, optional
from codellama_jax.benchmarks.paper import PASS, Paper
from codellama_jax.benchmarks.programs import CLOSE, OPEN, nearest_program
from codellama_jax.benchmarks.settings import (
    PROMPT,
    Prompt,
    ShotOptions,
    check_prompt,
    described,
)
from codellama_jax.benchmarks.suite import Suite
from codellama_jax.errors import UserError
from codellama_jax.sandbox import Program

EXAMPLES = (2, 3, 4)
TEST = range(11, 511)
ALL_TASKS = "the papers' numbers are those of the test split, and --all-tasks was given"
# Marks around code in the few-shot prompt of the MBPP paper.
BEGIN, DONE = "[BEGIN]\n", "\n[DONE]"
# BigCode's harness: the program has ended.
STOPS = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```")
PROMPTS = ("code_llama", "starcoder")
INSTRUCTION = (
    "You are an expert Python programmer, and here is your task: {} "
    "Your code should pass these tests:\n\n{}\n"
)
FIELDS = {
    "task_id": INTEGER,
    "code": TEXT,
    "test_list": list_of(WORD, least=1),
    "text": optional(TEXT),
    "prompt": optional(TEXT),
    "test_imports": optional(list_of(TEXT)),
    "test_setup_code": optional(TEXT),
}
# Seconds. BigCode's harness allows 3, but the published solution of task 123 may take longer.
TIMEOUT = 10.0
# Code Llama, table 2.
PAPER = Paper(
    PASS,
    """
        Llama 2 7B 20.8 41.8 65.5
        Code Llama 7B 41.4 66.7 82.5
        Code Llama 13B 47.0 71.7 87.1
        Code Llama 34B 55.0 76.2 86.6
        Code Llama 70B 62.4 81.1 91.9
        Code Llama Instruct 7B 44.4 65.4 76.8
        Code Llama Python 7B 47.6 70.3 84.8
        Code Llama Python 34B 56.2 76.4 88.2""",
)
# Table 8.
ZERO_SHOT = Paper(
    ("pass@1",),
    """
        Code Llama Instruct 7B 37.4
        Code Llama Instruct 13B 40.2""",
)


@dataclass(frozen=True)
class MbppOptions(ShotOptions):
    """Options of MBPP."""

    all_tasks: Annotated[bool, described("All tasks, not only the test split.")] = False
    prompt: Annotated[Prompt, described(PROMPT)] = "code_llama"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prompt(self.prompt, PROMPTS)
        if self.prompt == "starcoder" and self.shots > 0:
            raise UserError(
                f"--shots {self.shots} and --prompt starcoder exclude each other: its prompt has no"
                " solved examples; leave out one of them"
            )


def load(options: MbppOptions, tokenizer: object = None) -> Benchmark:
    """Returns the tasks of MBPP; the file may be the complete or the sanitized one."""
    records = [_normalized(record) for record in read_records(options.data, FIELDS)]
    if options.shots > len(EXAMPLES):
        message = f"--shots must be at most {len(EXAMPLES)} for mbpp, whose examples are tasks"
        raise UserError(f"{message} {', '.join(map(str, EXAMPLES))}; not {options.shots}")
    is_docstring = options.prompt == "starcoder"
    shots = (
        EXAMPLES if options.shots < 0 and not is_docstring else EXAMPLES[: max(0, options.shots)]
    )
    # The examples are tasks of the same file, outside of the test split.
    by_id = {record["task_id"]: record for record in records}
    missing = [number for number in shots if number not in by_id]
    if missing:
        raise UserError(
            f"{options.data} lacks task {missing[0]}, an example of the prompt: give the complete "
            "file, or --shots 0"
        )
    examples = ""
    for number in shots:
        record = by_id[number]
        examples += f"{_instruction(record)}{BEGIN}{record['code']}{DONE}\n\n"
    tasks = []
    for record in records:
        if options.all_tasks or record["task_id"] in TEST:
            tasks.append(_docstring_task(record) if is_docstring else _task(record, examples))
    name, stops, paper = _kind(is_docstring, bool(shots))
    return Benchmark(
        name,
        tasks,
        truncate=until(stops),
        finish=_finish,
        checks=_checks,
        program_checks=_checks,
        chat=None if shots or is_docstring else CHAT,
        paper=paper,
        task_difference=ALL_TASKS if options.all_tasks else options.difference(len(EXAMPLES), 0),
    )


def _kind(is_docstring: bool, has_examples: bool) -> tuple[str, tuple[str, ...], Paper | None]:
    """Returns the benchmark's name in results, its stop strings and the papers' numbers."""
    if is_docstring:
        return "mbpp_docstring", STOPS, None
    if has_examples:
        return "mbpp", (DONE,), PAPER
    return "mbpp_zero_shot", (CLOSE,), ZERO_SHOT


def _normalized(record: Record) -> Record:
    """Returns a record with `text` and Unix line ends, its code checked.

    The sanitized file names the text `prompt`, and some code has the line ends of Windows. Raises
    UserError for code or tests that are not Python.
    """
    record = {**record, "text": record.get("text") or record.get("prompt", "")}
    # Models rarely write carriage returns; the examples of the prompt should not hold any.
    record["code"] = record["code"].replace("\r\n", "\n")
    # `tested_names` parses both later.
    for name, source in (("code", record["code"]), ("test_list", "\n".join(record["test_list"]))):
        try:
            ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise UserError(f"{record['place']}: {name} must be Python code: {error}") from None
    return record


def _instruction(record: Record) -> str:
    return INSTRUCTION.format(record["text"], "\n".join(record["test_list"]))


def _question(record: Record) -> str:
    """Returns the question to Instruct models (appendix H)."""
    return f"{_instruction(record)}Put your code between {OPEN} and {CLOSE} tags."


def _chat_question(task: Task) -> str:
    return _question(task.record)


def _solution(task: Task, answer: str) -> dict[str, Any]:
    names = tested_names(task.record["code"], task.record["test_list"])
    code, reason = nearest_program(answer, names[0] if names else "")
    return solution(code, answer, reason)


def _task(record: Record, examples: str) -> Task:
    if examples:
        # Without the newline of BEGIN: the model writes it, as a token that it knows.
        prompt = examples + _instruction(record) + BEGIN.rstrip()
        reference = "\n" + record["code"]
    else:
        prompt = f"[INST] {_question(record)} [/INST]"
        reference = f" {OPEN}\n{record['code']}\n"
    return Task(str(record["task_id"]), prompt, reference=reference, record=record)


def _docstring_task(record: Record) -> Task:
    """Returns the task with the prompt of BigCode's harness."""
    prompt = f'"""\n{record["text"]}\n{record["test_list"][0]}\n"""\n'
    return Task(str(record["task_id"]), prompt, reference=record["code"], record=record)


def _finish(task: Task, text: str) -> str:
    """Returns the code after the tag of an Instruct model, all of the text if there is none."""
    return text.rpartition(OPEN)[2]


def _checks(task: Task, completion: str) -> list[Check]:
    record = task.record
    setup = [*record.get("test_imports", ()), record.get("test_setup_code", "")]
    test = "\n".join([*setup, *record["test_list"]])
    program = Program(
        task.task_id,
        "python",
        f"{completion}\n{test}\n",
        TIMEOUT,
        candidate=completion,
        test=test,
        entry_point=",".join(tested_names(record["code"], record["test_list"])),
    )
    return [Check(program)]


def tested_names(code: str, tests: Sequence[str]) -> list[str]:
    """Returns the names of functions and classes that `code` defines and the tests use."""
    used = set()
    for node in ast.walk(ast.parse("\n".join(tests))):
        if isinstance(node, ast.Name):
            used.add(node.id)
    defined = set()
    for statement in ast.parse(code).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            defined.add(statement.name)
    return sorted(used & defined)


CHAT = ChatForm(_chat_question, _solution)
SUITE = Suite(
    load,
    MbppOptions,
    checksums=("a6fe433e048368a7827bca9bf282dd73afd34a38fbe9e3c9bb4101d848d81848",),
)
