"""The rules of prose and density that a program can check; tools/style.py finds the places."""

import pytest
from paths import ROOT

from tools import style

LIBRARY = style.CODE
WHATS = 2.0  # "what ..." per 1,000 words of docstrings: "the tokens" is clearer than "what is read"
COMPREHENSIONS = 30  # per 1,000 lines


def listed(places) -> str:
    """Returns one line per place, as `python -m tools.style` prints them."""
    return "\n".join(f"{name}:{line}: {text}: {fix}" for name, line, text, fix in places)


@pytest.fixture(scope="module")
def library():
    return style.measure_files(style.python_files(LIBRARY))


@pytest.mark.parametrize("kind", ["words", "undocumented", "names", "nested"])
def test_no_place_of_the_library_breaks_a_rule(library, kind):
    assert not getattr(library, kind), listed(getattr(library, kind))


def test_the_density_of_the_library(library):
    assert library.long_lines == 0
    assert 1_000 * library.whats / library.docstring_words < WHATS
    assert 1_000 * library.comprehensions / library.lines <= COMPREHENSIONS


@pytest.mark.parametrize("page", style.pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_use_the_terms_of_the_field(page):
    assert not style.measure_page(page), listed(style.measure_page(page))


@pytest.mark.parametrize(
    "text, word",
    [
        ("the tensor is cut", "cut"),
        ("as the user said", "said"),
        ("this hangs on the seed", "hangs on"),
        ("nats a token", "nats a token"),
        ("a whole array", "whole"),
    ],
)
def test_a_listed_word_is_found_in_every_kind_of_text(tmp_path, text, word):
    file = tmp_path / "module.py"
    file.write_text(f'"""{text}"""\n# {text}\nMESSAGE = f"{text} {{0}}"\n')
    places = style.measure_files([file], tmp_path).words
    assert [line for _, line, found, _ in places if found == word] == [2, 1, 3]


def test_a_listed_phrase_is_found_over_a_line_break(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        '"""A folder of\n    its own."""\nx = 1\n# It is `a\n# b`, which hangs\n# on the seed.\n'
    )
    places = style.measure_files([file], tmp_path).words
    # A comment is listed by the line on which the phrase begins, a string by its first one.
    assert [place[1:3] for place in places] == [(5, "hangs on"), (1, "of its own")]
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n```\nof\nits own\n```\n\nA folder of\nits own.\nof\n\nits own\n")
    assert [place[1:3] for place in style.measure_page(page, tmp_path)] == [(8, "of its own")]


@pytest.mark.parametrize(
    "text",
    [
        "x = 1  # one of\ny = 2  # its own",
        "x = 1  # one of\n# its own",
        "# one of\n\n# its own",
        "# one of\nx = 1\n# its own",
    ],
)
def test_separate_comments_are_separate_texts(tmp_path, text):
    file = tmp_path / "module.py"
    file.write_text(f"{text}\n")
    assert not style.measure_files([file], tmp_path).words


@pytest.mark.parametrize(
    "text", ["a whole number", "a dot\n    product", "a dot product", "stands for", "`cut` it"]
)
def test_the_right_sense_of_a_word_is_no_place(text):
    assert not list(style.words_of(text))


def test_every_kind_of_place_is_found(tmp_path):
    file = tmp_path / "module.py"
    lines = [
        '"""Module."""',
        "def f():",
        "    found = [[x for x in y] for y in z]",
        "    return found",
    ]
    file.write_text("\n".join(lines) + "\n")
    measure = style.measure_files([file], tmp_path)
    assert [place[1:3] for place in measure.places] == [
        (2, "f"),
        (3, "comprehension in another"),
        (3, "found"),
    ]


def test_a_method_documented_in_its_base_needs_no_docstring(tmp_path):
    file = tmp_path / "module.py"
    base = '"""M."""\nclass Base:\n    """B."""\n    def f(self):\n        """F."""\n'
    file.write_text(base + 'class Child(Base):\n    """C."""\n    def f(self):\n        pass\n')
    assert not style.measure_files([file], tmp_path).undocumented
