"""A plan never truncates its numbers, however narrow the terminal."""

import io

import pytest
from rich.console import Console

from codellama_jax.report import plan
from codellama_jax.runs.commands import PlanOptions, load_experiment

CELLS = ("1,024 x 4,096", "119,209", "0.0003 -> 1e-05", "6.74B", "2.14e+22", "80.9GB", "500B")


@pytest.mark.parametrize("width", [250, 120, 80, 60, 40])
def test_numbers_are_complete_at_every_width(width, monkeypatch):
    output = io.StringIO()
    console = Console(file=output, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(plan, "Console", lambda **kwargs: console)
    experiment, _ = load_experiment(PlanOptions("long_context_cost", "7b"))
    plan.print_plan(experiment, "Claim")
    text = output.getvalue()
    assert "…" not in text
    for cell in CELLS:
        assert cell in text, (width, cell)
    assert max(map(len, text.splitlines())) <= max(width, 80)


@pytest.mark.parametrize(
    "number, text",
    [(0, "0"), (999, "999"), (1000, "1k"), (6.74e9, "6.74B"), (5e11, "500B"), (2.1e12, "2.1T")],
)
def test_short(number, text):
    assert plan.short(number) == text


def test_a_number_beyond_the_units_keeps_its_size():
    assert plan.short(10**18) == "1e+18" and plan.short(10**300) == "1e+300"
