"""The tag of a language as the first line of its documents."""

import dataclasses

from codellama_jax.data.prepared import Prepared
from codellama_jax.runs.language_tags import TaggedDocuments, tagged

DOCUMENTS = [
    {"id": b"stdlib/ast.py#3", "text": b"import re\n"},
    {"id": b"a/b.cpp", "text": b"int x;\n"},
    {"id": b"index.html", "text": b"<p>\n"},
    {"id": b"topics/if", "text": b"The if statement\n"},
]


def test_a_document_begins_with_the_tag_of_its_language():
    documents = TaggedDocuments(DOCUMENTS)
    assert [document["text"].decode() for document in documents] == [
        "# language: Python\nimport re\n",
        "// language: C++\nint x;\n",
        "<!--language: HTML-->\n<p>\n",
        "The if statement\n",
    ]
    assert documents[1:3] == [documents[1], documents[2]]
    assert documents[0]["id"] == DOCUMENTS[0]["id"]


def test_both_splits_are_tagged():
    source = Prepared(DOCUMENTS[:1], DOCUMENTS[1:2], {}, "hash")
    result = tagged(source)
    assert result.train[0]["text"].startswith(b"# language: Python\n")
    assert result.validation[0]["text"].startswith(b"// language: C++\n")
    assert dataclasses.replace(result, train=source.train, validation=source.validation) == source
