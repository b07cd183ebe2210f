"""Self-instruct and ranking as stages of an experiment, with the code that the verbs run."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from codellama_jax.alignment import pairs, self_instruct
from codellama_jax.alignment.answers import Answerer
from codellama_jax.alignment.evol_prompts import ask_for_answer
from codellama_jax.alignment.model_names import repeated_model
from codellama_jax.alignment.prompts import STYLES
from codellama_jax.alignment.rank import Task
from codellama_jax.checked import Checked, FieldError, Range
from codellama_jax.data import generated_functions as generated
from codellama_jax.data_stage import DataStage
from codellama_jax.generation.settings import Sampling
from codellama_jax.system.files import user_path
from codellama_jax.tokenizers.chat import Message

Answerers = Callable[[str, str, Sampling], Answerer]
TOY_TASKS = "functions"  # the training functions of data/generated_functions.py


@dataclass(frozen=True)
class Writing(Checked):
    """How the models of a data stage write; the papers publish none of the numbers."""

    # Of the models that are stages of the arm. Runs have their own, servers apply one themselves.
    chat: Literal["llama2", "code_llama_70b", "pangu_coder2"] = "llama2"
    # toy: the prompts of data/generated_functions.py.
    prompts: Literal["paper", "toy"] = "paper"
    temperature: Annotated[float, Range(0, 100)] = 0.8  # not of `rank`, which has several
    top_p: Annotated[float, Range(0, 1, open_least=True)] = 0.95
    max_new_tokens: Annotated[int, Range(1, 100_000)] = 1024

    def sampling(self, seed: int) -> Sampling:
        """Returns how tokens are drawn."""
        return Sampling(self.temperature, 0, self.top_p, self.max_new_tokens, seed)


@dataclass(frozen=True)
class SelfInstructStage(DataStage, kind="self_instruct"):
    """Questions, tests and solutions that pass them, as conversations (Code Llama, section 2.5)."""

    output = self_instruct.DATASET

    question_model: str
    test_model: str
    solution_model: str
    amount: self_instruct.Amounts = field(default_factory=self_instruct.Amounts)
    writing: Writing = field(default_factory=Writing)

    def models(self) -> tuple[str, ...]:
        return (self.question_model, self.test_model, self.solution_model)

    def amounts(self) -> str:
        amount = self.amount
        asked = f"{amount.prompts:,} x {amount.questions} questions"
        return f"{asked}, {amount.solutions} solutions of each"

    def make(self, answerers: Answerers, folder: Path, seed: int) -> dict[str, Any]:
        """Returns the counts of the steps, as `self_instruct.Counts` has them."""
        # Imported where it is used: reading an experiment's config must not need the sandbox.
        from codellama_jax.sandbox.executor import Executor

        chat, sampling = self.writing.chat, self.writing.sampling(seed)
        models = self_instruct.Models(*(answerers(name, chat, sampling) for name in self.models()))
        # The seed is the run's and not an option of the stage, so that arms with several seeds
        # differ.
        params = self_instruct.SelfInstruct(**vars(self.amount), seed=seed)
        names = ("question_model", "test_model", "solution_model")
        is_toy = self.writing.prompts == "toy"
        with Executor() as executor:
            counts = self_instruct.make_dataset(
                models,
                executor,
                params,
                folder,
                dict(zip(names, self.models())),
                STYLES[self.writing.prompts],
                # The toy functions that the experiment evaluates on must not be trained on.
                generated.asks_for_held_out if is_toy else None,
            )
        return dataclasses.asdict(counts)


@dataclass(frozen=True)
class RankStage(DataStage, kind="rank"):
    """Pairs of a teacher's and the student's answer to a task (PanGu-Coder2, section 3.2)."""

    output = pairs.PAIRS

    student: str
    teachers: tuple[str, ...]
    tasks: str  # JSON lines as the verb takes them; `functions` for the generated functions
    most_tasks: Annotated[int, Range(0, 10**7)] = 0  # the first ones; 0 takes all
    sampled: pairs.Sampled = field(default_factory=pairs.Sampled)
    writing: Writing = field(default_factory=lambda: Writing(chat="pangu_coder2"))

    def check_relations(self) -> None:
        """Raises FieldError without a teacher, and for a model that is named twice."""
        if not self.teachers:
            raise FieldError(("teachers",), " is empty: name at least one model")
        # Names without a path are stages of the arm; one of them may be that of a folder as well.
        is_path = ["/" in model or ":" in model for model in self.models()]
        stages = [model for model, path in zip(self.models(), is_path) if not path]
        paths = [model for model, path in zip(self.models(), is_path) if path]
        if len(set(stages)) < len(stages) or repeated_model(paths):
            raise FieldError(("teachers",), f" is {self.teachers}: no model may be named twice")

    def models(self) -> tuple[str, ...]:
        return (self.student, *self.teachers)

    def amounts(self) -> str:
        sampled = self.sampled
        tasks = f"{self.most_tasks:,} tasks" if self.most_tasks else "all tasks"
        answers = sampled.samples * len(sampled.temperatures)
        return f"{tasks}, {answers} answers of each model, {sampled.most_pairs or 'all'} pairs"

    def content(self) -> str:
        return pairs.hash_of(self._tasks())

    def make(self, answerers: Answerers, folder: Path, seed: int) -> dict[str, Any]:
        """Returns the numbers of tasks and pairs, and of answers and dropped pairs by reason."""

        def answerer(model: str, temperature: float) -> Answerer:
            writing = dataclasses.replace(self.writing, temperature=temperature)
            return answerers(model, writing.chat, writing.sampling(seed))

        tasks = self._tasks()
        ask = _as_it_is if self.writing.prompts == "toy" else ask_for_answer
        made = pairs.make_pairs(self.models(), answerer, tasks, self.sampled, folder, ask)
        ranking, failures = made
        reasons = Counter(ranking.outcomes) + Counter(ranking.dropped) + failures
        return {"tasks": len(tasks), "pairs": len(ranking.pairs), "reasons": dict(reasons)}

    def _tasks(self) -> list[Task]:
        if self.tasks == TOY_TASKS:
            tasks = [
                Task(f"t{number}", function.question, tuple(tests), (), ())
                for number, (function, tests) in enumerate(generated.tasks())
            ]
        else:
            tasks = pairs.read_tasks(str(user_path(self.tasks)))
        return tasks[: self.most_tasks or None]


def _as_it_is(prompt: str) -> list[Message]:
    return [Message("user", prompt)]
