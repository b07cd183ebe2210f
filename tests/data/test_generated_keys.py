"""Documents with keys: every assert is right, and the texts are those of the benchmark."""

import random
import re

import pytest

from codellama_jax.benchmarks.suites.key_retrieval import END, KEY
from codellama_jax.config import CorpusConfig
from codellama_jax.data import builders, sources
from codellama_jax.data import generated_keys as keys

LINES = [f"line_{number} = {number} + {number}\n" for number in range(50)]


@pytest.fixture(scope="module")
def documents() -> list[str]:
    generator = keys.documents(LINES, "functions:keys")
    return [next(generator) for _ in range(400)]


def test_every_assert_holds(documents):
    for document in documents:
        namespace: dict = {}
        for code in re.findall(r"def \w+\(\) -> int:\n(?: .*\n)+", document):
            # The note is the first return statement in the paper's prompts too.
            exec(code.replace(keys.NOTE, ""), namespace)
        asserts = re.findall(r"^assert .*", document, re.M)
        assert asserts and document.endswith(f"{asserts[-1]}\n")
        exec("\n".join(asserts), namespace)


def test_texts_are_those_of_the_benchmark(documents):
    function, end = KEY.format(value=42), END
    assert keys.NOTE in function
    normalized = [re.sub(r"\d\d\b", "42", document) for document in documents]
    assert sum(function in document and f"{end}42\n" in document for document in normalized) > 40


def test_lengths_and_numbers_vary(documents):
    lengths = [len(document) for document in documents]
    longest = keys.LONGEST["functions:keys"]
    assert min(lengths) < 0.5 * longest and max(lengths) > 0.9 * longest
    numbers = re.findall(r"^assert \w+\(\) == (\d+)", "\n".join(documents), re.M)
    assert {len(number) for number in numbers} == {2} and len(set(numbers)) > 80
    counts = [document.count("def ") for document in documents]
    assert 0.4 < sum(count == 1 for count in counts) / len(counts) < 0.6
    assert max(counts) == keys.MOST_FUNCTIONS


def test_documents_are_the_same_on_every_call(documents):
    again = keys.documents(LINES, "functions:keys")
    assert [next(again) for _ in range(5)] == documents[:5]
    other = keys.documents(LINES, "functions:long_keys")
    assert next(other) != documents[0]


def test_the_filler_is_of_no_held_out_file(monkeypatch):
    """The validation split has the files of the smallest positions."""
    read = []

    def item(number: int) -> sources.Item:
        def content() -> bytes:
            read.append(number)
            return random.Random(number).randbytes(8).hex().encode() + b"\n"

        return sources.Item(f"stdlib/{number}.py", "", content)

    items = [item(number) for number in range(400)]
    monkeypatch.setattr(sources, "_stdlib", lambda: iter(items))
    monkeypatch.setitem(keys.DOCUMENTS, "functions:keys", 10)
    assert len(sources.find("functions:keys")) == 10
    positions = sorted(sources.position(entry.id) for entry in items)
    assert len(read) == sources.FILLER_FILES
    least = min(sources.position(items[number].id) for number in read)
    assert least == positions[-sources.FILLER_FILES] > 0.5


def test_all_documents_are_read_whatever_max_files_is(monkeypatch, tmp_path):
    file = sources.Item("a", "", "".join(LINES).encode)
    monkeypatch.setattr(sources, "_stdlib", lambda: iter([file]))
    monkeypatch.setitem(keys.DOCUMENTS, "functions:keys", 60)
    corpus = CorpusConfig(max_files=5, others={"keys": "functions:keys"}, validation_fraction=0.2)
    prepared = builders.prepare(corpus, "keys", 50, tmp_path)
    # Nor are they split into blocks.
    assert len(prepared.train) + len(prepared.validation) == 60
