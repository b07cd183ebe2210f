"""The stage over part files: counts of n-grams, rows, and the text that remains."""

import dataclasses
import json

import hypothesis
import hypothesis.strategies as st
import pyarrow as pa
import pytest

from codellama_jax.data.prepare.contamination.index import BenchmarkText, Decontamination
from codellama_jax.data.prepare.contamination.part_files import (
    RuleCount,
    TokenShare,
    clean_text,
    common_grams,
    count_grams,
    load_index,
    pieces,
    rule_counts,
    scan_part,
    token_shares,
    write_index,
)
from codellama_jax.data.prepare.parts import DOCUMENTS, read_rows, write_rows

GPT3 = Decontamination(ngrams=True)
TASK = " ".join(f"word{number}" for number in range(20))  # 8 different 13-grams
FILLER = "filler text. " * 40  # 520 characters


def write_documents(path, texts):
    rows = []
    for number, text in enumerate(texts):
        language = "conversation" if text.startswith("{") else ""
        row = {"id": str(number), "text": text, "language": language, "stars": -1}
        rows.append(row | {"digest": bytes(16)})
    write_rows(path, DOCUMENTS, rows)


@pytest.fixture
def scan(tmp_path):
    """Returns a function that writes documents, runs all steps on two parts, and returns rows."""

    def run(texts, params, benchmark_texts, dropped=""):
        write_index(tmp_path / "index.json", benchmark_texts, params)
        half = len(texts) // 2
        for part, documents in enumerate((texts[:half], texts[half:])):
            write_documents(tmp_path / f"documents-{part}", documents)
            names = [tmp_path / f"{name}-{part}" for name in ("documents", "grams")]
            count_grams(names[0], tmp_path / "index.json", names[1], dropped)
        counts = [tmp_path / "grams-0", tmp_path / "grams-1"]
        common_grams(counts, params, tmp_path / "common")
        rows = []
        for part in range(2):
            out = tmp_path / f"rows-{part}"
            common = str(tmp_path / "common")
            scan_part(tmp_path / f"documents-{part}", tmp_path / "index.json", common, out, dropped)
            rows.append(list(read_rows(out)))
        return rows

    return run


def test_the_gram_and_its_surroundings_are_removed(scan):
    text = f"{FILLER}{TASK} {FILLER}"
    rows = scan(["clean text", text], GPT3, [BenchmarkText("b", "7", "prompt", TASK)])
    (row,) = rows[1]
    assert rows[0] == []
    assert (row["action"], row["rule"], row["benchmark"], row["task"]) == (
        "remove",
        "ngrams",
        "b",
        "7",
    )
    assert text[row["start"] : row["end"]] == TASK
    kept = len(FILLER) - GPT3.margin
    assert clean_text(text, rows[1], GPT3) == [FILLER[:kept], FILLER[-kept - 1 :]]


def test_a_document_that_no_piece_remains_of_is_dropped(scan):
    text = FILLER[:390] + TASK + FILLER[:390]
    rows = scan(["", text], GPT3, [BenchmarkText("b", "7", "prompt", TASK)])[1]
    assert [row["action"] for row in rows] == ["drop"]
    assert clean_text(text, rows, GPT3) == []


def test_a_conversation_with_a_gram_is_dropped(scan):
    """Its pieces are no conversations, and would be trained on as text."""
    messages = [{"role": "user", "content": FILLER + TASK + FILLER}]
    text = json.dumps({"messages": messages})
    ((row,), ()) = scan([text, FILLER], GPT3, [BenchmarkText("b", "t", "prompt", TASK)])
    assert row["action"] == "drop" and clean_text(text, [row], GPT3) == []


@pytest.mark.parametrize("rule", ["substring", "ngrams"])
def test_a_benchmark_of_several_lines_is_found_in_a_conversation(scan, rule):
    """In its JSON line breaks and quotes are escapes, and a line begins with the letter n."""
    lines = "\n".join(f'def {name}(x):\n    return "{name}"' for name in TASK.split())
    text = json.dumps({"messages": [{"role": "user", "content": f"{lines}\n"}]})
    params = Decontamination(**{rule: True})
    rows, _ = scan([text, FILLER], params, [BenchmarkText("b", "t", "solution", lines)])
    assert rows and {row["action"] for row in rows} == {"drop"}
    assert clean_text(text, rows, params) == []


@pytest.mark.parametrize("copies, pieces_left", [(9, 10), (10, 0)])
def test_a_document_of_too_many_pieces_is_dropped(scan, copies, pieces_left):
    text = FILLER + (TASK + "\n" + FILLER * 2) * copies
    rows = scan(["", text], GPT3, [BenchmarkText("b", "7", "prompt", TASK)])[1]
    assert {row["action"] for row in rows} == {"remove" if pieces_left else "drop"}
    assert len(clean_text(text, rows, GPT3)) == pieces_left


@pytest.mark.parametrize("documents, expected", [(10, 10), (11, 0)])
def test_grams_in_more_than_ten_documents_are_ignored(scan, documents, expected):
    # Two occurrences in a document count once.
    texts = [f"{number} {TASK} . {TASK}" for number in range(documents)]
    rows = scan(texts, GPT3, [BenchmarkText("b", "7", "prompt", TASK)])
    assert len({(part, row["row"]) for part in range(2) for row in rows[part]}) == expected


def test_dropped_documents_are_neither_counted_nor_scanned(scan, tmp_path):
    write_rows(tmp_path / "dropped", pa.schema([("row", pa.int64())]), [{"row": 0}, {"row": 1}])
    texts = [TASK] * 14
    rows = scan(texts, GPT3, [BenchmarkText("b", "7", "prompt", TASK)], str(tmp_path / "dropped"))
    assert [row["row"] for row in rows[0]] == [2, 3, 4, 5, 6]
    assert [row["row"] for row in rows[1]] == [2, 3, 4, 5, 6]


def test_a_document_with_an_exact_copy_is_dropped(scan):
    params = Decontamination(substring=True, ngrams=True)
    text = FILLER * 3 + TASK.upper() + FILLER * 3
    rows = scan(["", text], params, [BenchmarkText("b", "7", "prompt", TASK)])[1]
    assert [(row["rule"], row["action"]) for row in rows] == [
        ("substring", "drop"),
        ("ngrams", "drop"),
    ]
    assert clean_text(text, rows, params) == []


def test_a_document_with_the_words_of_a_task_is_dropped(scan):
    params = Decontamination(similarity=True)
    text = " ".join(reversed(TASK.split()))
    rows = scan(["", text], params, [BenchmarkText("b", "7", "prompt", TASK)])[1]
    assert [(row["rule"], row["action"]) for row in rows] == [("similarity", "drop")]
    assert clean_text(text, rows, params) == []


def test_tokens_are_reported_and_nothing_is_removed(scan, tmp_path):
    params = Decontamination(tokens=True)
    texts = [BenchmarkText("b", "7", "prompt", TASK), BenchmarkText("b", "8", "prompt", FILLER)]
    first, second = " ".join(TASK.split()[:12]), " ".join(TASK.split()[5:17])
    documents = [first, first, second, first]
    rows = scan(documents, params, texts)
    # A match is reported once per part.
    assert [(row["row"], row["first"], row["last"]) for row in rows[0]] == [(0, 0, 12)]
    assert {row["action"] for part in rows for row in part} == {"report"}
    assert clean_text(first, rows[0], params) == [first]
    index = load_index(tmp_path / "index.json")
    shares = token_shares([tmp_path / "rows-0", tmp_path / "rows-1"], index)
    assert shares == [TokenShare("b", "7", 20, 17), TokenShare("b", "8", 120, 0)]


def test_counts_by_benchmark_and_rule(scan, tmp_path):
    params = Decontamination(substring=True, tokens=True)
    texts = [BenchmarkText("b", task, "solution", f"{task}: {TASK}") for task in "12"]
    document = "\n".join(text.text for text in texts)
    scan([document, "", document, document], params, texts)
    assert rule_counts([tmp_path / "rows-0", tmp_path / "rows-1"]) == [
        RuleCount("b", "substring", "drop", 3, 6, 2),
        RuleCount("b", "tokens", "report", 2, 4, 2),
    ]


def test_a_changed_index_file_is_read_again(tmp_path):
    path = tmp_path / "index.json"
    text = BenchmarkText("b", "1", "prompt", TASK)
    write_index(path, [text], GPT3)
    assert load_index(path) is load_index(path)
    write_index(path, [text, text._replace(task="2")], dataclasses.replace(GPT3, margin=7))
    assert len(load_index(path).texts) == 2 and load_index(path).params.margin == 7


@hypothesis.given(
    st.integers(0, 60),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 10)), max_size=5),
    st.integers(0, 5),
    st.integers(1, 9),
)
@hypothesis.settings(max_examples=300, deadline=None)
def test_pieces_are_the_characters_that_no_margin_covers(length, matches, margin, least):
    params = Decontamination(margin=margin, min_piece=least, max_pieces=1000)
    matches = [(start, min(start + size, length)) for start, size in matches if start < length]
    covered = set()
    for start, end in matches:
        covered |= set(range(start - margin, end + margin))
    expected = "".join(" " if i in covered else "x" for i in range(length)).split(" ")
    expected = [len(run) for run in expected if len(run) >= least or (run and not matches)]
    assert [end - start for start, end in pieces(length, matches, params)] == expected
    assert not covered & {i for span in pieces(length, matches, params) for i in range(*span)}
