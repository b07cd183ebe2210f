"""Benchmarks in chat form: how a model that was trained on conversations is prompted.

Code Llama - Instruct is prompted so in MBPP without examples (appendix H, table 8). The paper does
not publish its prompt of HumanEval; there the wording is ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from codellama_jax.benchmarks.benchmark import Benchmark, Sample, Task
from codellama_jax.benchmarks.programs import nearest_program
from codellama_jax.benchmarks.settings import AUTO, NO_CHAT, Options, Settings
from codellama_jax.errors import UserError
from codellama_jax.generation.chat import named_format
from codellama_jax.system.progress import note
from codellama_jax.tokenizers.chat import ChatFormat, ConversationError, Message
from codellama_jax.tokenizers.chat_template import NAME as TEMPLATE
from codellama_jax.tokenizers.chat_template import has_template

if TYPE_CHECKING:
    from codellama_jax.benchmarks.found_model import FoundModel
    from codellama_jax.models.trained import TrainedModel
    from codellama_jax.tokenizers.base import Tokenizer

PROBLEM = "problem"  # the field of a sample that holds the reason why its answer has no program


def resolved(
    settings: Settings, benchmark: Benchmark, options: Options, model: TrainedModel | FoundModel
) -> Settings:
    """Returns settings with a chat format instead of `auto`, which the samples depend on.

    Raises UserError for a format with a benchmark, or with options, that no chat form has, and for
    the template of a model without one.

    Args:
        settings: with the option.
        benchmark: may have a chat form.
        options: of the suite.
        model: knows its own format.
    """
    name = settings.chat_format
    # A template that came with the tokenizer knows the most about the model; then the format that
    # the run trained on.
    if name == AUTO:
        name = TEMPLATE if has_template(model.tokenizer) else model.chat or NO_CHAT
        # With auto this is no mistake of the user: most benchmarks have no chat form. A format that
        # was named explicitly is refused by `check` instead.
        if name != NO_CHAT and benchmark.chat is None:
            note(f"{benchmark.name} continues its paper's prompt, not a conversation")
            name = NO_CHAT
    check(name, benchmark, options)
    if name != NO_CHAT and settings.context_tokens:
        raise UserError(
            f"--context-tokens {settings.context_tokens} has no effect on a conversation: leave it"
            f" out, or pass --chat-format {NO_CHAT}"
        )
    settings = replace(settings, chat_format=name)
    chat_of(settings, model.tokenizer)
    return settings


def check(name: str, benchmark: Benchmark, options: Options) -> None:
    """Raises UserError if a benchmark or its options have no chat form. Needs no model.

    `name` is a format, or `auto` or `none`.
    """
    if name in (AUTO, NO_CHAT):
        return
    if benchmark.chat is None:
        fix = "leave it out; humaneval, humaneval_plus, mbpp --shots 0 and false_refusal have one"
        raise UserError(f"--chat-format {name}: {benchmark.name} has no chat form: {fix}")
    prompt = getattr(options, "prompt", "code_llama")
    # Only the default is left: any other prompt was chosen for a model that continues texts.
    if prompt != "code_llama":
        raise UserError(
            f"--prompt {prompt} is a prompt to continue, and --chat-format {name} begins a"
            f" conversation: pass --chat-format {NO_CHAT}, or leave out"
            " --prompt"
        )


def chat_of(settings: Settings, tokenizer: Tokenizer) -> ChatFormat | None:
    """Returns the format in which tasks are questions, None for prompts to continue."""
    if settings.chat_format in (AUTO, NO_CHAT):
        return None
    return named_format(settings.chat_format, tokenizer)


def question_ids(chat: ChatFormat, tokenizer: Tokenizer, task: Task) -> list[int]:
    """Returns the ids after which the model answers a question.

    Raises UserError naming the task if the format refuses its text.
    """
    try:
        return chat.prompt_ids(tokenizer, [Message("user", task.prompt)])
    except ConversationError as error:
        fix = f"pass --chat-format {NO_CHAT}"
        raise UserError(f"task {task.task_id} in chat form: {error}, or {fix}") from None


def as_questions(benchmark: Benchmark) -> Benchmark:
    """Returns a benchmark whose tasks have the message of the user as their prompt."""
    assert benchmark.chat is not None
    tasks = []
    for task in benchmark.tasks:
        # The rest of the program uses `prompt`, so that questions take its place. An infilling
        # suffix has no place in a conversation.
        tasks.append(replace(task, prompt=benchmark.chat.question(task), suffix=""))
    return replace(benchmark, tasks=tasks, infilling=False)


def solution(program: str, answer: str, reason: str) -> dict[str, Any]:
    """Returns the fields of a sample that is a complete program, with the answer it was in."""
    fields = {"solution": program, "answer": answer}
    return {**fields, PROBLEM: reason} if reason else fields


def function_solution(task: Task, answer: str) -> dict[str, Any]:
    """Returns the sample of an answer to a prompt of HumanEval's form.

    Code that does not define the function is its body. The code before the function in the prompt,
    imports and helper functions, is put before an answer that repeats only the function.
    """
    prompt, name = task.record["prompt"], task.record["entry_point"]
    code, reason = nearest_program(answer, name)
    if f"def {name}(" in code:
        # Imports and helper functions before the last definition of that name; a chat model rarely
        # repeats them.
        return solution(prompt.rpartition(f"def {name}(")[0] + code, answer, reason)
    # The answer has no definition: it is the body, which continues the prompt.
    return solution(prompt + code, answer, reason)


def prompt_used(options: Options, settings: Settings) -> str:
    """Returns which prompt the samples are answers to, for results.json."""
    is_chat = settings.chat_format not in (AUTO, NO_CHAT)
    parts = [f"chat format {settings.chat_format}" if is_chat else "continued"]
    if not is_chat and hasattr(options, "prompt"):
        parts.append(f"prompt of {options.prompt}")
    if hasattr(options, "shots"):
        # -1 stands for the number of the paper, which differs between benchmarks.
        default = "the paper's number of" if options.shots < 0 else str(options.shots)
        parts.append(f"{default} solved examples")
    return ", ".join(parts)


def problems(samples: Iterable[Sample]) -> dict[str, int]:
    """Returns how many answers have no program, by reason."""
    counts = Counter(sample[PROBLEM] for sample in samples if PROBLEM in sample)
    return dict(sorted(counts.items()))
