"""The arithmetic of verdicts, and their section in a report."""

import itertools
import math

import numpy as np
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st

from codellama_jax.errors import UserError
from codellama_jax.report import figures
from codellama_jax.report.findings import (
    Difference,
    Expectation,
    Finding,
    Interval,
    Panel,
    crossing,
    pairs,
    spread,
    write_finding,
)
from codellama_jax.report.page import Page
from codellama_jax.report.results import StageResult, complete

VALUES = st.lists(st.floats(-100, 100), min_size=2, max_size=8)


def test_interval_is_students():
    interval = Interval.of([1.0, 2.0, 3.0])
    assert interval.mean == 2
    assert interval.high - 2 == pytest.approx(
        4.302653 / math.sqrt(3), rel=1e-6
    )  # t of 2 degrees of freedom, two-sided 95 %
    assert Interval.of([5.0]).low == -math.inf


def test_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = [
        (i := Interval.of(rng.normal(0, 1, 3).tolist())).low <= 0 <= i.high for _ in range(2000)
    ]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


@given(VALUES, st.floats(-5, 5))
def test_the_other_direction_is_the_other_verdict(values, bound):
    above, below = (
        Difference("d", "u", values, expected, bound).verdict for expected in ("above", "below")
    )
    assert {above, below} in ({"undecided"}, {"agrees", "disagrees"})


@pytest.mark.parametrize(
    "values, expected, bound, verdict",
    [
        ([1.0, 1.1, 1.2], "above", 0.0, "agrees"),
        ([1.0, 1.1, 1.2], "below", 0.0, "disagrees"),
        ([1.0, 1.1, 1.2], "below", 2.0, "agrees"),
        ([-1.0, 1.1, 1.2], "above", 0.0, "undecided"),
        ([1.0], "above", 0.0, "undecided"),
        ([0.0, 0.0, 0.0], "above", 0.0, "undecided"),
    ],
)
def test_verdict(values, expected, bound, verdict):
    assert Difference("d", "u", values, expected, bound).verdict == verdict


def finding(*values: list[float]) -> Finding:
    panel = Panel(
        "tokens",
        "loss (nats per token)",
        {"a": [[(0, 3.0), (10, 2.0)], [(0, 3.1), (11, 2.1)]], "b": [[(5, 2.5)]]},
    )
    differences = [Difference(f"difference {i}", "nats", v) for i, v in enumerate(values)]
    return Finding(
        "Is it so?",
        ("arm", "loss", "paper"),
        [("a", "2.0", "0.4")],
        [("Loss.", [panel])],
        differences,
        "it is small.",
    )


AGREES, DISAGREES, UNDECIDED = [1.0, 1.1, 1.2], [-1.0, -1.1, -1.2], [-1.0, 1.0, 2.0]


@pytest.mark.parametrize(
    "values, verdict",
    [
        ((AGREES, AGREES), "agrees"),
        ((AGREES, UNDECIDED), "undecided"),
        ((AGREES, UNDECIDED, DISAGREES), "disagrees"),
    ],
)
def test_a_finding_agrees_only_if_all_its_differences_do(values, verdict):
    result = finding(*values)
    assert result.verdict == verdict
    page = Page("t")
    write_finding(page, "e", {"a": [[]]}, lambda results: result)
    text = page.markdown()
    assert verdict.capitalize() in text
    opening = text.partition("| difference")[0]
    for number, value in enumerate(values):  # those that do not agree are named
        assert (f"difference {number}" in opening) == (value is not AGREES)
    assert ("it is small." in text) == (verdict != "agrees")
    assert "+1, +1.1, +1.2" in text and "+0.852 to +1.35" in text  # the seeds and their interval
    assert list(page.images) == ["e-0"]


def test_one_seed_decides_nothing():
    page = Page("t")
    write_finding(page, "e", {"a": [[]]}, lambda results: finding([1.0]))
    assert "Undecided: one seed gives no interval." in page.markdown()
    assert "it is small." not in page.markdown()


def test_a_finding_that_lacks_an_answer_is_a_note():
    def lacking(results):
        raise UserError("code: no document is long enough")

    page = Page("t")
    write_finding(page, "e", {"a": [[]]}, lacking)
    assert "no document is long enough" in page.markdown()
    write_finding(page, "e", {"a": []}, lacking)
    assert "printed here once one seed of every arm has been trained" in page.markdown()


@pytest.mark.parametrize(
    "met, opening", [(True, "Yes: all 2 stat"), (False, "No: 1 of the 2 stat")]
)
def test_expectations_are_counted(met, opening):
    expectations = [
        Expectation("loss at most half", "0.45", True),
        Expectation("some lines exact", "PSM 8", met),
    ]
    page = Page("t")
    write_finding(page, "e", {"a": [[]]}, lambda results: expectations)
    text = page.markdown()
    assert opening in text and "| met | loss at most half | 0.45 |" in text
    assert ("| not met | some lines exact | PSM 8 |" in text) != met


def test_a_finding_that_damaged_probes_break_is_a_note():
    page = Page("t")
    write_finding(page, "e", {"a": [[]]}, lambda results: results["nobody"])
    assert "could not be computed from the run's probes: KeyError" in page.markdown()


def test_only_seeds_of_which_all_is_done_count():
    def result(loss: float, step: int = 10) -> list[StageResult]:
        return [
            StageResult(
                "code",
                toy.stage(),
                [],
                [{"step": step, "validation_loss": loss, "tokens": 5.0}],
                {},
            )
        ]

    results = {
        "a": [result(1.0), result(2.0), result(3.0)],
        "b": [result(4.0), result(5.0, step=9), result(6.0)],
    }
    finished = complete(results)
    assert list(finished) == ["a", "b"]
    assert [chain[-1].loss for chain in finished["a"]] == [1.0, 3.0]
    assert [chain[-1].loss for chain in finished["b"]] == [4.0, 6.0]
    assert complete({"a": [], "b": []}) == {"a": [], "b": []}


def test_a_probe_without_an_answer_says_why():
    result = StageResult(
        "code", toy.stage(), [], [], {"perplexity": {"note": "no document is long enough"}}
    )
    with pytest.raises(UserError, match="code: no document is long enough"):
        result.probe("perplexity")
    with pytest.raises(UserError, match="code: infilling was not measured"):
        result.probe("infilling")


def test_crossing_lies_on_the_curve():
    curve = [(0.0, 4.0), (10.0, 3.0), (20.0, 2.0)]
    assert [crossing(curve, level) for level in (3.5, 3.0, 2.25, 1.0)] == [5.0, 10.0, 17.5, 20.0]
    assert crossing([(0.0, 1.0), (10.0, 0.5)], 2.0) == 0.0  # below it from the start
    assert crossing([(0.0, 1.0), (10.0, 3.0), (20.0, 1.0)], 2.0) == 0.0  # and above it later


def test_table_cells():
    assert pairs([3.0, 2.0], [1.0, 1.0]) == [2.0, 1.0]
    assert spread([1.0, 2.0]) == "1.500 (1.000 to 2.000)"
    assert spread([0.5], ".0%") == "50%"


def test_the_mean_of_seeds_of_different_length_is_of_all_seeds():
    """As in the report of a run whose last seed has just begun."""
    seeds = [[(0.0, 4.0), (1.0, 2.0)], [(0.0, 4.0), (1.0, 2.0)], [(0.0, 1.0)]]
    figure = figures._panels([Panel("x", "y", {"arm": seeds})])
    *_, mean = figure.axes[0].lines
    assert mean.get_xydata().tolist() == [[0.0, 3.0]]


def xs_of(panel: Panel) -> list[float]:
    """Returns where the mean of each line is drawn along x."""
    seeds = len(next(iter(panel.lines.values())))
    means = figures._panels([panel]).axes[0].lines[seeds :: seeds + 1]
    return [pytest.approx(x) for mean in means for x in mean.get_xdata()]


def test_dots_are_around_the_tick_of_their_category():
    alone = {"without": [[(0.0, 0.3)]], "with": [[(1.0, 0.4)]]}
    assert xs_of(Panel("arm", "share", alone, tuple(alone))) == [0.0, 1.0]
    # The third line has a dot in the second category only.
    lines = {"a": [[(0.0, 1.0), (1.0, 1.0)]], "b": [[(0.0, 2.0), (1.0, 2.0)]], "c": [[(1.0, 3.0)]]}
    step = 0.8 / 3
    expected = [-step / 2, 1 - step, step / 2, 1.0, 1 + step]
    assert xs_of(Panel("middle", "loss", lines, ("single-line", "multi-line"))) == expected


def test_the_mean_of_a_category_is_of_the_seeds_that_have_it():
    seeds = [[(0.0, 1.0), (1.0, 2.0)], [(1.0, 4.0)]]
    figure = figures._panels([Panel("arm", "share", {"a": seeds}, ("none", "all"))])
    *_, mean = figure.axes[0].lines
    assert mean.get_xydata().tolist() == [[0.0, 1.0], [1.0, 3.0]]
    assert not figures._panels([Panel("arm", "share", {}, ("none",))]).axes[0].lines


def test_labels_along_x_do_not_touch():
    """Numbers of several digits, and names of arms."""
    names = ("rrtf_18k", "rrtf_38k", "rrtf_68k", "rrtf_mean_68k", "sft_68k")
    arms = {name: [[(float(x), 0.1)]] for x, name in enumerate(names)}
    numbers = {"PSM": [[(1.93e6, 0.1), (3.86e6, 0.2)]]}
    for panel in (Panel("arm", "y", arms, names), Panel("tokens", "y", numbers)):
        figure = figures.in_style(figures._panels)([panel])
        figure.draw_without_rendering()
        labels = [label for label in figure.axes[0].get_xticklabels() if label.get_text()]
        boxes = [label.get_window_extent() for label in labels]
        assert len(boxes) >= 3
        # Half an em of space between two of them: the letters have 10 points.
        for left, right in itertools.pairwise(boxes):
            assert right.x0 - left.x1 >= 5 / 72 * figure.dpi


def test_nine_lines_have_different_colors():
    lines = {f"line {n}": [[(0.0, float(n)), (1.0, 0.0)]] for n in range(9)}
    drawn = figures._panels([Panel("x", "y", lines)]).axes[0].get_legend_handles_labels()[0]
    assert len({line.get_color() for line in drawn}) == 9
