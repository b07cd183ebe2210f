"""Greedy completions of given prompts, for a person to read in the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codellama_jax.config import Probe, Tokens
from codellama_jax.probes.subject import Subject

if TYPE_CHECKING:
    from codellama_jax.report.page import Page
    from codellama_jax.report.results import StageResult


@dataclass(frozen=True)
class Completions(Probe, name="completions"):
    """Completes prompts greedily; the report shows the completions of the last stage."""

    title = "Completions"

    prompts: tuple[str, ...]
    max_new_tokens: Tokens = 64

    def measure(self, subject: Subject) -> list[dict[str, str]]:
        """Returns `prompt` and `completion` of each prompt."""
        from codellama_jax.generation.settings import Sampling
        from codellama_jax.generation.text import complete

        # Greedy, so that the reports of two runs differ by their models only.
        sampling = Sampling(temperature=0.0, max_new_tokens=self.max_new_tokens)
        texts = complete(subject.model, list(self.prompts), sampling)
        return [{"prompt": prompt, "completion": text} for prompt, text in zip(self.prompts, texts)]

    def show(self, page: Page, answers: Sequence[tuple[StageResult, Any]]) -> None:
        """Adds the prompts of the last stage with their completions marked."""
        # Earlier stages are kept in probes.json; a reader is interested in the trained model.
        result, samples = answers[-1]
        page.note(f"Greedy, after {result.name}; generated text is marked.")
        for sample in samples:
            page.code(("", [(sample["prompt"], ""), (sample["completion"], "mark")]))
