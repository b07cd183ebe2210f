"""pass@1 on the held-out functions of data/generated_functions.py, which toy models can write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from codellama_jax.checked import Range
from codellama_jax.config import Examples, Probe, Tokens
from codellama_jax.probes.subject import Subject

if TYPE_CHECKING:
    from codellama_jax.report.page import Page
    from codellama_jax.report.results import StageResult

TESTS = 5  # of a function: more than a training document has
BATCH = 128  # answers generated at the same time


@dataclass(frozen=True)
class HeldOutFunctions(Probe, name="held_out_functions"):
    """The greedy answer to the question of each function, run on its tests in the sandbox."""

    title = "Held-out functions"

    chat: Literal["llama2", "pangu_coder2"]
    functions: Examples = 1000  # at most; the family holds out fewer
    max_new_tokens: Annotated[Tokens, Range(1, 1_000)] = 96

    def measure(self, subject: Subject) -> dict[str, Any]:
        """Returns `passed`, a list of 0 and 1 by function, `pass@1`, and the verdicts' counts.

        Raises UserError where the sandbox cannot be set up.
        """
        # Imported inside of `measure`: see the package's docstring.
        from collections import Counter

        from codellama_jax.alignment.answers import Request
        from codellama_jax.alignment.models import local
        from codellama_jax.alignment.outcomes import Candidate, passing
        from codellama_jax.benchmarks.programs import program
        from codellama_jax.data.generated_functions import held_out, hidden_tests
        from codellama_jax.generation.settings import Sampling
        from codellama_jax.sandbox.executor import Executor
        from codellama_jax.tokenizers.chat import FORMATS, Message

        functions = held_out()[: self.functions]
        sampling = Sampling(temperature=0.0, max_new_tokens=self.max_new_tokens)
        answerer = local(subject.model, FORMATS[self.chat], sampling)
        requests = [Request(f.question, [Message("user", f.question)]) for f in functions]
        answers: dict[int, str] = {}
        for place, answer in answerer(requests, BATCH):
            # A question that is too long for the model has no answer.
            answers[place] = answer if isinstance(answer, str) else ""
        # Answers without a program keep this verdict, and count as failed.
        verdicts = ["no program"] * len(functions)
        candidates, places = [], []
        # Only answers that hold a program are run; `places` leads from a candidate to its function.
        for place, function in enumerate(functions):
            tests = hidden_tests(function, TESTS)
            if code := program(answers[place]).code:
                candidates.append(Candidate(f"f{place}", code, tuple(tests)))
                places.append(place)
        with Executor() as executor:
            for position, status in passing(executor, candidates):
                verdicts[places[position]] = status
        passed = [int(verdict == "passed") for verdict in verdicts]
        counts = dict(sorted(Counter(verdicts).items()))
        return {"passed": passed, "pass@1": sum(passed) / len(passed), "verdicts": counts}

    def show(self, page: Page, answers: Sequence[tuple[StageResult, Any]]) -> None:
        """Adds a table of pass@1 and of the verdicts of each stage."""
        rows = []
        for result, answer in answers:
            verdicts = ", ".join(f"{count} {name}" for name, count in answer["verdicts"].items())
            rows.append((result.name, f"{answer['pass@1']:.1%}", verdicts))
        page.table(("stage", "pass@1", "verdicts"), rows)
