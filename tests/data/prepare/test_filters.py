"""The rules one by one, in their order, on any text and in bounded time."""

import random
import time

import hypothesis
import hypothesis.strategies as st
import planted_files
import pytest

from codellama_jax.data import sources
from codellama_jax.data.prepare import comments, filters
from codellama_jax.data.prepare.policies import POLICIES, ExtensionRules, Policy
from codellama_jax.data.prepare.records import Dropped, Record

CODE = planted_files.PYTHON
CHEAP = Policy(
    marker_lines=10,
    min_bytes=1,
    max_bytes=2**40,
    min_lines=1,
    max_line=2**40,
    max_mean_line=2**40,
    min_alphanumeric=1e-9,
    min_alphabetic=1e-9,
    min_letters=1e-9,
    drop_xml=True,
    min_html_share=1e-9,
    min_data_characters=1,
)
CONTENTS = Policy(python3=True, min_comments=1e-9, min_fertility={"Python": 1e-9})


def outcome(policy, text=CODE, path="a.py", language="Python", count_tokens=None, **fields):
    """Returns the reason why a policy drops a document, "" if it keeps it."""
    record = Record("id", text, path, language, **fields)
    result = filters.apply(record, policy, count_tokens, language_of=lambda path, text: "")
    return result.reason if isinstance(result, Dropped) else ""


def test_a_kept_record_is_unchanged_but_for_its_language():
    record = Record("id", CODE, "a.py", license="mit")
    result = filters.apply(record, Policy(), language_of=lambda path, text: "Python")
    assert result == record._replace(language="Python")
    known = record._replace(language="Cython")
    assert filters.apply(known, Policy(), language_of=lambda path, text: "Python") == known


def test_a_dropped_record_has_its_length_and_language():
    record = Record("id", CODE, "a.py", "Python")
    result = filters.apply(record, Policy(max_bytes=10))
    assert result == Dropped("id", "too_large", len(CODE), "Python")
    assert outcome(Policy(), " \n\t") == outcome(Policy(), "") == "empty"


def test_the_order_of_the_rules():
    text = "\n".join(["# @generated", "x" * 2000, "0" * 2000])
    policy = Policy(languages=("C",), min_stars=5, marker_lines=1, max_bytes=9, max_line=9)
    assert outcome(policy, text, stars=1) == "language"
    assert outcome(policy, text, language="C", stars=1) == "stars"
    assert outcome(policy, text, language="C") == "generated"
    assert outcome(policy, text[13:], language="C") == "too_large"
    assert outcome(Policy(max_line=9, min_letters=0.9), text) == "long_line"


def test_metadata():
    assert outcome(Policy(languages=("Python",)), language="") == "language"
    assert outcome(Policy(excluded_names=("*_PB2.py",)), path="a/b_pb2.py") == "file_name"
    assert outcome(Policy(excluded_names=("a.py",)), path="a.py/b.py") == ""
    assert outcome(Policy(min_stars=5), stars=4) == "stars"
    assert outcome(Policy(min_stars=5)) == outcome(Policy(min_stars=5), stars=5) == ""
    assert outcome(Policy(unknown_license=False)) == "unknown_license"


@pytest.mark.parametrize(
    ("license", "reason"),
    [
        ("mit", ""),
        ("MIT", ""),
        ("gpl-3.0", "license"),
        ("gpl-3.0 or mit", ""),
        ("(mit OR gpl-3.0)", ""),
        ("mit and gpl-3.0", "license"),
        ("mit and isc", ""),
        ("mit, isc", ""),
        ("mit, gpl-3.0", "license"),
        (" or ", "license"),
    ],
)
def test_licenses(license, reason):
    assert outcome(Policy(licenses=("mit", "isc")), license=license) == reason


def test_sizes_count_bytes_and_bounds_are_inclusive():
    assert outcome(Policy(max_bytes=6), "äöü") == ""
    assert outcome(Policy(max_bytes=5), "äöü") == "too_large"
    assert outcome(Policy(min_bytes=6), "äöü") == ""
    assert outcome(Policy(min_bytes=7), "äöü") == "too_small"
    assert outcome(Policy(min_lines=2), "a\nb") == ""
    assert outcome(Policy(min_lines=3), "a\nb") == "few_lines"
    assert outcome(Policy(max_line=3), "abc\nabc") == ""
    assert outcome(Policy(max_line=2), "abc\nabc") == "long_line"
    assert outcome(Policy(max_mean_line=4), "abc\nabc\n") == ""
    assert outcome(Policy(max_mean_line=3), "abc\nabc\n") == "mean_line"


def test_shares_of_characters():
    assert filters.alphanumeric_share("ab1 ") == 0.75
    assert filters.alphabetic_share("ab1 ") == 0.5
    assert filters.alphabetic_share("字é٣!") == 0.5  # the third is a digit
    assert filters.alphanumeric_share("字é٣!") == 0.75
    assert filters.alphabetic_share("") == 0
    assert outcome(Policy(min_alphanumeric=0.75), "ab1 ") == ""
    assert outcome(Policy(min_alphanumeric=0.76), "ab1 ") == "alphanumeric"
    assert outcome(Policy(min_alphabetic=0.51), "ab1 ") == "alphabetic"
    assert outcome(Policy(min_letters=0.4), "ab 123") == ""
    assert outcome(Policy(min_letters=0.41), "ab 123") == "letters"


@hypothesis.given(st.text())
def test_shares_are_those_of_the_definition(text):
    n = max(len(text), 1)
    assert filters.alphanumeric_share(text) == sum(map(str.isalnum, text)) / n
    assert filters.alphabetic_share(text) == sum(map(str.isalpha, text)) / n


def test_bounds_of_an_extension_replace_those_of_the_policy():
    rules = {".md": ExtensionRules(max_line=0), ".y": ExtensionRules(min_alphabetic=0.9)}
    policy = Policy(max_line=3, extensions=rules)
    assert outcome(policy, "words", "a.md") == ""
    assert outcome(policy, "words", "a.MD") == ""
    assert outcome(policy, "words", "md") == "long_line"
    assert outcome(policy, "a1", "a.y") == "alphabetic"
    assert outcome(policy, "a1", "a.py") == ""


def test_xml_counts_in_the_first_100_characters():
    xml = '<?xml version="1.0"?>'
    assert outcome(Policy(drop_xml=True), xml + CODE) == "xml"
    assert outcome(Policy(drop_xml=True), " " * 87 + xml) == ""
    assert outcome(Policy(drop_xml=True), " " * 86 + xml) == "xml"


@pytest.mark.parametrize(
    ("source", "visible"),
    [
        ("<p>a</p>b", "ab"),
        ("a<!-- <p>hidden</p> -->b", "ab"),
        ("a<script>x < 1</script>b<style>p {}</style>c", "abc"),
        ("a<SCRIPT type='x'>y</Script >b", "ab"),
        ("1 < 2 &amp; 3 > 2", "1 < 2 & 3 > 2"),
        ("<!DOCTYPE html>a<br/>b", "ab"),
        ("a<script>never closed", "a"),
        ("a<!-- never closed", "a"),
        ("a<p never closed", "a"),
        ("a</script>b", "ab"),
        ("<", "<"),
    ],
)
def test_visible_text_of_html(source, visible):
    assert filters.visible_html(source) == visible


def test_html_and_data_files():
    policy = Policy(min_html_share=0.2, min_html_characters=10)
    assert outcome(policy, "<p>" + "a" * 11, language="HTML") == ""
    assert outcome(policy, "<p>" + "a" * 10, language="HTML") == "html"
    assert outcome(policy, "<p " + "b" * 99 + ">" + "a" * 20, language="HTML") == "html"
    assert outcome(policy, "<p>", language="XML") == ""
    policy = Policy(min_data_characters=5, max_data_characters=8)
    assert outcome(policy, '{"a":1}', language="JSON") == ""
    assert outcome(policy, "a: b", language="YAML") == "data_size"
    assert outcome(policy, '{"a":1234}', language="JSON") == "data_size"
    assert outcome(policy, "a" * 100) == ""


@pytest.mark.parametrize(
    ("text", "parses"),
    [
        (CODE, True),
        ("\ufeffx = 1\n", True),
        ("x = 1\r\ny = 2\r\n", True),
        ("größe = '\\d'\n", True),
        ("print 1\n", False),
        ("x = 1\0\n", False),
        ("x = " + "(" * 1000 + ")" * 1000, False),
        ("x = " + "-" * 100_000 + "1", False),
        ("x" + ".y" * 100_000, False),
        ("\ud800", False),
    ],
)
def test_python3(text, parses):
    assert comments.is_python3(text) is parses
    assert outcome(Policy(python3=True), text) == ("" if parses else "not_python3")
    assert outcome(Policy(python3=True), text, language="C") == ""


def test_comments():
    python = '"""Doc."""\nx = "# no"  # yes\n'
    assert comments.comment_share(python, "Python") == (4 + 4) / len(python)
    java = "/* a */ int x; // b\n"
    assert comments.comment_share(java, "Java") == pytest.approx(11 / len(java), abs=1 / len(java))
    assert comments.comment_share("#include <a>\nint x;\n", "C") == 0
    assert comments.comment_share("x", "No language") is None
    assert comments.comment_share("x = (  # a\n", "Python") == 2 / 11
    policy = Policy(min_comments=0.01, max_comments=0.8)
    assert outcome(policy) == outcome(policy, "x", language="No language") == ""
    assert outcome(policy, "x = 1\n" * 20) == "few_comments"
    assert outcome(policy, "# many words in a comment\n" * 20) == "many_comments"


def test_fertility_needs_a_tokenizer():
    policy = Policy(min_fertility={"Python": 2.5})
    assert outcome(policy, "a" * 10) == ""
    assert outcome(policy, "a" * 10, count_tokens=lambda text: 4) == ""
    assert outcome(policy, "a" * 10, count_tokens=lambda text: 5) == "fertility"
    assert outcome(policy, "a" * 10, language="C", count_tokens=lambda text: 5) == ""


any_text = st.one_of(
    st.text(),
    st.text(st.characters(exclude_categories=())),
    st.lists(
        st.sampled_from(
            ["def f():", "\n", "  ", "'", '"""', "#", "<", ">", "<!--", "\\", "\0", "("]
        )
    ).map("".join),
)


@hypothesis.settings(suppress_health_check=[hypothesis.HealthCheck.too_slow])
@hypothesis.given(any_text, st.sampled_from(["Python", "HTML", "JSON", "C", "JavaScript", ""]))
def test_no_rule_raises(text, language):
    for policy in (*POLICIES.values(), CHEAP, CONTENTS):
        assert isinstance(outcome(policy, text, language=language, count_tokens=len), str)


LONG = 1_000_000
HARD_TEXTS = {
    "one line": "a" * LONG,
    "one line of code": "x = [" + "1, " * (LONG // 6) + "]",
    "tags": "<a " * (LONG // 3),
    "brackets": "<" * LONG,
    "comments": "<!--" * (LONG // 4),
    "scripts": "<script>" * (LONG // 8),
    "quotes": "'\\" * (LONG // 2),
    "escaped quotes": "\\'" * (LONG // 2),
    "short lines of quotes": ("\\'" * 499 + "\n") * (LONG // 999),
    "open brackets": "(" * LONG,
    "markers": "generated by " * (LONG // 13),
    "one marker": "generated by " + "x" * LONG,
    "new lines": "\n" * LONG + "x",
    "random": "".join(map(chr, random.Random(0).choices(range(1, 0xD800), k=LONG))),
}


@pytest.mark.parametrize("name", HARD_TEXTS)
@pytest.mark.parametrize("language", ["Python", "HTML"])
def test_time_is_bounded(name, language):
    start = time.process_time()
    outcome(CHEAP, HARD_TEXTS[name], language=language)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("name", HARD_TEXTS)
@pytest.mark.parametrize("language", ["Python", "JavaScript"])
def test_time_of_parsers_is_bounded(name, language):
    # Python's parser takes most of a second for 100 kB on one line.
    start = time.process_time()
    outcome(CONTENTS, HARD_TEXTS[name][:100_000], language=language, count_tokens=len)
    assert time.process_time() - start < 1


lines = st.lists(
    st.one_of(
        st.text(max_size=30),
        st.sampled_from(["# do not edit", "x" * 1000, "y" * 1001, "0123, " * 40, "word " * 25]),
    ),
    max_size=14,
)


@hypothesis.given(lines, st.sampled_from(["\n", "\r\n", "\x0c", "\u2028"]))
def test_code_llama_drops_what_the_default_corpus_drops(some_lines, separator):
    text = separator.join(some_lines)
    expected = not text.strip() or sources.why_generated(text) != ""
    assert (outcome(POLICIES["code_llama"], text) != "") is expected
