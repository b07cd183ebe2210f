"""The prompts of Evol-Instruct for code: five methods in depth, and one in breadth.

The methods are those of WizardCoder, whose recipe PanGu-Coder2 follows; its own list is not
published. The wording is ours.
"""

from __future__ import annotations

from codellama_jax.tokenizers.chat import Message

METHODS = {
    "constraint": "Add one requirement or constraint, in about ten words.",
    "specific": "Replace a common requirement by one that is rarer and more specific.",
    "reasoning": "If few steps solve the task, change it so that more steps of reasoning are due.",
    "misdirection": "Add a piece of code that is wrong, as a hint that misleads.",
    "complexity": "Demand a lower bound on time or memory than an obvious solution has.",
}
# A method that makes a new task instead of a harder one.
BREADTH = "breadth"
IN_DEPTH = """\
You set the tasks of a programming contest. Rewrite the task below so that it becomes somewhat
harder. {method}
One function must still solve it, with nothing but what the task states. Keep about the same length.
Write only the new task, and nothing about this request.

Task:
{task}"""
IN_BREADTH = """\
You set the tasks of a programming contest. Write a new task of the same kind and difficulty as the
one below, on a rarer topic. One function must solve it, with nothing but what the task states.
Write only the new task, and nothing about this request.

Task:
{task}"""
ANSWER = """\
Solve the task below with one Python function. Put the code in one block that starts with ```python
and ends with ```.

Task:
{task}"""
# Words of the prompts that a model copies into a task instead of following them.
TEMPLATE_WORDS = (
    "programming contest",
    "rewrite the task",
    "somewhat harder",
    "the new task",
    "of the same kind and difficulty",
)


def evolve(task: str, method: str) -> list[Message]:
    """Returns the conversation that asks for a changed task; `method` is a key or BREADTH."""
    if method == BREADTH:
        return [Message("user", IN_BREADTH.format(task=task))]
    return [Message("user", IN_DEPTH.format(method=METHODS[method], task=task))]


def ask_for_answer(task: str) -> list[Message]:
    """Returns the conversation that asks for the code of a task."""
    return [Message("user", ANSWER.format(task=task))]
