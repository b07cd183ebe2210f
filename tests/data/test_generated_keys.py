"""Documents with keys: every assert is right, and the texts are those of the benchmark."""

import dataclasses
import random
import re

import pytest

from codellama_jax.benchmarks.suites.key_retrieval import END, KEY
from codellama_jax.config import CorpusConfig
from codellama_jax.data import builders, sources
from codellama_jax.data import generated_keys as keys

LINES = [f"line_{number} = {number} + {number}\n" for number in range(50)]


def few(count: int) -> keys.Kind:
    return dataclasses.replace(keys.CORPORA["functions:keys"], count=count)


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


def test_every_number_is_asserted_once(documents):
    """A second assert of a number would be copied from the first one."""
    for document in documents:
        functions = re.findall(r"^def (\w+)", document.partition("\nassert")[0], re.M)
        asserted = re.findall(r"^assert (\w+)\(\) == \d", document, re.M)
        assert len(set(asserted)) == len(asserted) and set(asserted) <= set(functions)


def test_lengths_and_numbers_vary(documents):
    kind = keys.CORPORA["functions:keys"]
    lengths = [len(document) for document in documents]
    assert min(lengths) < 0.25 * kind.longest and 0.9 * kind.longest < max(lengths) <= kind.longest
    numbers = re.findall(r"^assert \w+\(\) == (\d+)", "\n".join(documents), re.M)
    assert {len(number) for number in numbers} == {2} and len(set(numbers)) > 80
    counts = [document.count("() -> int:") for document in documents]
    assert 0.7 < sum(count == 1 for count in counts) / len(counts) < 0.9
    assert max(counts) == kind.most_functions


@pytest.mark.parametrize(
    ("corpus", "bare"),
    [("functions:short_keys", 1 / 3), ("functions:keys", 1 / 3), ("functions:long_keys", 0.0)],
)
def test_a_stated_share_has_no_filler(corpus, bare):
    generator = keys.documents(LINES, corpus)
    documents = [next(generator) for _ in range(300)]
    without = sum("line_" not in document for document in documents) / len(documents)
    # A room shorter than a line stays empty, which happens most among the short ones.
    assert bare - 0.08 < without < bare + 0.25


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
    monkeypatch.setitem(keys.CORPORA, "functions:keys", few(10))
    assert len(sources.find("functions:keys")) == 10
    positions = sorted(sources.position(entry.id) for entry in items)
    assert len(read) == sources.FILLER_FILES
    least = min(sources.position(items[number].id) for number in read)
    assert least == positions[-sources.FILLER_FILES] > 0.5


def test_all_documents_are_read_whatever_max_files_is(monkeypatch, tmp_path):
    file = sources.Item("a", "", "".join(LINES).encode)
    monkeypatch.setattr(sources, "_stdlib", lambda: iter([file]))
    monkeypatch.setitem(keys.CORPORA, "functions:keys", few(60))
    corpus = CorpusConfig(max_files=5, others={"keys": "functions:keys"}, validation_fraction=0.2)
    prepared = builders.prepare(corpus, "keys", 50, tmp_path)
    # Nor are they split into blocks.
    assert len(prepared.train) + len(prepared.validation) == 60
