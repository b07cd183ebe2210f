"""Greedy infills of held-out lines without a limit to one line, to be read in the report."""

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
    """Fills in the first of the lines that the probe `infilling` measures, in PSM format.

    The report shows those of the last stage.
    """

    title = "Infills of held-out code"

    examples: Examples
    max_new_tokens: Tokens = 64

    def measure(self, subject: Subject) -> list[dict[str, str]]:
        from codellama_jax.generation.infill import infill
        from codellama_jax.generation.sampler import Sampling

        examples = lines_to_fill(subject, self.examples, self.max_new_tokens)
        sampling = Sampling(temperature=0.0, max_new_tokens=self.max_new_tokens)
        texts = infill(subject.model, [(e.prefix, e.suffix) for e in examples], sampling)
        return [{**e._asdict(), "generated": text} for e, text in zip(examples, texts)]

    def show(self, page: Page, answers: Sequence[tuple[StageResult, Any]]) -> None:
        result, samples = answers[-1]
        page.note(f"PSM, greedy, after {result.name}, up to the EOT token or the token limit.")
        for sample in samples:
            page.code(
                ("generated", _around(sample, "generated", "mark")),
                ("original", _around(sample, "middle", "truth")),
            )


def _around(sample: Mapping[str, str], key: str, mark: str) -> list[Part]:
    """Returns a filled document with a few lines of context."""
    before, after = sample["prefix"].split("\n"), sample["suffix"].split("\n")
    shown_before, shown_after = before[-LINES_BEFORE - 1 :], after[: LINES_AFTER + 1]
    if len(before) > len(shown_before):
        shown_before = ["…", *shown_before]
    if len(after) > len(shown_after):
        shown_after = [*shown_after, "…"]
    return [("\n".join(shown_before), ""), (sample[key], mark), ("\n".join(shown_after), "")]
