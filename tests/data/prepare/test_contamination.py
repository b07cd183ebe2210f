"""The published rules on planted copies: which of them finds a copy that was changed how."""

import re

import hypothesis
import hypothesis.strategies as st
import pytest

from codellama_jax.checked import FieldError
from codellama_jax.data.prepare.contamination.index import (
    BenchmarkText,
    Decontamination,
    Index,
    find,
    needle,
)

ALL = Decontamination(substring=True, ngrams=True, tokens=True)
PROMPT = '''def bounded_sum(numbers, lowest, highest):
    """Return the sum of the numbers between the lowest and the highest bound, both included.
    >>> bounded_sum([1, 5, 9], 2, 9)
    14
    """
'''
SOLUTION = """    total = 0
    for number in numbers:
        if lowest <= number <= highest:
            total += number
    return total
"""
TEXTS = [
    BenchmarkText("humaneval", "HumanEval/0", "prompt", PROMPT),
    BenchmarkText("humaneval", "HumanEval/0", "solution", SOLUTION),
    BenchmarkText("humaneval", "HumanEval/1", "solution", "    return ''.join(strings)\n"),
]
BEFORE = "import os\n\n\ndef first(values):\n    return values[0]\n\n\n"
AFTER = "\n\ndef last(values):\n    return values[-1]\n"


@pytest.fixture(scope="module")
def index():
    return Index.build(TEXTS, ALL)


def renamed(text: str) -> str:
    """Returns a text with other names of the solution's variables."""
    for name in ("numbers", "number", "total", "lowest", "highest"):
        text = re.sub(rf"\b{name}\b", name[::-1], text)
    return text


def rules(text: str, index: Index) -> set[str]:
    return {span.rule for span in find(text, index)}


def test_a_copy_is_found_by_every_rule_at_its_place(index):
    text = BEFORE + PROMPT + SOLUTION + AFTER
    spans = {(span.rule, span.kind): span for span in find(text, index)}
    assert {rule for rule, _ in spans} == {"substring", "ngrams", "tokens"}
    for kind, planted in (("prompt", PROMPT), ("solution", SOLUTION)):
        span = spans["substring", kind]
        assert text[span.start : span.end] == planted.strip()
        assert (span.benchmark, span.task) == ("humaneval", "HumanEval/0")
    # Runs of grams, from the first word to the last.
    grams = spans["ngrams", "prompt"]
    assert text[grams.start : grams.end] == PROMPT[: PROMPT.index("14") + 2]
    grams = spans["ngrams", "solution"]
    assert text[grams.start : grams.end] == SOLUTION.strip()
    tokens = spans["tokens", "solution"]
    assert (tokens.first, tokens.last) == (0, 23)


def test_the_case_of_letters_does_not_matter(index):
    assert rules(BEFORE + SOLUTION.upper(), index) == {"substring", "ngrams"}


def test_characters_outside_ascii_before_a_match_do_not_move_it(index):
    text = "# é𝄞 ü\n" + SOLUTION
    for span in find(text, index):
        assert text[span.start : span.end] in SOLUTION
        assert text[span.start :].startswith("total = 0")


@pytest.mark.parametrize(
    "copy, expected",
    [
        (SOLUTION.replace("    ", "\t"), {"ngrams", "tokens"}),
        (SOLUTION.replace("\n", "\r\n"), {"ngrams", "tokens"}),
        # The tokens before and between the changed operators are fewer than 11.
        (SOLUTION.replace("=", "<"), {"ngrams"}),
        # Every 13-gram and every 11 tokens now hold a word of the comments.
        (SOLUTION.replace(":\n", ":  # why\n"), set()),
    ],
    ids=["tabs", "windows", "operators", "comments"],
)
def test_which_rules_find_a_copy_that_is_formatted_otherwise(index, copy, expected):
    assert rules(BEFORE + copy + AFTER, index) == expected


def test_no_rule_finds_a_solution_with_other_names(index):
    assert not rules(BEFORE + renamed(SOLUTION) + AFTER, index)


def test_short_texts_are_no_needles(index):
    # BigCode's four exceptions among HumanEval's canonical solutions.
    for solution in ("return x + y", "return n**2", "return len(string)", TEXTS[2].text):
        assert not needle(solution, ALL)
    assert needle("    return abs(a % 10) * abs(b % 10)\n", ALL)
    assert not rules("def join(strings):\n    return ''.join(strings)\n", index)


def test_docstrings_are_needles_only():
    docstring = BenchmarkText("humaneval", "HumanEval/0", "docstring", PROMPT.split('"""')[1])
    index = Index.build([docstring], ALL)
    assert rules(PROMPT, index) == {"substring"}


@pytest.mark.parametrize(
    "document, is_found",
    [
        (PROMPT + SOLUTION, True),
        # Other names, but the docstring is kept.
        (PROMPT + renamed(SOLUTION), True),
        (SOLUTION, True),
        (renamed(SOLUTION), False),
        (BEFORE + SOLUTION + AFTER * 2 + " ".join(f"word{n}" for n in range(99)), False),
        ("", False),
    ],
)
def test_documents_with_the_words_of_a_task_are_similar(document, is_found):
    index = Index.build(TEXTS, Decontamination(similarity=True))
    spans = find(document, index)
    assert len(spans) == is_found
    for span in spans:
        assert (span.start, span.end, span.rule) == (0, len(document), "similarity")
        assert span.task == "HumanEval/0"


def test_rules_that_are_off_find_nothing():
    text = PROMPT + SOLUTION
    for rule in ("substring", "similarity", "ngrams", "tokens"):
        index = Index.build(TEXTS, Decontamination(**{rule: True}))
        assert rules(text, index) == {rule}
    assert not rules(text, Index.build(TEXTS, Decontamination()))
    assert not Decontamination().enabled and ALL.enabled
    assert not rules(text, Index.build([], ALL))


def test_the_index_does_not_depend_on_the_order_of_texts(index):
    text = BEFORE + PROMPT + SOLUTION
    other = Index.build(reversed(TEXTS + TEXTS), ALL)
    assert other.texts == index.texts
    assert find(text, other) == find(text, index)


def test_a_run_of_one_word_is_found_in_bounded_time(index):
    dashes = BenchmarkText("b", "0", "prompt", "- " * 500 + "word " * 500)
    index = Index.build([dashes], ALL)
    spans = find("- " * 20_000 + "word " * 20_000, index)
    # The text itself, its words, and the run of its tokens.
    assert [span.rule for span in spans] == ["substring", "ngrams", "tokens"]


@hypothesis.given(st.text(), st.text(st.sampled_from("ab \n.é"), min_size=30, max_size=300))
@hypothesis.settings(max_examples=100, deadline=None)
def test_a_planted_text_is_found_and_positions_are_in_the_document(before, planted):
    index = Index.build([BenchmarkText("b", "0", "solution", planted)], ALL)
    document = before + planted
    spans = find(document, index)
    for span in spans:
        assert 0 <= span.start < span.end <= len(document)
    is_long = len("".join(planted.split())) >= ALL.min_substring
    assert any(span.rule == "substring" for span in spans) == is_long


def test_parameters_are_checked():
    with pytest.raises(FieldError, match="min_substring is 8: it must be at least 16"):
        Decontamination(min_substring=8)
    with pytest.raises(FieldError, match="ngram is 1: it must be at least 2"):
        Decontamination(ngram=1)
