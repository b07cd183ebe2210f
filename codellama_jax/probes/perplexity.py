"""Perplexity by context length on held-out files (after Code Llama, figure 4a)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codellama_jax.config import Examples, Probe, Tokens
from codellama_jax.probes.subject import Subject

if TYPE_CHECKING:
    from codellama_jax.report.page import Page
    from codellama_jax.report.results import StageResult

Measures = dict[str, dict[str, float]]  # by length: `perplexity`, `last_block`, `documents` ...


@dataclass(frozen=True)
class Perplexity(Probe, name="perplexity"):
    """Perplexity of the first tokens of the same held-out files, for several numbers of tokens."""

    title = "Perplexity by context length"

    lengths: tuple[Tokens, ...]
    # The number of documents, which have at least the longest length. A shorter length reads the
    # beginning of the same documents, so that the lengths can be compared.
    rows: Examples = 8

    def measure(self, subject: Subject) -> Measures:
        """Returns the measures by length. Raises UserError if no document is long enough."""
        from codellama_jax.benchmarks.suites.perplexity import perplexity_by_length

        by_length = perplexity_by_length(subject.model, subject.files, self.lengths, self.rows)
        return {str(length): measures for length, measures in by_length.items()}

    def show(self, page: Page, answers: Sequence[tuple[StageResult, Any]]) -> None:
        """Adds a figure and a table of the stages."""
        from codellama_jax.report.figures import perplexity_figure  # matplotlib is slow to import

        # JSON has made texts of the lengths.
        curves, documents = {}, 0
        for result, answer in answers:
            curves[result.name] = {int(length): measures for length, measures in answer.items()}
            documents = max(documents, *(measures["documents"] for measures in answer.values()))
        caption = (
            f"Validation perplexity of the first tokens of the same {documents} documents, each"
            " read alone: of all these tokens (solid), and of their last quarter (dashed)."
        )
        page.figure("perplexity", caption, *perplexity_figure(curves))
        lengths = sorted(set().union(*curves.values()))
        rows = []
        for result, _ in answers:
            by_length = curves[result.name]
            cells = [_perplexities(by_length.get(length)) for length in lengths]
            rows.append((result.name, f"{result.stage.data.seq_len:,} tokens", *cells))
        headings = [f"{length:,} tokens" for length in lengths]
        page.table(("after stage", "trained on sequences of", *headings), rows)
        page.note("Perplexity (of the last quarter).")


def _perplexities(measures: Mapping[str, float] | None) -> str:
    """Returns a cell of the table, "" for a stage that was not measured at that length."""
    if not measures:
        return ""
    return f"{measures['perplexity']:.2f} ({measures['last_block']:.2f})"
