"""Where a middle ends before EOT, and how much of it may be shown before."""

import pytest

from codellama_jax.serving.ends import CursorEnds

PREFIX, SUFFIX = "def f(x):\n    if x:\n        y = ", "\n    return y\n"


def ends(at_dedent=True, at_repetition=True, indentation=0, prefix=PREFIX, suffix=SUFFIX):
    return CursorEnds.around(prefix, suffix, at_dedent, at_repetition, indentation)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("1", "1"),
        ("1\n        z = 2\n", "1\n        z = 2\n"),
        ("1\n    return y\n", "1"),
        ("1\n\n\n    z = 3", "1"),
        ("1\n\n        z = 3\nclass", "1\n\n        z = 3"),
        ("1\n        return y\n", "1"),
        ("1\n        return yes\n", "1\n        return yes\n"),
        ("1\n   ", "1\n   "),
    ],
)
def test_a_dedent_and_a_repetition_end_it(text, kept):
    assert ends().truncate(text) == kept


def test_a_repetition_at_the_very_end_is_left_out():
    repeated = "1\n        return y"
    assert ends().truncate(repeated) == repeated
    assert ends().final(repeated) == "1"


def test_each_rule_alone_and_none():
    assert ends(False, False) is None
    assert ends(True, False).final("1\n        return y") == "1\n        return y"
    assert ends(False, True).final("1\nx") == "1\nx"
    assert ends(False, False, 4).final("1\n    x\n  y") == "1\n    x"
    # The cursor is in an empty line right before the line that must not be repeated.
    before = ends(False, True, prefix="a\n", suffix="b\nc\n")
    assert before.final("x\nb") == "x\n"
    assert ends(True, True, prefix="", suffix="") is None


@pytest.mark.parametrize(
    "text", ["1\n        z\n\n    return", "1\n        return y\n x", "a\nb\n"]
)
def test_what_is_shown_is_never_taken_back(text):
    rules, shown = ends(), ""
    for end in range(len(text) + 1):
        now = rules.shown(text[:end])
        assert now.startswith(shown)
        shown = now
        assert rules.truncate(text).startswith(shown) and rules.final(text).startswith(shown)
