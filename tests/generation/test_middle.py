"""Which order an infill takes, and where one that does not end is truncated."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codellama_jax.generation.middle import better_order, without_ramble


def by_format(psm, spm):
    return {"infilling": {"PSM": psm, "SPM": spm}}


@pytest.mark.parametrize(
    ("probes", "spm", "reason"),
    [
        ({}, False, "the paper's default, as this run has no infilling probes"),
        ({"infilling": {"note": "no held-out document"}}, False, "the paper's default"),
        ({"infilling": [], "infilling_kinds": 5}, False, "the paper's default"),
        (by_format({"exact": 0.0}, {"exact": 0.025}), True, "0.0 % .* PSM order and 2.5 %"),
        (by_format({"exact": 0.5}, {"exact": 0.25}), False, "50.0 % .* PSM order and 25.0 %"),
        (
            by_format({"exact": 0.0, "loss": 4.0}, {"exact": 0.0, "loss": 3.0}),
            True,
            "losses 4.000 and 3.000",
        ),
        (by_format({"exact": 0.1}, {"exact": 0.1}), False, "10.0 %"),
        (
            {
                "infilling_kinds": {
                    "single-line": {"PSM": {"exact": [1.0]}, "SPM": {"exact": [0.0]}}
                }
            },
            False,
            "100.0 % .* PSM order and 0.0 %",
        ),
        ({"infilling_kinds": {"a": {"SPM": {"exact": [1.0]}}}}, False, "the paper's default"),
    ],
)
def test_the_order_follows_the_probes(probes, spm, reason):
    order = better_order(probes)
    assert order.spm is spm
    assert re.search(reason, order.reason), order.reason


@pytest.mark.parametrize(
    ("prefix", "suffix", "middle", "kept"),
    [
        ("f(", ")\n", "a, b)\nf(c", "a, b)"),  # inside a line
        ("f(", ")\n", "a, b", "a, b"),
        ("x = ", "\ny = 1\n", "1\nz = 2\ny = 1\ny = ", "1\nz = 2"),  # reaches the suffix
        ("x = 0\n", "y = 1\n", "a = 1\ny = 1\nb", "a = 1\n"),
        ("def f():\n    return ", "\n\nf()", "1\n\ndef g():\n    re", "1"),  # leaves its block
        ("def f():\n", "\n\nf()", "    x = 1\n    return x\n\ndef g", "    x = 1\n    return x"),
        ("def f():\n    ", "\n", "if x:\n        y\n    z\n    par", "if x:\n        y\n    z"),
        ("", "", "import os\nimport sy", "import os"),
        ("", "", "", ""),
    ],
)
def test_a_ramble_is_truncated(prefix, suffix, middle, kept):
    assert without_ramble(middle, prefix, suffix) == kept


TEXT = st.text(st.sampled_from("ab \n"), max_size=30)


@given(middle=TEXT, prefix=TEXT, suffix=TEXT)
def test_what_is_kept_of_a_growing_text_stays(middle, prefix, suffix):
    before = ""
    for length in range(len(middle) + 1):
        kept = without_ramble(middle[:length], prefix, suffix)
        assert kept.startswith(before)
        assert middle.startswith(kept)
        before = kept
