"""Documents with the comment of their language as the first line, as CodeGeeX reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from codellama_jax.data.prepare.filters.languages import language_of
from codellama_jax.data.prepared import Prepared
from codellama_jax.errors import UserError
from codellama_jax.tokenizers.language_tags import language_tag


class TaggedDocuments(Sequence):
    """Random access to documents of a source, each with its tag: `# language: Python`."""

    def __init__(self, documents: Sequence[dict[str, bytes]]):
        self._documents = documents

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: Any) -> Any:
        document = self._documents[index]
        return [_tagged(d) for d in document] if isinstance(index, slice) else _tagged(document)


def tagged(prepared: Prepared) -> Prepared:
    """Returns a source whose documents begin with their tag.

    The language is that of the file's name, or of its content where the name leaves it open. A
    document in a language without a tag stays as it is.
    """
    train, validation = (TaggedDocuments(d) for d in (prepared.train, prepared.validation))
    return dataclasses.replace(prepared, train=train, validation=validation)


def _tagged(document: dict[str, bytes]) -> dict[str, bytes]:
    # `#3` numbers the block of a file.
    path = document["id"].decode().partition("#")[0]
    try:
        tag = language_tag(language_of(path, document["text"].decode()))
    except UserError:
        return document
    return {**document, "text": f"{tag}\n".encode() + document["text"]}
