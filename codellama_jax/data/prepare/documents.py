"""Stage 1: reads documents, filters and redacts them, and computes what duplicates are found by."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from codellama_jax.data.prepare import counts
from codellama_jax.data.prepare.duplicates import minhash
from codellama_jax.data.prepare.filters import rules as filters
from codellama_jax.data.prepare.inputs import Part, read_part
from codellama_jax.data.prepare.parts import DOCUMENTS, write_rows
from codellama_jax.data.prepare.policies import Policy
from codellama_jax.data.prepare.readers import conversations
from codellama_jax.data.prepare.readers.base import InputOptions
from codellama_jax.data.prepare.records import Dropped, Record
from codellama_jax.data.prepare.redaction import pii
from codellama_jax.data.prepare.stages import StageFolder

DIGEST_BYTES = 16  # two different texts agree with a probability of 2**-128


@dataclass(frozen=True)
class WriteDocuments:
    """The work of the stage: writes the documents of a part and their counts."""

    stage: StageFolder
    policy: Policy
    options: InputOptions
    count_tokens: Callable[[str], int] | None = None  # for the rule min_fertility

    def __call__(self, part: Part) -> None:
        """Writes one part."""
        totals: dict[str, Any] = {}
        rows = self._rows(part, totals)
        write_rows(self.stage.output(part.number), DOCUMENTS, rows, sized="text")
        self.stage.finish(part.number, totals)

    def _rows(self, part: Part, totals: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for read in read_part(part, self.options):
            # Readers already drop files that are binary, too large or not text.
            result = read if isinstance(read, Dropped) else self._step(read, totals)
            characters = result.characters if isinstance(result, Dropped) else len(result.text)
            language = result.language or "unknown"
            # Counted before the decision, so that "read" is the sum of dropped and kept documents.
            counts.add(totals, "read", "documents")
            counts.add(totals, "read", "characters", amount=characters)
            if isinstance(result, Dropped):
                counts.add(totals, "dropped", result.reason)
                counts.add(totals, "languages", language, "dropped")
                counts.add_example(totals, result.reason, result.id)
                continue
            counts.add(totals, "languages", language, "documents")
            counts.add(totals, "languages", language, "characters", amount=characters)
            counts.add(totals, "licenses", result.license or "unknown")
            counts.add(totals, "lengths", counts.length_bin(characters))
            yield self._row(result)

    def _step(self, record: Record, totals: dict[str, Any]) -> Record | Dropped:
        """Returns the record as the policy leaves it."""
        result = filters.apply(record, self.policy, self.count_tokens)
        if isinstance(result, Dropped) or not self.policy.pii:
            return result
        # Redaction comes after the rules, which judge the text as it was published, and before the
        # digest and the bands, which describe the text that the dataset will hold.

        def redact(text: str) -> str:
            text, redacted = pii.redact(text, self.policy.pii)
            for kind, amount in redacted.items():
                counts.add(totals, "redacted", kind, amount=amount)
            return text

        if result.language != conversations.LANGUAGE:
            return result._replace(text=redact(result.text))
        # In JSON an address after a line break begins with the letter of the escape, whose
        # replacement would damage the document.
        return result._replace(text=conversations.with_texts(result.text, redact))

    def _row(self, record: Record) -> dict[str, Any]:
        # Pairs of one prompt are similar by design.
        is_conversation = record.language == conversations.LANGUAGE
        params = self.policy.near_duplicates
        bands = b"" if is_conversation else minhash.band_hashes(record.text, params)
        # A hash of the text: the stage of duplicates sorts these 16 bytes instead of texts.
        digest = hashlib.sha256(record.text.encode()).digest()[:DIGEST_BYTES]
        return record._asdict() | {"digest": digest, "bands": bands}
