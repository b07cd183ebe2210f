"""Greedy infills of held-out lines, of any number of lines, for a person to read in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codellama_jax.config import Examples, Probe, Tokens
from codellama_jax.probes.held_out import lines_to_fill
from codellama_jax.probes.subject import Subject

if TYPE_CHECKING:
    from codellama_jax.report.page import Page, Part
    from codellama_jax.report.results import StageResult

LINES_BEFORE, LINES_AFTER = 8, 5  # context lines of a sample


@dataclass(frozen=True)
class Infills(Probe, name="infills"):
    """Fills in lines of held-out documents, in PSM format.

    These are the first lines that the probe `infilling` measures if both probes have the same
    `max_new_tokens` and neither has more examples than there are documents. Generation stops at
    EOT, not at the first newline. The report shows the last stage.
    """

    title = "Infills of held-out code"

    examples: Examples
    max_new_tokens: Tokens = 64

    def measure(self, subject: Subject) -> list[dict[str, str]]:
        """Returns `prefix`, `middle`, `suffix` and `generated` of each example.

        Raises UserError if there is no line to fill in.
        """
        from codellama_jax.generation.infill import infill
        from codellama_jax.generation.settings import Sampling

        # Chosen as in the probe `infilling`, so that the report may show lines of its table.
        examples = lines_to_fill(subject, self.examples, self.max_new_tokens)
        sampling = Sampling(temperature=0.0, max_new_tokens=self.max_new_tokens)
        texts = infill(subject.model, [(e.prefix, e.suffix) for e in examples], sampling)
        return [{**example._asdict(), "generated": text} for example, text in zip(examples, texts)]

    def show(self, page: Page, answers: Sequence[tuple[StageResult, Any]]) -> None:
        """Adds each example of the last stage as generated and in the original."""
        result, samples = answers[-1]
        page.note(f"PSM, greedy, after {result.name}, up to the EOT token or the token limit.")
        for sample in samples:
            page.code(
                ("generated", _around(sample, "generated", "mark")),
                ("original", _around(sample, "middle", "truth")),
            )


def _around(sample: Mapping[str, str], key: str, mark: str) -> list[Part]:
    """Returns `sample[key]`, marked, between a few lines of the prefix and of the suffix."""
    before, after = sample["prefix"].split("\n"), sample["suffix"].split("\n")
    # One line more: the last line before the middle and the first one after it may be empty.
    shown_before, shown_after = before[-LINES_BEFORE - 1 :], after[: LINES_AFTER + 1]
    if len(before) > len(shown_before):
        shown_before = ["…", *shown_before]
    if len(after) > len(shown_after):
        shown_after = [*shown_after, "…"]
    return [("\n".join(shown_before), ""), (sample[key], mark), ("\n".join(shown_after), "")]
